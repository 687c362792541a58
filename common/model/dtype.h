#pragma once

// The element types of GGUF tensors: ids, names and block sizes of the whole ggml table, and which of them Ferry computes
// with. Ids are those of enum ggml_type; 4, 5, 31 to 33 and 36 to 38 were removed from the format.

#include <cstdint>
#include <optional>
#include <string_view>

namespace ferry {

enum class DType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ8_1 = 9,
  kQ2_K = 10,
  kQ3_K = 11,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kQ8_K = 15,
  kIQ2_XXS = 16,
  kIQ2_XS = 17,
  kIQ3_XXS = 18,
  kIQ1_S = 19,
  kIQ4_NL = 20,
  kIQ3_S = 21,
  kIQ2_S = 22,
  kIQ4_XS = 23,
  kI8 = 24,
  kI16 = 25,
  kI32 = 26,
  kI64 = 27,
  kF64 = 28,
  kIQ1_M = 29,
  kBF16 = 30,
  kTQ1_0 = 34,
  kTQ2_0 = 35,
  kMXFP4 = 39,
};

struct DTypeInfo {
  std::string_view name;   // as GGUF tools print it: "MXFP4", "Q8_0"
  int64_t block_elements;  // elements that share one block
  int64_t block_bytes;     // bytes of one block
  bool computable;         // Ferry decodes and multiplies it: F32, F16, BF16, Q8_0, Q4_0, MXFP4
};

// The row of the table, or nullopt when the id is not one of the format.
std::optional<DTypeInfo> InfoOf(DType type);
// The name, or "type 77" for an unknown id.
std::string_view NameOf(DType type);

}  // namespace ferry
