#include "coordinator/generation/vllm_service.h"

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "coordinator/generation/generate_stream.h"
#include "coordinator/raw_message.h"

namespace ferry {
namespace {

absl::Status RefuseWhatIsMissing(const vllm::GenerateRequest& request) {
  const vllm::SamplingParams& sampling = request.sampling_params();
  const std::pair<const char*, bool> kMissing[] = {
      {"kv_transfer_params", !request.kv_transfer_params().empty() || !request.kv_transfer_params_json().empty()},
      {"mm_inputs", !request.mm_inputs().empty() || request.extra_mm_inputs_size() > 0},
      {"media_refs", !request.media_refs().empty()},
      {"data_parallel_rank", request.data_parallel_rank() != 0},
      {"sampling_params.structural_tag", sampling.has_structural_tag()},
      {"sampling_params.truncate_prompt_tokens", sampling.has_truncate_prompt_tokens()}};
  for (const auto& [name, given] : kMissing) {
    if (given) return InvalidArgument("%s is not supported", name);
  }
  return absl::OkStatus();
}

// vLLM's samplers are off where Ferry's have defaults.
absl::Status FillSampling(const vllm::SamplingParams& from, v1::Sampling* sampling) {
  const auto unless_zero = [](float value, float otherwise) { return value == 0 ? otherwise : value; };
  sampling->set_temperature(from.has_temperature() ? from.temperature() : 1);
  sampling->set_top_p(unless_zero(from.top_p(), 1));
  sampling->set_top_k(from.top_k());
  sampling->set_min_p(from.min_p());
  sampling->set_frequency_penalty(from.frequency_penalty());
  sampling->set_presence_penalty(from.presence_penalty());
  sampling->set_repetition_penalty(unless_zero(from.repetition_penalty(), 1));
  if (from.has_seed()) sampling->set_seed(static_cast<uint32_t>(from.seed()));
  for (const auto& [id, bias] : from.logit_bias()) {
    if (id < 0) return InvalidArgument("sampling_params.logit_bias has the token id %d", id);
    (*sampling->mutable_logit_bias())[static_cast<uint32_t>(id)] = bias;
  }
  return absl::OkStatus();
}

void FillConstraint(const vllm::SamplingParams& from, v1::GenerateRequest* request) {
  if (from.has_json_schema()) request->mutable_constraint()->set_json_schema(from.json_schema());
  if (from.has_regex()) request->mutable_constraint()->set_regex(from.regex());
  if (from.has_grammar()) request->mutable_constraint()->set_gbnf(from.grammar());
  if (from.json_object()) request->mutable_constraint()->set_json_object(true);
  if (from.has_choice()) *request->mutable_constraint()->mutable_choice()->mutable_texts() = from.choice().choices();
}

void Append(const v1::PositionLogprobs& from, vllm::TopLogProbs* top) {
  for (const v1::TokenLogprob& each : from.top()) {
    top->add_values(each.logprob());
    top->add_token_ids(each.id());
  }
}

// Messages of one call. Keeps the ids and log-probabilities of each whole output for its last message.
class VllmMessages final : public GenerateMessages {
 public:
  absl::Status Parse(const grpc::ByteBuffer& message, v1::GenerateRequest* request) override {
    vllm::GenerateRequest asked;
    RETURN_IF_ERROR(ParseBounded(message, {.max_fields = kMaxRequestFields}, &asked));
    streams_ = asked.stream();
    if (asked.has_tokenized() && asked.sampling_params().has_prompt_logprobs() && asked.tokenized().input_ids_size() > 0) {
      first_token_ = asked.tokenized().input_ids(0);
    }
    return ToFerry(asked, request);
  }

  absl::Status Write(const v1::GenerateResponse& response, std::vector<grpc::ByteBuffer>* messages) override {
    Output& output = outputs_[response.index()];
    vllm::GenerateResponse chunk;
    FillChunk(response, output, chunk.mutable_chunk());
    output.complete.mutable_output_ids()->MergeFrom(chunk.chunk().token_ids());
    if (chunk.chunk().has_output_logprobs()) {
      output.complete.mutable_output_logprobs()->MergeFrom(chunk.chunk().output_logprobs());
    }
    const bool says = chunk.chunk().token_ids_size() > 0 || chunk.chunk().has_input_logprobs();
    if (streams_ && says) RETURN_IF_ERROR(Serialize(chunk, &messages->emplace_back()));
    if (!response.has_finish()) return absl::OkStatus();
    vllm::GenerateResponse last;
    FillComplete(response, output, last.mutable_complete());
    return Serialize(last, &messages->emplace_back());
  }

 private:
  struct Output {
    vllm::GenerateComplete complete;
    vllm::InputLogProbs prompt;
    bool prompt_told = false;
  };

  void FillChunk(const v1::GenerateResponse& response, Output& output, vllm::GenerateStreamChunk* chunk) const {
    chunk->set_index(response.index());
    *chunk->mutable_token_ids() = response.token_ids();
    chunk->set_prompt_tokens(response.usage().prompt_tokens());
    chunk->set_completion_tokens(response.usage().generated_tokens());
    chunk->set_cached_tokens(response.usage().cached_prompt_tokens());
    for (const v1::PositionLogprobs& position : response.logprobs()) {
      chunk->mutable_output_logprobs()->add_token_logprobs(position.logprob());
      chunk->mutable_output_logprobs()->add_token_ids(position.id());
      Append(position, chunk->mutable_output_logprobs()->add_top_logprobs());
    }
    // Those of a long prompt come in parts; the API has them in one message.
    AddPrompt(response, &output.prompt);
    if (response.token_ids_size() > 0 && !output.prompt_told && output.prompt.token_ids_size() > 0) {
      *chunk->mutable_input_logprobs() = output.prompt;
      output.prompt_told = true;
    }
  }

  void AddPrompt(const v1::GenerateResponse& response, vllm::InputLogProbs* prompt) const {
    if (response.prompt_logprobs_size() == 0) return;
    if (prompt->token_ids_size() == 0) {
      prompt->add_token_logprobs();
      prompt->add_token_ids(first_token_);
      prompt->add_top_logprobs();
    }
    for (const v1::PositionLogprobs& position : response.prompt_logprobs()) {
      prompt->add_token_logprobs()->set_value(position.logprob());
      prompt->add_token_ids(position.id());
      Append(position, prompt->add_top_logprobs());
    }
  }

  static void FillComplete(const v1::GenerateResponse& response, Output& output, vllm::GenerateComplete* complete) {
    *complete = std::move(output.complete);
    complete->set_index(response.index());
    const v1::Finish& finish = response.finish();
    complete->set_finish_reason(finish.reason() == v1::Finish::LENGTH ? "length" : "stop");
    complete->set_prompt_tokens(finish.prompt_tokens());
    complete->set_completion_tokens(finish.generated_tokens());
    complete->set_cached_tokens(finish.cached_prompt_tokens());
    if (output.prompt.token_ids_size() > 0) *complete->mutable_input_logprobs() = std::move(output.prompt);
    if (finish.has_matched_token_id()) complete->set_matched_token_id(finish.matched_token_id());
    if (finish.has_matched_stop()) complete->set_matched_stop_str(finish.matched_stop());
  }

  bool streams_ = false;
  uint32_t first_token_ = 0;
  std::map<uint32_t, Output> outputs_;
};

}  // namespace

absl::Status ToFerry(const vllm::GenerateRequest& request, v1::GenerateRequest* result) {
  RETURN_IF_ERROR(RefuseWhatIsMissing(request));
  const vllm::SamplingParams& sampling = request.sampling_params();
  result->set_request_id(request.request_id());
  if (request.has_text()) {
    result->set_text(request.text());
  } else if (request.has_tokenized()) {
    *result->mutable_tokens()->mutable_ids() = request.tokenized().input_ids();
  } else {
    return InvalidArgument("input is missing: want tokenized or text");
  }
  RETURN_IF_ERROR(FillSampling(sampling, result->mutable_sampling()));
  if (sampling.has_max_tokens()) result->set_max_tokens(sampling.max_tokens());
  result->set_min_tokens(sampling.min_tokens());
  for (const std::string& stop : sampling.stop()) result->add_stop(stop);
  *result->mutable_stop_token_ids() = sampling.stop_token_ids();
  result->set_ignore_eos(sampling.ignore_eos());
  result->set_n(sampling.n());
  const auto count = [](const char* name, int32_t value) -> absl::Status {
    return value >= 0 ? absl::OkStatus() : InvalidArgument("sampling_params.%s is %d, want 0 to 20", name, value);
  };
  if (sampling.has_logprobs()) {
    RETURN_IF_ERROR(count("logprobs", sampling.logprobs()));
    result->set_logprobs(static_cast<uint32_t>(sampling.logprobs()));
  }
  if (sampling.has_prompt_logprobs()) {
    RETURN_IF_ERROR(count("prompt_logprobs", sampling.prompt_logprobs()));
    result->set_prompt_logprobs(static_cast<uint32_t>(sampling.prompt_logprobs()));
  }
  FillConstraint(sampling, result);
  return absl::OkStatus();
}

VllmService::VllmService(FerryService* ferry) : BoundedService(ferry->parts().reads), ferry_(*ferry) {
  AddStream("/vllm.grpc.engine.VllmEngine/Generate", std::bind_front(&VllmService::Generate, this));
  AddUnary("/vllm.grpc.engine.VllmEngine/HealthCheck", std::bind_front(&VllmService::HealthCheck, this));
  AddUnary("/vllm.grpc.engine.VllmEngine/Abort", std::bind_front(&VllmService::Abort, this));
  AddUnary("/vllm.grpc.engine.VllmEngine/GetModelInfo", std::bind_front(&VllmService::GetModelInfo, this));
  AddUnary("/vllm.grpc.engine.VllmEngine/GetServerInfo", std::bind_front(&VllmService::GetServerInfo, this));
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* VllmService::Generate(grpc::CallbackServerContext* context,
                                                                  const grpc::ByteBuffer* request) {
  return ferry_.GenerateWith(context, request, std::make_shared<VllmMessages>());
}

grpc::ServerUnaryReactor* VllmService::HealthCheck(grpc::CallbackServerContext* context, const grpc::ByteBuffer*,
                                                   grpc::ByteBuffer* response) {
  const v1::GetServerInfoResponse info = ferry_.parts().server_info();
  vllm::HealthCheckResponse answer;
  answer.set_healthy(info.state() == "serving");
  answer.set_message(info.state());
  return Finish(context, Serialize(answer, response));
}

grpc::ServerUnaryReactor* VllmService::Abort(grpc::CallbackServerContext* context, const grpc::ByteBuffer* message,
                                             grpc::ByteBuffer* response) {
  const absl::StatusOr<Principal> caller = ferry_.CallerOf(*context);
  if (!caller.ok()) return Finish(context, caller.status());
  vllm::AbortRequest request;
  const absl::Status parsed = ParseBounded(*message, {.max_fields = kMaxRequestFields}, &request);
  if (!parsed.ok()) return Finish(context, parsed);
  const absl::StatusOr<uint32_t> aborted = ferry_.AbortCalls(request.request_ids(), *caller);
  return Finish(context, aborted.ok() ? Serialize(vllm::AbortResponse(), response) : aborted.status());
}

grpc::ServerUnaryReactor* VllmService::GetModelInfo(grpc::CallbackServerContext* context, const grpc::ByteBuffer*,
                                                    grpc::ByteBuffer* response) {
  if (const absl::Status allowed = ferry_.CallerOf(*context).status(); !allowed.ok()) return Finish(context, allowed);
  const v1::GetModelInfoResponse& model = ferry_.parts().model_info;
  const Tokenizer& tokenizer = *ferry_.parts().tokenizer;
  vllm::GetModelInfoResponse answer;
  answer.set_model_path(model.name());
  answer.set_served_model_name(model.name());
  answer.set_is_generation(true);
  answer.set_max_context_length(model.context_length());
  answer.set_max_req_input_len(static_cast<int32_t>(model.context_length()));
  answer.set_vocab_size(model.vocab_size());
  answer.set_model_type(model.architecture());
  for (const int32_t id : tokenizer.eos_ids()) answer.add_eos_token_ids(id);
  if (tokenizer.bos_id()) answer.set_bos_token_id(*tokenizer.bos_id());
  return Finish(context, Serialize(answer, response));
}

grpc::ServerUnaryReactor* VllmService::GetServerInfo(grpc::CallbackServerContext* context, const grpc::ByteBuffer*,
                                                     grpc::ByteBuffer* response) {
  if (const absl::Status allowed = ferry_.CallerOf(*context).status(); !allowed.ok()) return Finish(context, allowed);
  const v1::GetServerInfoResponse info = ferry_.parts().server_info();
  vllm::GetServerInfoResponse answer;
  answer.set_active_requests(info.running_requests());
  answer.set_uptime_seconds(info.uptime_seconds());
  answer.set_server_type("vllm-grpc");
  answer.set_data_parallel_size(1);
  answer.set_max_num_seqs(static_cast<int32_t>(info.max_parallel()));
  return Finish(context, Serialize(answer, response));
}

}  // namespace ferry
