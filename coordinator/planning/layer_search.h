#pragma once

// Searches for the division of layers among workers that differ, in memory, rates or their network. The coordinator itself
// divides by bytes alone (placement.h); what this finds goes to it as --layers. A pure function.

#include <functional>
#include <string>
#include <vector>

#include "coordinator/planning/placement.h"

namespace ferry {

// "0-9,10-23", as --layers has it.
std::string LayersText(const std::vector<LayerRange>& ranges);

// Seconds with a division; infinity: it is not possible.
using LayersCost = std::function<double(const std::vector<LayerRange>&)>;

struct FoundLayers {
  std::vector<LayerRange> ranges;
  double cost = 0;
  bool operator==(const FoundLayers&) const = default;
};
// From `begin`, which covers all layers and leaves none without a worker, moves layers from one worker to a later or earlier one,
// those between them moving along, by halving numbers of layers and as long as that makes the cost less. Calls `cost` at most
// `most_calls` times, at least once.
FoundLayers SearchLayers(const std::vector<LayerRange>& begin, const LayersCost& cost, int most_calls);

}  // namespace ferry
