#include "cli/client.h"

#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "common/listen_address.h"
#include "common/tls/cluster_ca.h"

namespace ferry {
namespace {

constexpr int kMaxMessageBytes = 64 << 20;
constexpr absl::Duration kPoll = absl::Milliseconds(100);
constexpr absl::Duration kConnectTimeout = absl::Seconds(5);
// A coordinator whose host has gone says nothing any more, and a request has no deadline of its own.
// FERRY_API_KEY: sent with every call. FERRY_TLS_CA: PEM file; the connection is TLS, and the server's certificate of this CA.
constexpr char kApiKeyVariable[] = "FERRY_API_KEY", kTlsCaVariable[] = "FERRY_TLS_CA";
constexpr int kKeepaliveMs = 10000, kKeepaliveTimeoutMs = 5000;

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

std::chrono::system_clock::time_point Deadline(absl::Duration timeout) { return absl::ToChronoTime(absl::Now() + timeout); }

// The key with which this command calls, as `ferry api-key` printed it: from the environment, since others see command lines.
void AddKey(grpc::ClientContext* context) {
  const char* const key = std::getenv(kApiKeyVariable);
  if (key != nullptr && key[0] != '\0') context->AddMetadata("authorization", absl::StrFormat("Bearer %s", key));
}

// "experts 43 %, 5.1 GB/s, 12 s left" on one line that overwrites itself.
class ProgressLine {
 public:
  ProgressLine() : terminal_(isatty(STDERR_FILENO) != 0), started_(absl::Now()) {}
  ~ProgressLine() {
    if (drawn_) std::fprintf(stderr, "\r\033[K");
  }
  void Draw(const proto::GetServerInfoResponse& info) {
    if (!terminal_) return;
    const double progress = info.load_progress();
    int ready = 0;
    for (const proto::WorkerInfo& worker : info.workers()) ready += worker.state() == "ready" ? 1 : 0;
    std::string line = absl::StrFormat("loading experts %3.0f %% of %s", 100 * progress, HumanBytes(info.arena_bytes()));
    const double elapsed = absl::ToDoubleSeconds(absl::Now() - started_);
    if (progress > 0.02 && progress < 1 && elapsed > 0.5) {
      absl::StrAppendFormat(&line, ", %s, %.0f s left", HumanRate(progress * info.arena_bytes() / elapsed),
                            elapsed * (1 - progress) / progress);
    }
    absl::StrAppendFormat(&line, "; %d of %d workers ready", ready, info.workers_size());
    std::fprintf(stderr, "\r\033[K%s", line.c_str());
    std::fflush(stderr);
    drawn_ = true;
  }

 private:
  const bool terminal_;
  const absl::Time started_;
  bool drawn_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Client>> Client::Connect(const std::string& server, const ModelOptions& options) {
  std::unique_ptr<Supervisor> supervisor;
  if (server.empty()) {
    ASSIGN_OR_RETURN(supervisor, Supervisor::Start(options));
  }
  ASSIGN_OR_RETURN(std::unique_ptr<Client> client, Attach(server.empty() ? supervisor->address() : server));
  client->supervisor_ = std::move(supervisor);
  RETURN_IF_ERROR(client->WaitUntilServed());
  return client;
}

absl::StatusOr<std::unique_ptr<Client>> Client::Attach(const std::string& server) {
  ASSIGN_OR_RETURN(const ListenAddress address, ParseListenAddress(server, kCoordinatorPort));
  std::unique_ptr<Client> client(new Client);
  client->address_ = address.ToString();
  std::shared_ptr<grpc::ChannelCredentials> credentials = grpc::InsecureChannelCredentials();
  if (const char* const ca = std::getenv(kTlsCaVariable); ca != nullptr && ca[0] != '\0') {
    const absl::StatusOr<std::string> pem = ReadSmallFile(ca);
    RETURN_IF_ERROR(Annotate(pem.status(), kTlsCaVariable));
    credentials = grpc::SslCredentials({.pem_root_certs = *pem});
  }
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetMaxSendMessageSize(kMaxMessageBytes);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  client->stub_ = proto::Ferry::NewStub(grpc::CreateCustomChannel(client->address_, credentials, arguments));
  return client;
}

Client::~Client() {
  if (supervisor_ != nullptr) supervisor_->Stop(absl::Seconds(3));
}

absl::Status Client::WaitUntilServed() {
  ProgressLine line;
  absl::Time last_answer = absl::Now();
  while (true) {
    if (supervisor_ != nullptr) RETURN_IF_ERROR(supervisor_->Health());
    const absl::StatusOr<proto::GetServerInfoResponse> info = ServerInfo(absl::Seconds(2));
    if (info.ok()) {
      last_answer = absl::Now();
      if (info->state() == "serving") return absl::OkStatus();
      line.Draw(*info);
    } else if (absl::IsUnauthenticated(info.status())) {
      return absl::UnauthenticatedError(absl::StrFormat("%s; set FERRY_API_KEY", info.status().message()));
    } else if (absl::Now() - last_answer > kConnectTimeout) {
      return Unavailable("no answer from a Ferry coordinator at %s (it listens on loopback unless it was given --listen): %s",
                         address_, info.status().message());
    }
    absl::SleepFor(kPoll);
  }
}

absl::StatusOr<proto::Finish> Client::Generate(const proto::GenerateRequest& request,
                                               const std::function<bool(const proto::GenerateResponse&)>& on_message) {
  grpc::ClientContext context;
  AddKey(&context);
  {
    const std::lock_guard lock(mutex_);
    running_ = &context;
  }
  const std::unique_ptr<grpc::ClientReader<proto::GenerateResponse>> reader = stub_->Generate(&context, request);
  proto::GenerateResponse response;
  absl::StatusOr<proto::Finish> finish = Internal("the stream ended without a finish");
  while (reader->Read(&response)) {
    if (response.has_finish()) finish = response.finish();
    if (!on_message(response)) context.TryCancel();
  }
  const grpc::Status status = reader->Finish();
  {
    const std::lock_guard lock(mutex_);
    running_ = nullptr;
  }
  RETURN_IF_ERROR(FromGrpc(status));
  return finish;
}

absl::StatusOr<proto::GetModelInfoResponse> Client::ModelInfo() {
  grpc::ClientContext context;
  AddKey(&context);
  context.set_deadline(Deadline(absl::Seconds(10)));
  proto::GetModelInfoResponse response;
  RETURN_IF_ERROR(FromGrpc(stub_->GetModelInfo(&context, {}, &response)));
  return response;
}

absl::StatusOr<proto::GetServerInfoResponse> Client::ServerInfo(absl::Duration timeout) {
  grpc::ClientContext context;
  AddKey(&context);
  context.set_deadline(Deadline(timeout));
  proto::GetServerInfoResponse response;
  RETURN_IF_ERROR(FromGrpc(stub_->GetServerInfo(&context, {}, &response)));
  return response;
}

void Client::Cancel() {
  const std::lock_guard lock(mutex_);
  if (running_ != nullptr) running_->TryCancel();
}

std::string HumanBytes(double bytes) {
  const char* const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  int unit = 0;
  while (bytes >= 1024 && unit < 4) bytes /= 1024, ++unit;
  return absl::StrFormat(unit == 0 || bytes >= 100 ? "%.0f %s" : "%.1f %s", bytes, units[unit]);
}

std::string HumanRate(double bytes_per_second) {
  return bytes_per_second >= 1e9 ? absl::StrFormat("%.1f GB/s", bytes_per_second / 1e9)
                                 : absl::StrFormat("%.0f MB/s", bytes_per_second / 1e6);
}

std::string DescribeExperts(const proto::ExpertCounters& experts) {
  return absl::StrFormat(
      "experts: %d activated = %d resident + %d shipped + %d on the host; %s shipped in %d copies, waited %.3f s for copies, "
      "%.3f s for the host",
      experts.activated(), experts.resident(), experts.shipped(), experts.on_host(), HumanBytes(experts.bytes_shipped()),
      experts.copies(), experts.copy_wait_seconds(), experts.host_wait_seconds());
}

}  // namespace ferry
