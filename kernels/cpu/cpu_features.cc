#include "kernels/cpu/cpu_features.h"

#include <algorithm>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include "absl/strings/str_join.h"
#include "kernels/cpu/amx_permission.h"

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
    case CpuIsa::kAmx:
      return AmxKernels();
    case CpuIsa::kNeon:
      return NeonKernels();
    case CpuIsa::kDotprod:
      return DotprodKernels();
    case CpuIsa::kI8mm:
      return I8mmKernels();
  }
  return nullptr;
}

}  // namespace

bool MachineHas(CpuIsa isa) {
#if defined(__x86_64__)
  // The compiler's run-time check asks the operating system too (XGETBV), unlike a bare look at CPUID.
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") && HasF16c();
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
  switch (isa) {
    case CpuIsa::kPortable:
      return true;
    case CpuIsa::kAvx2:
      return avx2;
    case CpuIsa::kAvx512:
      return avx512;
    case CpuIsa::kAmx:
      return avx512 && CheckAmx().ok();
    default:
      return false;
  }
#elif defined(__aarch64__)
  const bool dotprod = (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
  switch (isa) {
    case CpuIsa::kPortable:
    case CpuIsa::kNeon:
      return true;
    case CpuIsa::kDotprod:
      return dotprod;
    case CpuIsa::kI8mm:
      return dotprod && (getauxval(AT_HWCAP2) & HWCAP2_I8MM) != 0;
    default:
      return false;
  }
#else
  return isa == CpuIsa::kPortable;
#endif
}

absl::StatusOr<const CpuKernels*> SelectKernels(std::string_view isa) {
  std::vector<const char*> usable_names;
  for (const CpuIsa candidate : kAllIsas) {
    const CpuKernels* table = TableOf(candidate);
    if (table == nullptr || !MachineHas(candidate)) continue;
    if (isa == "auto" || isa == NameOf(candidate)) return table;
    usable_names.push_back(NameOf(candidate));
  }
  RETURN_IF_ERROR(CheckIsa(isa));
  if (isa == NameOf(CpuIsa::kAmx)) {
    const absl::Status amx = CheckAmx();
    return FailedPrecondition("isa is amx, but %s; it has %s", amx.ok() ? "AVX-512 is missing" : amx.message(),
                              absl::StrJoin(usable_names, ", "));
  }
  return FailedPrecondition("isa is %s, which this machine or build lacks; it has %s", isa, absl::StrJoin(usable_names, ", "));
}

absl::Status CheckIsa(std::string_view isa) {
  const std::vector<const char*> choices = IsaChoices();
  if (std::find(choices.begin(), choices.end(), isa) != choices.end()) return absl::OkStatus();
  return InvalidArgument("isa is '%s', want one of %s", isa, absl::StrJoin(choices, ", "));
}

CpuIsa IsaNamed(std::string_view isa) {
  for (const CpuIsa candidate : kAllIsas) {
    if (isa == NameOf(candidate)) return candidate;
  }
  for (const CpuIsa candidate : kAllIsas) {
    if (TableOf(candidate) != nullptr && MachineHas(candidate)) return candidate;
  }
  return CpuIsa::kPortable;
}

}  // namespace ferry
