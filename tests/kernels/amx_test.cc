// AMX: products give the bits of AVX-512 VNNI, and what happens where the system refuses the tiles.

#if defined(__x86_64__)

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <cerrno>
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

constexpr DType kTypes[] = {DType::kMXFP4, DType::kQ4_0, DType::kQ8_0, DType::kBF16};

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

// Experts whose three matrices are of different types, and with few and many rows in one call.
TEST_P(AmxTest, GivesExpertsTheBitsOfAvx512) {
  constexpr int64_t kEmbd = 320, kFf = 96;
  const std::unique_ptr<Ops> ops = MakeOps(), avx512 = Avx512();
  struct Types {
    DType gate, up, down;
  };
  for (const auto& [gate, up, down] : {Types{DType::kMXFP4, DType::kMXFP4, DType::kMXFP4},
                                       {DType::kQ8_0, DType::kQ4_0, DType::kQ8_0},
                                       {DType::kQ4_1, DType::kMXFP4, DType::kQ5_0},
                                       {DType::kF16, DType::kQ8_0, DType::kMXFP4},
                                       {DType::kMXFP4, DType::kQ8_0, DType::kF32}}) {
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
