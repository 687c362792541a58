// How near the CPU kernels come to the machine: every figure beside the ceiling that the same run measured.
//
//   cpu_kernels_bench [--isa auto] [--beside avx512] [--threads 0] [--only decode,prefill,formats,experts,curve,attention,rows]
//                     [--types Q4_K,Q6_K] [--seconds 0.5] [--best]
//
// decode   MatMul of 1 to 8 rows, each call over another matrix, so that weights come from memory: us, GB/s of weights,
//          share of the read rate
// prefill  MatMul of 9 to 512 rows: us, GFLOP/s, share of the int8 peak, with AMX of half of its own (Q8_0 uses two int8
//          products for each of its own, so its limit is one half)
// formats  every number format, columns of 2048: one row with weights from memory (GB/s, share of the read rate), and 512 rows
//          (GFLOP/s, share of what Q4_0 reached); --types names some, beside which Q4_0 is measured too
// experts  ExpertMlp at gpt-oss width (n_embd 2880, n_ff 2880, 32 experts, top 4), 1 to 512 tokens: both shares
// curve    ExpertMlp with 1 to 512 rows for each of two experts, whose records come from memory: GB/s, GFLOP/s and share of the
//          peak; with --beside the same of another instruction set, call after call in turns
// attention, rows   the rest of a layer: us
// Times are medians over --seconds of calls; with --best the fastest call, as the ceilings are: for a machine that others use.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "common/model/formats/formats.h"
#include "kernels/cpu/cpu_features.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/cpu_peaks.h"
#include "kernels/ops.h"
#include "tests/kernels/plain_params.h"
#include "tests/testing/random_tensors.h"

namespace ferry {
namespace {

struct Options {
  std::string isa = "auto", beside, only, types;
  int threads = 0;
  double seconds = 0.5;
  bool best = false;
  bool Wants(const std::string& part) const { return only.empty() || only.find(part) != std::string::npos; }
  bool WantsType(DType type) const {
    return types.empty() || type == DType::kQ4_0 ||
           ("," + types + ",").find("," + std::string(NameOf(type)) + ",") != std::string::npos;
  }
};

double Now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

template <typename Body>
double SecondsOf(const Options& options, const Body& body) {
  body();
  std::vector<double> times;
  const double start = Now();
  while (times.size() < 5 || Now() - start < options.seconds) {
    const double before = Now();
    body();
    times.push_back(Now() - before);
  }
  if (options.best) return *std::min_element(times.begin(), times.end());
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  return times[times.size() / 2];
}

void Check(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::exit(1);
}
template <typename T>
T Check(absl::StatusOr<T> value) {
  Check(value.status());
  return *std::move(value);
}

// Bytes of any values, in memory that a backend allocates for weights. Codes are random; scales are all alike, small.
class Weights {
 public:
  Weights(Ops& ops, int64_t bytes) : buffer_(Check(ops.Allocate(bytes))) {
    RandomBits random(1);
    for (int64_t at = 0; at + 8 <= bytes; at += 8) {
      const uint64_t bits = random.Next();
      std::memcpy(buffer_.data() + at, &bits, 8);
    }
  }
  void SetScales(const TiledLayout& layout, int64_t offset) {
    std::byte* scales = buffer_.data() + offset + layout.scales_offset;
    const int64_t count = layout.row_tiles() * layout.col_blocks() * kTileRows;
    for (int64_t i = 0; i < count; ++i) {
      const uint16_t half = 0x2000;  // 2^-7
      if (layout.scale_bytes == 2) std::memcpy(scales + 2 * i, &half, 2);
      if (layout.scale_bytes == 1) scales[i] = std::byte{120};
    }
  }
  const std::byte* data() const { return buffer_.data(); }

 private:
  DeviceBuffer buffer_;
};

// A vector in the backend's memory, so that large ones lie in huge pages as the engine's do.
Tensor Floats(Ops& ops, std::vector<DeviceBuffer>& keep, int64_t rows, int64_t cols, uint64_t seed) {
  keep.push_back(Check(ops.Allocate(rows * cols * 4)));
  const std::vector<float> values = RandomFloats(rows * cols, seed);
  std::memcpy(keep.back().data(), values.data(), values.size() * 4);
  return {keep.back().data(), DType::kF32, rows, cols};
}

constexpr DType kTypes[] = {DType::kMXFP4, DType::kQ8_0, DType::kQ4_0};
constexpr int64_t kWidth = 2880;

void BenchDecode(Ops& ops, const Options& options, const CpuPeaks& rates) {
  std::printf("\ndecode: rows x W^T, W [rows of W, %d]\n%-6s %8s %4s %10s %8s %7s\n", static_cast<int>(kWidth), "type", "rows",
              "m", "us", "GB/s", "share");
  for (const DType type : {DType::kMXFP4, DType::kQ8_0, DType::kQ4_0, DType::kF16}) {
    constexpr int64_t rows = 16384, kCopies = 12;
    const TiledLayout layout = Check(TiledLayout::Create(type, rows, kWidth));
    Weights weights(ops, layout.bytes * kCopies);
    for (int64_t copy = 0; copy < kCopies; ++copy) weights.SetScales(layout, copy * layout.bytes);
    int64_t call = 0;
    std::vector<DeviceBuffer> keep;
    const Tensor in = Floats(ops, keep, 8, kWidth, 3), out = Floats(ops, keep, 8, rows, 5);
    for (const int64_t m : {1, 2, 4, 8}) {
      const double seconds = SecondsOf(options, [&] {
        const std::byte* data = weights.data() + call++ % kCopies * layout.bytes;
        Check(ops.MatMul(in.Rows(0, m), {layout, data}, nullptr, out.Rows(0, m), false));
      });
      const double rate = static_cast<double>(layout.bytes) / seconds;
      std::printf("%-6s %8d %4d %10.1f %8.1f %6.1f%%\n", std::string(NameOf(type)).c_str(), static_cast<int>(rows),
                  static_cast<int>(m), seconds * 1e6, rate / 1e9, 100 * rate / rates.read_bytes_per_second);
    }
  }
}

void BenchPrefill(Ops& ops, const Options& options, const CpuPeaks& rates) {
  constexpr int64_t kRows = 1024;
  std::printf("\nprefill: m rows x W^T, W [%d, %d]\n%-6s %4s %10s %9s %7s\n", static_cast<int>(kRows), static_cast<int>(kWidth),
              "type", "m", "us", "GFLOP/s", "share");
  for (const DType type : {DType::kMXFP4, DType::kQ8_0, DType::kQ4_0, DType::kF16}) {
    const TiledLayout layout = Check(TiledLayout::Create(type, kRows, kWidth));
    Weights weights(ops, layout.bytes);
    weights.SetScales(layout, 0);
    std::vector<DeviceBuffer> keep;
    const Tensor in = Floats(ops, keep, 512, kWidth, 3), out = Floats(ops, keep, 512, kRows, 5);
    for (const int64_t m : {9, 16, 32, 64, 128, 256, 512}) {
      const double seconds = SecondsOf(options, [&] {
        Check(ops.MatMul(in.Rows(0, m), {layout, weights.data()}, nullptr, out.Rows(0, m), false));
      });
      const double rate = 2.0 * m * kRows * kWidth / seconds;
      const double peak = type == DType::kF16 ? rates.f32_ops_per_second : rates.product_ops_per_second();
      std::printf("%-6s %4d %10.1f %9.1f %6.1f%%%s\n", std::string(NameOf(type)).c_str(), static_cast<int>(m), seconds * 1e6,
                  rate / 1e9, 100 * rate / peak, type == DType::kF16 ? " (of f32)" : "");
    }
  }
}

// A matrix of random weights; 64 of its rows are made and used over and over.
void FillMatrix(const TiledLayout& layout, std::byte* data) {
  constexpr int64_t kMadeRows = 64;
  const std::vector<std::byte> rows = RandomGgufRows(layout.dtype, kMadeRows, layout.cols, /*seed=*/1, 0.02f);
  for (int64_t row = 0; row < layout.rows; row += kMadeRows) {
    Check(TileRows(layout, row, kMadeRows, rows, {data, static_cast<size_t>(layout.bytes)}));
  }
}

void BenchFormats(Ops& ops, const Options& options, const CpuPeaks& rates) {
  constexpr int64_t kCols = 2048, kFewBytes = int64_t{64} << 20, kManyRows = 768, kTokens = 512;
  std::printf("\nformats: W [rows of W, %d]; 512 rows of activations with W [%d, %d]\n%-8s %6s %8s %7s %9s %8s\n",
              static_cast<int>(kCols), static_cast<int>(kManyRows), static_cast<int>(kCols), "type", "bits", "GB/s", "share",
              "GFLOP/s", "of Q4_0");
  std::vector<DeviceBuffer> keep;
  const Tensor in = Floats(ops, keep, kTokens, kCols, 3), out = Floats(ops, keep, kTokens, kManyRows, 5);
  double of_q4_0 = 0;
  const auto measure = [&](DType type) {
    if (!options.WantsType(type)) return;
    const int64_t row_bytes = Check(TiledLayout::Create(type, 64, kCols)).gguf_row_bytes();
    const TiledLayout few = Check(TiledLayout::Create(type, kFewBytes / row_bytes / 64 * 64, kCols));
    const TiledLayout many = Check(TiledLayout::Create(type, kManyRows, kCols));
    DeviceBuffer memory = Check(ops.Allocate(few.bytes + many.bytes)), few_out = Check(ops.Allocate(few.rows * 4));
    FillMatrix(few, memory.data());
    FillMatrix(many, memory.data() + few.bytes);
    const Tensor row_out = {few_out.data(), DType::kF32, 1, few.rows};
    const double few_seconds = SecondsOf(options, [&] {
      Check(ops.MatMul(in.Rows(0, 1), {few, memory.data()}, nullptr, row_out, false));
    });
    const double many_seconds = SecondsOf(options, [&] {
      Check(ops.MatMul(in, {many, memory.data() + few.bytes}, nullptr, out, false));
    });
    const double rate = static_cast<double>(few.bytes) / few_seconds, flops = 2.0 * kTokens * kManyRows * kCols / many_seconds;
    if (type == DType::kQ4_0) of_q4_0 = flops;
    std::printf("%-8s %6.3f %8.1f %6.1f%% %9.1f %7.1f%%\n", std::string(NameOf(type)).c_str(),
                8.0 * static_cast<double>(row_bytes) / kCols, rate / 1e9, 100 * rate / rates.read_bytes_per_second, flops / 1e9,
                100 * flops / of_q4_0);
  };
  for (const DType type : {DType::kQ4_0, DType::kQ8_0, DType::kMXFP4}) measure(type);
  ForEachFormat([&]<DType kType>() {
    if (Format<kType>::kInteger && kType != DType::kQ4_0 && kType != DType::kQ8_0 && kType != DType::kMXFP4) measure(kType);
  });
}

void BenchExperts(Ops& ops, const Options& options, const CpuPeaks& rates) {
  constexpr int64_t kExperts = 32, kTopK = 4;
  std::printf("\nexperts: n_embd %d, n_ff %d, %d experts, top %d\n%-6s %6s %8s %10s %8s %7s %9s %7s\n", static_cast<int>(kWidth),
              static_cast<int>(kWidth), static_cast<int>(kExperts), static_cast<int>(kTopK), "type", "tokens", "experts", "us",
              "GB/s", "share", "GFLOP/s", "share");
  for (const DType type : kTypes) {
    const ExpertLayout layout = Check(ExpertLayout::Create(type, type, type, kWidth, kWidth, true));
    Weights records(ops, layout.bytes * kExperts);
    for (int64_t expert = 0; expert < kExperts; ++expert) {
      const int64_t at = expert * layout.bytes;
      records.SetScales(layout.gate, at + layout.gate_offset);
      records.SetScales(layout.up, at + layout.up_offset);
      records.SetScales(layout.down, at + layout.down_offset);
      for (const int64_t bias : {layout.gate_bias_offset, layout.up_bias_offset, layout.down_bias_offset}) {
        std::memset(const_cast<std::byte*>(records.data()) + at + bias, 0, kWidth * 4);
      }
    }
    std::vector<DeviceBuffer> keep;
    const Tensor in = Floats(ops, keep, 512, kWidth, 3), out = Floats(ops, keep, 512 * kTopK, kWidth, 5);
    RandomBits random(9);
    for (const int64_t tokens : {1, 2, 4, 8, 16, 32, 64, 128, 512}) {
      // Each call takes other experts, so that none is left in the cache from the call before.
      constexpr int kRoutings = 8;
      std::vector<int32_t> offsets[kRoutings], rows[kRoutings], outs[kRoutings];
      for (int r = 0; r < kRoutings; ++r) {
        std::vector<int32_t> chosen;
        for (int64_t token = 0; token < tokens; ++token) {
          for (int64_t rank = 0; rank < kTopK;) {
            const int32_t expert =
                tokens == 1 ? static_cast<int32_t>((r * kTopK + rank) % kExperts) : static_cast<int32_t>(random.Below(kExperts));
            if (std::find(chosen.begin() + token * kTopK, chosen.end(), expert) != chosen.end()) continue;
            chosen.push_back(expert), ++rank;
          }
        }
        offsets[r].resize(kExperts + 1), rows[r].resize(tokens * kTopK), outs[r].resize(tokens * kTopK);
        Check(ops.GroupByExpert(chosen.data(), tokens, kTopK, kExperts, offsets[r].data(), rows[r].data(), outs[r].data()));
      }
      int call = 0;
      double bytes = 0;
      int64_t activated = 0;
      const double seconds = SecondsOf(options, [&] {
        const int r = call++ % kRoutings;
        std::vector<ExpertUse> uses;
        for (int32_t expert = 0; expert < kExperts; ++expert) {
          const int64_t count = offsets[r][expert + 1] - offsets[r][expert];
          if (count > 0) uses.push_back({records.data() + expert * layout.bytes, expert, count});
        }
        const ExpertGroups groups = {kExperts, tokens * kTopK, offsets[r].data(), rows[r].data(), outs[r].data()};
        Check(ops.ExpertMlp(layout, uses, groups, {}, in.Rows(0, tokens), out.Rows(0, tokens * kTopK)));
        activated = static_cast<int64_t>(uses.size());
        bytes = static_cast<double>(activated * layout.bytes);
      });
      const double flops = static_cast<double>(layout.flops_per_token() * tokens * kTopK);
      std::printf("%-6s %6d %8d %10.1f %8.1f %6.1f%% %9.1f %6.1f%%\n", std::string(NameOf(type)).c_str(),
                  static_cast<int>(tokens), static_cast<int>(activated), seconds * 1e6, bytes / seconds / 1e9,
                  100 * bytes / seconds / rates.read_bytes_per_second, flops / seconds / 1e9,
                  100 * flops / seconds / rates.product_ops_per_second());
    }
  }
}

// Medians of seconds of each body, called in turns.
template <typename Body>
std::vector<double> SecondsInTurns(const Options& options, size_t count, const Body& body) {
  std::vector<std::vector<double>> times(count);
  const double start = Now();
  while (times[0].size() < 6 || Now() - start < options.seconds * static_cast<double>(count)) {
    for (size_t i = 0; i < count; ++i) {
      const double before = Now();
      body(i);
      times[i].push_back(Now() - before);
    }
  }
  std::vector<double> seconds;
  for (std::vector<double>& of : times) {
    of.erase(of.begin());  // warms up
    const auto at = of.begin() + static_cast<int64_t>(options.best ? 0 : of.size() / 2);
    std::nth_element(of.begin(), at, of.end());
    seconds.push_back(*at);
  }
  return seconds;
}

void BenchCurve(const std::vector<Ops*>& all, const Options& options, const CpuPeaks& rates) {
  constexpr int64_t kTogether = 2, kMostRows = 512, kBytes = int64_t{1} << 30;
  std::printf("\ncurve: n_embd %d, n_ff %d, %d experts at once\n%-6s %5s", static_cast<int>(kWidth), static_cast<int>(kWidth),
              static_cast<int>(kTogether), "type", "rows");
  for (size_t i = 0; i < all.size(); ++i) std::printf(" %10s %7s %9s %7s", "us", "GB/s", "GFLOP/s", "share");
  std::printf("\n");
  for (const DType type : kTypes) {
    const ExpertLayout layout = Check(ExpertLayout::Create(type, type, type, kWidth, kWidth, false));
    const int64_t count = kBytes / layout.bytes;
    Weights records(*all[0], layout.bytes * count);
    for (int64_t expert = 0; expert < count; ++expert) {
      records.SetScales(layout.gate, expert * layout.bytes + layout.gate_offset);
      records.SetScales(layout.up, expert * layout.bytes + layout.up_offset);
      records.SetScales(layout.down, expert * layout.bytes + layout.down_offset);
    }
    std::vector<DeviceBuffer> keep;
    const Tensor in = Floats(*all[0], keep, kMostRows, kWidth, 3), out = Floats(*all[0], keep, kMostRows * kTogether, kWidth, 5);
    int64_t next = 0;
    for (const int64_t rows : {1, 2, 4, 8, 16, 32, 64, 128, 256, 512}) {
      std::vector<int32_t> offsets, entries, outs;
      for (int64_t e = 0; e <= kTogether; ++e) offsets.push_back(static_cast<int32_t>(e * rows));
      for (int64_t i = 0; i < kTogether * rows; ++i) {
        entries.push_back(static_cast<int32_t>(i % rows)), outs.push_back(static_cast<int32_t>(i));
      }
      const ExpertGroups groups = {kTogether, kTogether * rows, offsets.data(), entries.data(), outs.data()};
      const std::vector<double> seconds = SecondsInTurns(options, all.size(), [&](size_t i) {
        std::vector<ExpertUse> uses;
        for (int32_t e = 0; e < kTogether; ++e) uses.push_back({records.data() + next++ % count * layout.bytes, e, rows});
        Check(all[i]->ExpertMlp(layout, uses, groups, {}, in.Rows(0, rows), out.Rows(0, rows * kTogether)));
      });
      std::printf("%-6s %5d", std::string(NameOf(type)).c_str(), static_cast<int>(rows));
      for (const double s : seconds) {
        const double flops = static_cast<double>(layout.flops_per_token() * rows * kTogether) / s;
        std::printf(" %10.1f %7.1f %9.1f %6.1f%%", s * 1e6, static_cast<double>(layout.bytes * kTogether) / s / 1e9, flops / 1e9,
                    100 * flops / rates.product_ops_per_second());
      }
      std::printf("\n");
      std::fflush(stdout);
    }
  }
}

void BenchAttention(Ops& ops, const Options& options) {
  constexpr int64_t kHeads = 64, kKvHeads = 8, kHeadDim = 64, kBlocks = 256;
  std::printf("\nattention: %d/%d heads of %d\n%-6s %9s %6s %7s %10s\n", static_cast<int>(kHeads), static_cast<int>(kKvHeads),
              static_cast<int>(kHeadDim), "cache", "position", "rows", "window", "us");
  std::vector<int32_t> table(kBlocks);
  for (int32_t i = 0; i < kBlocks; ++i) table[i] = (i * 37) % static_cast<int32_t>(kBlocks);
  for (const DType type : {DType::kF16, DType::kQ8_0}) {
    const int64_t bytes = KvPlaneBytes(type, kBlocks, kKvHeads, kHeadDim);
    std::vector<DeviceBuffer> keep;
    KvLayer cache{.key_type = type, .value_type = type, .num_blocks = kBlocks, .num_kv_heads = kKvHeads, .head_dim = kHeadDim};
    for (std::byte** plane : {&cache.keys, &cache.values}) {
      keep.push_back(Check(ops.Allocate(bytes)));
      *plane = keep.back().data();
      std::memset(*plane, 0x21, bytes);  // f16 0x2121 is 0.01
    }
    const Tensor q = Floats(ops, keep, 512, kHeads * kHeadDim, 3), out = Floats(ops, keep, 512, kHeads * kHeadDim, 5);
    struct Case {
      int64_t position, rows, window;
    };
    for (const auto& [position, rows, window] :
         {Case{127, 1, 0}, {1023, 1, 0}, {4095, 1, 0}, {4095, 1, 128}, {0, 512, 0}, {0, 512, 128}, {3584, 512, 0}}) {
      Batch batch;
      batch.sequences = {{0, rows, position, table, table}};
      const auto prepared = Check(ops.PrepareBatch(batch));
      const double seconds = SecondsOf(options, [&] {
        Check(ops.Attention(*prepared, 0, q.Rows(0, rows), cache, PlainAttention(cache, window), out.Rows(0, rows)));
      });
      std::printf("%-6s %9d %6d %7d %10.1f\n", std::string(NameOf(type)).c_str(), static_cast<int>(position),
                  static_cast<int>(rows), static_cast<int>(window), seconds * 1e6);
    }
  }
}

void BenchRows(Ops& ops, const Options& options) {
  std::printf("\nrows of %d\n%-16s %6s %10s\n", static_cast<int>(kWidth), "operation", "rows", "us");
  std::vector<DeviceBuffer> keep;
  const Tensor x = Floats(ops, keep, 512, kWidth, 3), out = Floats(ops, keep, 512, kWidth, 5);
  const Tensor contributions = Floats(ops, keep, 2048, kWidth, 7), qkv = Floats(ops, keep, 512, 5120, 9);
  const Tensor q = Floats(ops, keep, 512, 4096, 11), router = Floats(ops, keep, 32, kWidth, 13);
  const Tensor logits = Floats(ops, keep, 1, 201088, 15);
  const TiledLayout table = Check(TiledLayout::Create(DType::kQ8_0, 201088, kWidth));
  Weights embedding(ops, table.bytes);
  embedding.SetScales(table, 0);
  KvLayer cache{.num_blocks = 32, .num_kv_heads = 8, .head_dim = 64};
  for (std::byte** plane : {&cache.keys, &cache.values}) {
    keep.push_back(Check(ops.Allocate(KvPlaneBytes(DType::kF16, 32, 8, 64))));
    *plane = keep.back().data();
  }
  RopeConfig rope;
  rope.freq_base = 150000, rope.num_dims = 64, rope.yarn_factor = 32, rope.yarn_original_context = 4096;
  std::vector<int32_t> experts(2048), blocks(32);
  std::vector<float> weights(2048, 0.25f);
  for (int32_t i = 0; i < 32; ++i) blocks[i] = i;
  for (const int64_t rows : {1, 512}) {
    Batch batch;
    for (int64_t row = 0; row < rows; ++row) batch.token_ids.push_back(static_cast<int32_t>(row * 390));
    batch.sequences = {{0, rows, 0, blocks, blocks}};
    const auto prepared = Check(ops.PrepareBatch(batch));
    const auto report = [&](const char* name, const auto& body) {
      std::printf("%-16s %6d %10.1f\n", name, static_cast<int>(rows), SecondsOf(options, body) * 1e6);
    };
    report("Embed", [&] { Check(ops.Embed(*prepared, 0, {table, embedding.data()}, x.Rows(0, rows))); });
    report("RmsNorm",
           [&] { Check(ops.RmsNorm(x.Rows(0, rows), static_cast<const float*>(router.data), 1e-5, out.Rows(0, rows))); });
    report("RopeAndStore", [&] { Check(ops.RopeAndStore(*prepared, 0, rope, {}, qkv.Rows(0, rows), cache, q.Rows(0, rows))); });
    report("Route 32 top 4", [&] {
      Check(ops.Route(x.Rows(0, rows), {.weight = static_cast<const float*>(router.data), .bias = nullptr}, PlainRouter(32, 4),
                      experts.data(), weights.data()));
    });
    report("Combine 4", [&] { Check(ops.Combine(contributions.Rows(0, rows * 4), weights.data(), 4, x.Rows(0, rows))); });
  }
  const LogitsRequest request{1, 0};
  std::printf("%-16s %6d %10.1f\n", "ReadLogits", 1,
              SecondsOf(options, [&] { Check(ops.ReadLogits(logits, std::span(&request, 1))); }) * 1e6);
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("CPU kernels against the ceilings of this machine");
  app.add_option("--isa", options.isa, "auto, or a name of kernels/cpu/isa.h");
  app.add_option("--beside", options.beside, "for curve: another instruction set, in turns with the first");
  app.add_option("--threads", options.threads, "0: one per physical core");
  app.add_option("--only", options.only, "parts to run, by name, separated by commas");
  app.add_option("--types", options.types, "for formats: which of them, by name, separated by commas");
  app.add_option("--seconds", options.seconds, "of calls for each figure");
  app.add_flag("--best", options.best, "the fastest call instead of the median");
  CLI11_PARSE(app, argc, argv);

  BackendOptions backend;
  backend.isa = options.isa, backend.num_threads = options.threads;
  const std::unique_ptr<Ops> ops = Check(CreateCpuOps(backend));
  const CpuIsa isa = IsaNamed(options.isa);
  ThreadPoolOptions pool_options;
  pool_options.num_threads = options.threads;
  const std::unique_ptr<ThreadPool> pool = Check(ThreadPool::Create(pool_options));
  const CpuPeaks rates = Check(MeasureCpuPeaks(*pool, isa, {}));
  std::printf("%s\nceilings: read %.1f GB/s, copy %.1f GB/s, int8 %.0f, bf16 %.0f, f32 %.0f, tiles of bytes %.0f Gop/s\n",
              ops->name().c_str(), rates.read_bytes_per_second / 1e9, rates.copy_bytes_per_second / 1e9,
              rates.int8_ops_per_second / 1e9, rates.bf16_ops_per_second / 1e9, rates.f32_ops_per_second / 1e9,
              rates.tile_ops_per_second / 1e9);
  if (options.Wants("decode")) BenchDecode(*ops, options, rates);
  if (options.Wants("prefill")) BenchPrefill(*ops, options, rates);
  if (options.Wants("formats")) BenchFormats(*ops, options, rates);
  if (options.Wants("experts")) BenchExperts(*ops, options, rates);
  if (options.Wants("curve")) {
    std::vector<Ops*> all = {ops.get()};
    std::unique_ptr<Ops> beside;
    if (!options.beside.empty()) {
      backend.isa = options.beside;
      beside = Check(CreateCpuOps(backend));
      all.push_back(beside.get());
      std::printf("beside %s\n", beside->name().c_str());
    }
    BenchCurve(all, options, rates);
  }
  if (options.Wants("attention")) BenchAttention(*ops, options);
  if (options.Wants("rows")) BenchRows(*ops, options);
  return 0;
}

}  // namespace
}  // namespace ferry

int main(int argc, char** argv) { return ferry::Main(argc, argv); }
