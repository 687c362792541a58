#include "cli/plan_choices.h"

#include <algorithm>
#include <numeric>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cli/model_flags.h"
#include "coordinator/planning/decode_prediction.h"
#include "coordinator/planning/prefill_prediction.h"

namespace ferry {
namespace {

// As one word of a shell.
std::string Word(const std::string& text) {
  const auto plain = [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) || absl::StrContains("-_./:,=+@%", absl::string_view(&c, 1));
  };
  if (!text.empty() && std::all_of(text.begin(), text.end(), plain)) return text;
  std::string word = "'";
  for (const char c : text) word += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return word + "'";
}

PlannedMachine WithFirstGpus(PlannedMachine machine, size_t num_gpus) {
  machine.devices.resize(num_gpus);
  return machine;
}

PlannedMachine WithoutGpus(PlannedMachine machine) {
  machine.devices = {{.name = "cpu"}};
  machine.gpus_by_hand = false;
  return machine;
}

// The flags that choose `machine` where `whole` is chosen by `options`.
std::vector<std::string> DeviceFlags(const ModelOptions& options, const PlannedMachine& whole, const PlannedMachine& machine) {
  if (!machine.gpu()) {
    std::vector<std::string> flags;
    if (whole.gpu() || options.backend != "auto") flags = {"--backend", whole.gpu() ? "cpu" : options.backend};
    if (!whole.gpu() && options.workers > 0) flags.insert(flags.end(), {"--workers", std::to_string(options.workers)});
    return flags;
  }
  const bool all = machine.devices.size() == whole.devices.size();
  if (all && options.gpus.empty() && (options.workers == 0 || whole.gpus_by_hand)) return {};
  return {"--gpus", absl::StrJoin(machine.devices, ",",
                                  [](std::string* text, const PlannedDevice& device) { text->append(device.name.substr(5)); })};
}

absl::StatusOr<Choice> ChoiceOf(const ModelOptions& options, PredictedModel& model, const PlannedMachine& whole,
                                const PlannedMachine& machine, const FoundRates& found, int64_t prompt_tokens) {
  const size_t num_workers = machine.devices.size();
  RETURN_IF_ERROR(model.Place(options, static_cast<int>(num_workers), machine.SmallestGpu()));
  Choice choice{
      .name = !machine.gpu() ? "processor alone" : absl::StrFormat("%d GPU%s", num_workers, num_workers == 1 ? "" : "s"),
      .fit = FitOf(options, model, machine),
      .command = ServeCommand(options, DeviceFlags(options, whole, machine))};
  ASSIGN_OR_RETURN(const std::vector<int64_t> slots, SlotsOf(options, model, machine));
  choice.slots = std::accumulate(slots.begin(), slots.end(), int64_t{0});
  MachineRates rates = found.rates;
  if (!machine.gpu() && whole.gpu()) rates.workers.clear();  // a processor has no link
  const PredictionInput input = model.Input(std::move(rates), slots, machine.gpu());
  const PrefillPrediction prefill = PredictPrefill(input, prompt_tokens);
  const DecodePrediction decode = PredictDecode(input, prompt_tokens);
  choice.prefill_rate = prefill.tokens_per_second();
  choice.decode_rate = 1 / decode.seconds_per_token;
  choice.seconds = prefill.seconds + static_cast<double>(kAnswerTokens) * decode.seconds_per_token;
  return choice;
}

// Where its value is not the default.
void AppendFlag(const ModelFlag& flag, const std::string& name, const ModelOptions& options, const ModelOptions& defaults,
                std::string* command) {
  const std::vector<std::string> values = flag.values(options);
  if (values == flag.values(defaults)) return;
  for (const std::string& value : values) {
    absl::StrAppend(command, " ", name, flag.is_switch ? "" : " ", flag.is_switch ? "" : Word(value));
  }
}

}  // namespace

std::string ServeCommand(const ModelOptions& options, const std::vector<std::string>& devices, bool own_workers) {
  static const std::set<std::string> kOfPlanAlone = {"--workers", "--gpus",       "--backend", "--trace",
                                                     "--force",   "--keep-rates", "--probe",   "--log-level"};
  std::string command = "ferry serve";
  const ModelOptions defaults;
  for (const ModelFlag& flag : ModelFlags()) {
    if (flag.serve_only || (flag.worker && !flag.coordinator && !own_workers)) continue;
    const std::string names = flag.names;
    const std::string name = flag.is_switch ? flag.told : names.substr(0, names.find(','));
    if (kOfPlanAlone.contains(name)) continue;
    AppendFlag(flag, name, options, defaults, &command);
  }
  for (const std::string& word : devices) absl::StrAppend(&command, " ", Word(word));
  return command;
}

std::string WorkerCommand(const ModelOptions& options, const std::vector<std::string>& place) {
  std::string command = "ferry-worker";
  for (const std::string& word : place) absl::StrAppend(&command, " ", Word(word));
  ModelOptions defaults;
  defaults.log_level = options.log_level;  // of this command alone
  for (const ModelFlag& flag : ModelFlags()) {
    if (flag.worker) AppendFlag(flag, flag.told, options, defaults, &command);
  }
  return command;
}

absl::StatusOr<std::vector<Choice>> ChoicesOf(const ModelOptions& options, PredictedModel model, const PlannedMachine& machine,
                                              const FoundRates& found, int64_t prompt_tokens) {
  std::vector<PlannedMachine> machines;
  const bool compares = machine.gpu() && options.layers.empty();
  for (size_t gpus = 1; compares && gpus < machine.devices.size(); gpus *= 2) machines.push_back(WithFirstGpus(machine, gpus));
  machines.push_back(machine);
  if (compares && options.backend == "auto") machines.push_back(WithoutGpus(machine));
  std::vector<Choice> choices;
  for (const PlannedMachine& each : machines) {
    ASSIGN_OR_RETURN(choices.emplace_back(), ChoiceOf(options, model, machine, each, found, prompt_tokens));
  }
  return choices;
}

const Choice* Quickest(const std::vector<Choice>& choices) {
  const Choice* quickest = nullptr;
  for (const Choice& choice : choices) {
    if (choice.fit.lacks.empty() && (quickest == nullptr || choice.seconds < quickest->seconds)) quickest = &choice;
  }
  return quickest;
}

}  // namespace ferry
