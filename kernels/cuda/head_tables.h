#pragma once

// The tables of HeadProducts (head_products.h) for shapes that come again in every layer: those of few rows are kept.

#include <array>
#include <cstdint>
#include <vector>

#include "common/status.h"
#include "kernels/cuda/compute_queue.h"
#include "kernels/cuda/cuda_handles.h"
#include "kernels/cuda/head_products.h"
#include "kernels/cuda/staging.h"

namespace ferry::cuda {

class HeadTables {
 public:
  // Sets args' tables for its shapes, and the memory of its expansion for the expansion's bytes, a multiple of 256. Both serve
  // what is queued from here on until the workspace's next Reserve. ResourceExhausted: no room.
  absl::Status Place(HeadProductArgs& args, ComputeQueue& queue, Workspace& workspace);

 private:
  static constexpr int64_t kFewRows = 32;  // with more, a launch is a small part of the product
  static constexpr size_t kMost = 64;      // a model has two shapes; steps differ in rows

  using Shape = std::array<int64_t, 6>;
  struct Known {
    Shape shape;
    DeviceMemory memory;
  };
  std::vector<Known> known_;
  size_t oldest_ = 0;
};

}  // namespace ferry::cuda
