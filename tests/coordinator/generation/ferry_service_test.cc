#include "coordinator/generation/ferry_service.h"

#include <grpcpp/grpcpp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <filesystem>
#include <fstream>

#include "absl/time/clock.h"
#include "common/deadline.h"
#include "common/rpc/detailed_status.h"
#include "coordinator/generation/vllm_service.h"
#include "ferry/v1/generate.grpc.pb.h"
#include "tests/coordinator/text/tiny_vocabulary.h"
#include "tests/testing/status_matchers.h"
#include "vllm/grpc/engine/vllm_engine.grpc.pb.h"

namespace ferry {
namespace {

constexpr int32_t kBos = 257, kEnd = 258, kServiceVocab = 259;

// A model that answers every token with the next letter of the alphabet, or hangs.
class AlphabetModel final : public StepExecutor {
 public:
  AlphabetModel() : thread_([this] { Run(); }) {}
  ~AlphabetModel() override {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  void Hang(bool hang) {
    {
      const std::lock_guard lock(mutex_);
      hang_ = hang;
    }
    changed_.notify_all();
  }
  int max_steps_in_flight() const override { return 1; }
  void Submit(StepPlan step, Done done) override {
    const std::lock_guard lock(mutex_);
    queue_.emplace_back(std::move(step), std::move(done));
    changed_.notify_all();
  }

 private:
  void Run() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] { return stop_ || (!hang_ && !queue_.empty()); });
      if (stop_) return;
      auto [step, done] = std::move(queue_.front());
      queue_.pop_front();
      lock.unlock();
      absl::SleepFor(absl::Microseconds(200));
      StepOutcome outcome;
      for (const PlannedSequence& sequence : step.sequences) {
        for (const RowLogits& row : sequence.logits) {
          const int32_t token = sequence.token_ids[row.offset];
          const int32_t best = token >= 'a' && token < 'z' ? token + 1 : 'a';
          LogitsResult result;
          for (int32_t i = 0; i < row.wanted.top_n; ++i) {
            result.ids.push_back(i == 0 ? best : i - 1 < best ? i - 1 : i);
            result.logits.push_back(i == 0 ? 20.f : 0.f);
          }
          result.log_sum_exp = 20;
          outcome.logits.push_back(std::move(result));
        }
      }
      done(std::move(outcome));
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::pair<StepPlan, Done>> queue_;
  bool stop_ = false, hang_ = false;
  std::thread thread_;
};

class FerryServiceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    VocabularyData data = TinyVocabulary({"h e"}, {{"<|bos|>", TokenType::kControl}, {"<|return|>", TokenType::kControl}});
    data.bos = kBos;
    data.eos = kEnd;
    data.add_bos = true;
    ASSERT_OK_AND_ASSIGN(tokenizer_, Tokenizer::Create(data));
    v1::GetModelInfoResponse model_info;
    model_info.set_name("alphabet");
    FerryService::Parts parts = {
        .loop = loop_.get(),
        .tokenizer = tokenizer_.get(),
        .clock = Clock::Real(),
        .reads = reads_.get(),
        .texts = texts_.get(),
        .limits = {.context_tokens = 4096, .share_tokens = 1024, .vocab_size = kServiceVocab, .max_token_bytes = 10},
        .model_info = model_info,
        .server_info = [this] {
          v1::GetServerInfoResponse info;
          info.set_running_requests(loop_->stats().running);
          info.add_workers()->set_device("a device");
          return info;
        }};
    Change(parts);
    ASSERT_OK_AND_ASSIGN(service_, FerryService::Create(std::move(parts)));
    vllm_service_ = std::make_unique<VllmService>(service_.get());
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(service_.get());
    builder.RegisterService(vllm_service_.get());
    server_ = builder.BuildAndStart();
    address_ = "127.0.0.1:" + std::to_string(port);
    stub_ = v1::Ferry::NewStub(grpc::CreateChannel(address_, grpc::InsecureChannelCredentials()));
    vllm_stub_ = vllm::VllmEngine::NewStub(grpc::CreateChannel(address_, grpc::InsecureChannelCredentials()));
    loop_->Attach(&model_);
  }
  void TearDown() override {
    loop_->Suspend(Unavailable("end of test"));
    server_->Shutdown();
  }

  // What a test wants otherwise.
  virtual void Change(FerryService::Parts&) {}

  static v1::GenerateRequest Greedy(const std::string& text, uint32_t max_tokens) {
    v1::GenerateRequest request;
    request.set_text(text);
    request.set_max_tokens(max_tokens);
    request.mutable_sampling()->set_temperature(0);
    return request;
  }
  struct Answer {
    std::string text;
    std::optional<v1::Finish> finish;
    grpc::Status status;
  };
  Answer Generate(const v1::GenerateRequest& request, absl::Duration deadline = absl::Seconds(60), const std::string& key = "") {
    grpc::ClientContext context;
    if (!key.empty()) context.AddMetadata("authorization", "Bearer " + key);
    context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(deadline));
    const auto stream = stub_->Generate(&context, request);
    Answer answer;
    v1::GenerateResponse response;
    while (stream->Read(&response)) {
      EXPECT_FALSE(answer.finish) << "the finish comes last";
      answer.text += response.text();
      if (response.has_finish()) answer.finish = response.finish();
    }
    answer.status = stream->Finish();
    return answer;
  }
  bool EventuallyIdle() {
    for (int i = 0; i < 10000; ++i) {
      const GenerationStats stats = loop_->stats();
      if (stats.running == 0 && stats.queued == 0 && stats.kv_blocks_free == stats.kv_blocks_total) return true;
      absl::SleepFor(absl::Milliseconds(1));
    }
    return false;
  }
  bool EventuallyRunning(int64_t count) {
    for (int i = 0; i < 10000; ++i) {
      if (loop_->stats().running == count) return true;
      absl::SleepFor(absl::Milliseconds(1));
    }
    return false;
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  AlphabetModel model_;
  const std::unique_ptr<GenerationLoop> loop_ =
      GenerationLoop::Create({.max_running = 2,
                              .max_queued = 2,
                              .vocab_size = kServiceVocab,
                              .slots = {.num_slots = 2, .num_blocks = 256, .block_tokens = 32}},
                             Clock::Real(), "loading")
          .value();
  std::unique_ptr<FerryService> service_;
  std::unique_ptr<VllmService> vllm_service_;
  const std::unique_ptr<MessageReads> reads_ = MessageReads::Create(Clock::Real(), {}).value();
  const std::unique_ptr<TextCalls> texts_ = TextCalls::Create(Clock::Real(), {}).value();  // its tasks use the service
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
  std::unique_ptr<v1::Ferry::Stub> stub_;
  std::unique_ptr<vllm::VllmEngine::Stub> vllm_stub_;
};

TEST_F(FerryServiceTest, StreamsACompletion) {
  const Answer answer = Generate(Greedy("abc", 5));
  EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.text, "defgh");
  ASSERT_TRUE(answer.finish);
  EXPECT_EQ(answer.finish->prompt_tokens(), 4u);
  EXPECT_EQ(answer.finish->generated_tokens(), 5u);
}

TEST_F(FerryServiceTest, EveryMessageTellsTheUsage) {
  grpc::ClientContext context;
  const auto stream = stub_->Generate(&context, Greedy("abc", 5));
  v1::GenerateResponse response;
  uint32_t generated = 0;
  while (stream->Read(&response)) {
    generated += response.token_ids_size();
    EXPECT_EQ(response.usage().prompt_tokens(), 4u);
    EXPECT_EQ(response.usage().generated_tokens(), generated);
  }
  EXPECT_EQ(generated, 5u);
}

TEST_F(FerryServiceTest, SpeaksTheApiOfVllmsEngine) {
  vllm::GenerateRequest request;
  for (const uint32_t id : {'a', 'b', 'c'}) request.mutable_tokenized()->add_input_ids(id);
  request.mutable_sampling_params()->set_temperature(0);
  request.mutable_sampling_params()->set_max_tokens(5);
  request.mutable_sampling_params()->add_stop("fg");
  request.mutable_sampling_params()->set_logprobs(1);
  for (const bool stream : {true, false}) {
    request.set_stream(stream);
    grpc::ClientContext context;
    const auto call = vllm_stub_->Generate(&context, request);
    std::vector<vllm::GenerateResponse> messages;
    for (vllm::GenerateResponse message; call->Read(&message);) messages.push_back(message);
    ASSERT_TRUE(call->Finish().ok());
    ASSERT_EQ(messages.size(), stream ? 5 : 1) << "four tokens, then all";
    if (stream) {
      EXPECT_EQ(messages[1].chunk().completion_tokens(), 2u);
    }
    const vllm::GenerateComplete& complete = messages.back().complete();
    EXPECT_THAT(complete.output_ids(), testing::ElementsAre('d', 'e', 'f', 'g'));
    EXPECT_EQ(complete.finish_reason(), "stop");
    EXPECT_EQ(complete.matched_stop_str(), "fg");
    EXPECT_EQ(complete.prompt_tokens(), 3u);
    EXPECT_EQ(complete.output_logprobs().token_logprobs_size(), 4);
  }
  request.mutable_sampling_params()->set_n(2);
  grpc::ClientContext twice;
  const auto call = vllm_stub_->Generate(&twice, request);
  for (vllm::GenerateResponse message; call->Read(&message);) {
    EXPECT_THAT(message.complete().output_ids(), testing::ElementsAre('d', 'e', 'f', 'g')) << message.complete().index();
  }
  EXPECT_TRUE(call->Finish().ok());
  grpc::ClientContext asked;
  vllm::GetModelInfoResponse model;
  ASSERT_TRUE(vllm_stub_->GetModelInfo(&asked, {}, &model).ok());
  EXPECT_TRUE(model.is_generation());
  EXPECT_EQ(model.bos_token_id(), kBos);
}

TEST(VllmRequest, LeavesSamplersOffThatItDoesNotName) {
  vllm::GenerateRequest request;
  request.set_text("x");
  request.mutable_sampling_params()->mutable_choice()->add_choices("yes");
  v1::GenerateRequest asked;
  ASSERT_OK(ToFerry(request, &asked));
  EXPECT_EQ(asked.sampling().temperature(), 1);
  EXPECT_EQ(asked.sampling().top_p(), 1);
  EXPECT_TRUE(asked.sampling().has_top_k() && asked.sampling().has_min_p()) << "off, not Ferry's defaults";
  EXPECT_EQ(asked.constraint().choice().texts(0), "yes");
  EXPECT_FALSE(asked.has_max_tokens());
  const auto refused = [&](const char* name, const std::function<void(vllm::GenerateRequest&)>& change) {
    vllm::GenerateRequest bad = request;
    change(bad);
    v1::GenerateRequest ignored;
    EXPECT_THAT(ToFerry(bad, &ignored), StatusIs(absl::StatusCode::kInvalidArgument, testing::HasSubstr(name)));
  };
  refused("structural_tag", [](auto& bad) { bad.mutable_sampling_params()->set_structural_tag("{}"); });
  refused("mm_inputs", [](auto& bad) { bad.set_mm_inputs("x"); });
  refused("logprobs", [](auto& bad) { bad.mutable_sampling_params()->set_logprobs(-1); });
  refused("logit_bias", [](auto& bad) { (*bad.mutable_sampling_params()->mutable_logit_bias())[-1] = 1; });
  refused("input is missing", [](auto& bad) { bad.clear_text(); });
}

TEST_F(FerryServiceTest, ServesManyClientsAtOnce) {
  std::vector<std::thread> clients;
  std::atomic<int> right{0};
  for (int i = 0; i < 4; ++i) {  // 2 run, 2 wait
    clients.emplace_back([&, i] {
      const Answer answer = Generate(Greedy(std::string(1 + i, 'a'), 20));
      right += answer.status.ok() && answer.text == "bcdefghijklmnopqrstu";
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(right, 4);
}

TEST_F(FerryServiceTest, NamesWhatIsWrongWithARequest) {
  v1::GenerateRequest request = Greedy("abc", 5);
  request.mutable_sampling()->set_temperature(-1);
  const Answer answer = Generate(request);
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(answer.status.error_message(), testing::HasSubstr("temperature"));
}

TEST_F(FerryServiceTest, RequestsOfOneSaltReuseTheirPrefixes) {
  const auto cached = [&](const std::string& salt) {
    v1::GenerateRequest request = Greedy("abcdefghijklmnopqrstuvwxyabcdefghijklmnopqrstuvwxy", 2);  // longer than a block
    request.set_cache_salt(salt);
    const Answer answer = Generate(request);
    EXPECT_TRUE(answer.finish) << answer.status.error_message();
    return answer.finish ? answer.finish->cached_prompt_tokens() : 0;
  };
  EXPECT_EQ(cached("a"), 0u);
  EXPECT_EQ(cached("b"), 0u);
  EXPECT_EQ(cached(""), 0u);
  EXPECT_GT(cached("a"), 0u);
  v1::GenerateRequest request = Greedy("abc", 2);
  request.set_cache_salt(std::string(257, 'a'));
  EXPECT_THAT(Generate(request).status.error_message(), testing::HasSubstr("cache_salt has 257 bytes, want at most 256"));
}

TEST_F(FerryServiceTest, SeveralOutputsOfOnePromptComputeItOnce) {
  std::string prompt;
  for (int i = 0; i < 10; ++i) prompt += "abcdefghijklmnopqrstuvw";
  v1::GenerateRequest request = Greedy(prompt, 3);
  request.set_n(4);
  request.mutable_sampling()->set_seed(7);
  grpc::ClientContext context;
  const auto stream = stub_->Generate(&context, request);
  std::map<uint32_t, std::string> texts;
  std::map<uint32_t, v1::Finish> finishes;
  v1::GenerateResponse response;
  while (stream->Read(&response)) {
    texts[response.index()] += response.text();
    if (response.has_finish()) finishes[response.index()] = response.finish();
  }
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(texts, (std::map<uint32_t, std::string>{{0, "xyz"}, {1, "xyz"}, {2, "xyz"}, {3, "xyz"}}));
  ASSERT_EQ(finishes.size(), 4u);
  int64_t computed = 0;
  for (const auto& [index, finish] : finishes) {
    EXPECT_EQ(finish.seed(), 7 + index);
    computed += finish.prompt_tokens() - finish.cached_prompt_tokens();
  }
  EXPECT_LT(computed, 231 + 3 * 32) << "of 231 tokens each, the others compute less than a block";
  request.set_n(65);
  EXPECT_THAT(Generate(request).status.error_message(), testing::HasSubstr("n is 65, want at most 64"));
}

TEST_F(FerryServiceTest, AnOutputThatFailsEndsTheCall) {
  v1::GenerateRequest request = Greedy("abc", 3);
  request.set_n(10);  // two run and two wait
  const Answer answer = Generate(request);
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED) << answer.status.error_message();
  EXPECT_TRUE(EventuallyIdle());
}

TEST_F(FerryServiceTest, AClientThatLeavesFreesItsBlocks) {
  for (const bool hang : {false, true}) {
    model_.Hang(hang);
    {
      grpc::ClientContext context;
      const auto stream = stub_->Generate(&context, Greedy("abc", 4000));
      ASSERT_TRUE(EventuallyRunning(1));
      v1::GenerateResponse response;
      if (!hang) {
        ASSERT_TRUE(stream->Read(&response));
      }
      context.TryCancel();
      while (stream->Read(&response)) {
      }
      EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
    }
    EXPECT_TRUE(EventuallyIdle()) << "hang " << hang;
  }
}

TEST_F(FerryServiceTest, AClientMayLeaveTheQueueToo) {
  model_.Hang(true);
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>>> streams;
  for (int i = 0; i < 4; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    streams.push_back(stub_->Generate(contexts.back().get(), Greedy("abc", 50)));
    ASSERT_TRUE(EventuallyRunning(std::min(i + 1, 2)));
  }
  for (int i = 0; i < 10000 && loop_->stats().queued < 2; ++i) absl::SleepFor(absl::Milliseconds(1));
  ASSERT_EQ(loop_->stats().queued, 2);
  const absl::Status full = FromDetailedGrpcStatus(Generate(Greedy("abc", 1)).status);
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReasonOf(full), "QUEUE_FULL");
  EXPECT_EQ(RetryOf(full), absl::Seconds(1));
  for (const auto& context : contexts) context->TryCancel();
  for (const auto& stream : streams) EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(EventuallyIdle());
}

TEST_F(FerryServiceTest, KeepsDeadlines) {
  model_.Hang(true);
  const Stopwatch start;
  EXPECT_EQ(Generate(Greedy("abc", 5), absl::Milliseconds(100)).status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_LT(start.Elapsed(), absl::Seconds(5));
  EXPECT_TRUE(EventuallyIdle());
}

TEST_F(FerryServiceTest, EndsStreamsWithTheReasonWhenServiceEnds) {
  model_.Hang(true);
  std::thread client([&] {
    const Answer answer = Generate(Greedy("abc", 5));
    EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::UNAVAILABLE);
    EXPECT_EQ(answer.status.error_message(), "worker 1 is lost");
  });
  ASSERT_TRUE(EventuallyRunning(1));
  loop_->Suspend(Unavailable("worker 1 is lost"));
  client.join();
}

TEST_F(FerryServiceTest, SurvivesClientsThatComeAndGo) {
  std::vector<std::thread> clients;
  for (int i = 0; i < 4; ++i) {
    clients.emplace_back([&, i] {
      for (int round = 0; round < 25; ++round) {
        Generate(Greedy("abc", 200), absl::Milliseconds(1 + (7 * i + 3 * round) % 40));
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_TRUE(EventuallyIdle());
  EXPECT_EQ(Generate(Greedy("abc", 2)).text, "de");
}

TEST_F(FerryServiceTest, TokenizesAndDetokenizes) {
  grpc::ClientContext tokenize_context, detokenize_context, refused_context;
  v1::TokenizeRequest request;
  request.set_text("he<|return|>");
  v1::TokenizeResponse ids;
  ASSERT_TRUE(stub_->Tokenize(&tokenize_context, request, &ids).ok());
  EXPECT_THAT(ids.ids(), testing::ElementsAre(kBos, 256, kEnd));
  v1::DetokenizeRequest back;
  *back.mutable_ids() = ids.ids();
  back.set_render_special(true);
  v1::DetokenizeResponse text;
  ASSERT_TRUE(stub_->Detokenize(&detokenize_context, back, &text).ok());
  EXPECT_EQ(text.text(), "<|bos|>he<|return|>");
  back.add_ids(4294967295u);
  const grpc::Status status = stub_->Detokenize(&refused_context, back, &text);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), testing::HasSubstr("ids[3]"));
}

TEST_F(FerryServiceTest, BoundsTheTextThatDetokenizeAnswers) {
  const int fit = (4 << 20) / static_cast<int>(tokenizer_->TokenBytes(kEnd).size());
  for (const int ids : {fit, fit + 1}) {
    grpc::ClientContext context;
    v1::DetokenizeRequest request;
    request.mutable_ids()->Resize(ids, kEnd);
    v1::DetokenizeResponse text;
    const grpc::Status status = stub_->Detokenize(&context, request, &text);
    EXPECT_EQ(status.error_code(), ids == fit ? grpc::StatusCode::OK : grpc::StatusCode::INVALID_ARGUMENT);
  }
}

TEST_F(FerryServiceTest, BoundsTheIdsOfAnAbort) {
  const auto abort = [&](int ids) {
    grpc::ClientContext context;
    v1::AbortRequest request;
    for (int i = 0; i < ids; ++i) request.add_request_ids("");
    v1::AbortResponse response;
    return stub_->Abort(&context, request, &response);
  };
  EXPECT_TRUE(abort(1000).ok());
  EXPECT_THAT(abort(1001).error_message(), testing::HasSubstr("want at most 1000"));
  EXPECT_THAT(abort(kMaxRequestFields + 1).error_message(), testing::HasSubstr("fields"));
}

TEST_F(FerryServiceTest, RefusesAMessageOfTooManyFieldsBeforeItIsParsed) {
  v1::GenerateRequest request = Greedy("abc", 5);
  for (int i = 0; i < kMaxRequestFields; ++i) request.add_stop("");
  const Answer answer = Generate(request);
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(answer.status.error_message(), testing::HasSubstr("fields"));
}

class SlowReaderTest : public FerryServiceTest {
 protected:
  void Change(FerryService::Parts& parts) override { parts.reader_patience = absl::Milliseconds(300); }
};

TEST_F(SlowReaderTest, AClientThatDoesNotReadLosesItsStream) {
  grpc::ClientContext context;
  v1::GenerateRequest request = Greedy("abc", 3000);
  request.set_logprobs(20);
  // A connection that holds little of what nobody reads.
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 16384);
  const auto stub = v1::Ferry::NewStub(grpc::CreateCustomChannel(address_, grpc::InsecureChannelCredentials(), arguments));
  const auto stream = stub->Generate(&context, request);
  ASSERT_TRUE(EventuallyRunning(1));
  EXPECT_TRUE(EventuallyIdle());  // nobody has read, so it is given up, or it is finished and its answer waits
  absl::SleepFor(absl::Seconds(2));
  v1::GenerateResponse response;
  while (stream->Read(&response)) {
  }
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

class FewCallsTest : public FerryServiceTest {
 protected:
  void Change(FerryService::Parts& parts) override { parts.max_open_calls = 2; }
};

TEST_F(FewCallsTest, CallsAreBoundedWhateverTheyWaitFor) {
  model_.Hang(true);
  grpc::ClientContext first, second;
  const auto one = stub_->Generate(&first, Greedy("abc", 5)), two = stub_->Generate(&second, Greedy("abc", 5));
  ASSERT_TRUE(EventuallyRunning(2));
  const Answer third = Generate(Greedy("abc", 5));
  EXPECT_EQ(third.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(third.status.error_message(), testing::HasSubstr("calls are open"));
  EXPECT_EQ(ReasonOf(FromDetailedGrpcStatus(third.status)), "TOO_MANY_CALLS");
  first.TryCancel();
  second.TryCancel();
  EXPECT_EQ(one->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_EQ(two->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

class FewCallsOfAConnectionTest : public FerryServiceTest {
 protected:
  void Change(FerryService::Parts& parts) override { parts.max_calls_of_connection = 1; }
};

TEST_F(FewCallsOfAConnectionTest, CallsOfOneConnectionKeepNoOtherOut) {
  model_.Hang(true);
  grpc::ClientContext first;
  const auto one = stub_->Generate(&first, Greedy("abc", 5));
  ASSERT_TRUE(EventuallyRunning(1));
  EXPECT_THAT(Generate(Greedy("abc", 5)).status.error_message(), testing::HasSubstr("calls of this connection"));
  model_.Hang(false);
  grpc::ChannelArguments own;
  own.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  stub_ = v1::Ferry::NewStub(grpc::CreateCustomChannel(address_, grpc::InsecureChannelCredentials(), own));
  EXPECT_EQ(Generate(Greedy("abc", 5)).text, "defgh");
  v1::GenerateResponse response;
  while (one->Read(&response)) {
  }
  EXPECT_TRUE(one->Finish().ok());
}

class KeysTest : public FerryServiceTest {
 protected:
  void Change(FerryService::Parts& parts) override {
    user_ = MakeApiKey("alice", Role::kUser).value();
    admin_ = MakeApiKey("ops", Role::kAdmin).value();
    Write(user_.line + " parallel=1\n" + admin_.line + "\n");
    keys_ = ApiKeys::Load(file_).value();
    parts.keys = keys_.get();
  }
  void TearDown() override {
    FerryServiceTest::TearDown();
    std::filesystem::remove(file_);
  }
  void Write(const std::string& text) {
    std::ofstream(file_) << text;
    ASSERT_EQ(::chmod(file_.c_str(), 0600), 0);
  }
  v1::GetServerInfoResponse ServerInfo(const std::string& key) {
    grpc::ClientContext context;
    context.AddMetadata("authorization", "Bearer " + key);
    v1::GetServerInfoResponse info;
    EXPECT_TRUE(stub_->GetServerInfo(&context, {}, &info).ok());
    return info;
  }

  const std::string file_ = testing::TempDir() + "/service_keys_" + std::to_string(::getpid());
  NewApiKey user_, admin_;
  std::unique_ptr<ApiKeys> keys_;
};

TEST_F(KeysTest, NobodyIsServedWithoutAKey) {
  EXPECT_EQ(Generate(Greedy("abc", 2)).status.error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(Generate(Greedy("abc", 2), absl::Seconds(60), "fk-wrong").status.error_code(), grpc::StatusCode::UNAUTHENTICATED);
  const auto refused = [&](const grpc::Status& status) {
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAUTHENTICATED) << status.error_message();
  };
  grpc::ClientContext contexts[4];
  v1::TokenizeResponse ids;
  v1::DetokenizeResponse text;
  v1::GetModelInfoResponse model;
  v1::GetServerInfoResponse server;
  refused(stub_->Tokenize(&contexts[0], {}, &ids));
  refused(stub_->Detokenize(&contexts[1], {}, &text));
  refused(stub_->GetModelInfo(&contexts[2], {}, &model));
  refused(stub_->GetServerInfo(&contexts[3], {}, &server));
  EXPECT_EQ(Generate(Greedy("abc", 2), absl::Seconds(60), user_.key).text, "de");
}

TEST_F(KeysTest, OnlyAdminsEmptyExpertSlotsAndSeeWorkers) {
  v1::GenerateRequest request = Greedy("abc", 2);
  request.set_forget_experts(true);
  EXPECT_EQ(Generate(request, absl::Seconds(60), user_.key).status.error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(Generate(request, absl::Seconds(60), admin_.key).text, "de");
  EXPECT_EQ(ServerInfo(user_.key).workers_size(), 0);
  EXPECT_EQ(ServerInfo(admin_.key).workers_size(), 1);
}

TEST_F(KeysTest, OnlyAnAdminAbortsTheCallsOfOtherKeys) {
  const auto abort = [&](const std::string& key, const std::string& id) {
    grpc::ClientContext context;
    context.AddMetadata("authorization", "Bearer " + key);
    v1::AbortRequest request;
    request.add_request_ids(id);
    v1::AbortResponse response;
    EXPECT_TRUE(stub_->Abort(&context, request, &response).ok());
    return response.aborted();
  };
  v1::GenerateRequest request = Greedy("abc", 5);
  request.set_request_id("r1");
  for (const bool own : {true, false}) {
    model_.Hang(true);
    grpc::ClientContext context;
    context.AddMetadata("authorization", "Bearer " + (own ? user_ : admin_).key);
    const auto stream = stub_->Generate(&context, request);
    ASSERT_TRUE(EventuallyRunning(1));
    EXPECT_EQ(abort(user_.key, "r2"), 0u);
    EXPECT_EQ(abort(user_.key, "r1"), own ? 1u : 0u);
    if (!own) {
      EXPECT_EQ(abort(admin_.key, "r1"), 1u);
    }
    EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
    model_.Hang(false);
    ASSERT_TRUE(EventuallyIdle());
    EXPECT_EQ(abort(admin_.key, "r1"), 0u) << "it is over";
  }
  request.set_request_id("two words");
  EXPECT_EQ(Generate(request, absl::Seconds(60), admin_.key).status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(KeysTest, AKeyHasSoManyRequestsAtOnceAsItsLineSays) {
  model_.Hang(true);
  grpc::ClientContext context;
  context.AddMetadata("authorization", "Bearer " + user_.key);
  const auto stream = stub_->Generate(&context, Greedy("abc", 5));
  ASSERT_TRUE(EventuallyRunning(1));
  const Answer second = Generate(Greedy("abc", 2), absl::Seconds(60), user_.key);
  EXPECT_EQ(second.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(second.status.error_message(), testing::HasSubstr("alice"));
  EXPECT_EQ(ReasonOf(FromDetailedGrpcStatus(second.status)), "KEY_LIMIT");
  context.TryCancel();
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
  model_.Hang(false);
  bool served = false;  // the server hears of the end a little later
  for (int i = 0; i < 1000 && !served; ++i) {
    served = Generate(Greedy("abc", 2), absl::Seconds(60), user_.key).status.ok();
    if (!served) absl::SleepFor(absl::Milliseconds(5));
  }
  EXPECT_TRUE(served);
}

TEST_F(KeysTest, AKeyThatIsTakenOutOfTheFileIsRefusedAtOnce) {
  ASSERT_TRUE(Generate(Greedy("abc", 2), absl::Seconds(60), user_.key).status.ok());
  Write(admin_.line + "\n");
  EXPECT_EQ(Generate(Greedy("abc", 2), absl::Seconds(60), user_.key).status.error_code(), grpc::StatusCode::UNAUTHENTICATED);
}

TEST_F(FerryServiceTest, DescribesModelAndServer) {
  grpc::ClientContext model_context, server_context;
  v1::GetModelInfoResponse model;
  ASSERT_TRUE(stub_->GetModelInfo(&model_context, {}, &model).ok());
  EXPECT_EQ(model.name(), "alphabet");
  v1::GetServerInfoResponse info;
  EXPECT_TRUE(stub_->GetServerInfo(&server_context, {}, &info).ok());
}

}  // namespace
}  // namespace ferry
