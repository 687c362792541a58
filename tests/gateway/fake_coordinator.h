#pragma once

// A coordinator that says what a test scripted, over real gRPC.

#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "ferry/v1/generate.grpc.pb.h"
#include "ferry/v1/vocabulary.grpc.pb.h"

namespace ferry {

class FakeCoordinator final : public v1::Ferry::Service, public v1::Vocabulary::Service {
 public:
  // Writes messages through `write`, which is false once the caller has gone, and returns the status of the call.
  using Script =
      std::function<grpc::Status(const v1::GenerateRequest&, const std::function<bool(const v1::GenerateResponse&)>& write)>;

  explicit FakeCoordinator(const std::shared_ptr<grpc::ServerCredentials>& credentials = grpc::InsecureServerCredentials()) {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", credentials, &port_);
    builder.RegisterService(static_cast<v1::Ferry::Service*>(this));
    builder.RegisterService(static_cast<v1::Vocabulary::Service*>(this));
    server_ = builder.BuildAndStart();
    model_.set_name("fake");
    model_.set_context_length(4096);
    model_.set_vocab_size(256);
    for (int byte = 0; byte < 256; ++byte) vocabulary_.add_tokens(std::string(1, static_cast<char>(byte)));
    info_.set_state("serving");
    info_.set_max_parallel(2);
  }
  ~FakeCoordinator() override { server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(5)); }

  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }
  void SetScript(Script script) {
    const std::lock_guard lock(mutex_);
    script_ = std::move(script);
  }
  void SetInfo(const std::function<void(v1::GetServerInfoResponse&)>& change) {
    const std::lock_guard lock(mutex_);
    change(info_);
  }
  void SetModel(const std::string& name, const std::string& chat_template) {
    const std::lock_guard lock(mutex_);
    model_.set_name(name);
    vocabulary_.set_chat_template(chat_template);
  }
  // Ids from 256 on are control tokens of these texts.
  void AddSpecialTokens(const std::vector<std::string>& texts) {
    const std::lock_guard lock(mutex_);
    for (const std::string& text : texts) {
      vocabulary_.add_special_token_ids(static_cast<uint32_t>(vocabulary_.tokens_size()));
      vocabulary_.add_tokens(text);
    }
    model_.set_vocab_size(static_cast<uint32_t>(vocabulary_.tokens_size()));
  }
  // From now on only calls with this API key are answered.
  void WantKey(const std::string& key) {
    const std::lock_guard lock(mutex_);
    wanted_ = "Bearer " + key;
  }
  void SetServing(bool serving) { server_->GetHealthCheckService()->SetServingStatus(serving); }
  std::vector<v1::GenerateRequest> requests() {
    const std::lock_guard lock(mutex_);
    return requests_;
  }
  int cancelled() const { return cancelled_; }

  // A message that says `text`, a token a byte.
  static v1::GenerateResponse Saying(const std::string& text) {
    v1::GenerateResponse message;
    message.set_text(text);
    for (const char c : text) message.add_token_ids(static_cast<unsigned char>(c));
    return message;
  }
  // One message a text, the last with a finish.
  static Script Says(std::vector<std::string> texts) {
    return [texts = std::move(texts)](const v1::GenerateRequest&, const auto& write) {
      for (size_t i = 0; i < texts.size(); ++i) {
        v1::GenerateResponse message;
        message.add_token_ids(static_cast<uint32_t>(i));
        message.set_text(texts[i]);
        if (i + 1 == texts.size()) {
          message.mutable_finish()->set_reason(v1::Finish::STOP);
          message.mutable_finish()->set_prompt_tokens(3);
          message.mutable_finish()->set_generated_tokens(static_cast<uint32_t>(texts.size()));
        }
        write(message);
      }
      return grpc::Status::OK;
    };
  }
  static Script Fails(grpc::StatusCode code, const std::string& message) {
    return [=](const v1::GenerateRequest&, const auto&) { return grpc::Status(code, message); };
  }
  // Says "x" until the caller goes.
  static Script GoesOn() {
    return [](const v1::GenerateRequest&, const auto& write) {
      v1::GenerateResponse message;
      message.add_token_ids(1);
      message.set_text("x");
      while (write(message)) std::this_thread::sleep_for(std::chrono::milliseconds(5));
      return grpc::Status::CANCELLED;
    };
  }

  grpc::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest* request,
                        grpc::ServerWriter<v1::GenerateResponse>* writer) override {
    if (const grpc::Status allowed = Allowed(*context); !allowed.ok()) return allowed;
    Script script;
    {
      const std::lock_guard lock(mutex_);
      requests_.push_back(*request);
      script = script_;
    }
    const grpc::Status status =
        script(*request, [&](const v1::GenerateResponse& message) { return !context->IsCancelled() && writer->Write(message); });
    if (context->IsCancelled()) ++cancelled_;
    return status;
  }
  // A token a byte.
  grpc::Status Tokenize(grpc::ServerContext* context, const v1::TokenizeRequest* request,
                        v1::TokenizeResponse* response) override {
    if (const grpc::Status allowed = Allowed(*context); !allowed.ok()) return allowed;
    for (const char c : request->text()) response->add_ids(static_cast<unsigned char>(c));
    return grpc::Status::OK;
  }
  grpc::Status Detokenize(grpc::ServerContext* context, const v1::DetokenizeRequest* request,
                          v1::DetokenizeResponse* response) override {
    if (const grpc::Status allowed = Allowed(*context); !allowed.ok()) return allowed;
    for (const uint32_t id : request->ids()) {
      if (id > 127)
        return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "ids[0] is " + std::to_string(id) + ", want 0 to 127");
      response->mutable_text()->push_back(static_cast<char>(id));
    }
    return grpc::Status::OK;
  }
  grpc::Status TokenizePieces(grpc::ServerContext* context, const v1::TokenizePiecesRequest* request,
                              v1::TokenizePiecesResponse* response) override {
    if (const grpc::Status allowed = Allowed(*context); !allowed.ok()) return allowed;
    for (const v1::TextPiece& piece : request->pieces()) {
      for (const char c : piece.text()) response->add_ids(static_cast<unsigned char>(c));
    }
    return grpc::Status::OK;
  }
  grpc::Status GetVocabulary(grpc::ServerContext* context, const v1::GetVocabularyRequest*,
                             v1::GetVocabularyResponse* response) override {
    if (const grpc::Status allowed = Allowed(*context); !allowed.ok()) return allowed;
    const std::lock_guard lock(mutex_);
    *response = vocabulary_;
    return grpc::Status::OK;
  }
  grpc::Status GetModelInfo(grpc::ServerContext* context, const v1::GetModelInfoRequest*,
                            v1::GetModelInfoResponse* response) override {
    if (const grpc::Status allowed = Allowed(*context); !allowed.ok()) return allowed;
    const std::lock_guard lock(mutex_);
    *response = model_;
    return grpc::Status::OK;
  }
  grpc::Status GetServerInfo(grpc::ServerContext* context, const v1::GetServerInfoRequest*,
                             v1::GetServerInfoResponse* response) override {
    if (const grpc::Status allowed = Allowed(*context); !allowed.ok()) return allowed;
    const std::lock_guard lock(mutex_);
    *response = info_;
    return grpc::Status::OK;
  }

 private:
  grpc::Status Allowed(const grpc::ServerContext& context) {
    const std::lock_guard lock(mutex_);
    const auto key = context.client_metadata().find("authorization");
    if (wanted_.empty() || (key != context.client_metadata().end() && key->second == wanted_)) return grpc::Status::OK;
    return grpc::Status(grpc::StatusCode::UNAUTHENTICATED, "this server wants an API key");
  }

  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
  std::mutex mutex_;
  Script script_ = Says({"hello"});
  std::vector<v1::GenerateRequest> requests_;
  v1::GetModelInfoResponse model_;
  v1::GetVocabularyResponse vocabulary_;
  v1::GetServerInfoResponse info_;
  std::string wanted_;  // authorization of every call; empty: any
  std::atomic<int> cancelled_{0};
};

}  // namespace ferry
