// What latent attention needs of the CUDA backend beside attention itself (cuda_attention_test.cc): the way into the cache and a
// product for each head, against the reference.

#include "kernels/cuda/latent_cuts.h"
#include "kernels/kv_cache_format.h"
#include "tests/kernels/cuda_rig.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;

// ------------------------------------------------------------------------------------------------------- cuts of a row's keys

TEST(LatentCuts, CoverWhatARowSeesOnceAndFitTheirRoom) {
  for (const int most : {1, 4, 18, 43, 64, 128, 256}) {
    for (const int window : {0, 1, 31, 32, 33, 100, 5000}) {
      for (int position = 0; position < 40000; position += position < 700 ? 1 : 997) {
        const cuda::LatentCuts cuts = cuda::LatentCutsOf(position, window, most);
        const int first_key = window > 0 ? std::max(0, position - window + 1) : 0;
        SCOPED_TRACE(testing::Message() << "position " << position << ", window " << window << ", at most " << most);
        ASSERT_EQ(cuts.first_block, first_key / 32);
        ASSERT_GE(cuts.count, 1);
        ASSERT_LE(cuts.count, most);
        ASSERT_GE(cuts.blocks, cuda::kMinCutBlocks);
        ASSERT_GT(cuts.first_block + cuts.count * cuts.blocks, position / 32);        // the last one reaches the row itself
        ASSERT_LE(cuts.first_block + (cuts.count - 1) * cuts.blocks, position / 32);  // and has something to do
        for (const int later : {0, 1, 50, 3000}) ASSERT_LE(cuts.count, cuda::MaxLatentCuts(position + later, window, most));
      }
    }
  }
}

// ---------------------------------------------------------------------------------------------------------- into the cache

struct StoreCase {
  const char* name;
  int64_t heads, nope, rotated, rank;
  DType cache = DType::kF16;
  bool neighbours = true, yarn = false;
};
std::ostream& operator<<(std::ostream& out, const StoreCase& c) { return out << c.name; }
class CudaStoreLatentTest : public CudaCaseTest<StoreCase> {};

TEST_P(CudaStoreLatentTest, StoresKeysAndTurnsQueriesAsTheReferenceDoes) {
  const StoreCase c = GetParam();
  constexpr int64_t kRows = 21, kFirst = 45;
  const int64_t dim = c.rank + c.rotated, q_dim = c.nope + c.rotated;
  RopeConfig rope = {.freq_base = 10000, .num_dims = c.rotated, .neighbours = c.neighbours};
  if (c.yarn) rope.yarn_factor = 40, rope.yarn_original_context = 4096, rope.attention_factor = 1.25;
  Batch batch;
  batch.sequences = {{.first_row = 0, .num_rows = kRows, .first_position = kFirst, .blocks = {2, 0, 3}, .ring_blocks = {}}};
  std::vector<float> latent = RandomFloats(kRows * dim, 31, 2), norm = RandomFloats(c.rank, 32);
  std::vector<float> q = Rounded(RandomFloats(kRows * c.heads * q_dim, 33), act());
  std::vector<float> want_q = Rounded(RandomFloats(kRows * c.heads * dim, 34), act());  // the other columns stay
  const DeviceRowsBuffer q_out(ops_, act(), want_q, kRows, c.heads * dim, /*gap=*/8);
  const int64_t bytes = KvPlaneBytes(c.cache, 4, 1, dim);
  KvLayer host = {.key_type = c.cache, .value_type = c.cache, .num_blocks = 4, .num_kv_heads = 1, .head_dim = dim};
  host.latent_values = c.rank;
  KvLayer device = host;
  AlignedBytes host_keys(bytes);
  const GuardedBytes keys(ops_, bytes), device_norm(ops_, BytesOf(norm));
  host.keys = host_keys.data(), device.keys = keys.data();
  const DeviceRowsBuffer device_latent(ops_, DType::kF32, latent, kRows, dim, /*gap=*/3),
      device_q(ops_, act(), q, kRows, c.heads * q_dim, /*gap=*/5);

  ASSERT_OK_AND_ASSIGN(const auto device_batch, ops_->PrepareBatch(batch));
  ASSERT_OK_AND_ASSIGN(const auto host_batch, reference_.PrepareBatch(batch));
  ASSERT_OK(ops_->StoreLatent(*device_batch, 0, rope, {device_norm.as<float>(), 1e-6}, device_latent.tensor(), device,
                              device_q.tensor(), q_out.tensor()));
  ASSERT_OK(reference_.StoreLatent(*host_batch, 0, rope, {norm.data(), 1e-6}, HostTensor(latent, kRows, dim), host,
                                   HostTensor(q, kRows, c.heads * q_dim), HostTensor(want_q, kRows, c.heads * dim)));
  EXPECT_TRUE(Close(q_out.Read(), want_q, 1e-5, RoundingOf(act()) + 1e-5)) << "q_out [row][head][" << dim << "]";
  const std::vector<std::byte> got_keys = keys.Read();
  std::vector<float> got_row(dim), want_row(dim);
  const int32_t table[] = {2, 0, 3};
  for (int64_t position = kFirst; position < kFirst + kRows; ++position) {
    const int64_t row = KvRowAt(host, table, 3, 0, position);
    LoadKvRow(host, got_keys.data(), c.cache, row, got_row.data());
    LoadKey(host, row, want_row.data());
    // A number in the middle between two codes may become either.
    const double step = c.cache == DType::kQ8_0 ? 0.06 : 1e-4;
    EXPECT_TRUE(Close(got_row, want_row, step, 0x1p-10)) << "key at position " << position;
  }
}
INSTANTIATE_TEST_SUITE_P(Shapes, CudaStoreLatentTest,
                         testing::Values(StoreCase{"published", 128, 128, 64, 512}, StoreCase{"tiny", 5, 32, 16, 64},
                                         StoreCase{"q8", 3, 64, 64, 512, DType::kQ8_0},
                                         StoreCase{"halves", 4, 48, 32, 96, DType::kF16, false},
                                         StoreCase{"yarn", 2, 128, 64, 512, DType::kF16, true, true},
                                         StoreCase{"odd_width", 2, 16, 16, 32}),
                         [](const auto& info) { return info.param.name; });

// ------------------------------------------------------------------------------------------------------- a product for each head

struct HeadsCase {
  int64_t rows, heads, n, k, in_part, out_part;
  DType type = DType::kQ8_0;
  int64_t in_gap = 0, out_gap = 0;
};
std::ostream& operator<<(std::ostream& out, const HeadsCase& c) {
  return out << c.rows << " rows, " << c.heads << " heads of [" << c.n << ", " << c.k << "] in " << NameOf(c.type);
}
class CudaHeadProductsTest : public CudaCaseTest<HeadsCase> {
 protected:
  // Uploads the matrices of all heads.
  HeadMatrices Matrices(const HeadsCase& c) {
    const TiledLayout layout = TiledLayout::Create(c.type, c.n, c.k).value();
    memory_ = AlignedBytes(layout.bytes * c.heads);
    for (int64_t head = 0; head < c.heads; ++head) {
      const OwnedTiledMatrix one = RandomTiledMatrix(c.type, c.n, c.k, 100 + head, 0.1f);
      std::memcpy(memory_.data() + head * layout.bytes, one.matrix.data, layout.bytes);
    }
    device_ = std::make_unique<GuardedBytes>(ops_, memory_.span());
    return {layout, memory_.data(), c.heads};
  }
  AlignedBytes memory_;
  std::unique_ptr<GuardedBytes> device_;
};

TEST_P(CudaHeadProductsTest, MatchTheReferenceAndKeepOtherColumns) {
  const HeadsCase c = GetParam();
  const HeadMatrices host = Matrices(c);
  std::vector<float> in = Rounded(RandomFloats(c.rows * c.heads * c.in_part, 41), act());
  std::vector<float> want = Rounded(RandomFloats(c.rows * c.heads * c.out_part, 42), act());
  const DeviceRowsBuffer device_in(ops_, act(), in, c.rows, c.heads * c.in_part, c.in_gap),
      out(ops_, act(), want, c.rows, c.heads * c.out_part, c.out_gap);
  for (int again = 0; again < 2; ++again) {  // the second time with the tables of the first
    ASSERT_OK(ops_->MatMulPerHead(device_in.tensor(), {host.layout, device_->data(), c.heads}, out.tensor()));
  }
  ASSERT_OK(reference_.MatMulPerHead(HostTensor(in, c.rows, c.heads * c.in_part), host,
                                     HostTensor(want, c.rows, c.heads * c.out_part)));
  EXPECT_TRUE(Close(out.Read(), want, 0.02, 0.01 + RoundingOf(act()))) << "out [row][head][" << c.out_part << "]";
}
INSTANTIATE_TEST_SUITE_P(
    Shapes, CudaHeadProductsTest,
    testing::Values(HeadsCase{1, 128, 512, 128, 192, 576}, HeadsCase{1, 128, 128, 512, 512, 128},
                    HeadsCase{2, 16, 512, 128, 192, 576, DType::kF32}, HeadsCase{16, 5, 64, 32, 48, 80, DType::kF16},
                    HeadsCase{17, 5, 64, 32, 48, 80, DType::kBF16}, HeadsCase{40, 3, 72, 96, 96, 72, DType::kF32, 8, 5},
                    HeadsCase{33, 130, 32, 64, 64, 48, DType::kQ8_0}, HeadsCase{100, 16, 512, 128, 192, 576},
                    HeadsCase{70, 4, 128, 512, 512, 128, DType::kQ8_0, 16, 24}, HeadsCase{3, 7, 33, 64, 72, 40, DType::kQ4_0},
                    HeadsCase{5, 130, 72, 256, 256, 80, DType::kQ4_K}, HeadsCase{40, 130, 400, 256, 256, 400, DType::kQ5_K},
                    HeadsCase{100, 3, 64, 256, 264, 64, DType::kIQ4_KS}));

TEST_F(CudaHeadProductsTest, ARowOfFewIsTheSameAloneAndAmongOthers) {
  const HeadsCase c = {.rows = 9, .heads = 6, .n = 96, .k = 64, .in_part = 80, .out_part = 112};
  const HeadMatrices host = Matrices(c);
  const HeadMatrices device = {host.layout, device_->data(), c.heads};
  const std::vector<float> in = Rounded(RandomFloats(c.rows * c.heads * c.in_part, 43), act());
  const DeviceRowsBuffer device_in(ops_, act(), in, c.rows, c.heads * c.in_part), all(ops_, act(), c.rows, c.heads * c.out_part),
      single(ops_, act(), c.rows, c.heads * c.out_part);
  ASSERT_OK(ops_->MatMulPerHead(device_in.tensor(), device, all.tensor()));
  for (int64_t row = 0; row < c.rows; ++row) {
    ASSERT_OK(ops_->MatMulPerHead(device_in.tensor().Rows(row, 1), device, single.tensor().Rows(row, 1)));
  }
  // Columns that stay hold NaN, which differs from itself.
  const std::vector<float> together = all.Read(), alone = single.Read();
  for (size_t i = 0; i < alone.size(); ++i) {
    ASSERT_EQ(std::memcmp(&alone[i], &together[i], 4), 0)
        << "row " << i / (c.heads * c.out_part) << ", column " << i % (c.heads * c.out_part) << ": " << alone[i] << " alone, "
        << together[i] << " among others";
  }
}

TEST_F(CudaHeadProductsTest, RefusesMatricesThatEndInHalfATile) {
  const HeadsCase c = {.rows = 1, .heads = 2, .n = 32, .k = 48, .in_part = 64, .out_part = 32, .type = DType::kF32};
  const HeadMatrices host = Matrices(c);
  const DeviceRowsBuffer in(ops_, act(), 1, 128), out(ops_, act(), 1, 64);
  EXPECT_THAT(ops_->MatMulPerHead(in.tensor(), {host.layout, device_->data(), 2}, out.tensor()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("multiple of 32")));
}

}  // namespace
}  // namespace ferry
