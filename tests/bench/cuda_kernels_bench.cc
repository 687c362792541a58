// Times the CUDA kernels of kernels/cuda (products aside) on the shapes of gpt-oss, beside what bounds them:
//
//   cuda_kernels_bench [NAME_PART]
//
// Every kernel is captured 20 times into a graph, the graph is replayed, and the fastest of five replays counts:
// launches are inside, the host is not. Ceilings: a device-to-device copy measured here, and for attention the flops
// alone, to be held against the machine's dense bf16 product rate.

#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/deadline.h"
#include "common/half.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/cuda_handles.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/grouping.h"
#include "kernels/cuda/logits.h"
#include "kernels/cuda/product_device.h"
#include "kernels/cuda/rope_store.h"
#include "kernels/cuda/routing.h"
#include "kernels/cuda/rows.h"
#include "kernels/rope.h"
#include "tests/testing/random_tensors.h"

namespace ferry::cuda {
namespace {

constexpr int kRepeats = 20;

void Must(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::exit(1);
}
void Must(cudaError_t error) { Must(CudaStatus(error, "bench")); }

// Device memory with random contents: numbers of order 1 in the given format.
DeviceMemory Random(int64_t count, DType dtype, uint64_t seed) {
  auto memory = DeviceMemory::Allocate(count * (dtype == DType::kF32 ? 4 : 2));
  Must(memory.status());
  const int64_t part = std::min<int64_t>(count, 1 << 20);  // repeated: drawing gigabytes would take longer than the bench
  const std::vector<float> values = RandomFloats(part, seed);
  std::vector<uint16_t> shorts(part);
  for (int64_t i = 0; i < part; ++i) shorts[i] = dtype == DType::kBF16 ? FloatToBFloat16(values[i]) : FloatToHalf(values[i]);
  const void* const source = dtype == DType::kF32 ? static_cast<const void*>(values.data()) : shorts.data();
  const int64_t element = dtype == DType::kF32 ? 4 : 2;
  for (int64_t first = 0; first < count; first += part) {
    Must(cudaMemcpy(memory->data() + first * element, source, std::min(part, count - first) * element, cudaMemcpyHostToDevice));
  }
  return *std::move(memory);
}
template <typename T>
DeviceMemory Uploaded(const std::vector<T>& values) {
  auto memory = DeviceMemory::Allocate(static_cast<int64_t>(values.size() * sizeof(T)));
  Must(memory.status());
  Must(cudaMemcpy(memory->data(), values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  return *std::move(memory);
}
DeviceMemory Bytes(int64_t bytes) {
  auto memory = DeviceMemory::Allocate(bytes);
  Must(memory.status());
  return *std::move(memory);
}

class Bench {
 public:
  explicit Bench(std::string filter) : filter_(std::move(filter)) {
    stream_ = *Stream::Create();
    Must(cudaEventCreate(&start_));
    Must(cudaEventCreate(&end_));
    DeviceMemory from = Random(int64_t{128} << 20, DType::kF32, 1), to = Bytes(int64_t{512} << 20);
    const double us = Microseconds([&](cudaStream_t stream) {
      return cudaMemcpyAsync(to.data(), from.data(), from.bytes(), cudaMemcpyDeviceToDevice, stream);
    });
    copy_rate_ = 2.0 * static_cast<double>(from.bytes()) / us / 1e6;  // TB/s
    std::printf("device-to-device copy, bytes read and written: %.2f TB/s\n\n", copy_rate_);
    std::printf("| kernel | us | rate | share of the ceiling |\n| --- | ---: | ---: | ---: |\n");
  }
  bool Wanted(const std::string& name) const { return name.find(filter_) != std::string::npos; }
  void Memory(const std::string& name, double bytes, const std::function<cudaError_t(cudaStream_t)>& launch) {
    if (!Wanted(name)) return;
    const double us = Microseconds(launch), rate = bytes / us / 1e6;
    std::printf("| %s | %.1f | %.2f TB/s | %.0f %% |\n", name.c_str(), us, rate, 100 * rate / copy_rate_);
  }
  void Flops(const std::string& name, double flops, const std::function<cudaError_t(cudaStream_t)>& launch) {
    if (!Wanted(name)) return;
    const double us = Microseconds(launch);
    std::printf("| %s | %.1f | %.1f TFLOP/s | |\n", name.c_str(), us, flops / us / 1e6);
  }
  void Time(const std::string& name, const std::function<cudaError_t(cudaStream_t)>& launch) {
    if (!Wanted(name)) return;
    std::printf("| %s | %.1f | | |\n", name.c_str(), Microseconds(launch));
  }

 private:
  double Microseconds(const std::function<cudaError_t(cudaStream_t)>& launch) {
    const cudaStream_t stream = stream_.get();
    Must(launch(stream));
    Must(cudaStreamSynchronize(stream));
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    Must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < kRepeats; ++i) Must(launch(stream));
    Must(cudaStreamEndCapture(stream, &graph));
    Must(cudaGraphInstantiate(&exec, graph, 0));
    float best = 1e30f;
    for (int i = 0; i < 5; ++i) {
      Must(cudaEventRecord(start_, stream));
      Must(cudaGraphLaunch(exec, stream));
      Must(cudaEventRecord(end_, stream));
      Must(cudaStreamSynchronize(stream));
      float ms;
      Must(cudaEventElapsedTime(&ms, start_, end_));
      best = std::min(best, ms);
    }
    Must(cudaGraphExecDestroy(exec));
    Must(cudaGraphDestroy(graph));
    return best * 1000.0 / kRepeats;
  }

  std::string filter_;
  Stream stream_;
  cudaEvent_t start_, end_;
  double copy_rate_ = 0;
};

// gpt-oss.
constexpr int64_t kEmbd = 2880, kHeads = 64, kKvHeads = 8, kHeadDim = 64, kVocab = 201088, kTop = 4;
constexpr DType kAct = DType::kBF16;

float* AsFloat(const DeviceMemory& memory) { return reinterpret_cast<float*>(memory.data()); }
DeviceRows RowsIn(const DeviceMemory& memory, DType dtype, int64_t rows, int64_t cols) {
  return {memory.data(), dtype, rows, cols, cols};
}

void BenchRows(Bench& bench) {
  constexpr int64_t kRows = 4096;
  const DeviceMemory x = Random(kRows * kEmbd, DType::kF32, 1), out = Bytes(kRows * kEmbd * 2);
  const DeviceMemory weight = Random(kEmbd, DType::kF32, 2), contributions = Random(kRows * kTop * kEmbd, kAct, 3);
  const DeviceMemory weights = Random(kRows * kTop, DType::kF32, 4);
  bench.Memory("RMS norm 4096 x 2880, F32 to BF16", kRows * kEmbd * 6.0, [&](cudaStream_t stream) {
    return LaunchRmsNorm(RowsIn(x, DType::kF32, kRows, kEmbd), AsFloat(weight), 1e-5f, RowsIn(out, kAct, kRows, kEmbd), stream);
  });
  bench.Time("RMS norm 1 x 2880", [&](cudaStream_t stream) {
    return LaunchRmsNorm(RowsIn(x, DType::kF32, 1, kEmbd), AsFloat(weight), 1e-5f, RowsIn(out, kAct, 1, kEmbd), stream);
  });
  bench.Memory("combine 4096 x 2880, top 4, BF16", kRows * kEmbd * (2.0 * kTop + 8), [&](cudaStream_t stream) {
    return LaunchCombine(RowsIn(contributions, kAct, kRows * kTop, kEmbd), AsFloat(weights), kTop,
                         RowsIn(x, DType::kF32, kRows, kEmbd), stream);
  });
  const OwnedTiledMatrix table = RandomTiledMatrix(DType::kQ8_0, 4096, kEmbd, 5);
  const DeviceMemory device_table = Uploaded(std::vector<std::byte>(table.memory.span().begin(), table.memory.span().end()));
  std::vector<int32_t> ids(kRows);
  for (int64_t i = 0; i < kRows; ++i) ids[i] = static_cast<int32_t>(i * 2654435761u % 4096);
  const DeviceMemory device_ids = Uploaded(ids);
  const TiledLayout& layout = table.matrix.layout;
  bench.Memory("embed 4096 x 2880, Q8_0", kRows * kEmbd * (34.0 / 32 + 4), [&](cudaStream_t stream) {
    return LaunchEmbed({device_table.data(), layout.dtype, layout.rows, layout.cols, layout.code_bytes, layout.scale_bytes,
                        layout.scales_offset},
                       reinterpret_cast<const int32_t*>(device_ids.data()), RowsIn(x, DType::kF32, kRows, kEmbd), stream);
  });
}

// Blocks of one sequence, scattered over the cache.
std::vector<int32_t> ScatteredTable(int64_t blocks, uint64_t seed) {
  std::vector<int32_t> table(blocks);
  for (int64_t i = 0; i < blocks; ++i) table[i] = static_cast<int32_t>(i);
  RandomBits random(seed);
  for (int64_t i = blocks - 1; i > 0; --i) std::swap(table[i], table[random.Below(i + 1)]);
  return table;
}

// Buffers for attention over a cache of 131072 positions whose blocks are scattered.
struct AttentionBench {
  static constexpr int64_t kMaxPosition = 131072, kBlocks = kMaxPosition / kKvBlock, kMaxRows = 16384;
  Bench& bench;
  const DeviceMemory keys = Random(kMaxPosition * kKvHeads * kHeadDim, DType::kF16, 10);
  const DeviceMemory values = Random(kMaxPosition * kKvHeads * kHeadDim, DType::kF16, 11);
  const DeviceMemory table = Uploaded(ScatteredTable(kBlocks, 12));
  const DeviceMemory q = Random(kMaxRows * kHeads * kHeadDim, kAct, 13), out = Bytes(kMaxRows * kHeads * kHeadDim * 2);
  const DeviceMemory sinks = Random(kHeads, DType::kF32, 14);
  const bool warpgroups = HasWarpgroups();

  static bool HasWarpgroups() {
    ProductDevice device;
    if (const char* error = QueryProductDevice(0, &device); error != nullptr) Must(Internal("%s", error));
    return device.wgmma;
  }

  AttentionArgs ArgsOf(int64_t rows, int64_t window, DType cache) const {
    AttentionArgs args;
    args.warpgroups = warpgroups;
    args.q = RowsIn(q, kAct, rows, kHeads * kHeadDim);
    args.out = RowsIn(out, kAct, rows, kHeads * kHeadDim);
    // As Q8_0 the random bytes are codes and scales of any size: wrong numbers, the right traffic.
    args.cache = {keys.data(), values.data(), cache, kBlocks, kKvHeads, kHeadDim};
    args.num_heads = kHeads;
    args.scale = 0.125f;
    args.window = window;
    args.sinks = AsFloat(sinks);
    return args;
  }

  void Prefill(const std::string& name, int64_t rows, int64_t first, int64_t window, DType cache = DType::kF16) const {
    double pairs = 0;
    for (int64_t p = first; p < first + rows; ++p) pairs += static_cast<double>(window > 0 ? std::min(p + 1, window) : p + 1);
    for (const bool by_warpgroups : {true, false}) {
      AttentionArgs args = ArgsOf(rows, window, cache);
      if (args.warpgroups != by_warpgroups && (by_warpgroups || cache != DType::kF16)) continue;
      args.warpgroups = by_warpgroups;
      bench.Flops("attention prefill, " + name + (by_warpgroups ? "" : " (mma)"), 4.0 * kHeads * kHeadDim * pairs,
                  [&, args, first](cudaStream_t stream) {
                    return LaunchAttentionPrefill(args, first, reinterpret_cast<const int32_t*>(table.data()), kBlocks, stream);
                  });
    }
  }

  void Decode(const std::string& name, int64_t rows, int64_t position, int64_t window, DType cache = DType::kF16) const {
    const DeviceMemory positions = Uploaded(std::vector<int32_t>(rows, static_cast<int32_t>(position)));
    std::vector<int32_t> starts(rows);  // every row its own blocks, so that rows do not share the cache's lines
    for (int64_t i = 0; i < rows; ++i) starts[i] = static_cast<int32_t>(i * (position / kKvBlock + 1));
    const DeviceMemory device_starts = Uploaded(starts);
    const DeviceMemory sizes = Uploaded(std::vector<int32_t>(rows, static_cast<int32_t>(position / kKvBlock + 1)));
    const DeviceMemory workspace = Bytes(DecodeWorkspaceBytes(rows, kHeads, kHeadDim, window, position));
    const double seen = static_cast<double>(window > 0 ? std::min(position + 1, window) : position + 1);
    const double bytes = seen * static_cast<double>(rows * kKvHeads * kHeadDim) * 2 * (cache == DType::kF16 ? 2 : 34.0 / 32);
    const DevicePlaces places{reinterpret_cast<const int32_t*>(positions.data()),
                              reinterpret_cast<const int32_t*>(device_starts.data()),
                              reinterpret_cast<const int32_t*>(sizes.data()), reinterpret_cast<const int32_t*>(table.data())};
    bench.Memory("attention decode, " + name, bytes, [&, rows, position, window, cache](cudaStream_t stream) {
      return LaunchAttentionDecode(ArgsOf(rows, window, cache), places, position, workspace.data(), stream);
    });
  }
};

void BenchAttention(Bench& bench) {
  const AttentionBench attention{bench};
  attention.Prefill("rows 0-310", 310, 0, 0);
  attention.Prefill("rows 0-4096", 4096, 0, 0);
  attention.Prefill("rows 0-16384", 16384, 0, 0);
  attention.Prefill("rows 28672-32768", 4096, 28672, 0);
  attention.Prefill("rows 0-4096, Q8_0 cache", 4096, 0, 0, DType::kQ8_0);
  attention.Prefill("window 128, rows 0-310", 310, 0, 128);
  attention.Prefill("window 128, rows 0-4096", 4096, 0, 128);
  attention.Prefill("window 128, rows 0-16384", 16384, 0, 128);
  attention.Decode("1 row at 1000", 1, 999, 0);
  attention.Decode("1 row at 4096", 1, 4095, 0);
  attention.Decode("1 row at 32768", 1, 32767, 0);
  attention.Decode("1 row at 131072", 1, 131071, 0);
  attention.Decode("16 rows at 8192", 16, 8191, 0);
  attention.Decode("16 rows at 8192, Q8_0", 16, 8191, 0, DType::kQ8_0);
  attention.Decode("1 row, window 128", 1, 4095, 128);
}

void BenchRope(Bench& bench) {
  constexpr int64_t kRows = 4096, kWidth = (kHeads + 2 * kKvHeads) * kHeadDim;
  const DeviceMemory qkv = Random(kRows * kWidth, DType::kF32, 20), q_out = Bytes(kRows * kHeads * kHeadDim * 2);
  const DeviceMemory keys = Bytes(kRows * kKvHeads * kHeadDim * 2), values = Bytes(kRows * kKvHeads * kHeadDim * 2);
  const DeviceMemory table = Uploaded(ScatteredTable(kRows / kKvBlock, 21));
  std::vector<int32_t> positions(kRows);
  for (int64_t i = 0; i < kRows; ++i) positions[i] = static_cast<int32_t>(i);
  const DeviceMemory device_positions = Uploaded(positions), starts = Uploaded(std::vector<int32_t>(kRows, 0));
  const DeviceMemory sizes = Uploaded(std::vector<int32_t>(kRows, kRows / kKvBlock));
  const DeviceMemory frequencies =
      Uploaded(RopeFrequencies({.freq_base = 150000, .num_dims = kHeadDim, .yarn_factor = 32, .yarn_original_context = 4096}));
  const auto run = [&](const std::string& name, DType in, DType cache, int64_t rows, double bytes) {
    RopeStoreArgs args;
    args.places = {reinterpret_cast<const int32_t*>(device_positions.data()), reinterpret_cast<const int32_t*>(starts.data()),
                   reinterpret_cast<const int32_t*>(sizes.data()), reinterpret_cast<const int32_t*>(table.data())};
    args.frequencies = reinterpret_cast<const double*>(frequencies.data());
    args.num_dims = kHeadDim;
    args.attention_factor = 1.3f;
    args.num_heads = kHeads;
    args.qkv = RowsIn(qkv, in, rows, kWidth);
    args.q_out = RowsIn(q_out, kAct, rows, kHeads * kHeadDim);
    args.cache = {keys.data(), values.data(), cache, kRows / kKvBlock, kKvHeads, kHeadDim};
    bench.Memory(name, bytes, [args](cudaStream_t stream) { return LaunchRopeStore(args, stream); });
  };
  constexpr double kQ = kHeads * kHeadDim, kKv = 2 * kKvHeads * kHeadDim;
  run("rope and store 4096 rows, BF16, F16 cache", kAct, DType::kF16, kRows, kRows * (2 * (kQ + kKv) + 2 * kQ + 2 * kKv));
  run("rope and store 4096 rows, F32, F16 cache", DType::kF32, DType::kF16, kRows, kRows * (4 * (kQ + kKv) + 2 * kQ + 2 * kKv));
  run("rope and store 4096 rows, BF16, Q8_0 cache", kAct, DType::kQ8_0, kRows,
      kRows * (2 * (kQ + kKv) + 2 * kQ + 34.0 / 32 * kKv));
  run("rope and store 1 row", kAct, DType::kF16, 1, 2 * (kQ + kKv) + 2 * kQ + 2 * kKv);
}

void BenchRouting(Bench& bench) {
  constexpr int64_t kMaxRows = 16384, kMaxE = 128;
  const DeviceMemory in = Random(kMaxRows * kEmbd, kAct, 30), weight = Random(kMaxE * kEmbd, DType::kF32, 31),
                     bias = Random(kMaxE, DType::kF32, 32);
  const DeviceMemory experts = Bytes(kMaxRows * kTop * 4), weights = Bytes(kMaxRows * kTop * 4);
  const DeviceMemory offsets = Bytes((kMaxE + 1) * 4), rows_out = Bytes(kMaxRows * kTop * 4), outs = Bytes(kMaxRows * kTop * 4);
  const DeviceMemory workspace =
      Bytes(std::max(RouteWorkspaceBytes(kMaxRows, kMaxE), GroupWorkspaceBytes(kMaxRows, kTop, kMaxE)));
  for (const int64_t num_experts : {32, 128}) {
    for (const int64_t rows : {1, 16, 512, 4096, 16384}) {
      RouteArgs args;
      args.in = RowsIn(in, kAct, rows, kEmbd);
      args.weight = AsFloat(weight);
      args.bias = AsFloat(bias);
      args.num_experts = num_experts;
      args.top_k = kTop;
      args.experts = reinterpret_cast<int32_t*>(experts.data());
      args.weights = reinterpret_cast<float*>(weights.data());
      args.workspace = workspace.data();
      const std::string shape = std::to_string(rows) + " rows, " + std::to_string(num_experts) + " experts";
      bench.Flops("route " + shape, 2.0 * static_cast<double>(rows * num_experts * kEmbd),
                  [args](cudaStream_t stream) { return LaunchRoute(args, stream); });
      bench.Time("group " + shape, [&, rows, num_experts](cudaStream_t stream) {
        return LaunchGroupByExpert(reinterpret_cast<const int32_t*>(experts.data()), rows, kTop, num_experts,
                                   reinterpret_cast<int32_t*>(offsets.data()), reinterpret_cast<int32_t*>(rows_out.data()),
                                   reinterpret_cast<int32_t*>(outs.data()), workspace.data(), stream);
      });
    }
  }
}

void BenchLogits(Bench& bench) {
  constexpr int64_t kRows = 64;
  const DeviceMemory logits = Random(kRows * kVocab, DType::kF32, 40), results = Bytes(kRows * (8 + 8 * kMaxTopLogits) + 4096);
  const DeviceMemory workspace = Bytes(SummarizeWorkspaceBytes(kRows, kVocab, kMaxTopLogits));
  for (const auto& [rows, top] : {std::pair<int64_t, int32_t>{1, 0}, {1, 64}, {1, 2048}, {16, 64}, {64, 0}}) {
    std::vector<RowRequest> requests;
    for (int64_t i = 0; i < rows; ++i) requests.push_back({static_cast<int32_t>(i), top, 7});
    const DeviceMemory device_requests = Uploaded(requests);
    SummarizeArgs args;
    args.logits = RowsIn(logits, DType::kF32, rows, kVocab);
    args.requests = reinterpret_cast<const RowRequest*>(device_requests.data());
    args.num_requests = rows;
    args.max_top = top;
    args.summaries = reinterpret_cast<RowSummary*>(results.data());
    args.best = reinterpret_cast<RankedLogit*>(results.data() + 4096);
    args.workspace = workspace.data();
    bench.Memory("logits " + std::to_string(rows) + " rows, top " + std::to_string(top), static_cast<double>(rows * kVocab) * 4,
                 [&](cudaStream_t stream) { return LaunchSummarize(args, stream); });
  }
}

// Seconds of a call until it returns, and until the device has done its work.
std::pair<double, double> SecondsOf(Ops& ops, int repeats, const std::function<absl::Status()>& body) {
  Must(body());
  Must(ops.Synchronize(Deadline::In(absl::Seconds(60))));
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < repeats; ++i) Must(body());
  const double queued = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  Must(ops.Synchronize(Deadline::In(absl::Seconds(60))));
  const double done = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return std::pair(queued / repeats, done / repeats);
}

void BenchTransfers(Ops& ops, std::byte* memory) {
  constexpr int64_t kRecord = 13234176;  // one expert of gpt-oss
  const AlignedBytes host(16 * kRecord);
  Must(ops.PinHost(host.span(), false));
  int64_t next = 0;
  const auto [copy_queued, copy_done] = SecondsOf(ops, 128, [&] {
    const auto record = std::span<const std::byte>(host.span()).subspan(next++ % 16 * kRecord, kRecord);
    return ops.CopyAsync(memory + next % 4 * kRecord, record, {}).status();
  });
  std::printf("\nCopyAsync of one 13.2 MB record: %.1f us to queue, %.1f GB/s\n", copy_queued * 1e6, kRecord / copy_done / 1e9);
  ops.UnpinHost(host.span());
  const std::vector<std::byte> pageable(32 << 20);
  const auto [upload_queued, upload_done] = SecondsOf(ops, 8, [&] { return ops.Upload(memory, pageable); });
  std::printf("Upload of 32 MiB: %.1f GB/s\n", 32.0 * 1048576 / upload_done / 1e9);
  std::vector<std::byte> back(32 << 20);
  const auto [download_queued, download_done] = SecondsOf(ops, 8, [&] { return ops.Download(back, memory); });
  std::printf("Download of 32 MiB: %.1f GB/s\n", 32.0 * 1048576 / download_done / 1e9);
  std::vector<std::byte> few(64);
  const auto [few_queued, few_done] = SecondsOf(ops, 200, [&] { return ops.Download(few, memory); });
  std::printf("Download of 64 bytes: %.1f us\n", few_done * 1e6);
}

void BenchLaunches(Ops& ops, std::byte* memory) {
  const Tensor x(memory, DType::kF32, 1, kEmbd), out(memory + (1 << 20), ops.activation_dtype(), 1, kEmbd);
  const auto [op_queued, op_done] =
      SecondsOf(ops, 1000, [&] { return ops.RmsNorm(x, reinterpret_cast<const float*>(memory + (2 << 20)), 1e-5, out); });
  std::printf("RmsNorm of one row: %.2f us to queue, %.2f us done\n", op_queued * 1e6, op_done * 1e6);
  const Stream stream = *Stream::Create();
  const auto [raw_queued, raw_done] = SecondsOf(ops, 1000, [&] {
    return CudaStatus(LaunchRmsNorm({x.data, x.dtype, 1, kEmbd, kEmbd}, reinterpret_cast<const float*>(memory + (2 << 20)), 1e-5f,
                                    {out.data, out.dtype, 1, kEmbd, kEmbd}, stream.get()),
                      "bench");
  });
  std::printf("its launch alone: %.2f us to queue\n", raw_queued * 1e6);
  const auto [device_queued, device_done] = SecondsOf(ops, 1000, [&] { return CudaStatus(cudaSetDevice(0), "bench"); });
  std::printf("cudaSetDevice alone: %.2f us\n", device_queued * 1e6);
  const auto [batch_queued, batch_done] = SecondsOf(ops, 200, [&] {
    Batch batch{
        .token_ids = {1},
        .sequences = {
            {.num_rows = 1, .first_position = 4000, .blocks = std::vector<int32_t>(126, 1), .ring_blocks = {1, 2, 3, 4, 5}}}};
    return ops.PrepareBatch(std::move(batch)).status();
  });
  std::printf("PrepareBatch of one row at 4000: %.2f us to queue\n", batch_queued * 1e6);
  const std::vector<float> rows(300 * kEmbd, 1.0f);
  std::vector<int32_t> outs(300);
  for (int i = 0; i < 300; ++i) outs[i] = i;
  const Tensor contributions(memory, ops.contribution_dtype(), 300, kEmbd);
  const auto [scatter_queued, scatter_done] =
      SecondsOf(ops, 50, [&] { return ops.ScatterContributions(rows, outs, contributions); });
  std::printf("ScatterContributions of 300 rows: %.1f us to queue, %.1f us done (%.1f GB/s)\n", scatter_queued * 1e6,
              scatter_done * 1e6, 300.0 * kEmbd * 4 / scatter_done / 1e9);
}

// The work of the host and of the link, through the Ops interface, by the wall clock.
void BenchQueues(Bench& bench) {
  if (!bench.Wanted("queues")) return;
  auto created = CreateCudaOps({});
  Must(created.status());
  auto memory = (*created)->Allocate(int64_t{64} << 20);
  Must(memory.status());
  BenchTransfers(**created, memory->data());
  BenchLaunches(**created, memory->data());
}

}  // namespace
}  // namespace ferry::cuda

int main(int argc, char** argv) {
  using namespace ferry::cuda;
  if (ferry::NumCudaDevices() == 0) {
    std::fprintf(stderr, "no GPU on this machine\n");
    return 1;
  }
  Bench bench(argc > 1 ? argv[1] : "");
  BenchRows(bench);
  BenchRope(bench);
  BenchAttention(bench);
  BenchRouting(bench);
  BenchLogits(bench);
  BenchQueues(bench);
  return 0;
}
