#pragma once

// How the workers of an epoch fetch the boards (common/shm/help_board.h) through which they compute shares for each other.

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "common/ids.h"
#include "common/shm/help_board.h"

namespace ferry {

struct HelpOffer {
  std::string socket;                    // where the descriptors are handed out
  std::map<WorkerId, std::string> keys;  // one a worker of this host; empty: no worker helps another
  std::vector<WorkerId> workers;         // whose boards the descriptors are, in order
  HelpBoardShape shape;
};

}  // namespace ferry
