#pragma once

// Which instruction sets this machine and its operating system offer.

#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"
#include "kernels/cpu/cpu_kernels.h"

namespace ferry {

enum class CpuIsa { kPortable, kAvx2, kAvx512 };

std::string_view NameOf(CpuIsa isa);  // "portable", "avx2", "avx512"

// kAvx2 means AVX2, FMA, F16C and BMI2; kAvx512 means F, BW, DQ, VL, VBMI and VNNI besides.
bool MachineHas(CpuIsa isa);

// The table for a name of BackendOptions::isa: "auto" is the best that the machine and the build have.
// InvalidArgument: an unknown name; FailedPrecondition: the machine or the build lacks it, with what it has.
absl::StatusOr<const CpuKernels*> SelectKernels(std::string_view isa);

}  // namespace ferry
