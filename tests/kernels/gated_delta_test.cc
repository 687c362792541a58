// Gated delta nets: the reference against cases that can be reckoned by hand, the CPU backend against the reference.

#include <cmath>

#include "tests/kernels/cpu_backends.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;

// Weights and inputs of some rows, and the states of some slots.
struct Net {
  Net(int64_t key_heads, int64_t heads, int64_t dim, int64_t taps, bool tiled, int64_t num_rows) : rows(num_rows) {
    config.kind = AttentionKind::kGatedDelta;
    config.num_kv_heads = key_heads, config.num_heads = heads, config.head_dim = dim;
    config.conv_taps = taps, config.tiled_heads = tiled;
    const int64_t channels = config.conv_channels();
    conv = RandomFloats(taps * channels, 1, 0.5f), time_bias = RandomFloats(heads, 2);
    decay = RandomFloats(heads, 3), norm = RandomFloats(dim, 4);
    for (float& value : decay) value = -0.05f - std::abs(value);
    mixed = RandomFloats(rows * channels, 5), gate = RandomFloats(rows * config.q_size(), 6);
    beta = RandomFloats(rows * heads, 7), alpha = RandomFloats(rows * heads, 8);
  }
  DeltaWeights weights() const { return {conv.data(), time_bias.data(), decay.data(), norm.data(), 1e-6}; }
  DeltaInputs InputsOf(int64_t first, int64_t count) {
    const auto part = [&](std::vector<float>& all, int64_t cols) {
      return Tensor(all.data() + first * cols, DType::kF32, count, cols);
    };
    return {.mixed = part(mixed, config.conv_channels()),
            .gate = part(gate, config.q_size()),
            .beta = part(beta, config.num_heads),
            .alpha = part(alpha, config.num_heads)};
  }

  int64_t rows;
  AttentionConfig config;
  std::vector<float> conv, time_bias, decay, norm, mixed, gate, beta, alpha;
};

constexpr int64_t kSlots = 3;

std::vector<float> FreshStates(const Net& net) {
  return std::vector<float>(kSlots * DeltaStateNumbers(net.config), std::nanf(""));  // what was there is not read
}

// Rows [first, end) of the net as one sequence in `slot`, in calls of `cut` rows.
std::vector<float> Outputs(Ops& ops, Net& net, std::vector<float>& states, int64_t cut, int32_t slot = 1, int64_t first = 0,
                           int64_t end = -1) {
  if (end < 0) end = net.rows;
  std::vector<float> all;
  for (; first < end; first += cut) {
    const int64_t count = std::min(cut, end - first);
    GuardedRows out(count, net.config.q_size());
    BatchSequence sequence = {.num_rows = count, .first_position = first, .blocks = {}, .ring_blocks = {}, .slot = slot};
    const auto batch = ops.PrepareBatch({{}, {sequence}}).value();
    EXPECT_OK(
        ops.GatedDelta(*batch, 0, net.config, net.InputsOf(first, count), net.weights(), {states.data(), kSlots}, out.tensor()));
    EXPECT_TRUE(out.GuardsIntact());
    const std::vector<float> values = out.Values();
    all.insert(all.end(), values.begin(), values.end());
  }
  return all;
}

// One head of 16, no memory in the convolution; tokens of large numbers, which silu leaves as they are.
struct OneHead : Net {
  explicit OneHead(int64_t num_rows) : Net(1, 1, 16, 2, false, num_rows) {
    std::fill(conv.begin(), conv.end(), 0.0f);
    std::fill_n(conv.begin() + 48, 48, 1.0f);
    std::fill(mixed.begin(), mixed.end(), 0.0f);
    std::fill(gate.begin(), gate.end(), 50.0f);
    std::fill(norm.begin(), norm.end(), 0.02f);  // times silu(50): 1
    std::fill(beta.begin(), beta.end(), 50.0f);
    std::fill(alpha.begin(), alpha.end(), -50.0f);  // nothing decays
  }
  void Token(int64_t row, int64_t query, int64_t key, int64_t value) {
    for (const int64_t channel : {query, 16 + key, 32 + value}) mixed[row * 48 + channel] = 40;
  }
};

TEST(ReferenceGatedDelta, RemembersAValueUnderItsKey) {
  ReferenceOps ops;
  OneHead net(2);
  net.Token(0, /*query=*/0, /*key=*/3, /*value=*/5);
  net.Token(1, /*query=*/3, /*key=*/7, /*value=*/9);
  std::vector<float> states = FreshStates(net), want(32, 0.0f);
  want[16 + 5] = 4;  // the only one of 16 that is not zero, normalised
  EXPECT_TRUE(Close(Outputs(ops, net, states, 2), want, 1e-4));
}

TEST(ReferenceGatedDelta, ReplacesTheValueOfAKey) {
  ReferenceOps ops;
  OneHead net(2);
  net.Token(0, /*query=*/3, /*key=*/3, /*value=*/5);
  net.Token(1, /*query=*/3, /*key=*/3, /*value=*/9);
  std::vector<float> states = FreshStates(net), want(32, 0.0f);
  want[5] = want[16 + 9] = 4;
  EXPECT_TRUE(Close(Outputs(ops, net, states, 2), want, 1e-3));
}

TEST(ReferenceGatedDelta, ForgetsByItsDecay) {
  ReferenceOps ops;
  OneHead net(2);
  net.Token(0, /*query=*/0, /*key=*/3, /*value=*/5);
  net.Token(1, /*query=*/3, /*key=*/7, /*value=*/9);
  net.alpha[1] = 1, net.time_bias[0] = 0, net.decay[0] = -2;
  std::vector<float> states = FreshStates(net);
  Outputs(ops, net, states, 2);
  const int64_t numbers = DeltaStateNumbers(net.config);
  const double kept = std::exp(-2 * std::log1p(std::exp(1.0)));
  EXPECT_NEAR(states[numbers + 48 + 3 * 16 + 5], 40 * kept, 1e-3);  // behind the kept row: [key element][value element]
  EXPECT_NEAR(states[numbers + 48 + 7 * 16 + 9], 40, 1e-3);
}

TEST(ReferenceGatedDelta, RefusesShapesAndSlotsThatDoNotFit) {
  constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;
  ReferenceOps ops;
  Net net(2, 4, 16, 4, false, 1);
  std::vector<float> states = FreshStates(net), out(net.config.q_size());
  const auto run = [&](const AttentionConfig& config, int32_t slot) {
    const auto batch = ops.PrepareBatch({{}, {{.num_rows = 1, .blocks = {}, .ring_blocks = {}, .slot = slot}}}).value();
    return ops.GatedDelta(*batch, 0, config, net.InputsOf(0, 1), net.weights(), {states.data(), kSlots},
                          TensorOf(out, 1, net.config.q_size()));
  };
  EXPECT_THAT(run(net.config, kSlots), StatusIs(kInvalid, HasSubstr("slot is 3, want 0 to 2")));
  AttentionConfig other = net.config;
  other.num_heads = 5;
  EXPECT_THAT(run(other, 0), StatusIs(kInvalid, HasSubstr("want a multiple of the 2 key heads")));
  other = net.config;
  other.head_dim = 24;
  EXPECT_THAT(run(other, 0), StatusIs(kInvalid, HasSubstr("net.head_dim is 24, want a multiple of 16")));
  other = net.config;
  other.num_heads = 2;
  EXPECT_THAT(run(other, 0), StatusIs(kInvalid, HasSubstr("out is [1, 64], want [1, 32]")));
}

class CpuGatedDelta : public PerIsaTest<IsaCase> {};

TEST_P(CpuGatedDelta, IsCloseAndTheSameHoweverAPromptIsCut) {
  const std::unique_ptr<Ops> ops = MakeOps();
  ReferenceOps reference;
  const Net nets[] = {{1, 1, 16, 4, false, 70}, {2, 4, 48, 4, true, 37}, {3, 9, 32, 2, false, 19}, {2, 2, 128, 5, true, 6}};
  for (Net net : nets) {
    SCOPED_TRACE(testing::Message() << net.config.num_kv_heads << " key heads, " << net.config.num_heads << " of "
                                    << net.config.head_dim);
    std::vector<float> states = FreshStates(net), reference_states = FreshStates(net);
    const std::vector<float> whole = Outputs(*ops, net, states, net.rows);
    const std::vector<float> want = Outputs(reference, net, reference_states, net.rows);
    EXPECT_TRUE(Close(whole, want, 1e-4, 1e-3));
    for (const int64_t cut : {1, 2, 3, 8, 33}) {
      std::vector<float> others = FreshStates(net);
      EXPECT_TRUE(SameBits(Outputs(*ops, net, others, cut), whole)) << cut << " rows a call";
      EXPECT_TRUE(SameBits(others, states)) << cut << " rows a call";
      std::vector<float> reference_others = FreshStates(net);
      EXPECT_TRUE(SameBits(Outputs(reference, net, reference_others, cut), want)) << cut << " rows a call";
    }
  }
}

TEST_P(CpuGatedDelta, ASequencesBitsDependOnNeitherOthersNorThreads) {
  Net net(2, 6, 32, 4, true, 60);
  std::vector<float> alone_states = FreshStates(net);
  const std::vector<float> first = Outputs(*MakeOps(1), net, alone_states, 60, /*slot=*/2);
  for (const int threads : {1, 3}) {
    const std::unique_ptr<Ops> ops = MakeOps(threads);
    std::vector<float> states = FreshStates(net);
    Outputs(*ops, net, states, 60, /*slot=*/2, 0, 50);
    // The sequence's last ten rows between the first rows of two others.
    Net mixed = net;
    const auto batch = ops->PrepareBatch({{}, {{0, 20, 0, {}, {}, 0}, {20, 10, 50, {}, {}, 2}, {30, 30, 0, {}, {}, 1}}}).value();
    for (auto* rows : {&mixed.mixed, &mixed.gate, &mixed.beta, &mixed.alpha}) {
      const auto cols = static_cast<int64_t>(rows->size()) / 60;
      std::copy_n(rows->begin() + 50 * cols, 10 * cols, rows->begin() + 20 * cols);
    }
    std::vector<float> out(60 * net.config.q_size());
    ASSERT_OK(ops->GatedDelta(*batch, 0, net.config, mixed.InputsOf(0, 60), net.weights(), {states.data(), kSlots},
                              TensorOf(out, 60, net.config.q_size())));
    const int64_t cols = net.config.q_size();
    const std::vector<float> got(out.begin() + 20 * cols, out.begin() + 30 * cols);
    EXPECT_TRUE(SameBits(got, {first.begin() + 50 * cols, first.end()}));
  }
}

TEST_P(CpuGatedDelta, MultipliesByASigmoidForEachElementOrRow) {
  const std::unique_ptr<Ops> ops = MakeOps();
  ReferenceOps reference;
  for (const int64_t cols : {1, 37}) {
    std::vector<float> gate = RandomFloats(19 * cols, 9, 3), x = RandomFloats(19 * 37, 10), want = x;
    ASSERT_OK(ops->MultiplyBySigmoid(TensorOf(gate, 19, cols), TensorOf(x, 19, 37)));
    ASSERT_OK(reference.MultiplyBySigmoid(TensorOf(gate, 19, cols), TensorOf(want, 19, 37)));
    EXPECT_TRUE(Close(x, want, 1e-6, 1e-6));
  }
}

INSTANTIATE_TEST_SUITE_P(, CpuGatedDelta, testing::ValuesIn(EachIsa()), NameOfCase);

}  // namespace
}  // namespace ferry
