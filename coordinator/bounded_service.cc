#include "coordinator/bounded_service.h"

#include <grpcpp/grpcpp.h>
#include <grpcpp/impl/codegen/server_callback_handlers.h>

#include <memory>
#include <utility>

#include "coordinator/raw_message.h"

namespace ferry {
namespace {

using grpc::internal::MethodHandler;
using UnaryHandler = grpc::internal::CallbackUnaryHandler<grpc::ByteBuffer, grpc::ByteBuffer>;
using StreamHandler = grpc::internal::CallbackServerStreamingHandler<grpc::ByteBuffer, grpc::ByteBuffer>;

// The message of one call, which lives until the method has it.
class CallRead final : public MessageReads::Read {
 public:
  CallRead(MessageReads* reads, MethodHandler* method, const MethodHandler::HandlerParameter& call)
      : reads_(*reads), method_(*method), call_(*call.call), context_(*call.server_context), requester_(call.call_requester) {}

  void Begin() { reads_.Begin(this, static_cast<const grpc::CallbackServerContext&>(context_).peer()); }

  void Start() override {
    read_.Set(
        call_.call(), [this](bool ok) { OnRead(ok); }, &ops_, /*can_inline=*/false);
    ops_.RecvMessage(&message_);
    ops_.set_core_cq_tag(&read_);
    call_.PerformOps(&ops_);
  }
  void GiveUp() override { context_.TryCancel(); }
  void Refuse(const absl::Status& status) override {
    UnaryHandler refusal([&](grpc::CallbackServerContext* context, const grpc::ByteBuffer*, grpc::ByteBuffer*) {
      return Finish(context, status);
    });
    HandOver(refusal);
  }

 private:
  void OnRead(bool ok) {
    reads_.Ended(this);
    if (ok && message_.Valid()) return HandOver(method_);
    Refuse(Cancelled("the call's message did not come"));
  }

  void HandOver(MethodHandler& handler) {
    grpc::Status status;
    void* data = nullptr;
    void* const message = handler.Deserialize(call_.call(), nullptr, &status, &data);
    static_cast<grpc::ByteBuffer*>(message)->Swap(&message_);
    const std::unique_ptr<CallRead> self(this);  // the method may end the call at once
    handler.RunHandler(MethodHandler::HandlerParameter(&call_, &context_, message, status, data, requester_));
  }

  MessageReads& reads_;
  MethodHandler& method_;
  grpc::internal::Call& call_;
  grpc::ServerContextBase& context_;
  const std::function<void()> requester_;
  grpc::ByteBuffer message_;
  grpc::internal::CallOpSet<grpc::internal::CallOpRecvMessage<grpc::ByteBuffer>> ops_;
  grpc::internal::CallbackWithSuccessTag read_;
};

class ReadingHandler final : public MethodHandler {
 public:
  ReadingHandler(MessageReads* reads, std::unique_ptr<MethodHandler> method) : reads_(*reads), method_(std::move(method)) {}
  void RunHandler(const HandlerParameter& call) override { (new CallRead(&reads_, method_.get(), call))->Begin(); }

 private:
  MessageReads& reads_;
  const std::unique_ptr<MethodHandler> method_;
};

}  // namespace

void BoundedService::Add(const char* path, std::unique_ptr<MethodHandler> handler) {
  AddMethod(new grpc::internal::RpcServiceMethod(path, grpc::internal::RpcMethod::BIDI_STREAMING, nullptr));
  MarkMethodRawCallback(num_methods_++, new ReadingHandler(&reads_, std::move(handler)));
}

void BoundedService::AddUnary(const char* path, UnaryMethod method) {
  Add(path, std::make_unique<UnaryHandler>(std::move(method)));
}

void BoundedService::AddStream(const char* path, StreamMethod method) {
  Add(path, std::make_unique<StreamHandler>(std::move(method)));
}

}  // namespace ferry
