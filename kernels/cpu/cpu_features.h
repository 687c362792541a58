#pragma once

// Which instruction sets this machine and its operating system offer.

#include <string_view>

#include "common/status.h"
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/isa.h"

namespace ferry {

// kAvx2 means AVX2, FMA, F16C and BMI2; kAvx512 means F, BW, DQ, VL, VBMI and VNNI besides, and
// kAmx tiles of bytes besides, which this process may use (amx_permission.h). kNeon means what every aarch64
// processor has; kDotprod means SDOT besides, and kI8mm both SDOT and SMMLA.
bool MachineHas(CpuIsa isa);

// The table for a name of BackendOptions::isa: "auto" is the best that the machine and the build have.
// InvalidArgument: an unknown name; FailedPrecondition: the machine or the build lacks it, with what it has.
absl::StatusOr<const CpuKernels*> SelectKernels(std::string_view isa);

// InvalidArgument: no name of IsaChoices().
absl::Status CheckIsa(std::string_view isa);
// The instruction set of that name; of "auto", and of names that SelectKernels refuses, the best of this machine.
CpuIsa IsaNamed(std::string_view isa);

}  // namespace ferry
