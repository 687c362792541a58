#include "cli/sampling_options.h"

#include <limits>
#include <nlohmann/json.hpp>

#include "common/command_line.h"
#include "common/number.h"
#include "common/small_file.h"
#include "coordinator/text/utf8.h"

namespace ferry {
namespace {

constexpr size_t kMaxFormBytes = size_t{1} << 20;  // of a schema or a grammar

// What neither a message of gRPC nor JSON would carry as it is.
absl::Status CheckUtf8(const char* flag, const std::string& text) {
  return IsValidUtf8(text) ? absl::OkStatus() : InvalidArgument("%s is not UTF-8", flag);
}

}  // namespace

void SamplingOptions::AddTo(CLI::App& app) {
  const char* const group = "Sampling";
  const auto add = [&](CLI::Option* option) { option->group(group); };
  add(AddInteger(app, "-n,--predict", max_tokens, {.min = -1, .units = true},
                 "tokens to generate; -1: to the end of the context (default)"));
  add(AddDecimal(app, "--temp,--temperature", temperature, 0, 100, "0: always the most likely token (default 0.8)"));
  add(AddInteger(app, "--top-k", top_k, {.automatic = 0}, "sample from the k most likely tokens; 0 or -1: all (default 40)"));
  add(AddDecimal(app, "--top-p", top_p, 0, 1,
                 "sample from the most likely tokens whose probabilities add up to p (default 0.95)"));
  add(AddDecimal(app, "--min-p", min_p, 0, 1,
                 "sample from tokens with at least this share of the best one's probability (default 0.05)"));
  add(AddDecimal(app, "--repeat-penalty", repetition_penalty, 0, 10, "penalty of tokens that occurred (default 1: none)"));
  add(AddDecimal(app, "--frequency-penalty", frequency_penalty, -2, 2, "penalty for each occurrence of a token (default 0)"));
  add(AddDecimal(app, "--presence-penalty", presence_penalty, -2, 2, "for having occurred (default 0)"));
  add(AddDecimal(
      app, "--typical,--typical-p", typical_p, 1e-6, 1,
      "sample from the tokens whose surprise is nearest to the mean one and whose probabilities add up to p (default 1: off)"));
  add(AddDecimal(app, "--top-n-sigma,--top-nsigma", top_n_sigma, 0, 100,
                 "sample from tokens at most so many standard deviations of the logits below the best one (default 0: off)"));
  add(AddDecimal(app, "--xtc-probability", xtc_probability, 0, 1,
                 "how often the most likely tokens are left out, all but the last of those of --xtc-threshold (default 0)"));
  add(AddDecimal(app, "--xtc-threshold", xtc_threshold, 0, 1, "least probability of those (default 0.1)"));
  add(AddDecimal(app, "--dry-multiplier", dry_multiplier, 0, 100,
                 "penalty of tokens that go on with a repetition (default 0: off)"));
  add(AddDecimal(app, "--dry-base", dry_base, 1, 100, "it grows by this with each token of the repetition (default 1.75)"));
  add(AddInteger(app, "--dry-allowed-length", dry_allowed_length, {.min = 1, .max = 10'000},
                 "beyond this many tokens (default 2)"));
  add(AddInteger(app, "--dry-penalty-last-n", dry_last_tokens,
                 {.min = -1, .max = std::numeric_limits<int32_t>::max(), .units = true},
                 "tokens in which repetitions are looked for; -1: all (default)"));
  add(AddTexts(
      app, "--dry-sequence-breaker", dry_breakers,
      "text over which no repetition goes; may be given several times; none: there is no such text (default: a new line, "
      "and the characters : \" *)"));
  add(AddInteger(app, "--min-tokens", min_tokens, {.units = true}, "tokens before which the output does not end (default 0)"));
  add(AddSeed(app, "-s,--seed", seed, "makes the same request give the same tokens (default, or -1: random)"));
  add(AddTexts(app, "--stop", stop, "text that ends the completion, special tokens too; may be given several times"));
  add(AddTexts(app, "--stop-token", stop_tokens, "id of a token that ends the completion; may be given several times"));
  add(AddSwitch(app, "--ignore-eos", ignore_eos, "go on past the end-of-text token"));
  const auto form = [&](CLI::Option* option) { option->group("Form of the output, at most one"); };
  form(AddText(app, "-j,--json-schema", json_schema, "the output is JSON of this schema: its text, or a file"));
  form(AddText(app, "--grammar", gbnf, "the output is of this GBNF grammar"));
  form(AddText(app, "--grammar-file", gbnf_file, "the output is of the GBNF grammar in this file"));
  form(AddText(app, "--regex", regex, "the whole output matches this regular expression"));
}

absl::Status SamplingOptions::Fill(ferry::v1::GenerateRequest& request) const {
  ferry::v1::Sampling& sampling = *request.mutable_sampling();
  if (temperature) sampling.set_temperature(*temperature);
  if (top_k) sampling.set_top_k(*top_k);
  if (top_p) sampling.set_top_p(*top_p);
  if (min_p) sampling.set_min_p(*min_p);
  if (repetition_penalty) sampling.set_repetition_penalty(*repetition_penalty);
  if (frequency_penalty) sampling.set_frequency_penalty(*frequency_penalty);
  if (presence_penalty) sampling.set_presence_penalty(*presence_penalty);
  if (seed) sampling.set_seed(*seed);
  if (typical_p) sampling.set_typical_p(*typical_p);
  if (top_n_sigma) sampling.set_top_n_sigma(*top_n_sigma);
  if (xtc_probability) sampling.set_xtc_probability(*xtc_probability);
  if (xtc_threshold) sampling.set_xtc_threshold(*xtc_threshold);
  FillDry(sampling);
  if (min_tokens) request.set_min_tokens(*min_tokens);
  if (max_tokens && *max_tokens >= 0) request.set_max_tokens(static_cast<uint32_t>(*max_tokens));
  for (const std::string& text : stop) request.add_stop(text);
  for (const std::string& token : stop_tokens) {
    const absl::StatusOr<uint64_t> id = ParseUnsigned(token, std::numeric_limits<uint32_t>::max());
    if (!id.ok()) return Annotate(id.status(), "--stop-token");
    request.add_stop_token_ids(static_cast<uint32_t>(*id));
  }
  if (ignore_eos) request.set_ignore_eos(true);
  return FillConstraint(request);
}

void SamplingOptions::FillDry(ferry::v1::Sampling& sampling) const {
  if (dry_multiplier.value_or(0) == 0) return;
  ferry::v1::Dry& dry = *sampling.mutable_dry();
  dry.set_multiplier(*dry_multiplier);
  if (dry_base) dry.set_base(*dry_base);
  if (dry_allowed_length) dry.set_allowed_length(*dry_allowed_length);
  if (dry_last_tokens && *dry_last_tokens >= 0) dry.set_last_tokens(static_cast<uint32_t>(*dry_last_tokens));
  for (const std::string& breaker : dry_breakers) {
    if (breaker == "none") {
      dry.set_no_sequence_breakers(true);
    } else {
      dry.add_sequence_breakers(breaker);
    }
  }
}

absl::Status SamplingOptions::FillJson(nlohmann::json& body) const {
  ferry::v1::GenerateRequest request;  // which the flags are checked by
  RETURN_IF_ERROR(Fill(request));
  for (const std::string& text : stop) RETURN_IF_ERROR(CheckUtf8("--stop", text));
  for (const std::string& text : dry_breakers) RETURN_IF_ERROR(CheckUtf8("--dry-sequence-breaker", text));
  const auto set = [&](const char* name, const auto& value) {
    if (value) body[name] = *value;
  };
  set("temperature", temperature);
  set("top_k", top_k);
  set("top_p", top_p);
  set("min_p", min_p);
  set("repeat_penalty", repetition_penalty);
  set("frequency_penalty", frequency_penalty);
  set("presence_penalty", presence_penalty);
  set("seed", seed);
  set("typical_p", typical_p);
  set("top_n_sigma", top_n_sigma);
  set("xtc_probability", xtc_probability);
  set("xtc_threshold", xtc_threshold);
  set("dry_multiplier", dry_multiplier);
  set("dry_base", dry_base);
  set("dry_allowed_length", dry_allowed_length);
  set("dry_penalty_last_n", dry_last_tokens);
  if (!dry_breakers.empty()) {
    const ferry::v1::Dry& dry = request.sampling().dry();
    body["dry_sequence_breakers"] = std::vector<std::string>(dry.sequence_breakers().begin(), dry.sequence_breakers().end());
  }
  set("min_tokens", min_tokens);
  if (request.has_max_tokens()) body["max_tokens"] = request.max_tokens();
  if (!stop.empty()) body["stop"] = stop;
  for (const uint32_t id : request.stop_token_ids()) body["stop_token_ids"].push_back(id);
  if (ignore_eos) body["ignore_eos"] = true;
  const ferry::v1::Constraint& form = request.constraint();
  if (form.has_gbnf()) body["grammar"] = form.gbnf();
  if (form.has_regex()) body["guided_regex"] = form.regex();
  if (form.has_json_schema()) {
    nlohmann::json schema = nlohmann::json::parse(form.json_schema(), nullptr, /*allow_exceptions=*/false);
    if (schema.is_discarded()) return InvalidArgument("--json-schema is no JSON");
    body["json_schema"] = std::move(schema);
  }
  return absl::OkStatus();
}

absl::Status SamplingOptions::FillConstraint(ferry::v1::GenerateRequest& request) const {
  if (json_schema.has_value() + gbnf.has_value() + gbnf_file.has_value() + regex.has_value() > 1) {
    return InvalidArgument("give one of --json-schema, --grammar, --grammar-file and --regex");
  }
  if (gbnf) request.mutable_constraint()->set_gbnf(*gbnf);
  if (regex) request.mutable_constraint()->set_regex(*regex);
  if (gbnf_file) {
    ASSIGN_OR_RETURN(*request.mutable_constraint()->mutable_gbnf(), ReadSmallFile(*gbnf_file, kMaxFormBytes));
  }
  if (json_schema) {
    // The text of a schema that says anything begins with a brace.
    const size_t first = json_schema->find_first_not_of(" \t\r\n");
    const bool is_text = first != std::string::npos && (*json_schema)[first] == '{';
    ASSIGN_OR_RETURN(*request.mutable_constraint()->mutable_json_schema(),
                     is_text ? absl::StatusOr<std::string>(*json_schema) : ReadSmallFile(*json_schema, kMaxFormBytes));
  }
  const ferry::v1::Constraint& form = request.constraint();
  RETURN_IF_ERROR(CheckUtf8(gbnf_file ? "--grammar-file" : "--grammar", form.gbnf()));
  RETURN_IF_ERROR(CheckUtf8("--regex", form.regex()));
  return CheckUtf8("--json-schema", form.json_schema());
}

}  // namespace ferry
