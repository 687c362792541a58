#pragma once

// The fields that say how tokens are chosen, shared by every route that generates: OpenAI's names, llama-server's and vLLM's.

#include "common/status.h"
#include "ferry/v1/generate.pb.h"
#include "gateway/json/json.h"

namespace ferry {

inline constexpr size_t kMaxStops = 16;

// temperature, top_p, top_k, min_p, repeat_penalty or repetition_penalty, frequency_penalty, presence_penalty, seed, logit_bias,
// stop, ignore_eos. Fields that are not there leave the engine's defaults.
// InvalidArgument names the field: a wrong type or range, or a field that Ferry knows, does not support, and that asks for
// another output than without it.
absl::Status ReadSamplingFields(const JsonFields& fields, v1::GenerateRequest* request);

// The first of `names` that is there: -1 and a missing field are "as many as the context holds".
absl::Status ReadMaxTokens(const JsonFields& fields, std::initializer_list<const char*> names, v1::GenerateRequest* request);

}  // namespace ferry
