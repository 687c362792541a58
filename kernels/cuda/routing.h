#pragma once

// The router: which experts a token goes to.

#include "common/model/limits.h"
#include "kernels/cuda/launch.h"

namespace ferry::cuda {

inline constexpr int kMaxGroups = 32;  // one a lane of a warp

// logits = in W^T + bias in F32; the top_k best, ties to the lower id; weights = softmax over the chosen.
//   in       [rows, n_embd] an activation type        weight  [num_experts, n_embd] F32, row-major
//   experts  [rows, top_k] best first                 bias    [num_experts] or null
//   weights  [rows, top_k], each row sums to 1
// Products are exact to 2^-24 and sums are F32, in an order that depends on n_embd alone. A NaN logit comes after all
// numbers, so ids are always in [0, num_experts). 1 <= top_k <= num_experts <= kMaxExperts.
// That is the plain router. With `scored` scores are the softmax over all experts or, with `sigmoid`, the sigmoid of each logit;
// the top_k are chosen by score + selection_bias among the groups_used best groups (a group's worth is the sum of its group_best
// best choices), and weights are their scores, divided by their sum with `normalise`, times weight_scale.
struct RouteArgs {
  DeviceRows in;
  const float* weight = nullptr;
  const float* bias = nullptr;
  bool scored = false, sigmoid = false, normalise = true;
  const float* selection_bias = nullptr;  // [num_experts] or null
  int num_groups = 1, groups_used = 1;    // at most kMaxGroups
  int group_best = 2;                     // 1 or 2
  float weight_scale = 1;
  int64_t num_experts = 0, top_k = 0;
  int32_t* experts = nullptr;
  float* weights = nullptr;
  void* workspace = nullptr;  // RouteWorkspaceBytes(...), 16-byte aligned
};
cudaError_t LaunchRoute(const RouteArgs& args, cudaStream_t stream);
int64_t RouteWorkspaceBytes(int64_t rows, int64_t num_experts);

}  // namespace ferry::cuda
