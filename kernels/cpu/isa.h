#pragma once

// The instruction sets that the CPU backend has kernels for, and their names on command lines.

#include <string_view>
#include <vector>

namespace ferry {

enum class CpuIsa { kPortable, kAvx2, kAvx512, kAmx, kNeon, kDotprod, kI8mm };

// Best first; no machine has those of two processor families.
inline constexpr CpuIsa kAllIsas[] = {CpuIsa::kAmx,     CpuIsa::kAvx512, CpuIsa::kAvx2,    CpuIsa::kI8mm,
                                      CpuIsa::kDotprod, CpuIsa::kNeon,   CpuIsa::kPortable};

constexpr const char* NameOf(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kPortable:
      return "portable";
    case CpuIsa::kAvx2:
      return "avx2";
    case CpuIsa::kAvx512:
      return "avx512";
    case CpuIsa::kAmx:
      return "amx";
    case CpuIsa::kNeon:
      return "neon";
    case CpuIsa::kDotprod:
      return "dotprod";
    case CpuIsa::kI8mm:
      return "i8mm";
  }
  return "unknown";
}

// What --isa takes: auto, which is the best that the machine has, or a name.
inline std::vector<const char*> IsaChoices() {
  std::vector<const char*> choices = {"auto"};
  for (const CpuIsa isa : kAllIsas) choices.push_back(NameOf(isa));
  return choices;
}

}  // namespace ferry
