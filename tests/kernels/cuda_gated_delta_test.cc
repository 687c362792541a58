// The gated delta net of the CUDA backend, and products with a sigmoid, against the reference.

#include "kernels/cuda/batch_delta.h"
#include "tests/kernels/cuda_rig.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kSlots = 3;

struct NetCase {
  const char* name;
  int64_t key_heads, heads, dim, taps;
  bool tiled;
  int64_t rows;
};
std::ostream& operator<<(std::ostream& out, const NetCase& c) { return out << c.name; }

// Weights and inputs on the host and on the device.
class Net {
 public:
  Net(Ops* ops, const NetCase& c) : ops_(ops), rows_(c.rows) {
    config.kind = AttentionKind::kGatedDelta;
    config.num_kv_heads = c.key_heads, config.num_heads = c.heads, config.head_dim = c.dim;
    config.conv_taps = c.taps, config.tiled_heads = c.tiled;
    conv_ = RandomFloats(c.taps * config.conv_channels(), 1, 0.5f), time_bias_ = RandomFloats(c.heads, 2);
    decay_ = RandomFloats(c.heads, 3), norm_ = RandomFloats(c.dim, 4);
    for (float& value : decay_) value = -0.05f - std::abs(value);
    inputs_ = {RandomFloats(rows_ * config.conv_channels(), 5), RandomFloats(rows_ * config.q_size(), 6),
               RandomFloats(rows_ * c.heads, 7), RandomFloats(rows_ * c.heads, 8)};
    for (const std::vector<float>* values : {&conv_, &time_bias_, &decay_, &norm_}) {
      weights_.push_back(std::make_unique<GuardedBytes>(ops, BytesOf(*values)));
    }
    for (size_t i = 0; i < inputs_.size(); ++i) {
      device_.push_back(std::make_unique<DeviceRowsBuffer>(ops, DType::kF32, inputs_[i], rows_, ColsOf(i), /*gap=*/i));
    }
  }

  // Rows [first, first + count) of the inputs as rows of `batch` from `first_row` on. The result is [count, q_size].
  std::vector<float> Got(const DeviceBatch& batch, int64_t first_row, int64_t first, int64_t count, float* states) {
    const DeviceRowsBuffer out(ops_, ops_->activation_dtype(), count, config.q_size(), /*gap=*/4);
    const auto part = [&](int i) { return device_[i]->tensor().Rows(first, count); };
    EXPECT_OK(ops_->GatedDelta(
        batch, first_row, config, {part(0), part(1), part(2), part(3)},
        {weights_[0]->as<float>(), weights_[1]->as<float>(), weights_[2]->as<float>(), weights_[3]->as<float>(), 1e-6},
        {states, kSlots}, out.tensor()));
    return out.Read();
  }
  std::vector<float> Want(Ops& reference, const DeviceBatch& batch, std::vector<float>& states) {
    std::vector<float> out(rows_ * config.q_size());
    const auto all = [&](int i) { return HostTensor(inputs_[i], rows_, ColsOf(i)); };
    EXPECT_OK(reference.GatedDelta(batch, 0, config, {all(0), all(1), all(2), all(3)},
                                   {conv_.data(), time_bias_.data(), decay_.data(), norm_.data(), 1e-6}, {states.data(), kSlots},
                                   HostTensor(out, rows_, config.q_size())));
    return out;
  }
  // NaN: what a slot holds when a sequence begins is not read.
  int64_t state_bytes() const { return kSlots * DeltaStateBytes(config); }
  int64_t rows() const { return rows_; }

  AttentionConfig config;

 private:
  int64_t ColsOf(size_t input) const {
    return input == 0 ? config.conv_channels() : input == 1 ? config.q_size() : config.num_heads;
  }

  Ops* ops_;
  int64_t rows_;
  std::vector<float> conv_, time_bias_, decay_, norm_;
  std::vector<std::vector<float>> inputs_;
  std::vector<std::unique_ptr<GuardedBytes>> weights_;
  std::vector<std::unique_ptr<DeviceRowsBuffer>> device_;
};

BatchSequence Rows(int64_t first_row, int64_t count, int64_t position, int32_t slot) {
  return {.first_row = first_row, .num_rows = count, .first_position = position, .blocks = {}, .ring_blocks = {}, .slot = slot};
}
Batch OneSequence(int64_t count, int64_t position, int32_t slot) { return {{}, {Rows(0, count, position, slot)}}; }

// Outputs and the slot's state of all rows as one sequence in slot 1, in steps of `cut` rows.
std::pair<std::vector<float>, std::vector<float>> InSteps(Ops* ops, Net& net, int64_t cut) {
  const GuardedBytes states(ops, net.state_bytes());
  std::vector<float> all;
  for (int64_t first = 0; first < net.rows(); first += cut) {
    const int64_t count = std::min(cut, net.rows() - first);
    const auto batch = ops->PrepareBatch(OneSequence(count, first, 1)).value();
    const std::vector<float> part = net.Got(*batch, 0, first, count, states.as<float>());
    all.insert(all.end(), part.begin(), part.end());
  }
  const std::vector<float> slots = states.ReadAs<float>();
  const int64_t numbers = DeltaStateNumbers(net.config);
  for (int64_t i = 0; i < kSlots * numbers; ++i) {
    if (i / numbers == 1) continue;
    EXPECT_TRUE(std::isnan(slots[i])) << "number " << i % numbers << " of slot " << i / numbers << " was overwritten";
    if (!std::isnan(slots[i])) break;
  }
  return {all, {slots.begin() + numbers, slots.begin() + 2 * numbers}};
}

class CudaGatedDeltaTest : public CudaCaseTest<NetCase> {};

TEST_P(CudaGatedDeltaTest, MatchesTheReference) {
  Net net(ops_, GetParam());
  const int64_t numbers = DeltaStateNumbers(net.config);
  std::vector<float> want_states(kSlots * numbers, std::nanf(""));
  ASSERT_OK_AND_ASSIGN(const auto batch, reference_.PrepareBatch(OneSequence(net.rows(), 0, 1)));
  const std::vector<float> want = net.Want(reference_, *batch, want_states);
  const auto [got, state] = InSteps(ops_, net, net.rows());
  const std::vector<float> want_state(want_states.begin() + numbers, want_states.begin() + 2 * numbers);
  EXPECT_TRUE(Close(state, want_state, 1e-4, 1e-3))
      << "state: " << net.config.conv_taps - 1 << " rows of " << net.config.conv_channels() << ", then [head][group]["
      << net.config.head_dim << "][16]";
  EXPECT_TRUE(Close(got, want, 1e-3, 1e-3 + RoundingOf(act()))) << "out [row][head][" << net.config.head_dim << "]";
}

TEST_P(CudaGatedDeltaTest, IsTheSameHoweverAPromptIsCut) {
  Net net(ops_, GetParam());
  const auto whole = InSteps(ops_, net, net.rows());
  for (const int64_t cut : {1, 2, 3, 8, 33}) {
    const auto parts = InSteps(ops_, net, cut);
    EXPECT_TRUE(Close(parts.first, whole.first, 0)) << cut << " rows a step";
    EXPECT_TRUE(Close(parts.second, whole.second, 0)) << cut << " rows a step: state";
  }
}

INSTANTIATE_TEST_SUITE_P(Nets, CudaGatedDeltaTest,
                         testing::Values(NetCase{"one_head", 1, 1, 16, 4, false, 70},
                                         NetCase{"of_48_tiled", 2, 4, 48, 4, true, 37},
                                         NetCase{"two_taps", 3, 9, 32, 2, false, 19}, NetCase{"five_taps", 2, 2, 128, 5, true, 6},
                                         NetCase{"of_64", 2, 8, 64, 4, true, 90}, NetCase{"of_96", 1, 2, 96, 3, false, 10},
                                         NetCase{"of_256", 1, 2, 256, 4, false, 12},
                                         NetCase{"published", 16, 32, 128, 4, false, 40}),
                         [](const auto& info) { return info.param.name; });

using CudaDeltaBatchTest = CudaTest;

TEST_F(CudaDeltaBatchTest, ASequenceIsTheSameAloneAndBesideOthersAndInCallsOfABatch) {
  Net net(ops_, {"", 2, 6, 32, 4, true, 60});
  // Rows 20 to 29 continue a sequence, between the first rows of two others. Rows of the inputs are what they are alone.
  const Batch mixed = {{}, {Rows(0, 20, 0, 0), Rows(20, 10, 20, 2), Rows(30, 30, 0, 1)}};
  const auto run = [&](const std::vector<int64_t>& ends) {
    const GuardedBytes states(ops_, net.state_bytes());
    const auto before = ops_->PrepareBatch(OneSequence(20, 0, 2)).value();
    net.Got(*before, 0, 0, 20, states.as<float>());
    const auto batch = ops_->PrepareBatch(mixed).value();
    std::vector<float> all;
    int64_t first = 0;
    for (const int64_t end : ends) {
      const std::vector<float> part = net.Got(*batch, first, first, end - first, states.as<float>());
      all.insert(all.end(), part.begin(), part.end());
      first = end;
    }
    return all;
  };
  const std::vector<float> together = run({60});
  const auto alone = InSteps(ops_, net, 60).first;
  const int64_t cols = net.config.q_size();
  EXPECT_TRUE(Close(std::vector<float>(together.begin(), together.begin() + 30 * cols),
                    std::vector<float>(alone.begin(), alone.begin() + 30 * cols), 0))
      << "rows 0 to 19 and, continued, 20 to 29";
  EXPECT_TRUE(Close(run({7, 20, 22, 31, 60}), together, 0)) << "in five calls";
  EXPECT_TRUE(Close(run({25, 60}), together, 0)) << "in two calls";
}

TEST_F(CudaDeltaBatchTest, RefusesHeadsWithoutAKernel) {
  ModelConfig model = {.architecture = "qwen3next"};
  model.layers = {{.attention = {.kind = AttentionKind::kGatedDelta, .head_dim = 80}, .mlp = MlpConfig(), .experts = false}};
  EXPECT_THAT(ops_->CheckModel(model), StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("heads of 80")));
  model.layers[0].attention.head_dim = 128;
  EXPECT_OK(ops_->CheckModel(model));
}

TEST_F(CudaDeltaBatchTest, MultipliesByASigmoidForEachElementOrRow) {
  constexpr int64_t kRows = 19, kCols = 337;
  for (const int64_t cols : {int64_t{1}, kCols}) {
    std::vector<float> gate = RandomFloats(kRows * cols, 9, 3), want = Rounded(RandomFloats(kRows * kCols, 10), act());
    const DeviceRowsBuffer device_gate(ops_, DType::kF32, gate, kRows, cols, /*gap=*/1), x(ops_, act(), want, kRows, kCols, 3);
    ASSERT_OK(ops_->MultiplyBySigmoid(device_gate.tensor(), x.tensor()));
    ASSERT_OK(reference_.MultiplyBySigmoid(HostTensor(gate, kRows, cols), HostTensor(want, kRows, kCols)));
    EXPECT_TRUE(Close(x.Read(), want, 1e-6, RoundingOf(act()) + 1e-5)) << "[" << kRows << ", " << kCols << "], gate of " << cols;
  }
}

}  // namespace
}  // namespace ferry
