#pragma once

// The backend of machines without a GPU, and the coordinator's expert engine: quantised products in AVX-512 with or without
// AMX, AVX2, NEON or plain C++, spread over a pool of threads.
//
// Activations enter products with quantised weights as whole numbers with one scale for every 32 of them
// (kernels/cpu/cpu_kernels.h): 8 bits for MXFP4 and Q4_0, an error of up to 1/254 of the largest of the 32; 15 bits for Q8_0.
// With AMX, 64 of them share a scale beside MXFP4. Other weights take them as they are. Results agree between instruction sets
// within rounding, and bit for bit among those of aarch64 with its portable code, and between AVX-512 with and without AMX in all
// but products with MXFP4; on one instruction set they do not depend on the number of threads, nor on the other rows of a call.

#include <memory>

#include "kernels/ops.h"

namespace ferry {

// `options`: num_threads, pin_threads and isa are used. InvalidArgument: an unknown isa, or a negative number of threads;
// FailedPrecondition: the machine lacks the isa.
absl::StatusOr<std::unique_ptr<Ops>> CreateCpuOps(const BackendOptions& options);

}  // namespace ferry
