#pragma once

// The CUDA backend of kernels/ops.h, for compute capability 7.5 and up. Beyond what ops.h says:
//  - activation_dtype is BF16, on 7.5 F16 (it has no bf16 products). contribution_dtype is BF16 likewise: half the bytes of the
//    largest buffer of a prefill and of the traffic on it, and the products before it have rounded to BF16 already; on 7.5 it
//    is F32, since an expert's output may exceed F16.
//  - The KV cache is F16 or Q8_0, heads have 32, 64, 128 or (from 8.0 on) 256 dimensions; a latent cache has up to 512 values,
//  and
//    values and keys are multiples of 16 numbers. Experts are multiples of 32 wide. q and out of Attention, and in of products,
//    are aligned to 16 bytes with a stride that is a multiple of 8.
//  - Only Download, ReadLogits, Wait, Synchronize, UnpinHost, freeing memory, and an operation that needs more workspace than
//    all before it wait for the device. Host arrays are staged in 16 MiB of pinned memory.
//  - A fault of a kernel surfaces as Internal at a later call, which names itself and the operation queued last.

#include <memory>

#include "common/status.h"
#include "kernels/ops.h"

namespace ferry {

// InvalidArgument: no such kind. FailedPrecondition: no driver, no such GPU, one older than 7.5 or that this build has
// no code for. ResourceExhausted: no room for the workspace.
absl::StatusOr<std::unique_ptr<Ops>> CreateCudaOps(const BackendOptions& options);

}  // namespace ferry
