#pragma once

// The sampling flags, and the request fields that they set. The server chooses the values of flags that are not given.

#include <CLI/CLI.hpp>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "common/status.h"
#include "ferry/v1/generate.pb.h"

namespace ferry {

struct SamplingOptions {
  std::optional<float> temperature, top_p, min_p, repetition_penalty, frequency_penalty, presence_penalty;
  std::optional<uint32_t> top_k;
  std::optional<float> typical_p, top_n_sigma, xtc_probability, xtc_threshold, dry_multiplier, dry_base;
  std::optional<uint32_t> dry_allowed_length, min_tokens;
  std::optional<int64_t> dry_last_tokens;  // -1: all
  std::vector<std::string> dry_breakers;   // "none": there are none
  std::optional<uint64_t> seed;
  std::optional<int64_t> max_tokens;           // -1: to the end of the context
  std::vector<std::string> stop, stop_tokens;  // the latter: ids
  bool ignore_eos = false;
  std::optional<std::string> json_schema, gbnf, gbnf_file, regex;  // the form of the output; at most one

  void AddTo(CLI::App& app);
  // InvalidArgument: a stop token is no id, the output has two forms, or a file cannot be read.
  absl::Status Fill(ferry::v1::GenerateRequest& request) const;
  // The same as fields of a request over HTTP. Ferry and llama-server know them all, but for `regex`, which Ferry and vLLM know.
  absl::Status FillJson(nlohmann::json& body) const;

 private:
  void FillDry(ferry::v1::Sampling& sampling) const;
  absl::Status FillConstraint(ferry::v1::GenerateRequest& request) const;
};

}  // namespace ferry
