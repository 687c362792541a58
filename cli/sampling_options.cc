#include "cli/sampling_options.h"

namespace ferry {

void SamplingOptions::AddTo(CLI::App& app) {
  const char* const group = "Sampling";
  app.add_option("-n,--predict", max_tokens, "tokens to generate; -1: to the end of the context (default)")->group(group);
  app.add_option("--temp,--temperature", temperature, "0: always the most likely token (default 0.8)")->group(group);
  app.add_option("--top-k", top_k, "sample from the k most likely tokens; 0: all (default 40)")->group(group);
  app.add_option("--top-p", top_p, "sample from the most likely tokens whose probabilities add up to p (default 0.95)")
      ->group(group);
  app.add_option("--min-p", min_p, "sample from tokens with at least this share of the best one's probability (default 0.05)")
      ->group(group);
  app.add_option("--repeat-penalty", repetition_penalty, "penalty of tokens that occurred (default 1: none)")->group(group);
  app.add_option("--frequency-penalty", frequency_penalty, "penalty for each occurrence of a token (default 0)")->group(group);
  app.add_option("--presence-penalty", presence_penalty, "penalty of a token that occurred (default 0)")->group(group);
  app.add_option("-s,--seed", seed, "the same seed and request give the same tokens (default: random)")->group(group);
  app.add_option("--stop", stop, "text that ends the completion; may be given several times")->group(group);
  app.add_flag("--ignore-eos", ignore_eos, "go on past the end-of-text token")->group(group);
}

void SamplingOptions::Fill(ferry::v1::GenerateRequest& request) const {
  ferry::v1::Sampling& sampling = *request.mutable_sampling();
  if (temperature) sampling.set_temperature(*temperature);
  if (top_k) sampling.set_top_k(*top_k);
  if (top_p) sampling.set_top_p(*top_p);
  if (min_p) sampling.set_min_p(*min_p);
  if (repetition_penalty) sampling.set_repetition_penalty(*repetition_penalty);
  if (frequency_penalty) sampling.set_frequency_penalty(*frequency_penalty);
  if (presence_penalty) sampling.set_presence_penalty(*presence_penalty);
  if (seed) sampling.set_seed(*seed);
  if (max_tokens && *max_tokens >= 0) request.set_max_tokens(static_cast<uint32_t>(*max_tokens));
  for (const std::string& text : stop) request.add_stop(text);
  if (ignore_eos) request.set_ignore_eos(true);
}

}  // namespace ferry
