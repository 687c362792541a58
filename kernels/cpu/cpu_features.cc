#include "kernels/cpu/cpu_features.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace ferry {
namespace {

#if defined(__x86_64__)
// F16C has no name in every compiler's run-time check: CPUID leaf 1, ECX bit 29.
bool HasF16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & (1u << 29)) != 0;
}
#endif

const CpuKernels* TableOf(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kPortable:
      return PortableKernels();
    case CpuIsa::kAvx2:
      return Avx2Kernels();
    case CpuIsa::kAvx512:
      return Avx512Kernels();
  }
  return nullptr;
}

constexpr CpuIsa kBestFirst[] = {CpuIsa::kAvx512, CpuIsa::kAvx2, CpuIsa::kPortable};

}  // namespace

std::string_view NameOf(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kPortable:
      return "portable";
    case CpuIsa::kAvx2:
      return "avx2";
    case CpuIsa::kAvx512:
      return "avx512";
  }
  return "unknown";
}

bool MachineHas(CpuIsa isa) {
#if defined(__x86_64__)
  // The compiler's run-time check asks the operating system too (XGETBV), unlike a bare look at CPUID.
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") && HasF16c();
  switch (isa) {
    case CpuIsa::kPortable:
      return true;
    case CpuIsa::kAvx2:
      return avx2;
    case CpuIsa::kAvx512:
      return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") &&
             __builtin_cpu_supports("avx512vnni");
  }
  return false;
#else
  return isa == CpuIsa::kPortable;
#endif
}

absl::StatusOr<const CpuKernels*> SelectKernels(std::string_view isa) {
  for (const CpuIsa candidate : kBestFirst) {
    const CpuKernels* table = TableOf(candidate);
    const bool usable = table != nullptr && MachineHas(candidate);
    if (isa == "auto" && usable) return table;
    if (isa != NameOf(candidate)) continue;
    if (usable) return table;
    std::string have;
    for (const CpuIsa other : kBestFirst) {
      if (TableOf(other) != nullptr && MachineHas(other)) have += (have.empty() ? "" : ", ") + std::string(NameOf(other));
    }
    return FailedPrecondition("isa is %s, which this machine or build lacks; it has %s", isa, have);
  }
  return InvalidArgument("isa is \"%s\", want auto, avx512, avx2 or portable", isa);
}

}  // namespace ferry
