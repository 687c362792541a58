#include "coordinator/generation/text_calls.h"

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <array>
#include <atomic>
#include <future>

#include "absl/time/clock.h"
#include "ferry/v1/generate.grpc.pb.h"
#include "tests/testing/fake_clock.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

constexpr char kMethod[] = "/ferry.v1.Ferry/Tokenize";
constexpr size_t kAnswerBytes = 1 << 20;

// Answers every call with a megabyte.
class LongAnswers final : public v1::Ferry::WithRawCallbackMethod_Tokenize<v1::Ferry::Service> {
 public:
  explicit LongAnswers(TextCalls* texts) : texts_(*texts) {}
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context, const grpc::ByteBuffer* message,
                                     grpc::ByteBuffer* response) override {
    return texts_.Answer(context, message, response, [this, response] {
      ++answered_;
      const grpc::Slice slice(std::string(kAnswerBytes, 'x'));
      *response = grpc::ByteBuffer(&slice, 1);
      return absl::OkStatus();
    });
  }
  int answered() const { return answered_; }

 private:
  TextCalls& texts_;
  std::atomic<int> answered_{0};
};

class TextCallsTest : public ::testing::Test {
 protected:
  void Start(TextCalls::Options options) {
    texts_ = TextCalls::Create(&clock_, options).value();
    service_ = std::make_unique<LongAnswers>(texts_.get());
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(service_.get());
    server_ = builder.BuildAndStart();
    grpc::ChannelArguments arguments;  // a connection that holds little of what nobody reads
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 16384);
    channel_ = grpc::CreateCustomChannel("127.0.0.1:" + std::to_string(port), grpc::InsecureChannelCredentials(), arguments);
  }

  FakeClock clock_;
  std::unique_ptr<TextCalls> texts_;
  std::unique_ptr<LongAnswers> service_;
  std::unique_ptr<grpc::Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
};

// A call whose answer is taken when the test says so.
class Caller {
 public:
  explicit Caller(const std::shared_ptr<grpc::Channel>& channel) : stub_(channel) {
    call_ = stub_.PrepareCall(&context_, kMethod, &queue_);
    call_->StartCall(nullptr);
    Done();
    const grpc::Slice slice("");
    call_->WriteLast(grpc::ByteBuffer(&slice, 1), {}, nullptr);
    Done();
  }
  ~Caller() {
    if (!taken_) Take();
  }
  grpc::Status Take() {
    taken_ = true;
    grpc::ByteBuffer answer;
    call_->Read(&answer, nullptr);
    Done();
    grpc::Status status;
    call_->Finish(&status, nullptr);
    Done();
    return status;
  }

 private:
  void Done() {
    void* tag = nullptr;
    bool ok = false;
    queue_.Next(&tag, &ok);
  }

  grpc::GenericStub stub_;
  grpc::ClientContext context_;
  grpc::CompletionQueue queue_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call_;
  bool taken_ = false;
};

TEST_F(TextCallsTest, RefusesCallsWhileClientsLeaveTooManyAnswersUnread) {
  Start({.max_unread_bytes = kAnswerBytes});
  std::array<std::unique_ptr<Caller>, 2> lazy;
  for (auto& caller : lazy) caller = std::make_unique<Caller>(channel_);
  while (service_->answered() < 2) absl::SleepFor(absl::Milliseconds(1));
  const auto call = [&] { return Caller(channel_).Take().error_code(); };
  while (call() != grpc::StatusCode::RESOURCE_EXHAUSTED) absl::SleepFor(absl::Milliseconds(1));
  for (auto& caller : lazy) EXPECT_TRUE(caller->Take().ok());
  while (call() != grpc::StatusCode::OK) absl::SleepFor(absl::Milliseconds(1));
}

TEST_F(TextCallsTest, AClientThatDoesNotTakeItsAnswerLosesIt) {
  Start({.max_unread_bytes = kAnswerBytes - 1, .reader_patience = absl::Seconds(1)});
  Caller lazy(channel_);
  while (service_->answered() < 1) absl::SleepFor(absl::Milliseconds(1));  // otherwise it may be the one that is refused
  const auto call = [&] { return Caller(channel_).Take().error_code(); };
  while (call() != grpc::StatusCode::RESOURCE_EXHAUSTED) absl::SleepFor(absl::Milliseconds(1));
  clock_.Advance(absl::Seconds(2));
  while (call() != grpc::StatusCode::OK) absl::SleepFor(absl::Milliseconds(10));
  EXPECT_EQ(lazy.Take().error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(TextCallsTest, ShortTextsDoNotWaitForLongOnes) {
  Start({.long_bytes = 100, .long_room = {.tasks = 1}});
  std::promise<void> begun, go;
  ASSERT_OK(texts_->Post(
      [&] {
        begun.set_value();
        go.get_future().wait();
      },
      100));
  begun.get_future().wait();
  std::promise<void> second;
  ASSERT_OK(texts_->Post([&] { second.set_value(); }, 100));
  EXPECT_THAT(texts_->Post([] {}, 100), StatusIs(absl::StatusCode::kResourceExhausted));
  std::promise<void> brief;
  ASSERT_OK(texts_->Post([&] { brief.set_value(); }, 99));
  brief.get_future().wait();
  std::future<void> second_done = second.get_future();
  EXPECT_EQ(second_done.wait_for(std::chrono::seconds(0)), std::future_status::timeout) << "long ones take turns";
  go.set_value();
  second_done.wait();
}

}  // namespace
}  // namespace ferry
