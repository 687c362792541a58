#pragma once

// A gated delta net: attention whose memory is a matrix of fixed size for each head, not keys and values (arXiv:2412.06464).
//
// Of a token, with the inputs of DeltaInputs, for each channel c, key head and value head h (whose key head is net.key_head(h)):
//
//   y[c]  = silu(sum over taps j of conv[j][c] * mixed[c] of the token conv_taps - 1 - j before this one)
//   q, k, v = the parts of y: queries, then keys, of the key heads, then values of the value heads
//   q     = q / sqrt(sum q^2 + 1e-6) / sqrt(head_dim)        k = k / sqrt(sum k^2 + 1e-6)
//   S     = exp(decay[h] * softplus(alpha[h] + time_bias[h])) S        S [key element][value element]
//   S     = S + k (sigmoid(beta[h]) * (v - S' k))'
//   out_h = RMSNorm(S' q) * norm * silu(gate_h)
//
// Tokens go through one by one, whatever the number of rows, so a prompt gives the same bits however it is cut into steps.

#include <cstdint>

#include "common/model/limits.h"
#include "kernels/device_memory.h"

namespace ferry {

inline constexpr double kDeltaEpsilon = 1e-6;  // under the roots of queries' and keys' norms
inline constexpr int64_t kDeltaColumns = 16;   // value elements of S that lie together

// F32 in device memory.
struct DeltaWeights {
  const float* conv = nullptr;       // [conv_taps][conv_channels]; the last tap meets the token itself
  const float* time_bias = nullptr;  // [num_heads]
  const float* decay = nullptr;      // [num_heads], below 0
  const float* norm = nullptr;       // [head_dim]
  double epsilon = 0;                // of the norm
};

// F32, of one number of rows.
struct DeltaInputs {
  Tensor mixed;  // [rows, conv_channels]: queries, keys, values before the convolution
  Tensor gate;   // [rows, num_heads * head_dim]
  Tensor beta;   // [rows, num_heads]
  Tensor alpha;  // [rows, num_heads]
};

// What one layer keeps of the sequence in each slot, F32, DeltaStateNumbers a slot:
//
//   rows   [conv_taps - 1][conv_channels]                     the last rows of `mixed`, oldest first
//   state  [num_heads][head_dim / 16][head_dim][16]           S of each value head, its columns in groups of 16
struct DeltaStates {
  float* data = nullptr;
  int64_t num_slots = 0;
};

}  // namespace ferry
