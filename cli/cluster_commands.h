#pragma once

// What to type on each host for a choice of `ferry plan --hosts`.

#include <string>
#include <vector>

#include "cli/cluster_choices.h"

namespace ferry {

// The commands of each host, in order; none: the host is left out. Those of the first host come before the others'.
std::vector<std::vector<std::string>> ClusterCommands(const ModelOptions& options, const std::vector<DescribedHost>& hosts,
                                                      const ClusterChoice& choice);

}  // namespace ferry
