#include "gateway/routes/sampling_fields.h"

#include <algorithm>
#include <charconv>
#include <set>

#include "gateway/json/token_ids.h"

namespace ferry {
namespace {

constexpr int64_t kMaxInt32 = INT32_MAX;
constexpr size_t kMaxDryBreakers = 16;

// What asks for nothing: a field with this value may be there although Ferry does not support it.
bool AsksNothing(const Json& value) {
  if (value.is_null() || value == false || value == "" || (value.is_structured() && value.empty())) return true;
  return value.is_number() && value == 0;
}

absl::Status RefuseUnsupportedSampling(const JsonFields& fields) {
  // Fields of llama-server, vLLM and OpenAI that change the output.
  constexpr const char* kUnsupported[] = {"suffix",
                                          "mirostat",
                                          "dynatemp_range",
                                          "use_beam_search",
                                          "bad_words",
                                          "allowed_token_ids",
                                          "lora",
                                          "input_prefix",
                                          "input_suffix",
                                          "input_extra",
                                          "t_max_predict_ms",
                                          "prompt_embeds",
                                          "top_a",
                                          "thinking_token_budget",
                                          "include_stop_str_in_output",
                                          "truncate_prompt_tokens",
                                          "prompt_logprobs",
                                          "post_sampling_probs",
                                          "adaptive_target"};
  for (const char* const name : kUnsupported) {
    if (const Json* const value = fields.Find(name); value != nullptr && !AsksNothing(*value)) {
      return FieldError(fields.PathOf(name), fields.PathOf(name) + " is not supported");
    }
  }
  if (const Json* const tail = fields.Find("tfs_z"); tail != nullptr && *tail != 1) {  // 1 is off
    return FieldError(fields.PathOf("tfs_z"), fields.PathOf("tfs_z") + " is not supported");
  }
  if (const Json* const skip = fields.Find("skip_special_tokens"); skip != nullptr && *skip == false) {
    return FieldError(fields.PathOf("skip_special_tokens"),
                      fields.PathOf("skip_special_tokens") + " is false, which is not supported: special tokens are never shown");
  }
  ASSIGN_OR_RETURN(const auto keep, fields.Integer("min_keep", 0, kMaxInt32));
  if (keep.value_or(0) > 1) {
    return FieldError(fields.PathOf("min_keep"), fields.PathOf("min_keep") + " is not supported: the filters keep one token");
  }
  return absl::OkStatus();
}

void ClearPenalties(v1::Sampling* sampling) {
  sampling->clear_repetition_penalty();
  sampling->clear_frequency_penalty();
  sampling->clear_presence_penalty();
}

// llama-server's order of samplers. Ferry has one order: a list asks for nothing else when it names no sampler that Ferry lacks
// and its filters come in that order; the others of Ferry's filters are then off. The temperature's place is not looked at.
absl::Status ReadSamplerOrder(const JsonFields& fields, v1::Sampling* sampling) {
  const Json* const list = fields.Find("samplers");
  if (list == nullptr || (list->is_array() && list->empty())) return absl::OkStatus();
  const std::string path = fields.PathOf("samplers");
  constexpr std::string_view kOrder[] = {"top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc"};
  constexpr char kOrderText[] = "top_n_sigma, top_k, typ_p, top_p, min_p, xtc";
  const auto refused = [&](const std::string& why) { return FieldError(path, path + " " + why); };
  if (!list->is_array()) return refused("is " + DescribeType(*list) + ", want an array of names");
  const std::string_view* last = std::begin(kOrder);
  std::set<std::string> named;
  for (const Json& entry : *list) {
    std::string name = entry.is_string() ? entry.get<std::string>() : "";
    if (name == "typical_p") name = "typ_p";
    named.insert(name);
    if (name == "temperature" || name == "penalties" || name == "dry") continue;
    const std::string_view* const place = std::find(std::begin(kOrder), std::end(kOrder), name);
    if (place == std::end(kOrder)) {
      return refused("has " + Dump(entry).substr(0, 40) + ": want some of penalties, dry, temperature, " + kOrderText);
    }
    if (place < last) return refused(std::string("is in another order than Ferry's, which is ") + kOrderText);
    last = place;
  }
  if (!named.contains("top_n_sigma")) sampling->clear_top_n_sigma();
  if (!named.contains("top_k")) sampling->set_top_k(0);
  if (!named.contains("typ_p")) sampling->clear_typical_p();
  if (!named.contains("top_p")) sampling->set_top_p(1);
  if (!named.contains("min_p")) sampling->set_min_p(0);
  if (!named.contains("xtc")) sampling->clear_xtc_probability();
  if (!named.contains("temperature")) sampling->set_temperature(1);
  if (!named.contains("dry")) sampling->clear_dry();
  if (!named.contains("penalties")) ClearPenalties(sampling);
  return absl::OkStatus();
}

// How many of the last tokens llama-server's penalties look at: all of them here, unless it is none.
absl::Status ReadPenaltyRange(const JsonFields& fields, v1::Sampling* sampling) {
  ASSIGN_OR_RETURN(const auto last, fields.Integer("repeat_last_n", -1, kMaxInt32));
  if (!last || *last == -1) return absl::OkStatus();
  const bool penalizes = (sampling->has_repetition_penalty() && sampling->repetition_penalty() != 1) ||
                         sampling->frequency_penalty() != 0 || sampling->presence_penalty() != 0;
  if (*last > 0 && penalizes) {
    return FieldError(
        fields.PathOf("repeat_last_n"),
        absl::StrFormat("%s is %d beside a penalty: penalties look at the whole text here, want -1 (all), or 0 (off)",
                        fields.PathOf("repeat_last_n"), *last));
  }
  if (*last == 0) ClearPenalties(sampling);
  return absl::OkStatus();
}

absl::StatusOr<uint32_t> TokenIdOf(const JsonFields& fields, std::string_view text) {
  uint32_t id = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), id);
  if (error != std::errc() || end != text.data() + text.size()) {
    return FieldError(fields.PathOf("logit_bias"),
                      absl::StrFormat("%s has the key '%s', want token ids", fields.PathOf("logit_bias"), text.substr(0, 40)));
  }
  return id;
}

// {"123": -100, ...}, or llama-server's [[123, -100], ...].
absl::Status ReadLogitBias(const JsonFields& fields, v1::Sampling* sampling) {
  const Json* const bias = fields.Find("logit_bias");
  if (bias == nullptr) return absl::OkStatus();
  const auto add = [&](uint32_t id, const Json& value) -> absl::Status {
    const double number = value.is_number() ? value.get<double>() : NAN;
    if (!(number >= -100 && number <= 100)) {
      return FieldError(fields.PathOf("logit_bias"),
                        absl::StrFormat("%s of token %d is not a number from -100 to 100", fields.PathOf("logit_bias"), id));
    }
    (*sampling->mutable_logit_bias())[id] = static_cast<float>(number);
    return absl::OkStatus();
  };
  if (bias->is_object()) {
    for (const auto& [key, value] : bias->items()) {
      ASSIGN_OR_RETURN(const uint32_t id, TokenIdOf(fields, key));
      RETURN_IF_ERROR(add(id, value));
    }
    return absl::OkStatus();
  }
  if (bias->is_array()) {
    for (const Json& pair : *bias) {
      const bool right = pair.is_array() && pair.size() == 2 && pair[0].is_number_unsigned() && pair[0] <= UINT32_MAX;
      if (!right)
        return FieldError(fields.PathOf("logit_bias"),
                          fields.PathOf("logit_bias") + " has a pair that is not [token id, number]");
      RETURN_IF_ERROR(add(pair[0].get<uint32_t>(), pair[1]));
    }
    return absl::OkStatus();
  }
  return FieldError(fields.PathOf("logit_bias"), fields.PathOf("logit_bias") + " is " + DescribeType(*bias) + ", want an object");
}

absl::Status ReadNumbers(const JsonFields& fields, v1::Sampling* sampling) {
  ASSIGN_OR_RETURN(const auto temperature, fields.Number("temperature", 0, 100));
  if (temperature) sampling->set_temperature(static_cast<float>(*temperature));
  ASSIGN_OR_RETURN(const auto top_p, fields.Number("top_p", 0, 1));
  // 0 is what llama-server's and OpenAI's clients send for "the best one alone".
  if (top_p) sampling->set_top_p(std::max(static_cast<float>(*top_p), 1e-6f));
  ASSIGN_OR_RETURN(const auto top_k, fields.Integer("top_k", -1, kMaxInt32));
  if (top_k) sampling->set_top_k(static_cast<uint32_t>(std::max<int64_t>(*top_k, 0)));
  ASSIGN_OR_RETURN(const auto min_p, fields.Number("min_p", 0, 1));
  if (min_p) sampling->set_min_p(static_cast<float>(*min_p));
  ASSIGN_OR_RETURN(const auto frequency, fields.Number("frequency_penalty", -2, 2));
  if (frequency) sampling->set_frequency_penalty(static_cast<float>(*frequency));
  ASSIGN_OR_RETURN(const auto presence, fields.Number("presence_penalty", -2, 2));
  if (presence) sampling->set_presence_penalty(static_cast<float>(*presence));
  for (const char* const name : {"repeat_penalty", "repetition_penalty"}) {
    ASSIGN_OR_RETURN(const auto penalty, fields.Number(name, 1e-3, 10));
    if (penalty) sampling->set_repetition_penalty(static_cast<float>(*penalty));
  }
  ASSIGN_OR_RETURN(const auto seed, fields.Integer("seed", INT64_MIN, INT64_MAX));
  if (seed && *seed >= 0) sampling->set_seed(static_cast<uint64_t>(*seed));  // below 0: any
  return absl::OkStatus();
}

// llama-server's further samplers.
absl::Status ReadMoreSamplers(const JsonFields& fields, v1::Sampling* sampling) {
  ASSIGN_OR_RETURN(const auto typical, fields.Number("typical_p", 0, 1));
  if (typical) sampling->set_typical_p(std::max(static_cast<float>(*typical), 1e-6f));
  ASSIGN_OR_RETURN(const auto sigma, fields.Number("top_n_sigma", -1, 100));
  if (sigma) sampling->set_top_n_sigma(std::max(static_cast<float>(*sigma), 0.0f));  // below 0 it is off, too
  ASSIGN_OR_RETURN(const auto xtc_probability, fields.Number("xtc_probability", 0, 1));
  if (xtc_probability) sampling->set_xtc_probability(static_cast<float>(*xtc_probability));
  ASSIGN_OR_RETURN(const auto xtc_threshold, fields.Number("xtc_threshold", 0, 1));
  if (xtc_threshold) sampling->set_xtc_threshold(static_cast<float>(*xtc_threshold));
  ASSIGN_OR_RETURN(const auto multiplier, fields.Number("dry_multiplier", 0, 100));
  ASSIGN_OR_RETURN(const auto base, fields.Number("dry_base", 1, 100));
  ASSIGN_OR_RETURN(const auto allowed, fields.Integer("dry_allowed_length", 1, 10'000));
  ASSIGN_OR_RETURN(const auto last, fields.Integer("dry_penalty_last_n", -1, kMaxInt32));
  ASSIGN_OR_RETURN(const Json* const none, fields.Array("dry_sequence_breakers"));
  ASSIGN_OR_RETURN(const std::vector<std::string> breakers, fields.Strings("dry_sequence_breakers", kMaxDryBreakers));
  if (multiplier.value_or(0) == 0) return absl::OkStatus();
  v1::Dry* const dry = sampling->mutable_dry();
  dry->set_multiplier(static_cast<float>(*multiplier));
  if (base) dry->set_base(static_cast<float>(*base));
  if (allowed) dry->set_allowed_length(static_cast<uint32_t>(*allowed));
  if (last && *last >= 0) dry->set_last_tokens(static_cast<uint32_t>(*last));
  for (const std::string& breaker : breakers) dry->add_sequence_breakers(breaker);
  dry->set_no_sequence_breakers(none != nullptr && none->empty());
  return absl::OkStatus();
}

}  // namespace

absl::Status ReadSamplingFields(const JsonFields& fields, v1::GenerateRequest* request) {
  RETURN_IF_ERROR(RefuseUnsupportedSampling(fields));
  RETURN_IF_ERROR(ReadNumbers(fields, request->mutable_sampling()));
  RETURN_IF_ERROR(ReadLogitBias(fields, request->mutable_sampling()));
  RETURN_IF_ERROR(ReadMoreSamplers(fields, request->mutable_sampling()));
  RETURN_IF_ERROR(ReadPenaltyRange(fields, request->mutable_sampling()));
  RETURN_IF_ERROR(ReadSamplerOrder(fields, request->mutable_sampling()));
  ASSIGN_OR_RETURN(const auto min_tokens, fields.Integer("min_tokens", 0, kMaxInt32));
  if (min_tokens) request->set_min_tokens(static_cast<uint32_t>(*min_tokens));
  ASSIGN_OR_RETURN(const std::vector<std::string> stops, fields.Strings("stop", kMaxStops));
  for (const std::string& stop : stops) {
    if (stop.empty()) return FieldError(fields.PathOf("stop"), fields.PathOf("stop") + " has an empty string");
    request->add_stop(stop);
  }
  if (const Json* const ids = fields.Find("stop_token_ids"); ids != nullptr) {
    ASSIGN_OR_RETURN(const std::vector<uint32_t> tokens, TokenIdsOf(*ids, fields.PathOf("stop_token_ids")));
    request->mutable_stop_token_ids()->Add(tokens.begin(), tokens.end());
  }
  // vLLM's.
  ASSIGN_OR_RETURN(const auto priority, fields.Integer("priority", -kMaxInt32 - 1, kMaxInt32));
  if (priority) request->set_priority(static_cast<int32_t>(*priority));
  ASSIGN_OR_RETURN(const auto salt, fields.String("cache_salt"));
  if (salt) request->set_cache_salt(*salt);
  ASSIGN_OR_RETURN(const auto ignore_eos, fields.Bool("ignore_eos"));
  if (ignore_eos) request->set_ignore_eos(*ignore_eos);
  return absl::OkStatus();
}

absl::Status ReadMaxTokens(const JsonFields& fields, std::initializer_list<const char*> names, v1::GenerateRequest* request) {
  for (const char* const name : names) {
    ASSIGN_OR_RETURN(const auto tokens, fields.Integer(name, -1, kMaxInt32));
    if (!tokens) continue;
    if (*tokens >= 0) request->set_max_tokens(static_cast<uint32_t>(*tokens));
    break;
  }
  return absl::OkStatus();
}

}  // namespace ferry
