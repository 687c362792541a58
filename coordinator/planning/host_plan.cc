#include "coordinator/planning/host_plan.h"

#include <algorithm>
#include <limits>

#include "coordinator/experts/held_experts.h"
#include "coordinator/planning/decode_prediction.h"

namespace ferry {
namespace {

constexpr int64_t kSmallestReserve = int64_t{1} << 30;

PredictedExpertHost Predicted(const CandidateHost& candidate, int64_t place, int64_t max_entries, const PredictionInput& input) {
  const double row_bytes = static_cast<double>(input.config.n_embd) * sizeof(float);
  return {.place = {.rates = candidate.rates,
                    .exchange_seconds = candidate.exchange_seconds,
                    .row_seconds = row_bytes / candidate.bytes_per_second,
                    .memory = static_cast<int>(place) + 1,
                    .max_entries = max_entries},
          .held = ChooseHeld(input.arena, candidate.memory_bytes - ReserveOf(candidate.memory_bytes), place)};
}

// With the hosts whose numbers are in `numbers`; each holds what its own place among them says.
double DecodeSeconds(const std::vector<CandidateHost>& candidates, const std::vector<size_t>& numbers, int64_t max_entries,
                     PredictionInput* input) {
  input->expert_hosts.clear();
  for (size_t i = 0; i < numbers.size(); ++i) {
    input->expert_hosts.push_back(Predicted(candidates[numbers[i]], static_cast<int64_t>(i), max_entries, *input));
  }
  return PredictDecode(*input).seconds_per_token;
}

std::vector<size_t> Without(std::vector<size_t> numbers, size_t number) {
  std::erase(numbers, number);
  return numbers;
}

}  // namespace

int64_t ReserveOf(int64_t memory_bytes) { return std::max(kSmallestReserve, memory_bytes / 16); }

std::vector<HostUse> ChooseExpertHosts(const std::vector<CandidateHost>& candidates, int64_t max_entries,
                                       PredictionInput* input) {
  std::vector<HostUse> uses(candidates.size());
  std::vector<size_t> numbers;
  for (size_t i = 0; i < candidates.size(); ++i) {
    const HeldExperts held = ChooseHeld(input->arena, candidates[i].memory_bytes - ReserveOf(candidates[i].memory_bytes), 0);
    if (RecordsIn(held) > 0) {
      numbers.push_back(i);
    } else {
      uses[i].why = "its memory holds no expert of every layer";
    }
  }
  // One after the other, the host leaves that is missed least, until each one left is worth it.
  double with = DecodeSeconds(candidates, numbers, max_entries, input);
  while (!numbers.empty()) {
    size_t least = numbers.front();
    double without = std::numeric_limits<double>::infinity();
    for (const size_t i : numbers) {
      const double seconds = DecodeSeconds(candidates, Without(numbers, i), max_entries, input);
      if (seconds < without) least = i, without = seconds;
    }
    if (without >= kWorthAHost * with) break;
    uses[least].why = absl::StrFormat("decode is predicted at %.1f t/s with it and %.1f without", 1 / with, 1 / without);
    numbers = Without(numbers, least);
    with = without;
  }
  DecodeSeconds(candidates, numbers, max_entries, input);
  for (size_t i = 0; i < numbers.size(); ++i) {
    const HeldExperts& held = input->expert_hosts[i].held;
    uses[numbers[i]] = {.used = true, .why = "", .records = RecordsIn(held), .bytes = BytesOf(input->arena, held)};
  }
  return uses;
}

}  // namespace ferry
