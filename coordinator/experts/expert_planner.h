#pragma once

// Divides the activated experts of one layer among the places that can compute them: the worker's device, the engine of the
// coordinator's host, and the engines of any number of further hosts. A pure function: no clock, no state.
//
// An expert whose copy is running costs the link as much as one that nobody has asked for, so the planner divides both alike. So
// an expert with few tokens may go to the host while its copy is running. The worker learns from that to copy less before it
// knows the routing (worker/expert_forecast.h).
//
// Shipping an expert costs bytes / link rate whatever its tokens; computing it on the host costs what kernels/expert_seconds.h
// says of its tokens. Both run at once, so the best plan makes them end at the same time. It goes through the experts in order of
// tokens per byte, ships the heavy ones and leaves the light ones to the host.
//
// The experts left to engines go, heaviest first, each to the engine that would end first with it. Engines are tried in order of
// their speed, the host's always and then each faster one before a slower one, and the fewest that give the shortest time are
// used. So an engine that is slower than all others never lengthens the predicted time.
//
// Between a worker of another host and the engines lies a network. The rows of the engines' share go there and its contributions
// come back, in requests one after the other, before and after the engines compute. What comes back takes the way of the records
// meanwhile, so an expert whose contributions are more than its record is always shipped.
//
// Another worker of the host that has nothing else to do is a second link and a second device: rows go there and contributions
// come back. The own link takes the heaviest experts, since only helpers pay for each token. Helpers are used from the quickest
// on, and only as far as they make the layer shorter by kWorthHelp. Of a layer with many rows the products take longer than the
// copies, so a device's share takes the longer of both.

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "common/shm/expert_mailbox.h"
#include "coordinator/experts/share_way.h"
#include "kernels/expert_seconds.h"

namespace ferry {

struct PlannerRates {
  double link_bytes_per_second = 0;    // to this worker's device, while the host computes
  ExpertRates host;                    // while the link runs
  double device_flops_per_second = 0;  // of the worker's device; 0: not known, and no bound
  bool operator==(const PlannerRates&) const = default;
};

// An engine beside that of the coordinator's host. Rates that are 0 are not known: such an engine gets nothing.
struct EnginePlace {
  ExpertRates rates;
  double exchange_seconds = 0;         // of a request and its answer, beside its rows and the computation
  double row_seconds = 0;              // of one row on its way there or back
  int memory = 1;                      // engines with the same number read the same memory; the host's engine reads memory 0
  double memory_bytes_per_second = 0;  // of that memory, all its engines together; 0: they do not slow each other
  int64_t max_entries = INT64_MAX;     // of one exchange
  std::shared_ptr<const std::vector<bool>> holds;  // by expert of the layer; null: all
};

// Another worker of this host that ships and computes experts for the one that asks. A rate of 0 is not known: it gets nothing.
struct HelperPlace {
  double link_bytes_per_second = 0;
  double fixed_seconds = 0;         // of a request and its answer
  double row_seconds = 0;           // of each row of the step; all rows go there
  double contribution_seconds = 0;  // of each token's contribution, which comes back
  double flops_per_second = 0;      // of expert products on its device; 0: not known, and no bound
};
// How a helper is reached.
struct HelperWay {
  double link_bytes_per_second = 0;      // the helper's
  double own_link_bytes_per_second = 0;  // of the worker that it helps
  bool device_to_device = false;         // rows and contributions do not go through the host's memory
  double flops_per_second = 0;           // of the helper's device; 0: not known
};
// Through the host's memory rows cross both links, and a contribution the owner's, beside the helper's next copies. From device
// to device they cross neither. `row_bytes`: of a row and of a contribution.
HelperPlace PlaceOf(const HelperWay& way, double row_bytes);
// The share of its time without the next helper that a layer may at most take with it. Predictions are no better than that.
inline constexpr double kWorthHelp = 0.95;

struct PlannerInput {
  std::span<const ActivatedExpert> uses;
  double bytes_per_expert = 0;
  double flops_per_token = 0;
  int64_t num_slots = 0;  // experts the worker can hold at once; 0: nothing is shipped
  PlannerRates rates;
  bool host_allowed = true;  // -ot: this layer's experts may be computed on the host
  bool ship_allowed = true;  // -ot: they may be shipped
  bool ship_all = false;     // --no-ooae: every expert that is not resident is shipped
  int64_t num_rows = 0;      // of the step: an exchange carries each of them at most once
  ShareWay way = {};         // from the worker to the engines and back
  std::span<const EnginePlace> others;
  std::span<const HelperPlace> helpers;
  int64_t max_helper_tokens = INT64_MAX;  // of all helpers together
};

struct ExpertPlan {
  std::vector<ExpertPlace> places;  // one a use; never a helper's
  // One a use, when helpers are used; else empty. Where the place is kShip: the number of the helper that ships it, or -1.
  std::vector<int32_t> helpers;
  // One a use, with `others`; else empty. Where the place is kHost, the engine: 0 is the host's, i is others[i - 1].
  std::vector<int32_t> engines;
  double link_seconds = 0;  // predicted time of the copies, with helpers until the last has answered; 0 when the rate is unknown
  double host_seconds = 0;  // predicted time in which the host computes its share; likewise
  double engine_seconds = 0;  // predicted time until the last engine has answered; 0 without `others`
};

// The host computes what the input's rules leave no place for: an expert that may be neither shipped nor computed on the host.
ExpertPlan PlanExperts(const PlannerInput& input);

}  // namespace ferry
