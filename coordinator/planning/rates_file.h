#pragma once

// Keeps MachineRates between starts, in one file for each machine, engine, record layout and set of workers. When a file is
// missing, old or damaged, the caller measures the rates again.

#include <span>
#include <string>

#include "absl/time/time.h"
#include "common/model/expert_layout.h"
#include "common/status.h"
#include "coordinator/planning/machine_rates.h"

namespace ferry {

// $XDG_CACHE_HOME/ferry, else $HOME/.cache/ferry; empty when neither is set: no rates are kept.
std::string RatesDirectory();

// The properties of a worker on which rates depend.
struct RatedWorker {
  std::string device;     // Ops::name()
  std::string transport;  // shm, grpc
  bool has_slots = false;
  bool in_place = false;  // its device reads experts in the host's memory
};
// The key of a file as text: machine, CPU, engine (kernels and threads), the largest record, workers in order.
std::string RatesKey(const std::string& engine, const ArenaLayout& arena, std::span<const RatedWorker> workers);

// Rates age: firmware, other tenants, other DIMMs.
inline constexpr absl::Duration kRatesLast = absl::Hours(24 * 30);

// NotFound: no file, a file of another version, or rates older than kRatesLast at `now`. DataLoss: the file is damaged or has
// another key.
absl::StatusOr<MachineRates> ReadRates(const std::string& directory, const std::string& key, absl::Time now);
// Writes the file, and makes the directory if needed. A reader sees the old file or the new one. FailedPrecondition: the system
// refuses the write.
absl::Status WriteRates(const std::string& directory, const std::string& key, const MachineRates& rates);
// False: there was no file.
bool RemoveRates(const std::string& directory, const std::string& key);
// The file of a key.
std::string RatesPath(const std::string& directory, const std::string& key);

}  // namespace ferry
