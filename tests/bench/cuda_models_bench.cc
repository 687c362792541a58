// Times the CUDA operations that gpt-oss does not use, through Ops, on the shapes of published models:
//
//   cuda_models_bench [NAME_PART]
//
// An operation is queued until 50 ms have passed, three times over; the fastest counts. The operations of one row take about as
// long to queue as to run: their figures hold the host's part.

#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "common/deadline.h"
#include "common/half.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/kv_batch.h"
#include "tests/testing/random_tensors.h"

namespace ferry {
namespace {

void Must(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::exit(1);
}
template <typename T>
T Must(absl::StatusOr<T> value) {
  Must(value.status());
  return *std::move(value);
}

class ModelsBench {
 public:
  explicit ModelsBench(std::string filter) : filter_(std::move(filter)), ops_(Must(CreateCudaOps({}))) {
    const DeviceBuffer from = Room(int64_t{512} << 20), to = Room(int64_t{512} << 20);
    const double seconds = Seconds([&] {
      const cudaError_t error = cudaMemcpyAsync(to.data(), from.data(), from.bytes(), cudaMemcpyDeviceToDevice, nullptr);
      return error == cudaSuccess ? absl::OkStatus() : absl::InternalError(cudaGetErrorString(error));
    });
    copy_rate_ = 2.0 * static_cast<double>(from.bytes()) / seconds;
    std::printf("%s: device-to-device copy, bytes read and written: %.2f TB/s\n\n", ops_->name().c_str(), copy_rate_ / 1e12);
    std::printf("| operation | us | TB/s | of the copy | TFLOP/s |\n| --- | ---: | ---: | ---: | ---: |\n");
  }
  Ops& ops() { return *ops_; }

  void Run(const std::string& name, double bytes, double flops, const std::function<absl::Status()>& operation) {
    if (name.find(filter_) == std::string::npos) return;
    const double seconds = Seconds(operation);
    std::printf("| %s | %.1f | %.2f | %.0f %% | %.0f |\n", name.c_str(), seconds * 1e6, bytes / seconds / 1e12,
                100 * bytes / seconds / copy_rate_, flops / seconds / 1e12);
    std::fflush(stdout);
  }
  DeviceBuffer Room(int64_t bytes) { return Must(ops_->Allocate(bytes)); }
  // Rows of random numbers.
  struct Rows {
    DeviceBuffer memory;
    Tensor tensor;
  };
  Rows RandomRows(DType dtype, int64_t rows, int64_t cols) {
    const int64_t bytes = rows * cols * (dtype == DType::kF32 ? 4 : 2), part = std::min<int64_t>(rows * cols, 1 << 20);
    Rows made = {Room(bytes), {}};
    const std::vector<float> values = RandomFloats(part, 7, 0.5f);
    std::vector<uint16_t> shorts(part);
    for (int64_t i = 0; i < part; ++i) shorts[i] = dtype == DType::kF16 ? FloatToHalf(values[i]) : FloatToBFloat16(values[i]);
    const std::span<const std::byte> source =
        dtype == DType::kF32 ? std::as_bytes(std::span<const float>(values)) : std::as_bytes(std::span<const uint16_t>(shorts));
    for (int64_t at = 0; at < bytes; at += static_cast<int64_t>(source.size())) {
      Must(ops_->Upload(made.memory.data() + at, source.first(std::min<int64_t>(source.size(), bytes - at))));
    }
    made.tensor = Tensor(made.memory.data(), dtype, rows, cols);
    return made;
  }

 private:
  double Seconds(const std::function<absl::Status()>& operation) {
    double best = INFINITY;
    Must(operation());
    Must(ops_->Synchronize(Deadline::In(absl::Seconds(60))));
    for (int round = 0; round < 3; ++round) {
      const auto start = std::chrono::steady_clock::now();
      const auto passed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
      int count = 0;
      do {
        for (int i = 0; i < 10; ++i) Must(operation());
        count += 10;
        Must(ops_->Synchronize(Deadline::In(absl::Seconds(60))));
        if (cudaDeviceSynchronize() != cudaSuccess) Must(absl::InternalError("cudaDeviceSynchronize"));
      } while (passed() < 0.05);
      best = std::min(best, passed() / count);
    }
    return best;
  }

  std::string filter_;
  std::unique_ptr<Ops> ops_;
  double copy_rate_ = 1;
};

// Each of `rows_each` rows from `position` on.
Batch Sequences(int64_t count, int64_t rows_each, int64_t position) {
  Batch batch;
  int32_t next_block = 0;
  for (int64_t s = 0; s < count; ++s) {
    BatchSequence sequence = {
        .first_row = s * rows_each, .num_rows = rows_each, .first_position = position, .blocks = {}, .ring_blocks = {}};
    for (int64_t at = 0; at < position + rows_each; at += kKvBlockTokens) sequence.blocks.push_back(next_block++);
    batch.sequences.push_back(std::move(sequence));
  }
  return batch;
}

// Attention of sequences of `rows_each` rows from `position` on. latent_values 0: grouped.
void BenchAttention(ModelsBench& bench, const std::string& name, int64_t heads, int64_t kv_heads, int64_t head_dim,
                    int64_t latent_values, DType cache_type, int64_t rows_each, int64_t position, int64_t sequences = 1) {
  Ops& ops = bench.ops();
  KvLayer cache = {.key_type = cache_type, .value_type = cache_type, .num_kv_heads = kv_heads, .head_dim = head_dim};
  const int64_t rows = sequences * rows_each;
  cache.num_blocks = sequences * ((position + rows_each) / kKvBlockTokens + 1), cache.latent_values = latent_values;
  // As Q8_0 the bytes are codes and scales of any size: wrong numbers, the right traffic.
  const int64_t numbers = cache.num_blocks * kKvBlockTokens * kv_heads * head_dim;
  const auto keys = bench.RandomRows(DType::kF16, 1, numbers), values = bench.RandomRows(DType::kF16, 1, numbers);
  cache.keys = keys.memory.data(), cache.values = values.memory.data();
  const int64_t out_dim = latent_values > 0 ? latent_values : head_dim;
  const auto q = bench.RandomRows(ops.activation_dtype(), rows, heads * head_dim);
  const auto out = bench.RandomRows(ops.activation_dtype(), rows, heads * out_dim);
  const auto batch = Must(ops.PrepareBatch(Sequences(sequences, rows_each, position)));
  const double pairs = static_cast<double>(rows) * (static_cast<double>(position) + static_cast<double>(rows_each + 1) / 2);
  const double number_bytes = cache_type == DType::kF16 ? 2 : 34.0 / 32;
  const double bytes =
      static_cast<double>(sequences * (position + rows_each) * kv_heads * head_dim) * number_bytes * (latent_values > 0 ? 1 : 2);
  const AttentionParams params = {.scale = 1 / std::sqrt(static_cast<double>(head_dim))};
  bench.Run(name, bytes, 2 * pairs * static_cast<double>(heads * (head_dim + out_dim)),
            [&] { return ops.Attention(*batch, 0, q.tensor, cache, params, out.tensor); });
}

void BenchStoreLatent(ModelsBench& bench, int64_t rows) {
  Ops& ops = bench.ops();
  constexpr int64_t kHeads = 128, kNope = 128, kRotated = 64, kRank = 512, kDim = kRank + kRotated;
  const auto batch = Must(ops.PrepareBatch(Sequences(1, rows, 0)));
  KvLayer cache = {.num_blocks = rows / kKvBlockTokens + 1, .num_kv_heads = 1, .head_dim = kDim, .latent_values = kRank};
  const DeviceBuffer keys = bench.Room(KvPlaneBytes(DType::kF16, cache.num_blocks, 1, kDim));
  cache.keys = keys.data();
  const auto latent = bench.RandomRows(DType::kF32, rows, kDim), norm = bench.RandomRows(DType::kF32, 1, kRank);
  const auto q = bench.RandomRows(ops.activation_dtype(), rows, kHeads * (kNope + kRotated));
  const auto q_out = bench.RandomRows(ops.activation_dtype(), rows, kHeads * kDim);
  const RopeConfig rope = {.freq_base = 10000, .num_dims = kRotated, .neighbours = true};
  const auto bytes = static_cast<double>(rows * (kDim * 6 + kHeads * kRotated * 4));
  bench.Run("store latent, " + std::to_string(rows) + " rows", bytes, 0, [&] {
    return ops.StoreLatent(*batch, 0, rope, {norm.memory.as<float>(), 1e-6}, latent.tensor, cache, q.tensor, q_out.tensor);
  });
}

void BenchHeads(ModelsBench& bench, int64_t rows, int64_t n, int64_t k) {
  Ops& ops = bench.ops();
  constexpr int64_t kHeads = 128;
  const TiledLayout layout = Must(TiledLayout::Create(DType::kQ8_0, n, k));
  const OwnedTiledMatrix one = RandomTiledMatrix(DType::kQ8_0, n, k, 3, 0.05f);
  const DeviceBuffer weights = bench.Room(layout.bytes * kHeads);
  for (int64_t head = 0; head < kHeads; ++head) {
    Must(ops.Upload(weights.data() + head * layout.bytes, {one.matrix.data, static_cast<size_t>(layout.bytes)}));
  }
  const auto in = bench.RandomRows(ops.activation_dtype(), rows, kHeads * k),
             out = bench.RandomRows(ops.activation_dtype(), rows, kHeads * n);
  const auto bytes = static_cast<double>(layout.bytes * kHeads + rows * kHeads * (n + k) * 2);
  bench.Run("128 heads of [" + std::to_string(n) + ", " + std::to_string(k) + "] in Q8_0, " + std::to_string(rows) + " rows",
            bytes, 2 * static_cast<double>(rows * kHeads * n * k), [&] {
              return ops.MatMulPerHead(in.tensor, {layout, weights.data(), kHeads}, out.tensor);
            });
}

// Qwen3-Next: 16 key heads, 32 value heads of 128.
void BenchDelta(ModelsBench& bench, int64_t sequences, int64_t rows_each) {
  Ops& ops = bench.ops();
  AttentionConfig net = {.kind = AttentionKind::kGatedDelta, .num_heads = 32, .num_kv_heads = 16, .head_dim = 128};
  net.conv_taps = 4;
  Batch batch;
  for (int64_t s = 0; s < sequences; ++s) {
    batch.sequences.push_back({.first_row = s * rows_each,
                               .num_rows = rows_each,
                               .first_position = 100,
                               .blocks = {},
                               .ring_blocks = {},
                               .slot = static_cast<int32_t>(s)});
  }
  const int64_t rows = sequences * rows_each, channels = net.conv_channels(), width = net.q_size();
  const auto prepared = Must(ops.PrepareBatch(batch));
  const auto states = bench.RandomRows(DType::kF32, sequences, DeltaStateNumbers(net));
  const auto mixed = bench.RandomRows(DType::kF32, rows, channels), gate = bench.RandomRows(DType::kF32, rows, width),
             beta = bench.RandomRows(DType::kF32, rows, 32), alpha = bench.RandomRows(DType::kF32, rows, 32),
             conv = bench.RandomRows(DType::kF32, 4, channels), vectors = bench.RandomRows(DType::kF32, 1, 256),
             out = bench.RandomRows(ops.activation_dtype(), rows, width);
  const std::vector<float> decay(32, -0.5f);
  const DeviceBuffer device_decay = bench.Room(32 * 4);
  Must(ops.Upload(device_decay.data(), std::as_bytes(std::span<const float>(decay))));
  const float* const floats = vectors.memory.as<float>();
  const DeltaWeights weights = {conv.memory.as<float>(), floats, device_decay.as<float>(), floats + 64, 1e-6};
  const double bytes =
      2.0 * static_cast<double>(sequences * DeltaStateBytes(net)) + static_cast<double>(rows * (channels * 4 + width * 6));
  bench.Run("gated delta, " + std::to_string(sequences) + " sequences of " + std::to_string(rows_each) + " rows", bytes,
            static_cast<double>(rows) * 32 * 128 * 128 * 8, [&] {
              return ops.GatedDelta(*prepared, 0, net, {mixed.tensor, gate.tensor, beta.tensor, alpha.tensor}, weights,
                                    {states.memory.as<float>(), sequences}, out.tensor);
            });
}

void RunAll(ModelsBench& bench) {
  for (const DType type : {DType::kF16, DType::kQ8_0}) {
    const std::string cache = type == DType::kF16 ? "" : ", Q8_0";
    for (const int64_t heads : {128, 16}) {
      const std::string shape = std::to_string(heads) + " heads" + cache;
      for (const int64_t position : {1023, 8191, 32767}) {
        BenchAttention(bench, "latent decode, 1 row at " + std::to_string(position + 1) + ", " + shape, heads, 1, 576, 512, type,
                       1, position);
      }
      for (const int64_t sequences : {4, 16}) {  // one fits into the second-level cache and takes 9 us at the copy rate
        BenchAttention(bench, "latent decode, " + std::to_string(sequences) + " rows at 32768, " + shape, heads, 1, 576, 512,
                       type, 1, 32767, sequences);
      }
      BenchAttention(bench, "latent prefill, rows 0-512, " + shape, heads, 1, 576, 512, type, 512, 0);
      BenchAttention(bench, "latent prefill, rows 4096-4608, " + shape, heads, 1, 576, 512, type, 512, 4096);
    }
    BenchAttention(bench, "heads of 256, 1 row at 32768" + cache, 16, 2, 256, 0, type, 1, 32767);
    BenchAttention(bench, "heads of 256, rows 0-4096" + cache, 16, 2, 256, 0, type, 4096, 0);
  }
  for (const int64_t rows : {1, 512}) BenchStoreLatent(bench, rows);
  for (const int64_t rows : {1, 16, 512}) {
    BenchHeads(bench, rows, 512, 128);
    BenchHeads(bench, rows, 128, 512);
  }
  BenchDelta(bench, 1, 1);
  BenchDelta(bench, 16, 1);
  BenchDelta(bench, 1, 512);
  BenchDelta(bench, 1, 4096);
}

}  // namespace
}  // namespace ferry

int main(int argc, char** argv) {
  if (ferry::NumCudaDevices() == 0) {
    std::fprintf(stderr, "no GPU on this machine\n");
    return 1;
  }
  ferry::ModelsBench bench(argc > 1 ? argv[1] : "");
  ferry::RunAll(bench);
  return 0;
}
