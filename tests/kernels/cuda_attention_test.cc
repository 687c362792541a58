// Attention of the CUDA backend against the reference, on the same bytes of the cache.

#include <algorithm>
#include <numeric>

#include "kernels/kv_cache_format.h"
#include "tests/kernels/cuda_rig.h"
#include "tests/kernels/plain_params.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;

struct SequenceSpec {
  int64_t first_position, num_rows;
};
struct AttentionCase {
  const char* name;
  std::vector<SequenceSpec> sequences;
  int64_t heads = 8, kv_heads = 2, head_dim = 64;
  DType cache = DType::kF16;
  int64_t window = 0;
  bool sinks = true, ring = false;
  float q_scale = 1;
  double scale = 0;           // of scores; 0: 1 / sqrt(head_dim)
  int64_t latent_values = 0;  // above 0: a latent cache

  int64_t out_dim() const { return latent_values > 0 ? latent_values : head_dim; }
};
// Latent attention with the sizes of all published models.
AttentionCase Latent(const char* name, std::vector<SequenceSpec> sequences, int64_t heads, DType cache = DType::kF16) {
  return {.name = name,
          .sequences = std::move(sequences),
          .heads = heads,
          .kv_heads = 1,
          .head_dim = 576,
          .cache = cache,
          .sinks = false,
          .scale = 0.1352,
          .latent_values = 512};
}
AttentionCase SmallLatent(const char* name, std::vector<SequenceSpec> sequences, int64_t heads, int64_t head_dim, int64_t values,
                          DType cache = DType::kF16) {
  AttentionCase c = Latent(name, std::move(sequences), heads, cache);
  c.head_dim = head_dim, c.latent_values = values, c.sinks = true, c.scale = 0.2;
  return c;
}
AttentionCase LatentWindow(const char* name, std::vector<SequenceSpec> sequences, int64_t heads, int64_t window) {
  AttentionCase c = Latent(name, std::move(sequences), heads);
  c.window = window, c.ring = c.sinks = true;
  return c;
}
std::ostream& operator<<(std::ostream& out, const AttentionCase& c) { return out << c.name; }

// A cache in which only the places of the sequences hold numbers; all else is NaN.
class AttentionRig {
 public:
  AttentionRig(Ops* ops, ReferenceOps* reference, const AttentionCase& c) : ops_(ops), reference_(reference), case_(c) {
    RandomBits random(91);
    int32_t next_block = 0;
    for (const SequenceSpec& spec : c.sequences) {
      BatchSequence sequence{.first_row = batch_.num_rows(),
                             .num_rows = spec.num_rows,
                             .first_position = spec.first_position,
                             .blocks = {},
                             .ring_blocks = {}};
      const int64_t end = spec.first_position + spec.num_rows;
      const int64_t reach = c.window > 0 ? std::min(end, c.window - 1 + spec.num_rows) : end;
      // A ring holds what the rows see, and the block that they may start in the middle of.
      const int64_t blocks =
          c.ring ? (reach + kKvBlockTokens - 1) / kKvBlockTokens + 1 : (end + kKvBlockTokens - 1) / kKvBlockTokens;
      auto& table = c.ring ? sequence.ring_blocks : sequence.blocks;
      for (int64_t i = 0; i < blocks; ++i) table.push_back(next_block++);
      std::swap(table.front(), table[random.Below(blocks)]);
      batch_.sequences.push_back(std::move(sequence));
    }
    host_.key_type = host_.value_type = c.cache, host_.num_blocks = next_block + 1, host_.num_kv_heads = c.kv_heads,
    host_.head_dim = c.head_dim, host_.ring = c.ring, host_.latent_values = c.latent_values;
    const int64_t plane = KvPlaneBytes(c.cache, host_.num_blocks, c.kv_heads, c.head_dim);
    keys_ = AlignedBytes(plane), values_ = AlignedBytes(plane);
    std::fill(keys_.span().begin(), keys_.span().end(), std::byte{0xFF});
    std::fill(values_.span().begin(), values_.span().end(), std::byte{0xFF});
    host_.keys = keys_.data(), host_.values = values_.data();
    std::vector<float> row(c.head_dim);
    for (const BatchSequence& sequence : batch_.sequences) {
      const auto& table = c.ring ? sequence.ring_blocks : sequence.blocks;
      const int64_t end = sequence.first_position + sequence.num_rows;
      const int64_t begin = c.window > 0 ? std::max<int64_t>(0, sequence.first_position - c.window + 1) : 0;
      for (int64_t p = begin; p < end; ++p) {
        for (int64_t head = 0; head < c.kv_heads; ++head) {
          for (std::byte* const plane_data : {host_.keys, host_.values}) {
            for (float& x : row) x = static_cast<float>(random.Normal());
            StoreKvRow(host_, plane_data, c.cache, KvRowAt(host_, table.data(), static_cast<int64_t>(table.size()), head, p),
                       row.data());
          }
        }
      }
    }
    rows_ = batch_.num_rows(), width_ = c.heads * c.head_dim, out_width_ = c.heads * c.out_dim();
    q_ = Rounded(RandomFloats(rows_ * width_, 92, c.q_scale), ops->activation_dtype());
    sinks_ = RandomFloats(c.heads, 93, 2);
    device_keys_ = std::make_unique<GuardedBytes>(ops, keys_.span());
    device_values_ = std::make_unique<GuardedBytes>(ops, values_.span());
    device_sinks_ = std::make_unique<GuardedBytes>(ops, BytesOf(sinks_));
    device_q_ = std::make_unique<DeviceRowsBuffer>(ops, ops->activation_dtype(), q_, rows_, width_, /*gap=*/8);
    device_ = host_;
    device_.keys = device_keys_->data(), device_.values = device_values_->data();
  }

  std::vector<float> Want() {
    std::vector<float> out(rows_ * out_width_);
    const auto batch = reference_->PrepareBatch(batch_);
    EXPECT_OK(batch);
    EXPECT_OK(reference_->Attention(**batch, 0, HostTensor(q_, rows_, width_), host_, Params(sinks_.data()),
                                    HostTensor(out, rows_, out_width_)));
    return out;
  }
  // In calls that end at each of `ends`.
  std::vector<float> Got(std::vector<int64_t> ends = {}) {
    ends.push_back(rows_);
    const auto batch = ops_->PrepareBatch(batch_);
    EXPECT_OK(batch);
    const DeviceRowsBuffer out(ops_, ops_->activation_dtype(), rows_, out_width_, /*gap=*/16);
    int64_t first = 0;
    for (const int64_t end : ends) {
      EXPECT_OK(ops_->Attention(**batch, first, device_q_->tensor().Rows(first, end - first), device_,
                                Params(device_sinks_->as<float>()), out.tensor().Rows(first, end - first)));
      first = end;
    }
    return out.Read();
  }
  // Rows [first, first + count), all of one sequence, as a batch of their own.
  std::vector<float> GotOfBatch(int64_t first, int64_t count) {
    Batch part;
    for (const BatchSequence& sequence : batch_.sequences) {
      if (first < sequence.first_row || first >= sequence.first_row + sequence.num_rows) continue;
      part.sequences = {sequence};
      part.sequences[0].first_row = 0, part.sequences[0].num_rows = count;
      part.sequences[0].first_position = sequence.first_position + first - sequence.first_row;
    }
    const auto batch = ops_->PrepareBatch(part);
    EXPECT_OK(batch);
    const DeviceRowsBuffer out(ops_, ops_->activation_dtype(), count, out_width_);
    EXPECT_OK(ops_->Attention(**batch, 0, device_q_->tensor().Rows(first, count), device_, Params(device_sinks_->as<float>()),
                              out.tensor()));
    return out.Read();
  }
  int64_t rows() const { return rows_; }
  int64_t out_width() const { return out_width_; }

 private:
  AttentionParams Params(const float* sinks) const {
    AttentionParams params = PlainAttention(host_, case_.window, case_.sinks ? sinks : nullptr);
    if (case_.scale > 0) params.scale = case_.scale;
    return params;
  }

  Ops* ops_;
  ReferenceOps* reference_;
  AttentionCase case_;
  Batch batch_;
  KvLayer host_, device_;
  AlignedBytes keys_, values_;
  int64_t rows_ = 0, width_ = 0, out_width_ = 0;
  std::vector<float> q_, sinks_;
  std::unique_ptr<GuardedBytes> device_keys_, device_values_, device_sinks_;
  std::unique_ptr<DeviceRowsBuffer> device_q_;
};

class CudaAttentionTest : public CudaCaseTest<AttentionCase> {};

// Weights and values are rounded to F16 on the way (2^-11 each), the result to the activation type; values are of
// order 1. Codes times their scales are one rounding more.
TEST_P(CudaAttentionTest, MatchesReference) {
  AttentionRig rig(ops_, &reference_, GetParam());
  const double rounding = GetParam().cache == DType::kQ8_0 ? 4e-3 : 2e-3;
  EXPECT_TRUE(Close(rig.Got(), rig.Want(), rounding, RoundingOf(act())))
      << "out [row][" << GetParam().heads << " heads][" << GetParam().out_dim() << "]";
}

TEST_P(CudaAttentionTest, GivesTheSameBitsAgainAndWhenALayerIsCutIntoCalls) {
  AttentionRig rig(ops_, &reference_, GetParam());
  const std::vector<float> whole = rig.Got();
  EXPECT_TRUE(Close(rig.Got(), whole, 0)) << "again";
  if (rig.rows() > 2) {
    EXPECT_TRUE(Close(rig.Got({1, rig.rows() / 2}), whole, 0)) << "in three calls";
    EXPECT_TRUE(Close(rig.Got({rig.rows() - 1}), whole, 0)) << "in two calls";
  }
}

INSTANTIATE_TEST_SUITE_P(
    Prefill, CudaAttentionTest,
    testing::Values(AttentionCase{"nine_rows", {{0, 9}}}, AttentionCase{"gpt_oss", {{0, 300}}, 64, 8, 64},
                    AttentionCase{"gpt_oss_window", {{0, 300}}, 64, 8, 64, DType::kF16, 128},
                    AttentionCase{"gpt_oss_ring", {{517, 200}}, 64, 8, 64, DType::kF16, 128, true, true},
                    AttentionCase{"window_of_one", {{40, 33}}, 8, 2, 64, DType::kF16, 1},
                    AttentionCase{"window_across_tiles", {{1000, 70}}, 8, 1, 64, DType::kF16, 97, true, true},
                    AttentionCase{"continued", {{733, 129}}, 8, 2, 64}, AttentionCase{"q8", {{100, 131}}, 8, 2, 64, DType::kQ8_0},
                    AttentionCase{"q8_ring", {{300, 40}}, 16, 2, 64, DType::kQ8_0, 50, true, true},
                    AttentionCase{"no_sinks", {{0, 65}}, 6, 2, 64, DType::kF16, 0, false},
                    AttentionCase{"one_head_a_group", {{31, 77}}, 3, 3, 64}, AttentionCase{"wide_group", {{5, 40}}, 40, 2, 32},
                    AttentionCase{"dim_32_q8", {{64, 64}}, 4, 4, 32, DType::kQ8_0},
                    AttentionCase{"dim_128", {{70, 90}}, 8, 2, 128},
                    AttentionCase{"dim_128_q8", {{30, 90}}, 8, 1, 128, DType::kQ8_0, 64},
                    AttentionCase{"dim_256", {{70, 90}}, 16, 2, 256}, AttentionCase{"dim_256_one_head", {{0, 33}}, 1, 1, 256},
                    AttentionCase{"dim_256_q8", {{30, 90}}, 8, 1, 256, DType::kQ8_0, 64},
                    AttentionCase{"other_scale", {{3, 50}}, 8, 2, 128, DType::kF16, 0, true, false, 1, 0.31},
                    AttentionCase{"other_scale_64", {{3, 50}}, 8, 2, 64, DType::kF16, 0, true, false, 1, 0.31},
                    AttentionCase{"several_sequences", {{0, 20}, {90, 33}, {0, 100}}, 8, 2, 64},
                    AttentionCase{"large_scores", {{0, 140}}, 8, 2, 64, DType::kF16, 0, true, false, 20.0f}),
    [](const auto& info) { return info.param.name; });
INSTANTIATE_TEST_SUITE_P(
    Decode, CudaAttentionTest,
    testing::Values(AttentionCase{"first_token", {{0, 1}}, 64, 8, 64}, AttentionCase{"one", {{1000, 1}}, 64, 8, 64},
                    AttentionCase{"edges_of_cuts", {{127, 1}, {128, 1}, {31, 1}, {255, 1}, {256, 1}}},
                    AttentionCase{"window", {{5000, 1}, {100, 1}, {127, 1}, {128, 1}}, 64, 8, 64, DType::kF16, 128},
                    AttentionCase{"ring", {{5000, 1}, {100, 3}}, 8, 2, 64, DType::kF16, 128, true, true},
                    AttentionCase{"long_context", {{9001, 1}}, 16, 2, 64}, AttentionCase{"few_rows", {{300, 8}, {0, 2}, {77, 5}}},
                    AttentionCase{"q8", {{700, 2}}, 8, 2, 64, DType::kQ8_0},
                    AttentionCase{"q8_128", {{200, 1}}, 8, 2, 128, DType::kQ8_0}, AttentionCase{"dim_128", {{200, 2}}, 8, 2, 128},
                    AttentionCase{"dim_32", {{200, 2}}, 4, 4, 32}, AttentionCase{"wide_group", {{100, 2}}, 40, 2, 64},
                    AttentionCase{"dim_256", {{300, 2}, {31, 1}, {32, 1}}, 16, 2, 256},
                    AttentionCase{"dim_256_wide_group", {{90, 1}}, 40, 2, 256},
                    AttentionCase{"dim_256_q8", {{200, 1}}, 8, 2, 256, DType::kQ8_0, 100},
                    AttentionCase{"other_scale", {{99, 1}}, 8, 2, 128, DType::kF16, 0, true, false, 1, 0.31},
                    AttentionCase{"no_sinks", {{64, 1}}, 8, 2, 64, DType::kF16, 0, false},
                    AttentionCase{"large_scores", {{500, 1}}, 8, 2, 64, DType::kF16, 0, true, false, 20.0f}),
    [](const auto& info) { return info.param.name; });
INSTANTIATE_TEST_SUITE_P(
    LatentPrefill, CudaAttentionTest,
    testing::Values(Latent("nine_rows", {{0, 9}}, 1), Latent("sixteen_heads", {{0, 70}}, 16), Latent("v3", {{37, 24}}, 128),
                    Latent("twenty_heads", {{300, 33}}, 20), Latent("q8", {{90, 40}}, 24, DType::kQ8_0),
                    Latent("several_sequences", {{0, 20}, {90, 33}, {2, 10}}, 7), LatentWindow("window", {{200, 70}}, 12, 50),
                    LatentWindow("window_of_one", {{40, 20}}, 6, 1), SmallLatent("tiny", {{0, 66}}, 5, 80, 64),
                    SmallLatent("three_column_pairs", {{10, 40}}, 9, 64, 48), SmallLatent("odd_steps", {{10, 40}}, 4, 272, 256),
                    SmallLatent("tiny_q8", {{1, 40}}, 4, 96, 64, DType::kQ8_0),
                    SmallLatent("one_column_pair", {{0, 33}}, 3, 32, 16), SmallLatent("no_rotation", {{5, 70}}, 2, 512, 512)),
    [](const auto& info) { return info.param.name; });
INSTANTIATE_TEST_SUITE_P(
    LatentDecode, CudaAttentionTest,
    testing::Values(Latent("first_token", {{0, 1}}, 128), Latent("v3", {{5000, 1}}, 128),
                    Latent("edges_of_cuts", {{127, 1}, {128, 1}, {31, 1}, {32, 1}, {255, 1}, {256, 1}}, 64),
                    Latent("sixteen_heads", {{9001, 1}}, 16), Latent("long_context", {{40000, 1}}, 3),
                    Latent("few_rows", {{300, 8}, {0, 2}, {77, 5}}, 20), Latent("fifty_heads", {{1000, 3}}, 50),
                    Latent("q8", {{700, 2}, {33, 1}}, 128, DType::kQ8_0), Latent("q8_few_heads", {{200, 1}}, 5, DType::kQ8_0),
                    LatentWindow("window", {{5000, 1}, {40, 1}, {99, 1}, {100, 1}, {5015, 1}}, 16, 100),
                    Latent("cuts_of_many_blocks", {{50000, 1}}, 33), LatentWindow("wide_window", {{5000, 3}}, 64, 2000),
                    SmallLatent("tiny", {{200, 2}}, 5, 80, 64), SmallLatent("three_column_pairs", {{500, 1}}, 9, 64, 48),
                    SmallLatent("tiny_q8", {{400, 3}}, 4, 96, 64, DType::kQ8_0),
                    SmallLatent("sixty_four_heads_of_272", {{300, 2}}, 64, 272, 256)),
    [](const auto& info) { return info.param.name; });
INSTANTIATE_TEST_SUITE_P(LatentMixed, CudaAttentionTest,
                         testing::Values(Latent("prompt_among_others", {{40, 1}, {900, 1}, {10, 30}, {3, 2}, {0, 12}}, 32)),
                         [](const auto& info) { return info.param.name; });
INSTANTIATE_TEST_SUITE_P(Mixed, CudaAttentionTest,
                         testing::Values(AttentionCase{"prompt_among_others", {{40, 1}, {900, 1}, {10, 90}, {3, 2}, {0, 12}}}),
                         [](const auto& info) { return info.param.name; });

class CudaAttentionBitsTest : public CudaTest {};

TEST_F(CudaAttentionBitsTest, ADecodedRowIsTheSameAloneAndAmongOthers) {
  for (const int64_t window : {0, 128}) {
    AttentionRig rig(ops_, &reference_,
                     {"",
                      {{1500, 1}, {40, 1}, {700, 1}, {0, 1}, {129, 1}, {4000, 1}, {31, 1}, {32, 1}, {2999, 1}},
                      64,
                      8,
                      64,
                      DType::kF16,
                      window});
    const std::vector<float> together = rig.Got();
    for (int64_t row = 0; row < rig.rows(); ++row) {
      EXPECT_EQ(rig.GotOfBatch(row, 1),
                std::vector<float>(together.begin() + row * rig.out_width(), together.begin() + (row + 1) * rig.out_width()))
          << row;
    }
  }
}

TEST_F(CudaAttentionBitsTest, ALatentDecodedRowIsTheSameAloneAndAmongOthers) {
  for (const int64_t heads : {16, 128}) {
    AttentionRig rig(ops_, &reference_, Latent("", {{1500, 1}, {40, 1}, {7000, 1}, {0, 1}, {129, 1}, {9001, 1}, {31, 1}}, heads));
    const std::vector<float> together = rig.Got();
    for (int64_t row = 0; row < rig.rows(); ++row) {
      EXPECT_TRUE(
          Close(rig.GotOfBatch(row, 1),
                std::vector<float>(together.begin() + row * rig.out_width(), together.begin() + (row + 1) * rig.out_width()), 0))
          << heads << " heads, row " << row;
    }
  }
}

// A prompt in batches of more than eight rows walks the same tiles of keys in whatever tile of rows, so its bits stay.
TEST_F(CudaAttentionBitsTest, APromptIsTheSameInOneBatchAndInSeveral) {
  for (const AttentionCase& c :
       {AttentionCase{"", {{0, 400}}, 64, 8, 64}, AttentionCase{"", {{0, 400}}, 64, 8, 64, DType::kF16, 128},
        AttentionCase{"", {{0, 400}}, 16, 2, 256}, Latent("", {{0, 400}}, 20), LatentWindow("", {{0, 400}}, 20, 100)}) {
    AttentionRig rig(ops_, &reference_, c);
    std::vector<float> parts;
    for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 13}, {13, 100}, {113, 9}, {122, 278}}) {
      const std::vector<float> part = rig.GotOfBatch(first, count);
      parts.insert(parts.end(), part.begin(), part.end());
    }
    EXPECT_TRUE(Close(rig.Got(), parts, 0)) << c.heads << " heads of " << c.head_dim << ", window " << c.window;
  }
}

TEST_F(CudaAttentionBitsTest, RefusesRowsThatAreNotAligned) {
  ASSERT_OK_AND_ASSIGN(const auto batch, ops_->PrepareBatch({.token_ids = {}, .sequences = {{.num_rows = 1, .blocks = {0}}}}));
  const GuardedBytes plane(ops_, KvPlaneBytes(DType::kF16, 1, 1, 64));
  const KvLayer cache{.keys = plane.data(), .values = plane.data(), .num_blocks = 1, .num_kv_heads = 1, .head_dim = 64};
  const DeviceRowsBuffer q(ops_, act(), 1, 72);
  EXPECT_THAT(ops_->Attention(*batch, 0, q.tensor().Cols(1, 64), cache, PlainAttention(cache), q.tensor().Cols(0, 64)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("q has a stride")));
  EXPECT_THAT(ops_->Attention(*batch, 0, q.tensor().Cols(0, 64), cache, PlainAttention(cache), q.tensor().Cols(2, 64)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("out has a stride")));
  KvLayer in_f32 = cache;
  in_f32.key_type = in_f32.value_type = DType::kF32;
  EXPECT_THAT(ops_->Attention(*batch, 0, q.tensor().Cols(0, 64), in_f32, PlainAttention(in_f32), q.tensor().Cols(0, 64)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("cache")));
  KvLayer mixed = cache;
  mixed.value_type = DType::kQ8_0;
  EXPECT_THAT(ops_->CheckKvCache(mixed), StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("-ctk and -ctv")));
}

}  // namespace
}  // namespace ferry
