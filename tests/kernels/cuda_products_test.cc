// Products of the CUDA backend against plain double loops over the decoded matrices. Without a GPU every test is
// skipped.
#if FERRY_HAVE_CUDA

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "common/half.h"
#include "kernels/cuda/device_views.h"
#include "kernels/cuda/expert_mlp.h"
#include "kernels/cuda/tiled_gemm.h"
#include "kernels/cuda/weight_types.h"
#include "tests/testing/close.h"
#include "tests/testing/random_tensors.h"

namespace ferry {
namespace {

using cuda::ExpertMlpArgs;
using cuda::ExpertMlpUse;
using cuda::ExpertShape;
using cuda::ProductDevice;
using cuda::TiledGemmArgs;

// Device memory between two guards of 256 bytes, filled with a pattern that is NaN in every float type.
class GuardedMemory {
 public:
  explicit GuardedMemory(int64_t bytes) : bytes_(bytes), host_(bytes + 2 * kGuard, std::byte{0xFF}) {
    EXPECT_EQ(cudaMalloc(&device_, host_.size()), cudaSuccess);
    Poison();
  }
  template <typename T>
  explicit GuardedMemory(const std::vector<T>& values) : GuardedMemory(static_cast<int64_t>(values.size() * sizeof(T))) {
    EXPECT_EQ(cudaMemcpy(data(), values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice), cudaSuccess);
  }
  GuardedMemory(const GuardedMemory&) = delete;
  GuardedMemory& operator=(const GuardedMemory&) = delete;
  ~GuardedMemory() { cudaFree(device_); }

  void Poison() { EXPECT_EQ(cudaMemset(device_, 0xFF, bytes_ + 2 * kGuard), cudaSuccess); }
  std::byte* data() const { return static_cast<std::byte*>(device_) + kGuard; }

  // The bytes, once everything queued is done. Fails the test when a guard was written.
  std::vector<std::byte> Read() {
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess) << cudaGetErrorString(cudaGetLastError());
    EXPECT_EQ(cudaMemcpy(host_.data(), device_, host_.size(), cudaMemcpyDeviceToHost), cudaSuccess);
    for (int64_t i = 0; i < kGuard; ++i) {
      if (host_[i] != std::byte{0xFF} || host_[kGuard + bytes_ + i] != std::byte{0xFF}) {
        ADD_FAILURE() << "guard byte " << i << " was written";
        break;
      }
    }
    return {host_.begin() + kGuard, host_.end() - kGuard};
  }

 private:
  static constexpr int64_t kGuard = 256;
  int64_t bytes_;
  void* device_ = nullptr;
  std::vector<std::byte> host_;
};

std::vector<float> ToFloats(const std::vector<std::byte>& bytes, DType type) {
  std::vector<float> values(bytes.size() / (type == DType::kF32 ? 4 : 2));
  for (size_t i = 0; i < values.size(); ++i) {
    uint16_t half;
    if (type == DType::kF32) {
      std::memcpy(&values[i], &bytes[4 * i], 4);
    } else {
      std::memcpy(&half, &bytes[2 * i], 2);
      values[i] = type == DType::kBF16 ? BFloat16ToFloat(half) : HalfToFloat(half);
    }
  }
  return values;
}
float Rounded(float value, DType type) {
  if (type == DType::kF32) return value;
  return type == DType::kBF16 ? BFloat16ToFloat(FloatToBFloat16(value)) : HalfToFloat(FloatToHalf(value));
}
std::vector<uint16_t> ToShorts(const std::vector<float>& values, DType type) {
  std::vector<uint16_t> shorts(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    shorts[i] = type == DType::kBF16 ? FloatToBFloat16(values[i]) : FloatToHalf(values[i]);
  }
  return shorts;
}

// Which kernels a case runs: those of the GPU at hand, or the portable ones that any GPU runs.
enum class Kernels { kBest, kPortable, kPortableF16 };

class CudaProductsTest : public testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) GTEST_SKIP() << "no GPU";
    ASSERT_STREQ(cuda::QueryProductDevice(0, &device_), nullptr);
  }
  ProductDevice DeviceFor(Kernels kernels) const {
    ProductDevice device = device_;
    if (kernels != Kernels::kBest) device.wgmma = false;
    return device;
  }
  DType ActType(Kernels kernels) const {
    return kernels == Kernels::kPortableF16 || device_.capability < 80 ? DType::kF16 : DType::kBF16;
  }
  ProductDevice device_;
};

// --------------------------------------------------------------------------------------------------------------- dense

// Error that rounding the weights to the activations' type leaves in a sum, relative to the root mean square of all
// sums.
double WeightRounding(DType weight, DType act) {
  if (weight == act || weight == DType::kMXFP4) return 2e-6;
  if (weight == DType::kBF16 || weight == DType::kF16) return act == DType::kF16 ? 2e-5 : 2.5e-3;  // as the other one
  return act == DType::kF16 ? 4e-4 : 2.5e-3;
}

struct DenseCase {
  DType weight;
  Kernels kernels;
  int64_t n, k;
};
std::string NameOfCase(const testing::TestParamInfo<DenseCase>& info) {
  const char* kernels[] = {"Best", "Portable", "PortableF16"};
  return std::string(NameOf(info.param.weight)) + kernels[static_cast<int>(info.param.kernels)] + std::to_string(info.param.n) +
         "x" + std::to_string(info.param.k);
}

class CudaTiledGemmTest : public CudaProductsTest, public testing::WithParamInterface<DenseCase> {};

TEST_P(CudaTiledGemmTest, MatchesDoubleLoopsForAnyNumberOfRows) {
  const auto [weight_type, kernels, n, k] = GetParam();
  const DType act_type = ActType(kernels);
  const OwnedTiledMatrix weight = RandomTiledMatrix(weight_type, n, k, /*seed=*/7, 1 / std::sqrt(static_cast<float>(k)));
  const std::vector<float> decoded = weight.Decoded();
  const std::vector<float> bias = RandomFloats(n, 8);
  const GuardedMemory weight_memory(std::vector<std::byte>(weight.memory.data(), weight.memory.data() + weight.memory.size()));
  const GuardedMemory bias_memory(bias);
  for (const int64_t m : {1, 2, 7, 17, 64, 129, 300}) {
    const int64_t act_stride = k + 24, out_stride = n + 5;
    std::vector<float> act = RandomFloats(m * act_stride, 9 + m);
    for (float& value : act) value = Rounded(value, act_type);
    std::vector<double> want(m * n);
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t row = 0; row < n; ++row) {
        double sum = bias[row];
        for (int64_t col = 0; col < k; ++col) sum += double{act[i * act_stride + col]} * double{decoded[row * k + col]};
        want[i * n + row] = sum;
      }
    }
    const GuardedMemory act_memory(ToShorts(act, act_type));
    for (const DType out_type : {DType::kF32, act_type}) {
      GuardedMemory out(m * out_stride * (out_type == DType::kF32 ? 4 : 2));
      TiledGemmArgs args;
      args.act = act_memory.data(), args.act_type = act_type, args.act_stride = act_stride;
      args.weight = weight_memory.data(), args.matrix = cuda::MatrixOf(weight.matrix.layout);
      // The least that is enough, so that tall matrices are expanded in parts.
      args.expansion.bytes = DenseExpansionBytes(DeviceFor(kernels), act_type, m, weight_type, k);
      GuardedMemory expansion(args.expansion.bytes);
      args.expansion.data = expansion.data();
      args.m = m, args.n = n, args.k = k;
      args.bias = reinterpret_cast<const float*>(bias_memory.data());
      args.out = out.data(), args.out_type = out_type, args.out_stride = out_stride;
      ASSERT_STREQ(TiledGemm(DeviceFor(kernels), args, nullptr), nullptr);
      expansion.Read();
      const std::vector<float> padded = ToFloats(out.Read(), out_type);
      std::vector<float> got;
      for (int64_t i = 0; i < m; ++i) {
        got.insert(got.end(), &padded[i * out_stride], &padded[i * out_stride] + n);
        for (int64_t j = n; j < out_stride; ++j) {
          ASSERT_TRUE(std::isnan(padded[i * out_stride + j])) << "row " << i << ", written beyond its end";
        }
      }
      double tolerance = WeightRounding(weight_type, act_type);
      if (out_type != DType::kF32) tolerance += out_type == DType::kF16 ? 5e-4 : 4e-3;
      const double error = RelativeRmsError(std::span<const float>(got), std::span<const double>(want));
      ASSERT_TRUE(error <= tolerance) << "m " << m << ", out " << NameOf(out_type) << ": error " << error;
      ASSERT_TRUE(Close(got, want, 8 * tolerance, out_type == DType::kF32 ? 0 : 4e-3)) << "m " << m;
    }
  }
}

// 333 and 100 rows are no multiple of 16; 224 columns are 7 blocks: half a stage and a part of a group are left over.
INSTANTIATE_TEST_SUITE_P(
    Types, CudaTiledGemmTest, testing::ValuesIn([] {
      std::vector<DenseCase> cases;
      for (const DType type : {DType::kMXFP4, DType::kQ8_0, DType::kQ4_0, DType::kBF16, DType::kF16, DType::kF32}) {
        for (const Kernels kernels : {Kernels::kBest, Kernels::kPortable, Kernels::kPortableF16}) {
          cases.push_back({type, kernels, 333, 224});
          cases.push_back({type, kernels, 100, 32});
        }
        cases.push_back({type, Kernels::kBest, 528, 1024});
      }
      // Types that are expanded for many rows: 1,000 rows of weights are three parts.
      ForEachFormat([&]<DType kType>() {
        if (cuda::kIsDirect<kType>) return;
        cases.push_back({kType, Kernels::kBest, 333, 256});
        cases.push_back({kType, Kernels::kPortable, 77, 768});
        cases.push_back({kType, Kernels::kBest, 1000, 512});
      });
      return cases;
    }()),
    NameOfCase);

TEST_F(CudaProductsTest, TiledGemmAddsToWhatIsThereWhenItAccumulates) {
  const DType act_type = ActType(Kernels::kBest);
  const int64_t n = 144, k = 96;
  const OwnedTiledMatrix weight = RandomTiledMatrix(DType::kMXFP4, n, k, 1);
  const GuardedMemory weight_memory(std::vector<std::byte>(weight.memory.data(), weight.memory.data() + weight.memory.size()));
  for (const int64_t m : {3, 70, 200}) {
    const std::vector<float> old = RandomFloats(m * n, 3);
    const GuardedMemory act(ToShorts(RandomFloats(m * k, 2), act_type));
    GuardedMemory fresh(m * n * 4), sum(old);
    TiledGemmArgs args;
    args.act = act.data(), args.act_type = act_type, args.act_stride = k;
    args.weight = weight_memory.data(), args.matrix = cuda::MatrixOf(weight.matrix.layout);
    args.m = m, args.n = n, args.k = k;
    args.out = fresh.data(), args.out_stride = n;
    ASSERT_STREQ(TiledGemm(device_, args, nullptr), nullptr);
    args.out = sum.data(), args.accumulate = true;
    ASSERT_STREQ(TiledGemm(device_, args, nullptr), nullptr);
    std::vector<float> want = ToFloats(fresh.Read(), DType::kF32);
    for (size_t i = 0; i < want.size(); ++i) want[i] += old[i];
    EXPECT_TRUE(Close(ToFloats(sum.Read(), DType::kF32), want, 0)) << "m " << m;
  }
}

TEST_F(CudaProductsTest, ARowsBitsDependOnTheNumberOfRowsOnlyThroughTheKernel) {
  const int64_t n = 400, k = 768, most = 300;
  for (const Kernels kernels : {Kernels::kBest, Kernels::kPortable}) {
    const DType act_type = ActType(kernels);
    const GuardedMemory act(ToShorts(RandomFloats(most * k, 2), act_type));
    for (const DType type : {DType::kMXFP4, DType::kQ8_0, DType::kBF16, DType::kQ5_K, DType::kIQ3_S}) {
      const OwnedTiledMatrix weight = RandomTiledMatrix(type, n, k, 1);
      const GuardedMemory memory(std::vector<std::byte>(weight.memory.data(), weight.memory.data() + weight.memory.size()));
      std::vector<std::byte> few, many;
      for (const int64_t m : {int64_t{device_.few_rows_dense}, int64_t{20}, int64_t{9}, int64_t{1}, most, int64_t{256},
                              int64_t{130}, int64_t{97}, int64_t{65}, int64_t{64}, int64_t{33}}) {
        GuardedMemory out(m * n * 4);
        TiledGemmArgs args;
        args.act = act.data(), args.act_type = act_type, args.act_stride = k;
        args.weight = memory.data(), args.matrix = cuda::MatrixOf(weight.matrix.layout);
        args.expansion.bytes = DenseExpansionBytes(DeviceFor(kernels), act_type, m, type, k);
        GuardedMemory expansion(args.expansion.bytes);
        args.expansion.data = expansion.data();
        args.m = m, args.n = n, args.k = k;
        args.out = out.data(), args.out_stride = n;
        ASSERT_STREQ(TiledGemm(DeviceFor(kernels), args, nullptr), nullptr);
        const std::vector<std::byte> got = out.Read();
        std::vector<std::byte>& want = m <= device_.few_rows_dense ? few : many;
        if (want.empty()) want = got;
        EXPECT_TRUE(std::equal(got.begin(), got.end(), want.begin())) << NameOf(type) << ", m " << m;
      }
    }
  }
}

TEST_F(CudaProductsTest, Mxfp4ScalesAreExactFarFromOne) {
  const DType act_type = ActType(Kernels::kBest);
  if (act_type != DType::kBF16) GTEST_SKIP() << "F16 has a narrower range";
  const int64_t n = 64, k = 64;
  for (const int exponent : {-60, -20, 0, 1, 2, 30, 64}) {
    std::vector<std::byte> rows = RandomGgufRows(DType::kMXFP4, n, k, 5);
    for (size_t block = 0; block < rows.size(); block += 17) rows[block] = static_cast<std::byte>(127 + exponent);
    OwnedTiledMatrix weight = RandomTiledMatrix(DType::kMXFP4, n, k, 5);
    ASSERT_TRUE(TileRows(weight.matrix.layout, 0, n, rows, weight.memory.span()).ok());
    const std::vector<float> decoded = weight.Decoded();
    const GuardedMemory memory(std::vector<std::byte>(weight.memory.data(), weight.memory.data() + weight.memory.size()));
    for (const int64_t m : {4, 65}) {
      std::vector<float> act(m * k, 0.0f);
      for (int64_t i = 0; i < m; ++i) act[i * k + i % k] = 1;  // picks one column
      const GuardedMemory act_memory(ToShorts(act, act_type));
      GuardedMemory out(m * n * 4);
      TiledGemmArgs args;
      args.act = act_memory.data(), args.act_type = act_type, args.act_stride = k;
      args.weight = memory.data(), args.matrix = cuda::MatrixOf(weight.matrix.layout);
      args.m = m, args.n = n, args.k = k;
      args.out = out.data(), args.out_stride = n;
      ASSERT_STREQ(TiledGemm(device_, args, nullptr), nullptr);
      std::vector<float> want(m * n);
      for (int64_t i = 0; i < m; ++i) {
        for (int64_t row = 0; row < n; ++row) want[i * n + row] = decoded[row * k + i % k];
      }
      EXPECT_TRUE(Close(ToFloats(out.Read(), DType::kF32), want, 0)) << "2^" << exponent << ", m " << m;
    }
  }
}

TEST_F(CudaProductsTest, TiledGemmNamesTheArgumentThatIsWrong) {
  TiledGemmArgs args;
  args.m = 1, args.n = 16, args.k = 33;
  EXPECT_STREQ(TiledGemm(device_, args, nullptr), "argument k: not a positive multiple of 32 below 2^31");
  args.k = 32;
  EXPECT_STREQ(TiledGemm(device_, args, nullptr), "argument act: not on 16 bytes");
  args.m = 0;
  EXPECT_STREQ(TiledGemm(device_, args, nullptr), nullptr);
}

// --------------------------------------------------------------------------------------------------------------
// experts

ExpertShape ShapeOf(const ExpertLayout& layout) {
  return {.n_embd = layout.gate.cols,
          .n_ff = layout.gate.rows,
          .gate = cuda::MatrixOf(layout.gate, layout.gate_offset, layout.has_bias ? layout.gate_bias_offset : -1),
          .up = cuda::MatrixOf(layout.up, layout.up_offset, layout.has_bias ? layout.up_bias_offset : -1),
          .down = cuda::MatrixOf(layout.down, layout.down_offset, layout.has_bias ? layout.down_bias_offset : -1)};
}

// Experts with groups of all sizes, rows of the input in random order, contributions in random places.
class ExpertFixture {
 public:
  ExpertFixture(DType gate_up, DType down, DType act_type, int64_t n_embd, int64_t n_ff, std::vector<int32_t> group_rows)
      : ExpertFixture(*ExpertLayout::Create(gate_up, gate_up, down, n_embd, n_ff, /*has_bias=*/true), act_type,
                      std::move(group_rows)) {}
  ExpertFixture(const ExpertLayout& layout, DType act_type, std::vector<int32_t> group_rows)
      : act_type_(act_type), layout_(layout), group_rows_(std::move(group_rows)) {
    const int64_t n_embd = layout.gate.cols;
    offsets_ = {0};
    for (const int32_t rows : group_rows_) offsets_.push_back(offsets_.back() + rows);
    num_entries_ = offsets_.back();
    in_rows_ = num_entries_ / 2 + 1;
    out_rows_ = num_entries_ + 3;
    RandomBits random(4);
    rows_.resize(num_entries_), outs_.resize(num_entries_);
    for (int32_t& row : rows_) row = static_cast<int32_t>(random.Below(in_rows_));
    for (int32_t i = 0; i < num_entries_; ++i) outs_[i] = i;
    for (int32_t i = num_entries_ - 1; i > 0; --i) std::swap(outs_[i], outs_[random.Below(i + 1)]);
    in_ = RandomFloats(in_rows_ * n_embd, 6);
    for (float& value : in_) value = Rounded(value, act_type);
    for (size_t g = 0; g < group_rows_.size(); ++g) records_.push_back(RandomExpertRecord(layout_, 100 + g));
  }

  // [out_rows, n_embd]; NaN in rows that no entry names.
  std::vector<double> Want() const {
    const int64_t n_embd = layout_.gate.cols, n_ff = layout_.gate.rows;
    std::vector<double> want(out_rows_ * n_embd, std::numeric_limits<double>::quiet_NaN());
    for (size_t g = 0; g < group_rows_.size(); ++g) {
      const std::byte* record = records_[g].data();
      const std::vector<float> gate = Decode(layout_.Gate(record)), up = Decode(layout_.Up(record)),
                               down = Decode(layout_.Down(record));
      const float *gate_bias = layout_.GateBias(record), *up_bias = layout_.UpBias(record), *down_bias = layout_.DownBias(record);
      for (int32_t entry = offsets_[g]; entry < offsets_[g + 1]; ++entry) {
        const float* x = &in_[rows_[entry] * n_embd];
        std::vector<double> h(n_ff);
        for (int64_t f = 0; f < n_ff; ++f) {
          double a = gate_bias[f], b = up_bias[f];
          for (int64_t c = 0; c < n_embd; ++c)
            a += double{x[c]} * double{gate[f * n_embd + c]}, b += double{x[c]} * double{up[f * n_embd + c]};
          a = std::min(a, 7.0), b = std::clamp(b, -7.0, 7.0);
          h[f] = Rounded(static_cast<float>((b + 1) * a / (1 + std::exp(-1.702 * a))), act_type_);
        }
        for (int64_t c = 0; c < n_embd; ++c) {
          double sum = down_bias[c];
          for (int64_t f = 0; f < n_ff; ++f) sum += h[f] * double{down[c * n_ff + f]};
          want[outs_[entry] * n_embd + c] = sum;
        }
      }
    }
    return want;
  }

  struct Run {
    ProductDevice device;
    DType out_type = DType::kF32;
    std::vector<std::vector<int>> calls;  // groups of each call; empty: all in one
    int64_t workspace_rows = 0;           // 0: enough for all
    int32_t group_rows = 1 << 30;         // of each group are computed, at most
  };
  std::vector<std::byte> Contributions(const Run& run) const {
    const int64_t n_embd = layout_.gate.cols;
    std::vector<std::unique_ptr<GuardedMemory>> records;
    for (const AlignedBytes& record : records_) {
      records.push_back(std::make_unique<GuardedMemory>(std::vector<std::byte>(record.data(), record.data() + record.size())));
    }
    const GuardedMemory offsets(offsets_), rows(rows_), outs(outs_), in(ToShorts(in_, act_type_));
    GuardedMemory contributions(out_rows_ * n_embd * (run.out_type == DType::kF32 ? 4 : 2));
    ExpertMlpArgs args;
    args.shape = ShapeOf(layout_);
    args.offsets = reinterpret_cast<const int32_t*>(offsets.data());
    args.rows = reinterpret_cast<const int32_t*>(rows.data());
    args.outs = reinterpret_cast<const int32_t*>(outs.data());
    args.in = in.data(), args.in_type = act_type_, args.in_rows = in_rows_, args.in_stride = n_embd;
    args.contributions = contributions.data(), args.out_type = run.out_type;
    args.out_rows = out_rows_, args.out_stride = n_embd;
    args.workspace_bytes = ExpertMlpWorkspaceBytes(args.shape, run.workspace_rows == 0 ? num_entries_ : run.workspace_rows);
    GuardedMemory workspace(args.workspace_bytes);
    args.workspace = workspace.data();
    args.expansion.bytes = ExpertExpansionBytes(run.device, args.shape, act_type_, *std::ranges::max_element(group_rows_));
    GuardedMemory expansion(args.expansion.bytes);
    args.expansion.data = expansion.data();
    std::vector<std::vector<int>> calls = run.calls;
    if (calls.empty()) {
      calls.emplace_back();
      for (size_t g = 0; g < group_rows_.size(); ++g) calls[0].push_back(static_cast<int>(g));
    }
    for (const std::vector<int>& groups : calls) {
      std::vector<ExpertMlpUse> uses;
      for (const int g : groups) uses.push_back({records[g]->data(), g, std::min(group_rows_[g], run.group_rows)});
      args.uses = uses.data(), args.num_uses = static_cast<int64_t>(uses.size());
      EXPECT_STREQ(ExpertMlp(run.device, args, nullptr), nullptr);
    }
    workspace.Read();
    expansion.Read();
    return contributions.Read();
  }

  std::vector<int32_t>& rows() { return rows_; }
  std::vector<int32_t>& outs() { return outs_; }
  std::vector<float>& in() { return in_; }
  const std::vector<int32_t>& offsets() const { return offsets_; }
  int64_t n_embd() const { return layout_.gate.cols; }

 private:
  static std::vector<float> Decode(const TiledMatrix& matrix) {
    std::vector<float> values(matrix.layout.rows * matrix.layout.cols);
    for (int64_t row = 0; row < matrix.layout.rows; ++row) DecodeTiledRow(matrix, row, &values[row * matrix.layout.cols]);
    return values;
  }

  DType act_type_;
  ExpertLayout layout_;
  std::vector<int32_t> group_rows_, offsets_, rows_, outs_;
  int64_t num_entries_ = 0, in_rows_ = 0, out_rows_ = 0;
  std::vector<float> in_;
  std::vector<AlignedBytes> records_;
};

struct ExpertCase {
  DType gate_up, down;
  Kernels kernels;
  int64_t n_embd, n_ff;
};
std::string NameOfExpertCase(const testing::TestParamInfo<ExpertCase>& info) {
  const char* kernels[] = {"Best", "Portable", "PortableF16"};
  const ExpertCase& c = info.param;
  return std::string(NameOf(c.gate_up)) + std::string(NameOf(c.down)) + kernels[static_cast<int>(c.kernels)] +
         std::to_string(c.n_embd) + "x" + std::to_string(c.n_ff);
}

class CudaExpertMlpTest : public CudaProductsTest, public testing::WithParamInterface<ExpertCase> {};

TEST_P(CudaExpertMlpTest, MatchesDoubleLoopsForGroupsOfAnySize) {
  const auto [gate_up, down, kernels, n_embd, n_ff] = GetParam();
  const DType act_type = ActType(kernels);
  const ExpertFixture fixture(gate_up, down, act_type, n_embd, n_ff, {1, 0, 7, 17, 64, 2, 129, 300, 0, 33});
  const std::vector<double> want = fixture.Want();
  for (const DType out_type : {DType::kF32, act_type}) {
    const std::vector<float> got = ToFloats(fixture.Contributions({DeviceFor(kernels), out_type, {}, 0}), out_type);
    ASSERT_EQ(got.size(), want.size());
    double error = 0, total = 0;
    for (size_t i = 0; i < want.size(); ++i) {
      if (std::isnan(want[i])) {
        ASSERT_TRUE(std::isnan(got[i])) << "row " << i / n_embd << " belongs to no entry";
        continue;
      }
      ASSERT_TRUE(std::isfinite(got[i])) << "row " << i / n_embd << ", column " << i % n_embd;
      error += (got[i] - want[i]) * (got[i] - want[i]), total += want[i] * want[i];
    }
    // Of an intermediate value's rounding, of the output's, and of the weights'.
    const double tolerance = 4e-3 + 2 * WeightRounding(gate_up, act_type) + WeightRounding(down, act_type);
    ASSERT_TRUE(std::sqrt(error / total) <= tolerance) << NameOf(out_type) << ": " << std::sqrt(error / total);
    ASSERT_TRUE(Close(got, want, 10 * tolerance, 10 * tolerance));
  }
}

INSTANTIATE_TEST_SUITE_P(EveryType, CudaExpertMlpTest, testing::ValuesIn([] {
                           std::vector<ExpertCase> cases;
                           ForEachFormat([&]<DType kType>() { cases.push_back({kType, kType, Kernels::kBest, 512, 256}); });
                           return cases;
                         }()),
                         NameOfExpertCase);

INSTANTIATE_TEST_SUITE_P(Types, CudaExpertMlpTest,
                         testing::Values(ExpertCase{DType::kMXFP4, DType::kMXFP4, Kernels::kBest, 192, 160},
                                         ExpertCase{DType::kMXFP4, DType::kMXFP4, Kernels::kBest, 256, 416},
                                         ExpertCase{DType::kMXFP4, DType::kMXFP4, Kernels::kPortable, 192, 160},
                                         ExpertCase{DType::kMXFP4, DType::kMXFP4, Kernels::kPortableF16, 192, 160},
                                         ExpertCase{DType::kQ8_0, DType::kQ8_0, Kernels::kBest, 192, 160},
                                         ExpertCase{DType::kQ8_0, DType::kMXFP4, Kernels::kPortable, 160, 96},
                                         ExpertCase{DType::kQ4_0, DType::kQ8_0, Kernels::kBest, 192, 160},
                                         ExpertCase{DType::kQ4_0, DType::kQ4_0, Kernels::kPortableF16, 96, 96},
                                         ExpertCase{DType::kBF16, DType::kF16, Kernels::kBest, 96, 96},
                                         ExpertCase{DType::kF32, DType::kF32, Kernels::kPortable, 96, 96},
                                         ExpertCase{DType::kQ4_K, DType::kQ6_K, Kernels::kBest, 256, 512},
                                         ExpertCase{DType::kQ3_K, DType::kQ5_1, Kernels::kPortable, 256, 416},
                                         ExpertCase{DType::kIQ2_XXS, DType::kIQ3_S, Kernels::kBest, 512, 256},
                                         ExpertCase{DType::kIQ4_KS, DType::kIQ2_KL, Kernels::kBest, 256, 256},
                                         ExpertCase{DType::kIQ6_K, DType::kIQ5_K, Kernels::kBest, 768, 256},
                                         ExpertCase{DType::kIQ5_KS, DType::kIQ6_K, Kernels::kPortable, 256, 1280},
                                         ExpertCase{DType::kIQ2_XS, DType::kIQ1_M, Kernels::kBest, 256, 768},
                                         ExpertCase{DType::kIQ3_XXS, DType::kIQ2_S, Kernels::kBest, 1280, 256},
                                         ExpertCase{DType::kMXFP4, DType::kIQ4_NL, Kernels::kBest, 192, 160}),
                         NameOfExpertCase);

TEST_F(CudaProductsTest, GateAndUpMayBeOfTwoTypes) {
  for (const auto& [gate, up] :
       {std::pair{DType::kQ4_K, DType::kQ5_K}, {DType::kQ8_0, DType::kIQ4_XS}, {DType::kMXFP4, DType::kQ8_0}}) {
    const ExpertLayout layout = *ExpertLayout::Create(gate, up, DType::kQ8_0, 256, 160, /*has_bias=*/true);
    const ExpertFixture fixture(layout, ActType(Kernels::kBest), {1, 7, 33, 130});
    const std::vector<double> want = fixture.Want();
    const std::vector<float> got = ToFloats(fixture.Contributions({device_, DType::kF32, {}, 0}), DType::kF32);
    EXPECT_TRUE(Close(got, want, 0.1, 0.1)) << NameOf(gate) << ", " << NameOf(up);
  }
}

TEST_F(CudaProductsTest, AnExpertsResultDoesNotDependOnTheOtherUsesOfItsCall) {
  const ExpertFixture fixture(DType::kMXFP4, DType::kMXFP4, ActType(Kernels::kBest), 192, 160, {5, 200, 40, 0, 130, 16, 17});
  const std::vector<std::byte> together = fixture.Contributions({device_, DType::kF32, {}, 0});
  const std::vector<std::byte> apart = fixture.Contributions({device_, DType::kF32, {{4}, {0, 5}, {6, 2, 1}}, 0});
  const std::vector<std::byte> in_batches = fixture.Contributions({device_, DType::kF32, {}, 200});
  EXPECT_TRUE(together == apart);
  EXPECT_TRUE(together == in_batches);
  EXPECT_TRUE(together == fixture.Contributions({device_, DType::kF32, {}, 0}));
}

// 2,080 columns are nine chunks, the last one of a single tile. Of 7,168 columns fewer rows than eight fit a block's shared
// memory.
TEST_F(CudaProductsTest, AnExpertsRowHasTheSameBitsBesideAnyNumberOfOthers) {
  for (const auto& [type, n_embd, n_ff] : {std::tuple{DType::kQ4_0, 2080, 1056},
                                           {DType::kQ5_1, 1056, 96},
                                           {DType::kQ4_K, 2048, 768},
                                           {DType::kQ6_K, 1280, 512},
                                           {DType::kQ2_K, 512, 256},
                                           {DType::kIQ4_XS, 2048, 768},
                                           {DType::kIQ2_S, 512, 256},
                                           {DType::kIQ3_K, 7168, 256},
                                           {DType::kIQ5_K, 512, 256},
                                           {DType::kIQ5_KS, 768, 512},
                                           {DType::kIQ6_K, 7168, 256},
                                           {DType::kIQ2_KL, 512, 768},
                                           {DType::kIQ2_XXS, 768, 256},
                                           {DType::kIQ3_S, 512, 256},
                                           {DType::kIQ1_M, 7168, 256},
                                           {DType::kMXFP4, 2080, 1056}}) {
    const ExpertFixture fixture(type, type, ActType(Kernels::kBest), n_embd, n_ff, {16, 3, 16});
    const std::vector<float> all = ToFloats(fixture.Contributions({.device = device_}), DType::kF32);
    for (const int32_t rows : {1, 2, 3, 8, 9}) {
      const std::vector<float> some = ToFloats(fixture.Contributions({.device = device_, .group_rows = rows}), DType::kF32);
      int64_t compared = 0;
      for (size_t i = 0; i < some.size(); ++i) {
        if (std::isnan(some[i])) continue;
        ASSERT_EQ(std::bit_cast<uint32_t>(some[i]), std::bit_cast<uint32_t>(all[i]))
            << NameOf(type) << ", " << rows << " rows: " << i;
        ++compared;
      }
      EXPECT_EQ(compared, (2 * rows + std::min(rows, 3)) * fixture.n_embd());
    }
  }
}

// As long as there are too few experts for the GPU, the warps of a block share the columns; with many they do not.
TEST_F(CudaProductsTest, AnExpertsRowHasTheSameBitsBesideAnyNumberOfExperts) {
  for (const DType type : {DType::kQ5_K, DType::kIQ4_NL}) {
    const ExpertFixture fixture(type, type, ActType(Kernels::kBest), 1024, 768, std::vector<int32_t>(100, 2));
    const std::vector<std::byte> together = fixture.Contributions({.device = device_});
    std::vector<std::vector<int>> apart;
    for (int g = 0; g < 100; ++g) apart.push_back({g});
    EXPECT_TRUE(together == fixture.Contributions({.device = device_, .calls = apart})) << NameOf(type);
  }
}

TEST_F(CudaProductsTest, ARowThatIsNotFiniteStaysVisibleAndAlone) {
  for (const float broken : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    for (const int32_t rows : {1, 6}) {
      ExpertFixture fixture(DType::kQ4_K, DType::kQ6_K, ActType(Kernels::kBest), 256, 256, {rows, rows});
      const std::vector<float> before = ToFloats(fixture.Contributions({.device = device_}), DType::kF32);
      fixture.in()[fixture.rows()[0] * fixture.n_embd() + 77] = broken;
      const std::vector<float> after = ToFloats(fixture.Contributions({.device = device_}), DType::kF32);
      for (size_t entry = 0; entry < fixture.rows().size(); ++entry) {
        const bool is_broken = fixture.rows()[entry] == fixture.rows()[0];
        for (int64_t column = 0; column < fixture.n_embd(); ++column) {
          const int64_t at = fixture.outs()[entry] * fixture.n_embd() + column;
          if (is_broken) {
            ASSERT_TRUE(std::isnan(after[at])) << entry << ", " << column;
          } else {
            ASSERT_EQ(after[at], before[at]) << entry << ", " << column;
          }
        }
      }
    }
  }
}

TEST_F(CudaProductsTest, ManyUsesRunInOneCall) {
  const ExpertFixture fixture(DType::kMXFP4, DType::kMXFP4, ActType(Kernels::kBest), 64, 64, std::vector<int32_t>(200, 3));
  const std::vector<double> want = fixture.Want();
  const std::vector<float> got = ToFloats(fixture.Contributions({device_, DType::kF32, {}, 0}), DType::kF32);
  EXPECT_TRUE(Close(got, want, 0.05, 0.02));
}

TEST_F(CudaProductsTest, EntriesThatNameRowsOutsideDoNoHarm) {
  ExpertFixture fixture(DType::kMXFP4, DType::kMXFP4, ActType(Kernels::kBest), 64, 64, {40, 4, 150});
  const std::vector<std::byte> before = fixture.Contributions({device_, DType::kF32, {}, 0});
  std::vector<int32_t> bad;
  for (const int entry : {3, 41, 100, 193}) {
    bad.push_back(fixture.outs()[entry]);
    fixture.outs()[entry] = entry % 2 == 0 ? -1232513024 : 1 << 30;
  }
  fixture.rows()[7] = -5;
  fixture.rows()[60] = 1 << 30;
  const std::vector<float> want = ToFloats(before, DType::kF32);
  const std::vector<float> got = ToFloats(fixture.Contributions({device_, DType::kF32, {}, 0}), DType::kF32);
  const int64_t n_embd = fixture.n_embd();
  for (size_t i = 0; i < want.size(); ++i) {
    const int32_t row = static_cast<int32_t>(i / n_embd);
    if (row == fixture.outs()[7] || row == fixture.outs()[60]) continue;
    if (std::find(bad.begin(), bad.end(), row) != bad.end()) {
      ASSERT_TRUE(std::isnan(got[i])) << row;
    } else {
      ASSERT_EQ(std::bit_cast<uint32_t>(got[i]), std::bit_cast<uint32_t>(want[i])) << row;
    }
  }
}

TEST_F(CudaProductsTest, ExpertMlpNamesTheArgumentThatIsWrong) {
  ExpertMlpArgs args;
  const ExpertMlpUse use{nullptr, 0, 1};
  args.uses = &use;
  EXPECT_STREQ(ExpertMlp(device_, args, nullptr), nullptr);  // no uses: nothing to do
  args.num_uses = 1;
  EXPECT_STREQ(ExpertMlp(device_, args, nullptr), "argument shape.n_embd: not a multiple of 32");
}

}  // namespace
}  // namespace ferry

#endif  // FERRY_HAVE_CUDA
