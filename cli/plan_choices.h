#pragma once

// What `ferry plan` compares: the same model on fewer of the machine's GPUs, and on its processor alone.

#include <optional>
#include <string>
#include <vector>

#include "cli/planned_machine.h"

namespace ferry {

inline constexpr int64_t kAnswerTokens = 256;  // of the answer by which choices are compared

struct Choice {
  std::string name;  // "2 GPUs", "processor alone"
  Fit fit;
  int64_t slots = 0;                         // of all workers together
  double prefill_rate = 0, decode_rate = 0;  // tokens a second
  double seconds = 0;                        // of a prompt and an answer of kAnswerTokens
  std::string command;                       // that starts a server so
};

// The choices of a model that `options` serves on `machine`, whose own choice is the last one that has GPUs, or the only one.
// `found`: the rates of `machine`; fewer GPUs are taken to be no faster than all of them together. A flag that names one
// division of layers leaves nothing to compare. Errors: those of PredictedModel::Place.
absl::StatusOr<std::vector<Choice>> ChoicesOf(const ModelOptions& options, PredictedModel model, const PlannedMachine& machine,
                                              const FoundRates& found, int64_t prompt_tokens);

// The quickest of those that fit; null: none fits.
const Choice* Quickest(const std::vector<Choice>& choices);

// `ferry serve` with the flags that `options` has beside its defaults, and `devices`, flags that choose the devices. Without
// workers of its own it gets no flags that are for workers alone.
std::string ServeCommand(const ModelOptions& options, const std::vector<std::string>& devices, bool own_workers = true);
// `ferry-worker` with `place`, flags that say where it is, and those for workers that `options` has beside its defaults.
std::string WorkerCommand(const ModelOptions& options, const std::vector<std::string>& place);

}  // namespace ferry
