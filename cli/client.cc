#include "cli/client.h"

#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "cli/client_key.h"
#include "cli/late_word.h"
#include "common/deadline.h"
#include "common/grpc_status.h"
#include "common/listen_address.h"
#include "common/rpc/rpc_deadline.h"
#include "common/thread_limit.h"
#include "common/tls/certificate_pair.h"

namespace ferry {
namespace {

constexpr int kMaxMessageBytes = 64 << 20;
constexpr absl::Duration kPoll = absl::Milliseconds(100);
constexpr absl::Duration kConnectTimeout = absl::Seconds(5);
constexpr absl::Duration kStartPatience =
    absl::Minutes(1);                                    // for a process of ours, which a busy machine may keep from answering
constexpr absl::Duration kFirstWord = absl::Seconds(1);  // of a wait
constexpr absl::Duration kSayAgain = absl::Seconds(10);
constexpr absl::Duration kStallPatience = absl::Seconds(20);  // heartbeats come every second
constexpr absl::Duration kEndPatience = absl::Seconds(5);     // of a command, with its own server
// A coordinator whose host has gone says nothing any more, and a request has no deadline of its own.
constexpr int kKeepaliveMs = 10000, kKeepaliveTimeoutMs = 5000;

// "loading, 43 % of 1.5 GiB of experts; 1 of 2 workers ready"
std::string DescribeState(const proto::GetServerInfoResponse& info) {
  int ready = 0;
  for (const proto::WorkerInfo& worker : info.workers()) ready += worker.state() == "ready" ? 1 : 0;
  std::string text = info.state();
  if (info.load_progress() > 0 && info.load_progress() < 1) {
    absl::StrAppendFormat(&text, ", %.0f %% of %s of experts", 100 * info.load_progress(), HumanBytes(info.arena_bytes()));
  }
  absl::StrAppendFormat(&text, "; %d of %d workers ready", ready, info.workers_size());
  if (!info.state_reason().empty()) text += "; " + info.state_reason();
  return text;
}

// What a wait says on standard error: one line that overwrites itself on a terminal; elsewhere one after a moment and then one
// now and then.
class WaitLine {
 public:
  explicit WaitLine(std::string address) : terminal_(isatty(STDERR_FILENO) != 0), address_(std::move(address)) {}
  ~WaitLine() {
    if (drawn_) std::fprintf(stderr, "\r\033[K");
  }

  void Draw(const proto::GetServerInfoResponse& info) {
    std::string text = DescribeState(info);
    const double progress = info.load_progress(), elapsed = waiting_.Seconds();
    if (progress > 0.02 && progress < 1 && elapsed > 0.5) {
      absl::StrAppendFormat(&text, ", %s, %.0f s left", HumanRate(progress * info.arena_bytes() / elapsed),
                            elapsed * (1 - progress) / progress);
    }
    Say(text);
  }
  void Say(const std::string& text) {
    if (terminal_) {
      std::fprintf(stderr, "\r\033[K%s", text.c_str());
      std::fflush(stderr);
      drawn_ = true;
    } else if (next_.Passed()) {
      std::fprintf(stderr, "waiting for the coordinator at %s: %s\n", address_.c_str(), text.c_str());
      next_ = Deadline::In(kSayAgain);
    }
  }

 private:
  const bool terminal_;
  const Stopwatch waiting_;
  const std::string address_;
  Deadline next_ = Deadline::In(kFirstWord);
  bool drawn_ = false;
};

// For how long nothing of a coordinator has changed that shows that it gets on.
class StallWatch {
 public:
  absl::Duration For(const proto::GetServerInfoResponse& info) {
    since_answer_.Restart();
    std::string seen = absl::StrCat(info.state(), info.load_progress(), "/", info.arena_bytes());
    // A worker that loads gets on, though its progress may take long to show: it is heard of, or it is lost.
    for (const proto::WorkerInfo& worker : info.workers()) {
      absl::StrAppend(&seen, " ", worker.state(), worker.incarnation(), "/", worker.dense_bytes(), "/", worker.resident_bytes());
    }
    if (seen != seen_) seen_ = std::move(seen), since_change_.Restart();
    return since_change_.Elapsed();
  }
  absl::Duration ForSilence() const { return since_answer_.Elapsed(); }

 private:
  std::string seen_;
  Stopwatch since_change_, since_answer_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Client>> Client::Connect(const std::string& server, const ModelOptions& options) {
  std::unique_ptr<Supervisor> supervisor;
  if (server.empty()) {
    ASSIGN_OR_RETURN(supervisor, Supervisor::Start(options));
  }
  const std::string address = server.empty() ? supervisor->address() : server;
  return Of(std::move(supervisor), address);
}

absl::StatusOr<std::unique_ptr<Client>> Client::StartWithHttp(const ModelOptions& options, const GatewayProcess& gateway) {
  ASSIGN_OR_RETURN(std::unique_ptr<Supervisor> supervisor, StartWithGateway(options, gateway));
  const std::string address = supervisor->address();
  return Of(std::move(supervisor), address);
}

absl::StatusOr<std::unique_ptr<Client>> Client::Of(std::unique_ptr<Supervisor> supervisor, const std::string& address) {
  ASSIGN_OR_RETURN(std::unique_ptr<Client> client, Attach(address));
  client->supervisor_ = std::move(supervisor);
  RETURN_IF_ERROR(client->WaitUntilServed());
  return client;
}

absl::StatusOr<std::unique_ptr<Client>> Client::Attach(const std::string& server) {
  ASSIGN_OR_RETURN(const ListenAddress address, ParseListenAddress(server, kCoordinatorPort));
  RETURN_IF_ERROR(CheckDescriptorsAllowed());
  RETURN_IF_ERROR(CheckThreadsCanStart(ClientThreads()));
  {
    const LateWord word("looking for the host " + address.host);
    RETURN_IF_ERROR(CheckHostExists(address));
  }
  std::unique_ptr<Client> client(new Client);
  client->address_ = address.ToString();
  ASSIGN_OR_RETURN(client->key_, KeyFromEnvironment());
  std::shared_ptr<grpc::ChannelCredentials> credentials = grpc::InsecureChannelCredentials();
  ASSIGN_OR_RETURN(const std::optional<std::string> ca, CaFromEnvironment());
  if (ca.has_value()) credentials = grpc::SslCredentials({.pem_root_certs = *ca});
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

void Client::AddKey(grpc::ClientContext* context) const {
  if (!key_.empty()) context->AddMetadata("authorization", absl::StrFormat("Bearer %s", key_));
}

Client::~Client() { Close().IgnoreError(); }

absl::Status Client::Close() {
  if (supervisor_ == nullptr) return absl::OkStatus();
  const absl::Status status = supervisor_->Stop(kEndPatience);
  supervisor_.reset();
  return status;
}

absl::Status Client::WaitUntilServed() {
  WaitLine line(address_);
  StallWatch stall;
  while (true) {
    if (supervisor_ != nullptr) RETURN_IF_ERROR(supervisor_->Health());
    const absl::StatusOr<proto::GetServerInfoResponse> info = ServerInfo(absl::Seconds(1));
    if (info.ok()) {
      if (info->state() == "serving") return absl::OkStatus();
      line.Draw(*info);
      // A server of ours ends by itself when it cannot go on. For another one this waits while its work advances.
      if (supervisor_ == nullptr && stall.For(*info) > kStallPatience) {
        return Unavailable("the coordinator at %s does not serve, and nothing there has changed for %s: %s", address_,
                           absl::FormatDuration(kStallPatience), DescribeState(*info));
      }
    } else if (absl::IsUnauthenticated(info.status())) {
      return absl::UnauthenticatedError(absl::StrFormat("%s; set FERRY_API_KEY", info.status().message()));
    } else {
      line.Say("no answer yet");
      if (stall.ForSilence() > (supervisor_ != nullptr ? kStartPatience : kConnectTimeout)) {
        return Unavailable("no answer from a Ferry coordinator at %s (it listens on loopback unless it was given --listen): %s",
                           address_, info.status().message());
      }
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
  // Until the first message: others may have the places, and a long prompt takes its time.
  std::optional<LateWord> word("waiting for the first token from " + address_);
  const std::unique_ptr<grpc::ClientReader<proto::GenerateResponse>> reader = stub_->Generate(&context, request);
  proto::GenerateResponse response;
  absl::StatusOr<proto::Finish> finish = Internal("the stream ended without a finish");
  while (reader->Read(&response)) {
    word.reset();
    if (response.has_finish()) finish = response.finish();
    if (!on_message(response)) context.TryCancel();
  }
  const grpc::Status status = reader->Finish();
  {
    const std::lock_guard lock(mutex_);
    running_ = nullptr;
  }
  RETURN_IF_ERROR(FromGrpcStatus(status));
  return finish;
}

absl::StatusOr<std::vector<uint32_t>> Client::Tokenize(const proto::TokenizeRequest& request) {
  const LateWord word("waiting for the tokens of the text");
  grpc::ClientContext context;
  AddKey(&context);
  context.set_deadline(RpcDeadline(absl::Minutes(1)));
  proto::TokenizeResponse response;
  RETURN_IF_ERROR(FromGrpcStatus(stub_->Tokenize(&context, request, &response)));
  return std::vector<uint32_t>(response.ids().begin(), response.ids().end());
}

absl::StatusOr<proto::GetModelInfoResponse> Client::ModelInfo() {
  const LateWord word("waiting for an answer from " + address_);
  grpc::ClientContext context;
  AddKey(&context);
  context.set_deadline(RpcDeadline(absl::Seconds(10)));
  proto::GetModelInfoResponse response;
  RETURN_IF_ERROR(FromGrpcStatus(stub_->GetModelInfo(&context, {}, &response)));
  return response;
}

absl::StatusOr<proto::GetServerInfoResponse> Client::ServerInfo(absl::Duration timeout) {
  const LateWord word("waiting for an answer from " + address_);
  grpc::ClientContext context;
  AddKey(&context);
  context.set_deadline(RpcDeadline(timeout));
  proto::GetServerInfoResponse response;
  RETURN_IF_ERROR(FromGrpcStatus(stub_->GetServerInfo(&context, {}, &response)));
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
      "experts: %d activated = %d resident + %d shipped + %d on the host; %s in %d copies, %d of them ahead and not needed; "
      "waited "
      "%.3f s for copies, %.3f s for the host",
      experts.activated(), experts.resident(), experts.shipped(), experts.on_host(), HumanBytes(experts.bytes_shipped()),
      experts.copies(), experts.shipped_unused(), experts.copy_wait_seconds(), experts.host_wait_seconds());
}

}  // namespace ferry
