#include "coordinator/cluster/model_fingerprint.h"

#include <algorithm>
#include <array>

#define XXH_STATIC_LINKING_ONLY  // the streaming state by value
#include "xxhash.h"

namespace ferry {
namespace {

constexpr size_t kSampleBytes = 256;  // of every tensor

class Hash {
 public:
  Hash() { XXH3_64bits_reset(&state_); }
  // Its length goes in front, so that neighbours cannot trade bytes.
  void Add(const void* data, size_t bytes) {
    const uint64_t length = bytes;
    XXH3_64bits_update(&state_, &length, sizeof(length));
    XXH3_64bits_update(&state_, data, bytes);
  }
  uint64_t Digest() const { return XXH3_64bits_digest(&state_); }

 private:
  XXH3_state_t state_;
};

}  // namespace

uint64_t FingerprintOf(const GgufFile& file) {
  Hash hash;
  for (const GgufEntry& entry : file.entries()) {
    hash.Add(entry.key.data(), entry.key.size());
    hash.Add(entry.value.data(), entry.value.size());
  }
  for (const TensorInfo& tensor : file.tensors()) {
    hash.Add(tensor.name.data(), tensor.name.size());
    const std::array<int64_t, 5> shape = {static_cast<int64_t>(tensor.dtype), tensor.dims[0], tensor.dims[1], tensor.dims[2],
                                          tensor.dims[3]};
    hash.Add(shape.data(), sizeof(shape));
    hash.Add(tensor.data.data(), std::min(kSampleBytes, tensor.data.size()));
  }
  return std::max<uint64_t>(hash.Digest(), 1);
}

}  // namespace ferry
