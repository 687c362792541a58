#pragma once

// The gRPC service of generate.proto. It checks the caller and the message, translates, and decides nothing else.
//
// Bounds: messages are read in turns (coordinator/bounded_service.h); a message has at most kMaxRequestFields fields
// (coordinator/wire_bounds.h) before it is parsed; so many calls are open at once as max_open_calls and max_calls_of_connection
// say; an answer that its client does not read is given up after max_unsent_bytes or reader_patience, and the call ends
// CANCELLED; a call that is cancelled before its text is tokenized is not tokenized.

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "common/access/api_keys.h"
#include "common/access/key_usage.h"
#include "common/clock.h"
#include "common/repeating_thread.h"
#include "coordinator/bounded_service.h"
#include "coordinator/constraint/constraint.h"
#include "coordinator/generation/generation_loop.h"
#include "coordinator/generation/open_calls.h"
#include "coordinator/generation/request.h"
#include "coordinator/generation/text_calls.h"
#include "coordinator/text/tokenizer.h"
#include "ferry/v1/activity.pb.h"
#include "ferry/v1/generate.pb.h"

namespace ferry {

inline constexpr int kMaxRequestFields = 65536;

class GenerateMessages;
class GenerateStream;

class FerryService final : public BoundedService {
 public:
  struct Parts {  // all borrowed
    GenerationLoop* loop = nullptr;
    const Tokenizer* tokenizer = nullptr;
    const Clock* clock = nullptr;
    MessageReads* reads = nullptr;
    TextCalls* texts = nullptr;  // a megabyte of prompt takes longer than a callback should
    RequestLimits limits;
    v1::GetModelInfoResponse model_info;
    std::function<v1::GetServerInfoResponse()> server_info;  // thread-safe
    ApiKeys* keys = nullptr;                                 // null: everybody may do everything
    int max_open_calls = 1024;
    int max_calls_of_connection = 256;  // but of local ones, where the gateway brings the calls of many
    int64_t max_unsent_bytes = 8 << 20;
    absl::Duration reader_patience = absl::Minutes(1);
  };
  // ResourceExhausted: no thread can be started.
  static absl::StatusOr<std::unique_ptr<FerryService>> Create(Parts parts);
  ~FerryService() override;

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Generate(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request);
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response);
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response);
  grpc::ServerUnaryReactor* Abort(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* response);
  grpc::ServerUnaryReactor* GetModelInfo(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                         grpc::ByteBuffer* response);
  // Users are told whether it serves and how many requests it has; admins also what runs where.
  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* response);

  // For another API beside this one (vllm_service.h), with the same bounds, queues and rights.
  // Generate, whose messages are read and written by `messages`.
  grpc::ServerWriteReactor<grpc::ByteBuffer>* GenerateWith(grpc::CallbackServerContext* context, const grpc::ByteBuffer* message,
                                                           std::shared_ptr<GenerateMessages> messages);
  // Abort: the number of calls that ended. InvalidArgument: too many ids.
  absl::StatusOr<uint32_t> AbortCalls(const google::protobuf::RepeatedPtrField<std::string>& request_ids,
                                      const Principal& caller);
  // The calls of Generate that have not ended, the oldest first.
  std::vector<v1::RunningRequest> RunningRequests();
  // The caller. Unauthenticated: no key, or one that is unknown.
  absl::StatusOr<Principal> CallerOf(const grpc::CallbackServerContext& context);
  const Parts& parts() const { return parts_; }

 private:
  explicit FerryService(Parts parts);
  // On a thread of the texts, as the next.
  absl::Status TokenizeTo(const grpc::ByteBuffer& message, grpc::ByteBuffer* response) const;
  // InvalidArgument: an id is outside the vocabulary, or the text is too long.
  absl::Status DetokenizeTo(const grpc::ByteBuffer& message, grpc::ByteBuffer* response) const;
  // Checks the request of `message` and hands it to the loop.
  absl::Status Begin(const std::shared_ptr<GenerateStream>& stream, const Principal& caller, GenerateMessages& messages,
                     const grpc::ByteBuffer& message, absl::Time deadline);
  // The streams that are open now; forgets the others.
  std::vector<std::shared_ptr<GenerateStream>> OpenStreams();
  // Ends the calls of clients that do not read.
  void LookAfterStreams();

  const Parts parts_;
  const TokenizerTokens tokens_;
  constraint::ConstraintCompiler constraints_;
  const std::shared_ptr<KeyUsage> usage_;
  const std::shared_ptr<OpenCalls> open_calls_;
  std::mutex mutex_;
  std::vector<std::weak_ptr<GenerateStream>> streams_;  // guarded by mutex_; those that have ended are taken out now and then
  std::unique_ptr<RepeatingThread> watch_;
};

}  // namespace ferry
