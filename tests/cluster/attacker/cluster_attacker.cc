// A process that is no part of a cluster and attacks it: as another user of the machine, or from another host. Tests start it
// there.
//
//   cluster_attacker KIND ADDRESS [--tls | --certs FOLDER]
//
// ADDRESS is where a worker listens, or the coordinator's cluster plane for fake_worker and compute_flood: unix:PATH or IP:PORT.
// It connects in clear, or with TLS and no certificate, or with the certificate in FOLDER; it never checks whom it has reached.
// It prints how often each status came, "UNAVAILABLE 12", one a line.

#include <grpcpp/create_channel.h>
#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "common/grpc_status.h"
#include "common/small_file.h"
#include "common/tls/cluster_ca.h"
#include "ferry/internal/v1/cluster.grpc.pb.h"
#include "ferry/internal/v1/worker.grpc.pb.h"

namespace ferry {
namespace {

namespace wire = internal::v1;
using Random = std::mt19937_64;

constexpr int kFuzzMessages = 600, kStreams = 600, kFloodThreads = 8, kFloodCalls = 20;
constexpr uint64_t kMax64 = std::numeric_limits<uint64_t>::max();

// How often each status came. Any thread.
class Tally {
 public:
  void Add(const grpc::Status& status) {
    const std::lock_guard lock(mutex_);
    ++counts_[absl::StatusCodeToString(FromGrpcStatus(status).code())];
  }
  void Print() const {
    for (const auto& [name, count] : counts_) std::printf("%s %d\n", name.c_str(), count);
  }

 private:
  std::mutex mutex_;
  std::map<std::string, int> counts_;
};

class Deadlined : public grpc::ClientContext {
 public:
  Deadlined() { set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10)); }
};

// Another user's request has left its keys and values in slot 0: a step that continues them.
wire::StepRequest StepThatContinues(uint64_t epoch, uint64_t number) {
  wire::StepRequest step;
  step.set_epoch(epoch);
  step.set_step(number);
  step.set_timeout_seconds(5);
  wire::StepSequence& sequence = *step.add_sequences();
  sequence.set_first_position(41);
  sequence.set_num_tokens(1);
  sequence.add_token_ids(5);
  for (uint32_t block : {0, 1}) sequence.add_blocks(block);
  sequence.add_logits()->set_top_n(4096);
  return step;
}

void ReadKv(const std::shared_ptr<grpc::Channel>& channel, Tally& tally) {
  const auto worker = wire::Worker::NewStub(channel);
  for (uint64_t epoch = 1; epoch <= 3; ++epoch) {
    for (uint64_t number = 1; number <= 20; ++number) {
      Deadlined context;
      const auto stream = worker->RunSteps(&context);
      stream->Write(StepThatContinues(epoch, number));
      stream->WritesDone();
      wire::StepResponse answer;
      while (stream->Read(&answer)) {
      }
      tally.Add(stream->Finish());
    }
  }
}

void EpochMax(const std::shared_ptr<grpc::Channel>& channel, Tally& tally) {
  const auto worker = wire::Worker::NewStub(channel);
  for (uint64_t incarnation = 0; incarnation < 20; ++incarnation) {
    Deadlined context;
    wire::BeginEpochRequest request;
    request.set_epoch(kMax64);
    request.set_incarnation(incarnation);
    wire::BeginEpochResponse response;
    tally.Add(worker->BeginEpoch(&context, request, &response));
  }
}

void StepsStreams(const std::shared_ptr<grpc::Channel>& channel, Tally& tally) {
  const auto worker = wire::Worker::NewStub(channel);
  struct Call {
    Deadlined context;
    std::unique_ptr<grpc::ClientReaderWriter<wire::StepRequest, wire::StepResponse>> stream;
  };
  std::vector<std::unique_ptr<Call>> calls;
  for (int i = 0; i < kStreams; ++i) {
    calls.push_back(std::make_unique<Call>());
    calls.back()->stream = worker->RunSteps(&calls.back()->context);
  }
  for (const auto& call : calls) {
    call->stream->WritesDone();
    tally.Add(call->stream->Finish());
  }
}

void WorkerFuzz(const std::shared_ptr<grpc::Channel>& channel, Tally& tally) {
  const auto worker = wire::Worker::NewStub(channel);
  Random random(4);
  const auto any = [&] { return std::array<uint64_t, 6>{0, 1, 2, 31, uint64_t{1} << 63, kMax64}[random() % 6]; };
  const auto any32 = [&] { return static_cast<uint32_t>(any()); };
  for (int i = 0; i < kFuzzMessages; ++i) {
    Deadlined context;
    switch (random() % 6) {
      case 0: {
        wire::BeginEpochRequest request;
        request.set_epoch(any());
        request.set_incarnation(any());
        request.set_next_address("127.0.0.1:9");
        wire::BeginEpochResponse response;
        tally.Add(worker->BeginEpoch(&context, request, &response));
        break;
      }
      case 1: {
        wire::StepRequest step = StepThatContinues(any(), any());
        step.mutable_sequences(0)->set_slot(any32());
        step.mutable_sequences(0)->set_num_tokens(any32());
        const auto stream = worker->RunSteps(&context);
        stream->Write(step);
        stream->WritesDone();
        tally.Add(stream->Finish());
        break;
      }
      case 2: {
        wire::PushActivationsResponse response;
        const auto stream = worker->PushActivations(&context, &response);
        wire::Activations rows;
        rows.set_epoch(any());
        rows.set_num_rows(any32());
        rows.set_data(std::string(random() % 4096, 'x'));
        stream->Write(rows);
        stream->WritesDone();
        tally.Add(stream->Finish());
        break;
      }
      case 3: {
        wire::ShareActivationsRequest request;
        request.set_epoch(any());
        request.set_incarnation(any());
        wire::ShareActivationsResponse response;
        tally.Add(worker->ShareActivations(&context, request, &response));
        break;
      }
      case 4: {
        wire::ProbeLinkRequest request;
        request.set_incarnation(any());
        request.set_seconds(std::numeric_limits<double>::quiet_NaN());
        wire::ProbeLinkResponse response;
        tally.Add(worker->ProbeLink(&context, request, &response));
        break;
      }
      default: {
        wire::ShutdownResponse response;
        tally.Add(worker->Shutdown(&context, {}, &response));
      }
    }
  }
}

// In the name of worker 0: registers, and says that it is ready.
void FakeWorker(const std::shared_ptr<grpc::Channel>& channel, Tally& tally) {
  const auto cluster = wire::Cluster::NewStub(channel);
  Random random(6);
  for (int i = 0; i < 100; ++i) {
    const uint64_t incarnation = random() | 1;
    wire::RegisterRequest request;
    request.set_incarnation(incarnation);
    request.set_machine("another");
    request.set_address("127.0.0.1:9");
    request.set_wanted_worker_id(i % 2);
    request.set_expert_transport("grpc");
    wire::RegisterResponse place;
    Deadlined context;
    tally.Add(cluster->Register(&context, request, &place));
    wire::HeartbeatRequest heartbeat;
    heartbeat.set_worker_id(i % 2);
    heartbeat.set_incarnation(incarnation);
    heartbeat.set_state("ready");
    wire::HeartbeatResponse response;
    Deadlined again;
    tally.Add(cluster->Heartbeat(&again, heartbeat, &response));
  }
}

// Work for the host's experts.
void ComputeFlood(const std::shared_ptr<grpc::Channel>& channel, Tally& tally) {
  constexpr uint32_t kRows = 1000, kWidth = 256;
  wire::ComputeExpertsRequest request;
  for (uint32_t expert = 0; expert < 16; ++expert) {
    wire::ActivatedExpert& use = *request.mutable_request()->add_uses();
    use.set_expert(expert);
    use.set_tokens(kRows);
  }
  request.mutable_request()->set_incarnation(1);
  request.mutable_request()->set_step(uint64_t{1} << 40);
  request.set_num_rows(kRows);
  request.set_rows(std::string(size_t{4} * kRows * kWidth, '\x3f'));
  std::vector<std::thread> threads;
  for (int i = 0; i < kFloodThreads; ++i) {
    threads.emplace_back([&] {
      const auto cluster = wire::Cluster::NewStub(channel);
      for (int call = 0; call < kFloodCalls; ++call) {
        Deadlined context;
        wire::ComputeExpertsResponse response;
        tally.Add(cluster->ComputeExperts(&context, request, &response));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> Credentials(const std::vector<std::string>& arguments) {
  if (arguments.empty()) return grpc::InsecureChannelCredentials();
  grpc::experimental::TlsChannelCredentialsOptions options;
  options.set_verify_server_certs(false);
  options.set_check_call_host(false);
  if (arguments[0] == "--certs" && arguments.size() == 2) {
    ASSIGN_OR_RETURN(const std::string key, ReadSmallFile(NodeKeyPath(arguments[1])));
    ASSIGN_OR_RETURN(const std::string certificate, ReadSmallFile(NodeCertificatePath(arguments[1])));
    options.set_certificate_provider(std::make_shared<grpc::experimental::StaticDataCertificateProvider>(
        std::vector<grpc::experimental::IdentityKeyCertPair>{{.private_key = key, .certificate_chain = certificate}}));
    options.watch_identity_key_cert_pairs();
  } else if (arguments[0] != "--tls" || arguments.size() != 1) {
    return InvalidArgument("want nothing, --tls or --certs FOLDER after the address");
  }
  return grpc::experimental::TlsCredentials(options);
}

int Main(const std::vector<std::string>& arguments) {
  const std::map<std::string, std::function<void(const std::shared_ptr<grpc::Channel>&, Tally&)>> kinds = {
      {"read_kv", ReadKv},         {"epoch_max", EpochMax},     {"steps_streams", StepsStreams},
      {"worker_fuzz", WorkerFuzz}, {"fake_worker", FakeWorker}, {"compute_flood", ComputeFlood}};
  const auto kind = arguments.size() < 2 ? kinds.end() : kinds.find(arguments[0]);
  if (kind == kinds.end()) {
    std::fprintf(stderr, "usage: cluster_attacker KIND ADDRESS [--tls | --certs FOLDER]\n");
    return 2;
  }
  const auto credentials = Credentials({arguments.begin() + 2, arguments.end()});
  if (!credentials.ok()) {
    std::fprintf(stderr, "%s\n", credentials.status().ToString().c_str());
    return 2;
  }
  grpc::ChannelArguments options;
  options.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  options.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  options.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 100);
  options.SetSslTargetNameOverride(NodeName(NodeRole::kCoordinator));
  options.SetMaxSendMessageSize(-1);
  Tally tally;
  kind->second(grpc::CreateCustomChannel(arguments[1], *credentials, options), tally);
  tally.Print();
  return 0;
}

}  // namespace
}  // namespace ferry

int main(int argc, char** argv) { return ferry::Main({argv + 1, argv + argc}); }
