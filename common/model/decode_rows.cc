#include "common/model/decode_rows.h"

#include <cstring>
#include <optional>

#include "common/checked_size.h"
#include "common/half.h"

namespace ferry {
namespace {

constexpr size_t kBlock = 32;  // elements of a block of every quantised type here

template <typename T>
T Load(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

void DecodeQ8_0(const std::byte* block, float* out) {
  const float d = HalfToFloat(Load<uint16_t>(block));
  for (size_t i = 0; i < kBlock; ++i) out[i] = d * static_cast<float>(Load<int8_t>(block + 2 + i));
}

void DecodeQ4_0(const std::byte* block, float* out) {
  const float d = HalfToFloat(Load<uint16_t>(block));
  for (size_t i = 0; i < kBlock / 2; ++i) {
    const int codes = static_cast<int>(block[2 + i]);
    out[i] = d * static_cast<float>((codes & 15) - 8);
    out[i + kBlock / 2] = d * static_cast<float>((codes >> 4) - 8);
  }
}

void DecodeMxfp4(const std::byte* block, float* out) {
  const float scale = E8M0ToFloat(Load<uint8_t>(block));
  for (size_t i = 0; i < kBlock / 2; ++i) {
    const int codes = static_cast<int>(block[1 + i]);
    out[i] = scale * kFp4Values[codes & 15];
    out[i + kBlock / 2] = scale * kFp4Values[codes >> 4];
  }
}

}  // namespace

absl::Status DecodeRows(DType dtype, std::span<const std::byte> data, std::span<float> out) {
  const std::optional<DTypeInfo> info = InfoOf(dtype);
  if (!info || !info->computable) return Unimplemented("Ferry does not decode %s", NameOf(dtype));
  const size_t block_elements = static_cast<size_t>(info->block_elements);
  if (out.size() % block_elements != 0) {
    return InvalidArgument("%d elements are not whole blocks of %d, which %s has", out.size(), block_elements, info->name);
  }
  const size_t block_bytes = static_cast<size_t>(info->block_bytes);
  const CheckedSize bytes = CheckedSize(out.size() / block_elements) * block_bytes;
  if (!bytes.valid() || bytes.value() != data.size()) {
    return InvalidArgument("%d elements of %s do not take %d bytes", out.size(), info->name, data.size());
  }
  const std::byte* from = data.data();
  for (size_t i = 0; i < out.size(); i += block_elements, from += block_bytes) {
    switch (dtype) {
      case DType::kF32:
        out[i] = Load<float>(from);
        break;
      case DType::kF16:
        out[i] = HalfToFloat(Load<uint16_t>(from));
        break;
      case DType::kBF16:
        out[i] = BFloat16ToFloat(Load<uint16_t>(from));
        break;
      case DType::kQ8_0:
        DecodeQ8_0(from, &out[i]);
        break;
      case DType::kQ4_0:
        DecodeQ4_0(from, &out[i]);
        break;
      case DType::kMXFP4:
        DecodeMxfp4(from, &out[i]);
        break;
      default:
        return Internal("%s is computable, but has no decoder", info->name);
    }
  }
  return absl::OkStatus();
}

}  // namespace ferry
