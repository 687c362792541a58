#pragma once

// Rotary position embedding: the frequencies, computed once for all backends.

#include <vector>

#include "common/model/model_config.h"

namespace ferry {

// Radians per position of each rotated pair, [config.num_dims / 2]. Pair i is dimensions (i, i + num_dims / 2), or
// (2i, 2i + 1) with config.neighbours; position p turns it by p * frequency. cos and sin are to be multiplied by
// config.attention_factor.
//
// Without YaRN: freq_base^(-2i / num_dims). With it (yarn_factor != 1 and yarn_original_context > 0), pairs that turn more
// than beta_fast times over the original context keep that frequency, those that turn less than beta_slow times are slowed
// by yarn_factor, and a linear ramp over the pair's index joins the two. The ramp's ends are rounded away from each
// other to whole indices with yarn_whole_dims.
std::vector<double> RopeFrequencies(const RopeConfig& config);

}  // namespace ferry
