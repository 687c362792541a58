#include "coordinator/generation/ferry_service.h"

#include <algorithm>
#include <functional>
#include <optional>
#include <random>
#include <set>
#include <string_view>
#include <utility>

#include "common/error_details.h"
#include "common/escaped.h"
#include "common/log.h"
#include "coordinator/generation/generate_stream.h"
#include "coordinator/raw_message.h"

namespace ferry {
namespace {

constexpr absl::Duration kStreamWatchInterval = absl::Milliseconds(500);
constexpr size_t kMaxRequestIdBytes = 128;
constexpr size_t kMaxCacheSaltBytes = 256;
constexpr uint32_t kMaxOutputs = 64;
constexpr int kMaxAborts = 1000;
constexpr size_t kMaxDetokenizedBytes = 4 << 20;  // as much as Tokenize takes

// The deadline of a call on `clock`, whose date need not be the system's.
absl::Time DeadlineOf(const grpc::CallbackServerContext& context, const Clock& clock) {
  const auto deadline = context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return absl::InfiniteFuture();
  return clock.Now() + absl::FromChrono(deadline - std::chrono::system_clock::now());
}

uint64_t RandomSeed() {
  std::random_device random;
  return uint64_t{random()} << 32 | random();
}

template <typename Message>
absl::Status Parse(const grpc::ByteBuffer& bytes, Message* message) {
  return ParseBounded(bytes, {.max_fields = kMaxRequestFields}, message);
}

class FerryMessages final : public GenerateMessages {
 public:
  absl::Status Parse(const grpc::ByteBuffer& message, v1::GenerateRequest* request) override {
    return ferry::Parse(message, request);
  }
  absl::Status Write(const v1::GenerateResponse& response, std::vector<grpc::ByteBuffer>* messages) override {
    return Serialize(response, &messages->emplace_back());
  }
};

// What does not need the model is checked first.
absl::Status CheckGenerate(const Principal& caller, const v1::GenerateRequest& request) {
  if (request.forget_experts() && caller.role != Role::kAdmin) {
    return absl::PermissionDeniedError("forget_experts empties everybody's expert slots: it needs a key of the role admin");
  }
  const std::string& id = request.request_id();
  const bool plain = std::all_of(id.begin(), id.end(), [](char c) { return c > ' ' && c <= '~'; });
  if (id.size() > kMaxRequestIdBytes || !plain) {
    return InvalidArgument("request_id has %d characters, want at most %d of printable ASCII without spaces", id.size(),
                           kMaxRequestIdBytes);
  }
  if (request.cache_salt().size() > kMaxCacheSaltBytes) {
    return InvalidArgument("cache_salt has %d bytes, want at most %d", request.cache_salt().size(), kMaxCacheSaltBytes);
  }
  if (request.n() > kMaxOutputs) return InvalidArgument("n is %d, want at most %d", request.n(), kMaxOutputs);
  return absl::OkStatus();
}

// Any caller when there are no keys.
Principal Anybody() { return {.name = "-", .role = Role::kAdmin, .shares_cache = true}; }

// Keys are kept apart in the cache, unless both say otherwise; so are salts.
GenerationOwner OwnerOf(const Principal& caller, const std::string& cache_salt) {
  std::string domain = caller.shares_cache ? "" : caller.name;
  if (!cache_salt.empty()) domain += '\n' + cache_salt;  // no name has a line break
  return {.name = caller.name, .cache_domain = std::move(domain), .max_queued = caller.max_queued};
}

}  // namespace

FerryService::FerryService(Parts parts)
    : BoundedService(parts.reads),
      parts_(std::move(parts)),
      tokens_(parts_.tokenizer),
      constraints_(&tokens_),
      usage_(std::make_shared<KeyUsage>(parts_.clock)),
      open_calls_(std::make_shared<OpenCalls>(parts_.max_open_calls, parts_.max_calls_of_connection)) {
  AddStream("/ferry.v1.Ferry/Generate", std::bind_front(&FerryService::Generate, this));
  AddUnary("/ferry.v1.Ferry/Abort", std::bind_front(&FerryService::Abort, this));
  AddUnary("/ferry.v1.Ferry/Tokenize", std::bind_front(&FerryService::Tokenize, this));
  AddUnary("/ferry.v1.Ferry/Detokenize", std::bind_front(&FerryService::Detokenize, this));
  AddUnary("/ferry.v1.Ferry/GetModelInfo", std::bind_front(&FerryService::GetModelInfo, this));
  AddUnary("/ferry.v1.Ferry/GetServerInfo", std::bind_front(&FerryService::GetServerInfo, this));
}

absl::StatusOr<std::unique_ptr<FerryService>> FerryService::Create(Parts parts) {
  std::unique_ptr<FerryService> service(new FerryService(std::move(parts)));
  ASSIGN_OR_RETURN(service->watch_,
                   RepeatingThread::Start(kStreamWatchInterval, [raw = service.get()] { raw->LookAfterStreams(); }));
  return service;
}

FerryService::~FerryService() = default;

std::vector<std::shared_ptr<GenerateStream>> FerryService::OpenStreams() {
  std::vector<std::shared_ptr<GenerateStream>> open;
  const std::lock_guard lock(mutex_);
  std::erase_if(streams_, [&](const std::weak_ptr<GenerateStream>& weak) {
    std::shared_ptr<GenerateStream> stream = weak.lock();
    if (stream == nullptr) return true;
    open.push_back(std::move(stream));
    return false;
  });
  return open;
}

void FerryService::LookAfterStreams() {
  const absl::Time before = parts_.clock->Now() - parts_.reader_patience;
  for (const std::shared_ptr<GenerateStream>& stream : OpenStreams()) stream->GiveUpSlowReader(before);
}

absl::StatusOr<Principal> FerryService::CallerOf(const grpc::CallbackServerContext& context) {
  if (parts_.keys == nullptr) return Anybody();
  if (const absl::Status status = parts_.keys->ReloadIfChanged(); !status.ok()) {
    spdlog::warn("the API keys stay as they were: {}", Escaped(status.ToString()));
  }
  const auto header = context.client_metadata().find("authorization");
  if (header == context.client_metadata().end()) {
    return absl::UnauthenticatedError("this server wants an API key: metadata 'authorization: Bearer KEY'");
  }
  return parts_.keys->Authenticate(BearerToken(std::string_view(header->second.data(), header->second.size())));
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* FerryService::Generate(grpc::CallbackServerContext* context,
                                                                   const grpc::ByteBuffer* message) {
  return GenerateWith(context, message, std::make_shared<FerryMessages>());
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* FerryService::GenerateWith(grpc::CallbackServerContext* context,
                                                                       const grpc::ByteBuffer* message,
                                                                       std::shared_ptr<GenerateMessages> messages) {
  const auto stream = std::make_shared<GenerateStream>(GenerateStream::Options{.loop = parts_.loop,
                                                                               .clock = parts_.clock,
                                                                               .max_unsent_bytes = parts_.max_unsent_bytes,
                                                                               .usage = usage_,
                                                                               .open_calls = open_calls_,
                                                                               .messages = messages},
                                                       context);
  stream->HoldForCall(stream);
  const auto refuse = [&](const absl::Status& status) {
    stream->Close(status);
    return stream.get();
  };
  // A connection that ends takes all its calls back at once.
  if (context->IsCancelled() || !message->Valid()) return refuse(Cancelled("the call was cancelled"));
  if (const absl::Status placed = stream->TakePlace(); !placed.ok()) {
    return refuse(WithReason(placed, "TOO_MANY_CALLS"));
  }
  const absl::StatusOr<Principal> caller = CallerOf(*context);
  if (!caller.ok()) return refuse(caller.status());
  stream->SetCaller(*caller);
  if (const absl::Status begun = stream->CountRequests(1); !begun.ok()) return refuse(WithReason(begun, "KEY_LIMIT"));
  {
    const std::lock_guard lock(mutex_);
    streams_.push_back(stream);
  }
  // A copy: the stream may end before its turn comes.
  const auto begin = [this, stream, messages, bytes = *message, deadline = DeadlineOf(*context, *parts_.clock),
                      caller = *caller] {
    if (stream->cancelled()) return;
    if (const absl::Status status = Begin(stream, caller, *messages, bytes, deadline); !status.ok()) stream->Close(status);
  };
  if (const absl::Status posted = parts_.texts->Post(begin, message->Length()); !posted.ok()) return refuse(posted);
  return stream.get();
}

absl::Status FerryService::Begin(const std::shared_ptr<GenerateStream>& stream, const Principal& caller,
                                 GenerateMessages& messages, const grpc::ByteBuffer& message, absl::Time deadline) {
  v1::GenerateRequest request;
  RETURN_IF_ERROR(messages.Parse(message, &request));
  RETURN_IF_ERROR(CheckGenerate(caller, request));
  stream->SetRequestId(request.request_id());
  const uint32_t n = std::max(1u, request.n());
  if (const absl::Status counted = stream->CountRequests(n - 1); !counted.ok()) return WithReason(counted, "KEY_LIMIT");
  const uint64_t fallback_seed = RandomSeed();
  std::vector<std::shared_ptr<Generation>> outputs;
  for (uint32_t i = 0; i < n; ++i) {
    ASSIGN_OR_RETURN(const std::shared_ptr<Request> output,
                     Request::Create(request, parts_.tokenizer, parts_.limits, fallback_seed + i, deadline, parts_.clock,
                                     GenerateStream::SinkOf(stream, i), &constraints_));
    output->SetOwner(OwnerOf(caller, request.cache_salt()));
    outputs.push_back(output);
    if (request.sampling().has_seed()) request.mutable_sampling()->set_seed(request.sampling().seed() + 1);
    if (i == 0 && n > 1) *request.mutable_tokens()->mutable_ids() = {output->tokens().begin(), output->tokens().end()};
  }
  stream->Submit(std::move(outputs));
  return absl::OkStatus();
}

grpc::ServerUnaryReactor* FerryService::Abort(grpc::CallbackServerContext* context, const grpc::ByteBuffer* message,
                                              grpc::ByteBuffer* response) {
  const absl::StatusOr<Principal> caller = CallerOf(*context);
  if (!caller.ok()) return Finish(context, caller.status());
  v1::AbortRequest request;
  if (const absl::Status status = Parse(*message, &request); !status.ok()) return Finish(context, status);
  v1::AbortResponse answer;
  const absl::StatusOr<uint32_t> aborted = AbortCalls(request.request_ids(), *caller);
  if (!aborted.ok()) return Finish(context, aborted.status());
  answer.set_aborted(*aborted);
  return Finish(context, Serialize(answer, response));
}

absl::StatusOr<uint32_t> FerryService::AbortCalls(const google::protobuf::RepeatedPtrField<std::string>& request_ids,
                                                  const Principal& caller) {
  if (request_ids.size() > kMaxAborts) {
    return InvalidArgument("request_ids has %d ids, want at most %d", request_ids.size(), kMaxAborts);
  }
  std::set<std::string_view> ids(request_ids.begin(), request_ids.end());
  ids.erase("");
  uint32_t aborted = 0;
  for (const std::shared_ptr<GenerateStream>& stream : OpenStreams()) aborted += stream->Abort(ids, caller) ? 1 : 0;
  return aborted;
}

std::vector<v1::RunningRequest> FerryService::RunningRequests() {
  std::vector<v1::RunningRequest> requests;
  for (const std::shared_ptr<GenerateStream>& stream : OpenStreams()) {
    if (std::optional<v1::RunningRequest> request = stream->Describe()) requests.push_back(*std::move(request));
  }
  return requests;
}

grpc::ServerUnaryReactor* FerryService::Tokenize(grpc::CallbackServerContext* context, const grpc::ByteBuffer* message,
                                                 grpc::ByteBuffer* response) {
  if (const absl::StatusOr<Principal> caller = CallerOf(*context); !caller.ok()) return Finish(context, caller.status());
  return parts_.texts->Answer(context, message, response, [this, message, response] { return TokenizeTo(*message, response); });
}

absl::Status FerryService::TokenizeTo(const grpc::ByteBuffer& message, grpc::ByteBuffer* response) const {
  v1::TokenizeResponse answer;
  {
    v1::TokenizeRequest request;
    RETURN_IF_ERROR(Parse(message, &request));
    const EncodeOptions options = {.add_bos = request.has_add_bos() ? request.add_bos() : parts_.tokenizer->adds_bos(),
                                   .parse_special = request.has_parse_special() ? request.parse_special() : true};
    ASSIGN_OR_RETURN(const std::vector<int32_t> ids, parts_.tokenizer->Encode(request.text(), options));
    answer.mutable_ids()->Add(ids.begin(), ids.end());
  }
  return Serialize(answer, response);
}

absl::Status FerryService::DetokenizeTo(const grpc::ByteBuffer& message, grpc::ByteBuffer* response) const {
  v1::DetokenizeRequest request;
  RETURN_IF_ERROR(Parse(message, &request));
  std::vector<int32_t> ids;
  ids.reserve(request.ids_size());
  size_t bytes = 0;
  for (const uint32_t id : request.ids()) {
    if (id >= static_cast<uint32_t>(parts_.tokenizer->vocab_size())) {
      return InvalidArgument("ids[%d] is %d, want 0 to %d", ids.size(), id, parts_.tokenizer->vocab_size() - 1);
    }
    ids.push_back(static_cast<int32_t>(id));
    bytes += parts_.tokenizer->TokenBytes(ids.back()).size();
    if (bytes > kMaxDetokenizedBytes)
      return InvalidArgument("the text of these ids has more than %d bytes", kMaxDetokenizedBytes);
  }
  v1::DetokenizeResponse answer;
  ASSIGN_OR_RETURN(*answer.mutable_text(), parts_.tokenizer->Decode(ids, request.render_special()));
  return Serialize(answer, response);
}

grpc::ServerUnaryReactor* FerryService::Detokenize(grpc::CallbackServerContext* context, const grpc::ByteBuffer* message,
                                                   grpc::ByteBuffer* response) {
  if (const absl::StatusOr<Principal> caller = CallerOf(*context); !caller.ok()) return Finish(context, caller.status());
  return parts_.texts->Answer(context, message, response, [this, message, response] { return DetokenizeTo(*message, response); });
}

grpc::ServerUnaryReactor* FerryService::GetModelInfo(grpc::CallbackServerContext* context, const grpc::ByteBuffer*,
                                                     grpc::ByteBuffer* response) {
  const absl::Status allowed = CallerOf(*context).status();
  return Finish(context, allowed.ok() ? Serialize(parts_.model_info, response) : allowed);
}

grpc::ServerUnaryReactor* FerryService::GetServerInfo(grpc::CallbackServerContext* context, const grpc::ByteBuffer*,
                                                      grpc::ByteBuffer* response) {
  const absl::StatusOr<Principal> caller = CallerOf(*context);
  if (!caller.ok()) return Finish(context, caller.status());
  const v1::GetServerInfoResponse info = parts_.server_info();
  if (caller->role == Role::kAdmin) return Finish(context, Serialize(info, response));
  v1::GetServerInfoResponse shown;
  shown.set_version(info.version());
  shown.set_state(info.state());
  shown.set_state_reason(info.state_reason());
  shown.set_uptime_seconds(info.uptime_seconds());
  shown.set_load_progress(info.load_progress());
  shown.set_running_requests(info.running_requests());
  shown.set_queued_requests(info.queued_requests());
  shown.set_max_parallel(info.max_parallel());
  return Finish(context, Serialize(shown, response));
}

}  // namespace ferry
