#pragma once

// The cost of a layer on a GPU without its experts' copies, fitted to the runs in docs/measurements on an H100 and two H200.
// prefill_prediction.h and step_rows.h use it.

#include "common/model/model_config.h"

namespace ferry {

inline constexpr double kGpuProductShare =
    0.85;  // rate of dense, grouped and attention products, as a share of the rate of even groups
inline constexpr double kGpuLayerSeconds = 0.4e-3;  // prefill: small kernels, the download of the histogram, the plan

// Of a layer's dense matrices (attention, MLP), for a token; a product and its addition are two.
inline double DenseMatrixFlops(const ModelConfig& config, int64_t layer) {
  double flops = 0;
  for (const DenseTensor& tensor : DenseTensorsOf(config, layer, layer + 1)) {
    if (tensor.layer == layer && tensor.is_matrix) flops += 2.0 * static_cast<double>(tensor.rows * tensor.cols);
  }
  return flops;
}

}  // namespace ferry
