#include "coordinator/server.h"

#include <google/protobuf/descriptor.pb.h>
#include <google/protobuf/unknown_field_set.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <future>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "common/clock.h"
#include "common/machine_id.h"
#include "ferry/internal/v1/cluster.grpc.pb.h"
#include "ferry/v1/generate.grpc.pb.h"
#include "tests/coordinator/fake_worker.h"
#include "tests/testing/source_path.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsSupersetOf;
using ::testing::Not;
using ::testing::SizeIs;

constexpr int64_t kDemoVocab = 4096;  // of the demo model

// grpc.health.v1 by hand, whose .proto Debian does not ship: the request is empty, the answer's field 1 is the status.
int HealthOf(const std::shared_ptr<grpc::Channel>& channel) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(5));
  grpc::GenericStub stub(channel);
  grpc::CompletionQueue queue;
  const auto call = stub.PrepareUnaryCall(&context, "/grpc.health.v1.Health/Check", grpc::ByteBuffer(nullptr, 0), &queue);
  call->StartCall();
  grpc::ByteBuffer answer;
  grpc::Status status;
  call->Finish(&answer, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
  grpc::Slice slice;
  if (!status.ok() || !answer.DumpToSingleSlice(&slice).ok() || slice.size() != 2) return -1;
  return slice.begin()[1];
}
constexpr int kServing = 1, kNotServing = 2;

// The length-delimited values of `field` in a serialized message, in order: for messages whose .proto Debian does not ship.
std::vector<std::string> ValuesOf(const std::string& message, int field) {
  google::protobuf::UnknownFieldSet fields;
  fields.ParseFromString(message);
  std::vector<std::string> values;
  for (int i = 0; i < fields.field_count(); ++i) {
    const google::protobuf::UnknownField& found = fields.field(i);
    const bool matches = found.number() == field && found.type() == google::protobuf::UnknownField::TYPE_LENGTH_DELIMITED;
    if (matches) values.push_back(found.length_delimited());
  }
  return values;
}

// One question to grpc.reflection.v1alpha, its field and value: the serialized answer, empty when there is none.
std::string Reflect(const std::shared_ptr<grpc::Channel>& channel, int field, const std::string& value) {
  google::protobuf::UnknownFieldSet fields;
  fields.AddLengthDelimited(field, value);
  std::string request;
  fields.SerializeToString(&request);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(5));
  grpc::GenericStub stub(channel);
  grpc::CompletionQueue queue;
  const auto call = stub.PrepareCall(&context, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &queue);
  const auto done = [&] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  const grpc::Slice slice(request);
  grpc::ByteBuffer bytes;
  call->StartCall(nullptr);
  if (done()) {
    call->WriteLast(grpc::ByteBuffer(&slice, 1), {}, nullptr);
    if (done()) {
      call->Read(&bytes, nullptr);
      done();
    }
  }
  grpc::Status status;
  call->Finish(&status, nullptr);
  done();
  grpc::Slice whole;
  if (!bytes.Valid() || !bytes.DumpToSingleSlice(&whole).ok()) return "";
  return {reinterpret_cast<const char*>(whole.begin()), whole.size()};
}

class ServerTest : public ::testing::Test {
 protected:
  absl::Status Start() {
    options_.model = SourcePath("models/demo-moe.gguf");
    options_.listen = "127.0.0.1:0";
    options_.threads = 1;
    options_.host_read_bytes_per_second = options_.host_flops_per_second = 1e9;  // no probe
    options_.drain_timeout = absl::Minutes(2);
    options_.heartbeat_timeout = absl::Minutes(2);  // the fake worker sends one, and sanitizers are slow
    absl::StatusOr<std::unique_ptr<Server>> server = Server::Start(options_);
    RETURN_IF_ERROR(server.status());
    server_ = *std::move(server);
    channel_ = grpc::CreateChannel(server_->address(), grpc::InsecureChannelCredentials());
    return absl::OkStatus();
  }
  std::string State() {
    grpc::ClientContext context;
    v1::GetServerInfoResponse info;
    const grpc::Status status = v1::Ferry::NewStub(channel_)->GetServerInfo(&context, {}, &info);
    return status.ok() ? info.state() : status.error_message();
  }
  grpc::Status Generate(int max_tokens, std::string* text) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(2));
    v1::GenerateRequest request;
    request.set_text("Once upon a time");
    request.set_max_tokens(max_tokens);
    request.set_ignore_eos(true);
    const auto stream = v1::Ferry::NewStub(channel_)->Generate(&context, request);
    v1::GenerateResponse response;
    while (stream->Read(&response)) *text += response.text();
    return stream->Finish();
  }
  // A worker that registers and says that it is ready.
  void Join(FakeWorker& worker) {
    const std::unique_ptr<internal::v1::Cluster::Stub> stub =
        internal::v1::Cluster::NewStub(grpc::CreateChannel(server_->cluster_address(), grpc::InsecureChannelCredentials()));
    grpc::ClientContext register_context, heartbeat_context;
    internal::v1::RegisterRequest request;
    request.set_incarnation(5);
    request.set_machine(MachineId());
    request.set_address(worker.address());
    request.set_expert_transport("grpc");
    internal::v1::RegisterResponse response;
    const grpc::Status status = stub->Register(&register_context, request, &response);
    ASSERT_TRUE(status.ok()) << status.error_message();
    internal::v1::HeartbeatRequest heartbeat;
    heartbeat.set_incarnation(5);
    heartbeat.set_state("ready");
    internal::v1::HeartbeatResponse ignored;
    ASSERT_TRUE(stub->Heartbeat(&heartbeat_context, heartbeat, &ignored).ok());
  }

  CoordinatorOptions options_;
  std::unique_ptr<Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
};

TEST_F(ServerTest, AnswersBeforeItServes) {
  ASSERT_OK(Start());
  EXPECT_GT(server_->port(), 0);
  EXPECT_EQ(State(), "loading");
  EXPECT_EQ(HealthOf(channel_), kNotServing);
  std::string text;
  EXPECT_EQ(Generate(3, &text).error_code(), grpc::StatusCode::UNAVAILABLE);
  grpc::ClientContext context;
  v1::GetModelInfoResponse model;
  ASSERT_TRUE(v1::Ferry::NewStub(channel_)->GetModelInfo(&context, {}, &model).ok());
  EXPECT_EQ(model.architecture(), "gpt-oss");
  EXPECT_GT(model.expert_bytes(), 0u);
}

TEST_F(ServerTest, DescribesItsServicesToWhomeverAsks) {
  ASSERT_OK(Start());
  constexpr int kListServices = 7, kListed = 6, kFileOfSymbol = 4, kFiles = 4;
  std::vector<std::string> services;
  for (const std::string& list : ValuesOf(Reflect(channel_, kListServices, "*"), kListed)) {
    for (const std::string& service : ValuesOf(list, 1)) services.push_back(ValuesOf(service, 1).at(0));
  }
  EXPECT_THAT(services, AllOf(IsSupersetOf({"ferry.v1.Ferry", "grpc.health.v1.Health"}), Not(Contains(HasSubstr("internal")))));

  const std::vector<std::string> answer = ValuesOf(Reflect(channel_, kFileOfSymbol, "ferry.v1.Ferry"), kFiles);
  ASSERT_THAT(answer, SizeIs(1));
  const std::vector<std::string> files = ValuesOf(answer[0], 1);
  ASSERT_THAT(files, SizeIs(1)) << "it imports nothing";
  google::protobuf::FileDescriptorProto file;
  ASSERT_TRUE(file.ParseFromString(files[0]));
  EXPECT_EQ(file.name(), "ferry/v1/generate.proto");
  ASSERT_EQ(file.service_size(), 1);
  EXPECT_EQ(file.service(0).name(), "Ferry");
  EXPECT_EQ(file.service(0).method(0).name(), "Generate");
  EXPECT_TRUE(file.service(0).method(0).server_streaming());

  constexpr int kError = 7;
  EXPECT_THAT(ValuesOf(Reflect(channel_, kFileOfSymbol, "ferry.v1.Fairy"), kError), SizeIs(1));
  EXPECT_EQ(Reflect(channel_, kFileOfSymbol, std::string(5000, 'f')), "") << "a question has at most 4 KiB";
}

TEST_F(ServerTest, SaysWhichWorkersAreMissing) {
  options_.placement.num_workers = 2;
  ASSERT_OK(Start());
  ASSERT_OK(server_->Load());
  EXPECT_THAT(server_->WaitUntilServing(Clock::Real()->Now()),
              StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("worker 0 is starting, worker 1 is starting")));
}

TEST_F(ServerTest, ServesThenDrainsAndEndsItsWorkers) {
  FakeWorker worker([](const internal::v1::StepRequest& request) {
    absl::SleepFor(absl::Milliseconds(1));
    return FakeWorker::Ok(request, kDemoVocab);
  });
  ASSERT_OK(Start());
  ASSERT_OK(server_->Load());
  Join(worker);
  ASSERT_OK(server_->WaitUntilServing(Clock::Real()->Now() + absl::Seconds(60)));
  EXPECT_EQ(HealthOf(channel_), kServing);
  EXPECT_EQ(State(), "serving");
  std::string text;
  EXPECT_TRUE(Generate(4, &text).ok());

  std::string long_text;
  auto running = std::async(std::launch::async, [&] { return Generate(100, &long_text); });
  while (worker.steps().size() < 10) absl::SleepFor(absl::Milliseconds(1));
  auto draining = std::async(std::launch::async, [&] { EXPECT_OK(server_->Drain()); });
  EXPECT_TRUE(running.get().ok()) << "what runs is finished";
  draining.get();
  EXPECT_TRUE(worker.asked_to_end());
  EXPECT_EQ(Generate(1, &text).error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(ServerTest, TheApiKnowsNothingOfTheCluster) {
  ASSERT_OK(Start());
  const std::unique_ptr<internal::v1::Cluster::Stub> stub = internal::v1::Cluster::NewStub(channel_);
  grpc::ClientContext context;
  internal::v1::RegisterResponse response;
  EXPECT_EQ(stub->Register(&context, {}, &response).error_code(), grpc::StatusCode::UNIMPLEMENTED);
}

TEST_F(ServerTest, RefusesCompressedMessages) {
  ASSERT_OK(Start());
  grpc::ClientContext context;
  context.set_compression_algorithm(GRPC_COMPRESS_GZIP);
  v1::TokenizeRequest request;
  request.set_text(std::string(1 << 20, 'a'));
  v1::TokenizeResponse response;
  const grpc::Status status = v1::Ferry::NewStub(channel_)->Tokenize(&context, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNIMPLEMENTED) << status.error_message();
}

TEST_F(ServerTest, RefusesMessagesOverFourMebibytes) {
  ASSERT_OK(Start());
  grpc::ClientContext context;
  v1::TokenizeRequest request;
  request.set_text(std::string((4 << 20) + 1, 'a'));
  v1::TokenizeResponse response;
  EXPECT_EQ(v1::Ferry::NewStub(channel_)->Tokenize(&context, request, &response).error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(ServerTest, OthersNeedKeysUnlessItIsSaidThatTheyDoNot) {
  options_.listen = "0.0.0.0:0";
  options_.model = SourcePath("models/demo-moe.gguf");
  EXPECT_THAT(Server::Start(options_), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--api-keys")));
  options_.insecure = true;
  EXPECT_OK(Server::Start(options_).status());
}

TEST_F(ServerTest, TwoServersDoNotShareAPort) {
  ASSERT_OK(Start());
  CoordinatorOptions second = options_;
  second.listen = server_->address();
  EXPECT_THAT(Server::Start(second), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("cannot listen")));
}

TEST_F(ServerTest, RefusesAFileThatIsNoModel) {
  options_.model = SourcePath("CMakeLists.txt");
  EXPECT_THAT(Server::Start(options_), StatusIs(absl::StatusCode::kInvalidArgument));
  options_.model = "/nowhere.gguf";
  EXPECT_THAT(Server::Start(options_), StatusIs(absl::StatusCode::kNotFound));
}

}  // namespace
}  // namespace ferry
