#pragma once

// What sampling reads from a row of logits.

#include <cstdint>
#include <vector>

namespace ferry {

struct LogitsRequest {
  int32_t top_n = 0;    // how many of the best logits to return; >= vocabulary: all of them, in order of id
  int32_t target = -1;  // a token whose logit is returned as well; -1: none
};
struct LogitsResult {
  float log_sum_exp = 0;
  float target_logit = 0;
  std::vector<int32_t> ids;   // best first, ties to the lower id; empty when all logits are given
  std::vector<float> logits;  // one for each of `ids`, or for each token of the vocabulary
};

}  // namespace ferry
