#include "gateway/engine_client.h"

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <boost/asio/post.hpp>
#include <boost/asio/thread_pool.hpp>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <type_traits>
#include <unordered_set>
#include <utility>

#include "common/grpc_status.h"
#include "common/listen_address.h"
#include "common/rpc/detailed_status.h"
#include "common/rpc/rpc_deadline.h"
#include "common/thread_limit.h"
#include "ferry/v1/activity.grpc.pb.h"
#include "ferry/v1/generate.grpc.pb.h"
#include "ferry/v1/vocabulary.grpc.pb.h"

namespace ferry {
namespace {

constexpr int kMaxMessageBytes = 64 << 20;
constexpr absl::Duration kUnaryTimeout = absl::Seconds(20);  // a megabyte of text is tokenized in less than a second
// A coordinator whose host has gone says nothing any more.
constexpr int kKeepaliveMs = 10000, kKeepaliveTimeoutMs = 5000;
constexpr int kMaxReconnectMs = 1000;
constexpr int kAnswerThreads = 2;
constexpr size_t kMaxKeyBytes = 1024;
constexpr size_t kMaxRequestBytes = (size_t{4} << 20) - 4096;  // the coordinator reads messages of 4 MiB

template <typename Request>
absl::Status CheckSize(const Request& request) {
  if constexpr (!std::is_same_v<Request, grpc::ByteBuffer>) {
    const size_t bytes = request.ByteSizeLong();
    if (bytes > kMaxRequestBytes) {
      return absl::OutOfRangeError(
          absl::StrFormat("the request has %d bytes for the engine, at most %d are allowed", bytes, kMaxRequestBytes));
    }
  }
  return absl::OkStatus();
}

// Calls that have not ended. Cancel may come from any thread while a call ends on another.
class Calls {
 public:
  // False: the client is shut down.
  bool Add(grpc::ClientContext* context) {
    const std::lock_guard lock(mutex_);
    if (closed_) return false;
    contexts_.insert(context);
    ++open_;
    return true;
  }
  // The context goes after Close can no longer cancel it, and before Close returns: gRPC itself may end then.
  void End(std::unique_ptr<grpc::ClientContext> context) {
    {
      const std::lock_guard lock(mutex_);
      contexts_.erase(context.get());
    }
    context.reset();
    const std::lock_guard lock(mutex_);
    if (--open_ == 0) all_ended_.notify_all();
  }
  void Close() {
    std::unique_lock lock(mutex_);
    closed_ = true;
    for (grpc::ClientContext* const context : contexts_) context->TryCancel();
    all_ended_.wait(lock, [this] { return open_ == 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable all_ended_;
  std::unordered_set<grpc::ClientContext*> contexts_;
  int64_t open_ = 0;
  bool closed_ = false;
};

// A key is printable ASCII, and gRPC ends the process for other metadata.
void AddKey(const std::string& key, grpc::ClientContext* context) {
  const bool sendable = std::all_of(key.begin(), key.end(), [](char c) { return c > ' ' && c <= '~'; });
  if (!key.empty() && key.size() <= kMaxKeyBytes && sendable) context->AddMetadata("authorization", "Bearer " + key);
}

// What a completion queue hands back.
class Step {
 public:
  virtual ~Step() = default;
  virtual void OnStepDone(bool ok) = 0;
};

// Waits for all calls of a client on one thread. A message then wakes one thread of this process; gRPC's own threads hand the
// waiting to each other, which wakes two.
class CallQueue {
 public:
  absl::Status Start() {
    ASSIGN_OR_RETURN(thread_, StartThread([this] { Run(); }));
    return absl::OkStatus();
  }
  // After the last call has ended.
  ~CallQueue() {
    queue_.Shutdown();
    if (thread_.joinable()) thread_.join();
  }
  grpc::CompletionQueue* get() { return &queue_; }

 private:
  void Run() {
    void* tag = nullptr;
    bool ok = false;
    while (queue_.Next(&tag, &ok)) static_cast<Step*>(tag)->OnStepDone(ok);
  }

  grpc::CompletionQueue queue_;
  std::thread thread_;
};

// Owns itself through self_ while gRPC uses it. Its callbacks run on the queue's thread.
class StreamCall final : public Step, public GenerateCall {
 public:
  StreamCall(v1::GenerateRequest request, const std::string& key, Engine::OnMessage on_message, Engine::OnEnd on_end,
             Calls* calls)
      : request_(std::move(request)), on_message_(std::move(on_message)), on_end_(std::move(on_end)), calls_(*calls) {
    AddKey(key, context_.get());
  }

  void Start(std::shared_ptr<StreamCall> self, v1::Ferry::Stub& stub, grpc::CompletionQueue* queue) {
    absl::Status begun = CheckSize(request_);
    if (begun.ok() && !calls_.Add(context_.get())) begun = Cancelled("the gateway is ending");
    if (!begun.ok()) {
      const Engine::OnEnd on_end = std::exchange(on_end_, nullptr);
      on_message_ = nullptr;
      return on_end(begun);
    }
    self_ = std::move(self);
    reader_ = stub.PrepareAsyncGenerate(context_.get(), request_, queue);
    reader_->StartCall(this);
  }
  void Cancel() override {
    const std::lock_guard lock(mutex_);
    if (context_ != nullptr) context_->TryCancel();
  }

  void OnStepDone(bool ok) override {
    if (state_ == State::kEnding) return OnEnded();
    if (!ok) {
      state_ = State::kEnding;
      return reader_->Finish(&status_, this);
    }
    if (std::exchange(state_, State::kReading) == State::kReading) on_message_(response_);
    reader_->Read(&response_, this);
  }

 private:
  enum class State { kStarting, kReading, kEnding };

  void OnEnded() {
    const std::shared_ptr<StreamCall> self = std::move(self_);
    on_end_(FromDetailedGrpcStatus(status_));
    on_message_ = nullptr;  // they hold what waits for the answer
    on_end_ = nullptr;
    reader_.reset();
    std::unique_ptr<grpc::ClientContext> context;
    {
      const std::lock_guard lock(mutex_);
      context = std::move(context_);
    }
    calls_.End(std::move(context));
  }

  const v1::GenerateRequest request_;
  Engine::OnMessage on_message_;
  Engine::OnEnd on_end_;
  Calls& calls_;
  std::mutex mutex_;
  std::unique_ptr<grpc::ClientContext> context_ = std::make_unique<grpc::ClientContext>();  // null: the call has ended
  std::unique_ptr<grpc::ClientAsyncReader<v1::GenerateResponse>> reader_;
  State state_ = State::kStarting;
  v1::GenerateResponse response_;
  grpc::Status status_;
  std::shared_ptr<StreamCall> self_;
};

// Owns itself while gRPC uses it. Its answer is used on a thread of `pool`, so that what is long with it holds no stream up.
template <typename Request, typename Response>
class UnaryCall final : public Step {
 public:
  UnaryCall(Request request, Engine::OnAnswer<Response> on_answer, Calls* calls, boost::asio::thread_pool* pool)
      : request_(std::move(request)), on_answer_(std::move(on_answer)), calls_(*calls), pool_(*pool) {}

  // `prepare`: makes the reader of the call.
  template <typename Prepare>
  static void Start(std::unique_ptr<UnaryCall> call, const std::string& key, const Prepare& prepare) {
    if (const absl::Status size = CheckSize(call->request_); !size.ok()) return call->on_answer_(size);
    if (!call->calls_.Add(call->context_.get())) return call->on_answer_(Cancelled("the gateway is ending"));
    AddKey(key, call->context_.get());
    call->context_->set_deadline(RpcDeadline(kUnaryTimeout));
    UnaryCall* const self = call.release();
    self->reader_ = prepare(self->context_.get(), self->request_);
    self->reader_->StartCall();
    self->reader_->Finish(&self->response_, &self->status_, self);
  }

  void OnStepDone(bool) override {
    boost::asio::post(pool_, [this] {
      const std::unique_ptr<UnaryCall> self(this);
      if (status_.ok()) {
        on_answer_(std::move(response_));
      } else {
        on_answer_(FromGrpcStatus(status_));
      }
      on_answer_ = nullptr;
      reader_.reset();
      calls_.End(std::move(context_));
    });
  }

 private:
  const Request request_;
  Response response_;
  grpc::Status status_;
  Engine::OnAnswer<Response> on_answer_;
  Calls& calls_;
  boost::asio::thread_pool& pool_;
  std::unique_ptr<grpc::ClientContext> context_ = std::make_unique<grpc::ClientContext>();
  std::unique_ptr<grpc::ClientAsyncResponseReader<Response>> reader_;
};

// All engines of one client share it.
struct Coordinator {
  explicit Coordinator(const std::shared_ptr<grpc::Channel>& channel)
      : stub(v1::Ferry::NewStub(channel)),
        vocabulary(v1::Vocabulary::NewStub(channel)),
        activity(v1::Activity::NewStub(channel)),
        any(channel) {}

  const std::unique_ptr<v1::Ferry::Stub> stub;
  const std::unique_ptr<v1::Vocabulary::Stub> vocabulary;
  const std::unique_ptr<v1::Activity::Stub> activity;
  grpc::GenericStub any;
  Calls calls;
  boost::asio::thread_pool answers{kAnswerThreads};
  CallQueue queue;  // goes first: a step may still post to `answers`
};

class KeyedEngine final : public Engine {
 public:
  KeyedEngine(Coordinator* coordinator, std::string key) : coordinator_(*coordinator), key_(std::move(key)) {}

  std::shared_ptr<GenerateCall> Generate(v1::GenerateRequest request, OnMessage on_message, OnEnd on_end) override {
    const auto call =
        std::make_shared<StreamCall>(std::move(request), key_, std::move(on_message), std::move(on_end), &coordinator_.calls);
    call->Start(call, *coordinator_.stub, coordinator_.queue.get());
    return call;
  }
  void Tokenize(v1::TokenizeRequest request, OnAnswer<v1::TokenizeResponse> on_answer) override {
    Unary(std::move(request), std::move(on_answer),
          [this](auto&&... args) { return coordinator_.stub->PrepareAsyncTokenize(args..., Queue()); });
  }
  void Detokenize(v1::DetokenizeRequest request, OnAnswer<v1::DetokenizeResponse> on_answer) override {
    Unary(std::move(request), std::move(on_answer),
          [this](auto&&... args) { return coordinator_.stub->PrepareAsyncDetokenize(args..., Queue()); });
  }
  void TokenizePieces(v1::TokenizePiecesRequest request, OnAnswer<v1::TokenizePiecesResponse> on_answer) override {
    Unary(std::move(request), std::move(on_answer),
          [this](auto&&... args) { return coordinator_.vocabulary->PrepareAsyncTokenizePieces(args..., Queue()); });
  }
  void GetVocabulary(OnAnswer<v1::GetVocabularyResponse> on_answer) override {
    Unary(v1::GetVocabularyRequest(), std::move(on_answer),
          [this](auto&&... args) { return coordinator_.vocabulary->PrepareAsyncGetVocabulary(args..., Queue()); });
  }
  void GetModelInfo(OnAnswer<v1::GetModelInfoResponse> on_answer) override {
    Unary(v1::GetModelInfoRequest(), std::move(on_answer),
          [this](auto&&... args) { return coordinator_.stub->PrepareAsyncGetModelInfo(args..., Queue()); });
  }
  void GetServerInfo(OnAnswer<v1::GetServerInfoResponse> on_answer) override {
    Unary(v1::GetServerInfoRequest(), std::move(on_answer),
          [this](auto&&... args) { return coordinator_.stub->PrepareAsyncGetServerInfo(args..., Queue()); });
  }
  void GetActivity(OnAnswer<v1::GetActivityResponse> on_answer) override {
    Unary(v1::GetActivityRequest(), std::move(on_answer),
          [this](auto&&... args) { return coordinator_.activity->PrepareAsyncGetActivity(args..., Queue()); });
  }
  void IsServing(OnAnswer<bool> on_answer) override {
    // grpc.health.v1 has no header in Debian: an empty request asks for the whole server, and the answer is {status = 1}.
    const grpc::Slice nothing;
    Unary(grpc::ByteBuffer(&nothing, 1),
          OnAnswer<grpc::ByteBuffer>([on_answer = std::move(on_answer)](const absl::StatusOr<grpc::ByteBuffer>& answer) {
            if (!answer.ok()) return on_answer(answer.status());
            grpc::Slice bytes;
            constexpr std::string_view kServing = "\x08\x01";
            on_answer(answer->DumpToSingleSlice(&bytes).ok() &&
                      std::string_view(reinterpret_cast<const char*>(bytes.begin()), bytes.size()) == kServing);
          }),
          [this](grpc::ClientContext* context, const grpc::ByteBuffer& request) {
            return coordinator_.any.PrepareUnaryCall(context, "/grpc.health.v1.Health/Check", request, Queue());
          });
  }

 private:
  template <typename Request, typename Response, typename Prepare>
  void Unary(Request request, OnAnswer<Response> on_answer, const Prepare& prepare) {
    UnaryCall<Request, Response>::Start(std::make_unique<UnaryCall<Request, Response>>(
                                            std::move(request), std::move(on_answer), &coordinator_.calls, &coordinator_.answers),
                                        key_, prepare);
  }
  grpc::CompletionQueue* Queue() const { return coordinator_.queue.get(); }

  Coordinator& coordinator_;
  const std::string key_;
};

class GrpcEngineClient final : public EngineClient {
 public:
  explicit GrpcEngineClient(const std::shared_ptr<grpc::Channel>& channel) : coordinator_(channel) {}
  ~GrpcEngineClient() override { Shutdown(); }
  absl::Status Start() { return coordinator_.queue.Start(); }

  std::shared_ptr<Engine> As(const std::string& key) override { return std::make_shared<KeyedEngine>(&coordinator_, key); }
  void Shutdown() override { coordinator_.calls.Close(); }

 private:
  Coordinator coordinator_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<EngineClient>> EngineClient::Create(const std::string& text, const std::string& ca_pem) {
  ASSIGN_OR_RETURN(const ListenAddress address, ParseListenAddress(text, kCoordinatorPort));
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetMaxSendMessageSize(kMaxMessageBytes);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kMaxReconnectMs);
  const bool tls = !ca_pem.empty() && address.unix_path.empty();
  auto client = std::make_unique<GrpcEngineClient>(grpc::CreateCustomChannel(
      address.ToString(), tls ? grpc::SslCredentials({.pem_root_certs = ca_pem}) : grpc::InsecureChannelCredentials(),
      arguments));
  RETURN_IF_ERROR(client->Start());
  return client;
}

}  // namespace ferry
