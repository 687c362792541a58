// AMX: products give the bits of AVX-512 VNNI, those with MXFP4 the bits of their definition, and what happens where the system
// refuses the tiles.

#if defined(__x86_64__)

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numeric>

#include "kernels/cpu/amx_permission.h"
#include "tests/kernels/cpu_backends.h"

namespace ferry {
namespace {

class AmxTest : public PerIsaTest<IsaCase> {
 protected:
  static std::unique_ptr<Ops> Avx512() { return CreateCpuOps({.num_threads = 2, .pin_threads = false, .isa = "avx512"}).value(); }
};

std::vector<float> Product(Ops& ops, const TiledMatrix& weight, std::vector<float> in, int64_t rows, const float* bias) {
  GuardedRows out(rows, weight.layout.rows);
  EXPECT_OK(ops.MatMul(TensorOf(in, rows, weight.layout.cols), weight, bias, out.tensor(), false));
  EXPECT_TRUE(out.GuardsIntact());
  return out.Values();
}

constexpr DType kTypes[] = {DType::kQ4_0, DType::kQ8_0, DType::kBF16};

TEST_P(AmxTest, GivesTheBitsOfAvx512) {
  const std::unique_ptr<Ops> ops = MakeOps(), avx512 = Avx512();
  struct Shape {
    int64_t outputs, cols, rows;
  };
  for (const DType dtype : kTypes) {
    for (const auto& [outputs, cols, rows] : {Shape{1, 32, 28},
                                              {16, 64, 29},
                                              {17, 96, 31},
                                              {33, 320, 32},
                                              {40, 352, 33},
                                              {32, 704, 39},
                                              {31, 2880, 70},
                                              {48, 64, 300},
                                              {80, 800, 257},
                                              {32, 6400, 40},
                                              {100, 160, 27}}) {
      SCOPED_TRACE(testing::Message() << NameOf(dtype) << ", " << outputs << " x " << cols << ", rows " << rows);
      const OwnedTiledMatrix weight = RandomTiledMatrix(dtype, outputs, cols, 7);
      const std::vector<float> in = RandomFloats(rows * cols, 11), bias = RandomFloats(outputs, 13);
      EXPECT_TRUE(
          SameBits(Product(*ops, weight.matrix, in, rows, bias.data()), Product(*avx512, weight.matrix, in, rows, bias.data())));
    }
  }
}

TEST_P(AmxTest, GivesTheBitsOfAvx512ForActivationsOfAnySize) {
  const std::unique_ptr<Ops> ops = MakeOps(), avx512 = Avx512();
  for (const DType dtype : kTypes) {
    const OwnedTiledMatrix weight = RandomTiledMatrix(dtype, 40, 320, 17);
    for (const float size : {0.0f, 0x1p-140f, 0x1p-100f, 0x1p60f, 0x1p100f}) {
      const std::vector<float> in = RandomFloats(42 * 320, 19, size);
      EXPECT_TRUE(SameBits(Product(*ops, weight.matrix, in, 42, nullptr), Product(*avx512, weight.matrix, in, 42, nullptr)))
          << NameOf(dtype) << ", " << size;
    }
  }
}

TEST_P(AmxTest, GivesARowTheSameBitsAmongAnyNumberOfOthers) {
  constexpr int64_t kMost = 70, kOutputs = 48, kCols = 768;
  const std::unique_ptr<Ops> ops = MakeOps();
  for (const DType dtype : kTypes) {
    const OwnedTiledMatrix weight = RandomTiledMatrix(dtype, kOutputs, kCols, 23);
    const std::vector<float> in = RandomFloats(kMost * kCols, 29);
    const std::vector<float> all = Product(*ops, weight.matrix, in, kMost, nullptr);
    for (int64_t count = 1; count < kMost; ++count) {
      const int64_t first = kMost - count;
      const std::vector<float> part(in.begin() + first * kCols, in.end()), want(all.begin() + first * kOutputs, all.end());
      EXPECT_TRUE(SameBits(Product(*ops, weight.matrix, part, count, nullptr), want))
          << NameOf(dtype) << ", " << count << " rows";
    }
  }
}

// --------------------------------------------------------------------------------------------------- MXFP4, paired blocks

// A row of activations as Activations::kPaired says.
struct PairedRow {
  std::vector<int> codes;
  std::vector<float> steps;  // of each pair

  explicit PairedRow(std::span<const float> x) : codes(x.size()) {
    for (size_t first = 0; first < x.size(); first += 64) {
      const size_t end = std::min(first + 64, x.size());
      float largest = 0;
      for (size_t i = first; i < end; ++i) largest = std::max(largest, std::abs(x[i]));
      const float step = std::clamp(largest / 127.0f, 0x1p-60f, 0x1p60f), inverse = 1.0f / step;
      for (size_t i = first; i < end; ++i)
        codes[i] = static_cast<int>(std::nearbyint(std::clamp(x[i] * inverse, -127.0f, 127.0f)));
      steps.push_back(step);
    }
  }
};

// Row `row` of MXFP4 weights by a row of activations, as kernels/cpu/mxfp4_pairs_amx.h defines it.
float PairedDot(const TiledMatrix& weight, int64_t row, const PairedRow& in) {
  constexpr int kLevels[] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
  const TiledLayout& layout = weight.layout;
  const int64_t tile = row / 16, blocks = layout.col_blocks();
  float sum = 0;
  for (int64_t pair = 0; 2 * pair < blocks; ++pair) {
    int64_t dots[2] = {0, 0}, exponents[2] = {};
    for (int64_t b = 0; b < 2; ++b) {
      const int64_t block = std::min(2 * pair + b, blocks - 1);
      exponents[b] = std::clamp<int64_t>(static_cast<uint8_t>(weight.data[layout.scale_offset(tile, block) + row % 16]), 64, 192);
      if (2 * pair + b == blocks) continue;
      const std::byte* const codes = weight.data + layout.code_offset(tile, block) + row % 16 * 16;
      for (int64_t j = 0; j < 32; ++j) {
        const int both = static_cast<int>(codes[j % 16]);
        dots[b] += kLevels[j < 16 ? both & 15 : both >> 4] * in.codes[block * 32 + j];
      }
    }
    const int64_t apart = std::abs(exponents[1] - exponents[0]), shift = std::min<int64_t>(apart, 14);
    const int larger = exponents[1] > exponents[0] ? 1 : 0;
    const int64_t whole = (dots[larger] << shift) + (dots[1 - larger] >> std::min<int64_t>(apart - shift, 31));
    const int64_t unit = std::max(exponents[0], exponents[1]) - shift;
    const uint32_t scale = std::bit_cast<uint32_t>(in.steps[pair]) + (static_cast<uint32_t>(unit - 128) << 23);
    sum = std::fma(static_cast<float>(whole), std::bit_cast<float>(scale), sum);
  }
  return sum;
}

// Exponents of neighbouring blocks differ by at most 3, by up to 14, and by more.
TEST_P(AmxTest, Mxfp4MatchesItsDefinitionForAnyScales) {
  const std::unique_ptr<Ops> ops = MakeOps();
  struct Shape {
    int64_t outputs, cols, rows;
  };
  for (const int spread : {1, 4, 12, 40, 120}) {
    for (const auto& [outputs, cols, rows] : {Shape{1, 32, 1},
                                              {16, 64, 2},
                                              {17, 96, 3},
                                              {33, 320, 8},
                                              {40, 352, 9},
                                              {32, 704, 16},
                                              {32, 2880, 6},
                                              {17, 2912, 12},
                                              {32, 2880, 15},
                                              {31, 2880, 17},
                                              {48, 64, 24},
                                              {80, 800, 40},
                                              {32, 1600, 263}}) {
      SCOPED_TRACE(testing::Message() << outputs << " x " << cols << ", rows " << rows << ", scales spread over " << spread);
      OwnedTiledMatrix weight = RandomTiledMatrix(DType::kMXFP4, outputs, cols, 7);
      const TiledLayout& layout = weight.matrix.layout;
      RandomBits random(spread);
      for (int64_t tile = 0; tile < layout.row_tiles(); ++tile) {
        for (int64_t i = 0; i < layout.col_blocks() * 16; ++i) {
          weight.memory.data()[layout.scale_offset(tile, 0) + i] =
              static_cast<std::byte>(128 - spread / 2 + random.Below(spread));
        }
      }
      const std::vector<float> in = RandomFloats(rows * cols, 11), bias = RandomFloats(outputs, 13);
      const std::vector<float> got = Product(*ops, weight.matrix, in, rows, bias.data());
      for (int64_t i = 0; i < rows; ++i) {
        const PairedRow row(std::span<const float>(in).subspan(i * cols, cols));
        for (int64_t j = 0; j < outputs; ++j) {
          const float want = PairedDot(weight.matrix, j, row) + bias[j];
          ASSERT_EQ(std::bit_cast<uint32_t>(got[i * outputs + j]), std::bit_cast<uint32_t>(want)) << i << ", " << j;
        }
      }
    }
  }
}

TEST_P(AmxTest, GivesARowOfMxfp4TheSameBitsAmongAnyNumberOfOthers) {
  constexpr int64_t kMost = 70, kOutputs = 48, kCols = 800;
  const std::unique_ptr<Ops> ops = MakeOps();
  const OwnedTiledMatrix weight = RandomTiledMatrix(DType::kMXFP4, kOutputs, kCols, 23);
  const std::vector<float> in = RandomFloats(kMost * kCols, 29);
  const std::vector<float> all = Product(*ops, weight.matrix, in, kMost, nullptr);
  for (int64_t count = 1; count < kMost; ++count) {
    const int64_t first = kMost - count;
    const std::vector<float> part(in.begin() + first * kCols, in.end()), want(all.begin() + first * kOutputs, all.end());
    EXPECT_TRUE(SameBits(Product(*ops, weight.matrix, part, count, nullptr), want)) << count << " rows";
  }
}

// Gate and up of 96 rows are three panels: a pair and one alone. A row is computed alone and among 300.
TEST_P(AmxTest, GivesExpertsOfMxfp4TheSameBitsAmongAnyNumberOfRows) {
  constexpr int64_t kEmbd = 320, kFf = 96, kRows = 300;
  const std::unique_ptr<Ops> ops = MakeOps();
  ASSERT_OK_AND_ASSIGN(const ExpertLayout layout,
                       ExpertLayout::Create(DType::kMXFP4, DType::kMXFP4, DType::kMXFP4, kEmbd, kFf, /*has_bias=*/true));
  const AlignedBytes record = RandomExpertRecord(layout, 61);
  const std::vector<float> in = RandomFloats(kRows * kEmbd, 71);
  const auto computed = [&](int64_t first, int64_t count) {
    std::vector<int32_t> offsets = {0, static_cast<int32_t>(count)}, rows(count), outs(count);
    std::iota(rows.begin(), rows.end(), static_cast<int32_t>(first)), std::iota(outs.begin(), outs.end(), 0);
    const ExpertGroups groups = {1, count, offsets.data(), rows.data(), outs.data()};
    const ExpertUse use = {record.data(), 0, count};
    std::vector<float> rows_in = in;
    GuardedRows out(count, kEmbd);
    EXPECT_OK(ops->ExpertMlp(layout, std::span(&use, 1), groups, {}, TensorOf(rows_in, kRows, kEmbd), out.tensor()));
    EXPECT_TRUE(out.GuardsIntact());
    return out.Values();
  };
  const std::vector<float> all = computed(0, kRows);
  for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 1}, {7, 2}, {100, 8}, {31, 9}, {200, 33}, {0, 257}}) {
    const std::vector<float> want(all.begin() + first * kEmbd, all.begin() + (first + count) * kEmbd);
    EXPECT_TRUE(SameBits(computed(first, count), want)) << first << ", " << count;
  }
}

// Experts whose three matrices are of different types, and with few and many rows in one call.
TEST_P(AmxTest, GivesExpertsTheBitsOfAvx512) {
  constexpr int64_t kEmbd = 320, kFf = 96;
  const std::unique_ptr<Ops> ops = MakeOps(), avx512 = Avx512();
  struct Types {
    DType gate, up, down;
  };
  for (const auto& [gate, up, down] : {Types{DType::kQ4_0, DType::kQ4_0, DType::kQ4_0},
                                       {DType::kQ8_0, DType::kQ4_0, DType::kQ8_0},
                                       {DType::kQ4_1, DType::kQ8_0, DType::kQ5_0},
                                       {DType::kF16, DType::kQ8_0, DType::kQ4_0},
                                       {DType::kQ4_0, DType::kQ8_0, DType::kF32}}) {
    SCOPED_TRACE(testing::Message() << NameOf(gate) << ", " << NameOf(up) << ", " << NameOf(down));
    ASSERT_OK_AND_ASSIGN(const ExpertLayout layout, ExpertLayout::Create(gate, up, down, kEmbd, kFf, /*has_bias=*/true));
    const std::vector<int64_t> counts = {3, 16, 33, 1, 300, 47};
    const int64_t entries = std::accumulate(counts.begin(), counts.end(), int64_t{0}), tokens = 101;
    std::vector<AlignedBytes> records;
    std::vector<int32_t> offsets = {0}, rows, outs;
    std::vector<ExpertUse> uses;
    for (size_t e = 0; e < counts.size(); ++e) {
      records.push_back(RandomExpertRecord(layout, 61 + e));
      for (int64_t i = 0; i < counts[e]; ++i) rows.push_back(static_cast<int32_t>((i * 7 + 5) % tokens));
      offsets.push_back(static_cast<int32_t>(rows.size()));
      uses.push_back({records[e].data(), static_cast<int32_t>(e), counts[e]});
    }
    for (int64_t i = 0; i < entries; ++i) outs.push_back(static_cast<int32_t>(entries - 1 - i));
    const ExpertGroups groups = {static_cast<int64_t>(counts.size()), entries, offsets.data(), rows.data(), outs.data()};
    std::vector<float> in = RandomFloats(tokens * kEmbd, 71);
    in[5 * kEmbd + 3] = std::numeric_limits<float>::quiet_NaN();
    std::vector<float> results[2];
    for (Ops* const which : {ops.get(), avx512.get()}) {
      GuardedRows out(entries, kEmbd);
      ASSERT_OK(which->ExpertMlp(layout, uses, groups, {}, TensorOf(in, tokens, kEmbd), out.tensor()));
      EXPECT_TRUE(out.GuardsIntact());
      results[which == ops.get() ? 0 : 1] = out.Values();
    }
    EXPECT_TRUE(SameBits(results[0], results[1]));
  }
}

INSTANTIATE_TEST_SUITE_P(Cpu, AmxTest, testing::Values(IsaCase{CpuIsa::kAmx}), NameOfCase);

// From here on this process gets EPERM for its request.
bool RefuseTheRequest() {
  sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_arch_prctl, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0x1023, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program = {.len = static_cast<unsigned short>(std::size(filter)), .filter = filter};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

// In a process of its own, which has not asked yet. Its exit code says what was wrong.
constexpr int kRight = 0, kNoAmx = 10;
[[noreturn]] void ComputeWhereTilesAreRefused() {
  if (!RefuseTheRequest()) std::exit(3);
  const absl::Status refused = CheckAmx();
  if (refused.message().find("no AMX") != std::string::npos) std::exit(kNoAmx);
  if (refused.ok() || refused.message().find("arch_prctl") == std::string::npos) std::exit(4);
  const auto by_name = SelectKernels("amx"), best = SelectKernels("auto");
  if (by_name.ok() || by_name.status().message().find("arch_prctl") == std::string::npos) std::exit(5);
  if (!best.ok() || *best != Avx512Kernels() || IsaNamed("auto") != CpuIsa::kAvx512) std::exit(6);
  const absl::StatusOr<std::unique_ptr<Ops>> ops = CreateCpuOps({.num_threads = 1, .pin_threads = false});
  if (!ops.ok()) std::exit(7);
  const OwnedTiledMatrix weight = RandomTiledMatrix(DType::kMXFP4, 32, 64, 7);
  Product(**ops, weight.matrix, RandomFloats(40 * 64, 11), 40, nullptr);
  std::exit(kRight);
}

TEST(AmxPermission, WhereItIsRefusedTheBestOthersAreChosenAndTheMessageSaysWhy) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");  // starts the program anew, up to here: nothing may have asked before
  const auto right_or_without = [](int status) {
    return WIFEXITED(status) && (WEXITSTATUS(status) == kRight || WEXITSTATUS(status) == kNoAmx);
  };
  EXPECT_EXIT(ComputeWhereTilesAreRefused(), right_or_without, "");
  if (!MachineHas(CpuIsa::kAmx)) GTEST_SKIP() << CheckAmx().message();
}

}  // namespace
}  // namespace ferry

#endif
