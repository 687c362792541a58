#pragma once

// Keeps MachineRates between starts: a file a machine, engine, record layout and set of workers. A file that cannot be read or
// trusted is as good as none: whoever needs rates measures them.

#include <span>
#include <string>

#include "absl/time/time.h"
#include "common/model/expert_layout.h"
#include "common/status.h"
#include "coordinator/planning/machine_rates.h"

namespace ferry {

// $XDG_CACHE_HOME/ferry, else $HOME/.cache/ferry; empty when neither is set: nothing is kept.
std::string RatesDirectory();

// A worker as far as rates depend on it.
struct RatedWorker {
  std::string device;     // Ops::name()
  std::string transport;  // shm, grpc
  bool has_slots = false;
};
// What rates belong to, as text: machine, CPU, engine (kernels and threads), the largest record, workers in order.
std::string RatesKey(const std::string& engine, const ArenaLayout& arena, std::span<const RatedWorker> workers);

// Rates age: firmware, other tenants, other DIMMs.
inline constexpr absl::Duration kRatesLast = absl::Hours(24 * 30);

// NotFound: none are kept, or by another version, or they are older than kRatesLast at `now`. DataLoss: the file is damaged or
// another key's.
absl::StatusOr<MachineRates> ReadRates(const std::string& directory, const std::string& key, absl::Time now);
// Makes the directory. A reader sees the old file or the new one. FailedPrecondition: it cannot be written.
absl::Status WriteRates(const std::string& directory, const std::string& key, const MachineRates& rates);
// Where both look.
std::string RatesPath(const std::string& directory, const std::string& key);

}  // namespace ferry
