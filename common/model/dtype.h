#pragma once

// The element types of GGUF tensors: ids, names and block sizes of the whole ggml table, and which of them Ferry computes
// with. Ids are those of the GGUF format (ggml.h, enum ggml_type); 4, 5 and 31 to 33, 36 to 38 were removed from it. Those from
// 133 on are ik_llama.cpp's.

#include <cstdint>
#include <optional>
#include <string>
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
  kNVFP4 = 40,
  kQ1_0 = 41,
  // ik_llama.cpp's, of its own numbering.
  kQ6_0 = 133,
  kIQ1_BN = 134,
  kIQ2_BN = 135,
  kIQ2_K = 137,
  kIQ3_K = 138,
  kIQ4_K = 139,
  kIQ5_K = 140,
  kIQ6_K = 141,
  kIQ4_KS = 144,
  kIQ2_KS = 145,
  kIQ4_KSS = 146,
  kIQ5_KS = 152,
  kIQ2_KT = 153,
  kIQ3_KT = 154,
  kIQ4_KT = 155,
  kIQ3_KS = 156,
  kIQ2_KL = 157,
  kIQ1_KT = 158,
};

struct DTypeInfo {
  std::string_view name;         // as GGUF tools print it: "MXFP4", "Q8_0"
  int64_t block_elements;        // elements that share one block
  int64_t block_bytes;           // bytes of one block
  bool computable;               // Ferry decodes and multiplies it: it has a format (formats/formats.h)
  int64_t row_header_bytes = 0;  // before the blocks of each row

  // Of one row of `cols` elements, whole blocks.
  int64_t RowBytes(int64_t cols) const { return row_header_bytes + cols / block_elements * block_bytes; }
};

// The row of the table, or nullopt when the id is not one of the format.
std::optional<DTypeInfo> InfoOf(DType type);
// The name, or "type 77" for an unknown id.
std::string_view NameOf(DType type);
// The names of the computable types: "F32, F16, BF16".
std::string ComputableTypes();

}  // namespace ferry
