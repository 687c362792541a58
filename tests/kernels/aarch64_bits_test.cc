// The kernels of aarch64 give the bits of portable code, which fuses multiply-adds there as they do
// (kernels/cpu/simd_portable.h). tests/aarch64.sh runs this under an emulator.

#if defined(__aarch64__)

#include <limits>

#include "common/model/formats/formats.h"
#include "kernels/kv_cache_format.h"
#include "tests/kernels/cpu_backends.h"

namespace ferry {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

class Aarch64Bits : public PerIsaTest<IsaCase> {
 protected:
  const CpuKernels& kernels() const { return **SelectKernels(NameOf(isa())); }
  const CpuKernels& portable() const { return *PortableKernels(); }

  // What both tables make of the same memory, `bytes` of it.
  template <typename Run>
  testing::AssertionResult Same(int64_t bytes, const Run& run) const {
    AlignedBytes got(bytes), want(bytes);
    run(kernels(), got), run(portable(), want);
    for (int64_t i = 0; i < bytes; ++i) {
      if (got.data()[i] != want.data()[i]) return testing::AssertionFailure() << "byte " << i << " of " << bytes;
    }
    return testing::AssertionSuccess();
  }
  // Of all sizes, with numbers that are not finite where `broken` is set.
  static std::vector<float> Numbers(int64_t count, uint64_t seed, bool broken = false) {
    std::vector<float> x = RandomFloats(count, seed);
    for (int64_t i = 0; i < count; ++i) x[i] = std::ldexp(x[i], static_cast<int>(i * 37 % 41) - 20);
    for (int64_t i = 0; broken && i < count; i += 50) x[i] = i % 3 == 0 ? kNan : i % 3 == 1 ? kInfinity : -kInfinity;
    return x;
  }
};

TEST_P(Aarch64Bits, OfQuantisedRows) {
  for (const Activations kind : {Activations::kNarrow, Activations::kHalves, Activations::kWide}) {
    for (const bool broken : {false, true}) {
      const std::vector<float> x = Numbers(320, 3, broken);
      EXPECT_TRUE(Same(10 * BlockBytes(kind) + 4, [&](const CpuKernels& table, AlignedBytes& out) {
        float* const poison = reinterpret_cast<float*>(out.data() + 10 * BlockBytes(kind));
        table.quantize_row(kind, x.data(), 320, out.data(), poison);
        if (std::isnan(*poison)) *poison = kNan;  // whichever NaN
      }));
    }
  }
}

TEST_P(Aarch64Bits, OfActivationFunctions) {
  const std::vector<float> gate = RandomFloats(256, 5, 20), up = RandomFloats(256, 7, 5);
  for (const GluNumbers glu : {GluNumbers{1.702f, 7, 1}, GluNumbers{1, kInfinity, 0}}) {
    EXPECT_TRUE(Same(256 * 4, [&](const CpuKernels& table, AlignedBytes& out) {
      table.glu(gate.data(), up.data(), 256, glu, out.as<float>());
    }));
    EXPECT_TRUE(Same(BlockBytes(Activations::kNarrow), [&](const CpuKernels& table, AlignedBytes& out) {
      float poison = 0;
      table.glu_blocks(Activations::kNarrow, gate.data(), up.data(), 0, 1, glu, out.data(), &poison);
      EXPECT_EQ(poison, 0);
    }));
  }
}

TEST_P(Aarch64Bits, OfNormsAndSums) {
  const std::vector<float> weight = RandomFloats(2880, 13);
  for (const int64_t cols : {1, 15, 16, 2880}) {
    const std::vector<float> x = Numbers(cols, 11);
    EXPECT_TRUE(Same(cols * 4, [&](const CpuKernels& table, AlignedBytes& out) {
      table.rms_norm_row(x.data(), weight.data(), cols, 1e-5, out.as<float>());
    })) << cols;
    const std::vector<float> logits = RandomFloats(cols, 17, 10);
    EXPECT_TRUE(Same(4, [&](const CpuKernels& table, AlignedBytes& out) {
      *out.as<float>() = table.log_sum_exp(logits.data(), cols);
    })) << cols;
  }
}

TEST_P(Aarch64Bits, OfProductsOfEveryType) {
  const std::unique_ptr<Ops> ops = MakeOps(1);
  BackendOptions options;
  options.isa = "portable", options.num_threads = 1, options.pin_threads = false;
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Ops> portable_ops, CreateCpuOps(options));
  ForEachFormat([&]<DType kType>() {
    for (const auto& [rows, cols, tokens] : std::vector<std::array<int64_t, 3>>{{40, 768, 19}, {16, 256, 1}}) {
      const OwnedTiledMatrix weight = RandomTiledMatrix(kType, rows, cols, 19, 0.1f);
      std::vector<float> in = RandomFloats(tokens * cols, 23), bias = RandomFloats(rows, 29);
      std::vector<float> got(tokens * rows), want(tokens * rows);
      ASSERT_OK(ops->MatMul(TensorOf(in, tokens, cols), weight.matrix, bias.data(), TensorOf(got, tokens, rows), false));
      ASSERT_OK(
          portable_ops->MatMul(TensorOf(in, tokens, cols), weight.matrix, bias.data(), TensorOf(want, tokens, rows), false));
      EXPECT_TRUE(SameBits(got, want)) << NameOf(kType) << ", " << tokens << " tokens";
    }
  });
}

TEST_P(Aarch64Bits, OfAttention) {
  constexpr int64_t kBlocks = 4, kHeads = 2, kDim = 96, kGroup = 5, kRows = 3, kFirst = 70;
  const std::vector<int32_t> blocks = {2, 0, 3};
  const std::vector<float> q = RandomFloats(kRows * kGroup * kDim, 31, 2), sinks = RandomFloats(kGroup, 37);
  for (const DType type : {DType::kF16, DType::kQ8_0}) {
    KvLayer cache{.key_type = type, .value_type = type, .num_blocks = kBlocks, .num_kv_heads = kHeads, .head_dim = kDim};
    AlignedBytes keys(KvPlaneBytes(type, kBlocks, kHeads, kDim)), values(KvPlaneBytes(type, kBlocks, kHeads, kDim));
    cache.keys = keys.data(), cache.values = values.data();
    for (int64_t row = 0; row < kBlocks * kHeads * kAttentionTile; ++row) {
      StoreKey(cache, row, RandomFloats(kDim, 100 + row).data());
      StoreValue(cache, row, RandomFloats(kDim, 900 + row).data());
    }
    for (const int64_t window : {0, 20}) {
      AlignedBytes scratch(AttentionScratchBytes(kDim, kDim, kGroup));
      EXPECT_TRUE(Same(kRows * kGroup * kDim * 4,
                       [&](const CpuKernels& table, AlignedBytes& out) {
                         AttentionTask task;
                         task.keys = keys.data(), task.values = values.data();
                         task.key_type = task.value_type = type;
                         task.num_blocks = kBlocks, task.num_kv_heads = kHeads, task.kv_head = 1;
                         task.head_dim = task.value_dim = kDim;
                         task.table = blocks.data(), task.table_size = 3;
                         task.first_position = kFirst, task.num_rows = kRows, task.window = window, task.group = kGroup;
                         task.q = q.data(), task.q_stride = kGroup * kDim;
                         task.out = out.as<float>(), task.out_stride = kGroup * kDim;
                         task.sinks = sinks.data(), task.scale = 0.1f, task.scratch = scratch.as<float>();
                         table.attention(task);
                       }))
          << NameOf(type) << ", window " << window;
    }
  }
}

TEST_P(Aarch64Bits, OfStatesOfGatedDelta) {
  constexpr int64_t kDim = 64, kRows = 5, kStateBytes = kDim * kDim * 4;
  const std::vector<float> q = RandomFloats(kRows * kDim, 41, 0.1f), k = RandomFloats(kRows * kDim, 43, 0.1f);
  const std::vector<float> v = RandomFloats(kRows * kDim, 47), state = RandomFloats(kDim * kDim, 53);
  const std::vector<float> decay = {0.9f, 0.5f, 1, 0.99f, 0.1f}, share = {0.5f, 1, 0.1f, 0.9f, 0.3f};
  EXPECT_TRUE(Same(kStateBytes + kRows * kDim * 4, [&](const CpuKernels& table, AlignedBytes& memory) {
    std::memcpy(memory.data(), state.data(), kStateBytes);
    DeltaTask task;
    task.state = memory.as<float>(), task.head_dim = kDim, task.num_rows = kRows;
    task.q = q.data(), task.k = k.data(), task.v = v.data(), task.stride = kDim;
    task.decay = decay.data(), task.share = share.data(), task.gate_stride = 1;
    task.out = memory.as<float>() + kDim * kDim, task.out_stride = kDim;
    table.delta(task);
  }));
}

INSTANTIATE_TEST_SUITE_P(, Aarch64Bits,
                         testing::Values(IsaCase{CpuIsa::kNeon}, IsaCase{CpuIsa::kDotprod}, IsaCase{CpuIsa::kI8mm}), NameOfCase);

}  // namespace
}  // namespace ferry

#endif
