#pragma once

// The coordinator as the gateway calls it: asynchronous, every unary call with a deadline, streams ended by Cancel.
//
// Callbacks come on the client's threads, those of all streams on one of them, and must not wait. Those of one call follow each
// other.

#include <functional>
#include <memory>
#include <string>

#include "common/status.h"
#include "ferry/v1/activity.pb.h"
#include "ferry/v1/generate.pb.h"
#include "ferry/v1/vocabulary.pb.h"

namespace ferry {

class GenerateCall {
 public:
  virtual ~GenerateCall() = default;
  // The engine frees what the request holds within one step. Any thread, any time; on_end still follows.
  virtual void Cancel() = 0;
};

class Engine {
 public:
  using OnMessage = std::function<void(const v1::GenerateResponse&)>;
  using OnEnd = std::function<void(const absl::Status&)>;
  template <typename Response>
  using OnAnswer = std::function<void(absl::StatusOr<Response>)>;

  virtual ~Engine() = default;

  // The call needs no owner: it ends by itself, and is dropped together with its callbacks after on_end.
  virtual std::shared_ptr<GenerateCall> Generate(v1::GenerateRequest request, OnMessage on_message, OnEnd on_end) = 0;
  virtual void Tokenize(v1::TokenizeRequest request, OnAnswer<v1::TokenizeResponse> on_answer) = 0;
  virtual void Detokenize(v1::DetokenizeRequest request, OnAnswer<v1::DetokenizeResponse> on_answer) = 0;
  virtual void TokenizePieces(v1::TokenizePiecesRequest request, OnAnswer<v1::TokenizePiecesResponse> on_answer) = 0;
  virtual void GetVocabulary(OnAnswer<v1::GetVocabularyResponse> on_answer) = 0;
  virtual void GetModelInfo(OnAnswer<v1::GetModelInfoResponse> on_answer) = 0;
  virtual void GetServerInfo(OnAnswer<v1::GetServerInfoResponse> on_answer) = 0;
  virtual void GetActivity(OnAnswer<v1::GetActivityResponse> on_answer) = 0;
  // Whether the model is served. The coordinator tells it without a key.
  virtual void IsServing(OnAnswer<bool> on_answer) = 0;
};

class EngineClient {
 public:
  // `address`: HOST:PORT of the coordinator, or unix:PATH; it need not be there yet, and calls are Unavailable while it is not.
  // `ca_pem`: over TCP the coordinator speaks TLS and has a certificate of this CA; empty: it does not.
  static absl::StatusOr<std::unique_ptr<EngineClient>> Create(const std::string& address, const std::string& ca_pem = "");
  virtual ~EngineClient() = default;

  // The coordinator, called with an API key; empty: without. A key that is too long or not printable ASCII is not sent. The
  // client outlives it.
  virtual std::shared_ptr<Engine> As(const std::string& key) = 0;

  // Cancels every call and returns when the last callback has; later calls are Cancelled at once. Done by the destructor, too.
  virtual void Shutdown() = 0;
};

}  // namespace ferry
