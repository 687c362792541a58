#pragma once

// Which experts' records a host holds.

#include <cstdint>
#include <memory>
#include <vector>

#include "common/model/expert_layout.h"

namespace ferry {

// By layer, then by expert; a layer without held experts is null.
using HeldExperts = std::vector<std::shared_ptr<const std::vector<bool>>>;

// As many experts of each layer as fit into `bytes`, the same number in all layers, spread evenly over the ids. Hosts of another
// `place` hold others first, so that several small hosts together hold more.
HeldExperts ChooseHeld(const ArenaLayout& layout, int64_t bytes, int64_t place);
int64_t RecordsIn(const HeldExperts& held);
int64_t BytesOf(const ArenaLayout& layout, const HeldExperts& held);

}  // namespace ferry
