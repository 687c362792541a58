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
};
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
    host_.head_dim = c.head_dim, host_.ring = c.ring;
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
    rows_ = batch_.num_rows(), width_ = c.heads * c.head_dim;
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
    std::vector<float> out(rows_ * width_);
    const auto batch = reference_->PrepareBatch(batch_);
    EXPECT_OK(batch);
    EXPECT_OK(reference_->Attention(**batch, 0, HostTensor(q_, rows_, width_), host_,
                                    PlainAttention(host_, case_.window, case_.sinks ? sinks_.data() : nullptr),
                                    HostTensor(out, rows_, width_)));
    return out;
  }
  // In calls that end at each of `ends`.
  std::vector<float> Got(std::vector<int64_t> ends = {}) {
    ends.push_back(rows_);
    const auto batch = ops_->PrepareBatch(batch_);
    EXPECT_OK(batch);
    const DeviceRowsBuffer out(ops_, ops_->activation_dtype(), rows_, width_, /*gap=*/16);
    int64_t first = 0;
    for (const int64_t end : ends) {
      EXPECT_OK(ops_->Attention(**batch, first, device_q_->tensor().Rows(first, end - first), device_,
                                PlainAttention(device_, case_.window, case_.sinks ? device_sinks_->as<float>() : nullptr),
                                out.tensor().Rows(first, end - first)));
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
    const DeviceRowsBuffer out(ops_, ops_->activation_dtype(), count, width_);
    EXPECT_OK(ops_->Attention(**batch, 0, device_q_->tensor().Rows(first, count), device_,
                              PlainAttention(device_, case_.window, case_.sinks ? device_sinks_->as<float>() : nullptr),
                              out.tensor()));
    return out.Read();
  }
  int64_t rows() const { return rows_; }
  int64_t width() const { return width_; }

 private:
  Ops* ops_;
  ReferenceOps* reference_;
  AttentionCase case_;
  Batch batch_;
  KvLayer host_, device_;
  AlignedBytes keys_, values_;
  int64_t rows_ = 0, width_ = 0;
  std::vector<float> q_, sinks_;
  std::unique_ptr<GuardedBytes> device_keys_, device_values_, device_sinks_;
  std::unique_ptr<DeviceRowsBuffer> device_q_;
};

class CudaAttentionTest : public CudaCaseTest<AttentionCase> {};

// Weights and values are rounded to F16 on the way (2^-11 each), the result to the activation type; values are of
// order 1.
TEST_P(CudaAttentionTest, MatchesReference) {
  AttentionRig rig(ops_, &reference_, GetParam());
  EXPECT_TRUE(Close(rig.Got(), rig.Want(), 2e-3, RoundingOf(act())));
}

TEST_P(CudaAttentionTest, GivesTheSameBitsAgainAndWhenALayerIsCutIntoCalls) {
  AttentionRig rig(ops_, &reference_, GetParam());
  const std::vector<float> whole = rig.Got();
  EXPECT_EQ(rig.Got(), whole);
  if (rig.rows() > 2) {
    EXPECT_EQ(rig.Got({1, rig.rows() / 2}), whole);
    EXPECT_EQ(rig.Got({rig.rows() - 1}), whole);
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
                    AttentionCase{"no_sinks", {{64, 1}}, 8, 2, 64, DType::kF16, 0, false},
                    AttentionCase{"large_scores", {{500, 1}}, 8, 2, 64, DType::kF16, 0, true, false, 20.0f}),
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
                std::vector<float>(together.begin() + row * rig.width(), together.begin() + (row + 1) * rig.width()))
          << row;
    }
  }
}

// A prompt in batches of more than eight rows walks the same tiles of keys in whatever tile of rows, so its bits stay.
TEST_F(CudaAttentionBitsTest, APromptIsTheSameInOneBatchAndInSeveral) {
  for (const int64_t window : {0, 128}) {
    AttentionRig rig(ops_, &reference_, {"", {{0, 400}}, 64, 8, 64, DType::kF16, window});
    std::vector<float> parts;
    for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 13}, {13, 100}, {113, 9}, {122, 278}}) {
      const std::vector<float> part = rig.GotOfBatch(first, count);
      parts.insert(parts.end(), part.begin(), part.end());
    }
    EXPECT_EQ(rig.Got(), parts);
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
