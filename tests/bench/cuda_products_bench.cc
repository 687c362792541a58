// Times the products of the CUDA backend beside this machine's own ceilings, measured in the same run: a large bf16
// product by cuBLAS (loaded at run time; --no-cublas leaves it out) and a large copy inside device memory.
//
//   cuda_products_bench [--no-cublas] [--only=experts|few|single|formats|few-formats|dense] [--type=NAME] [--portable]
//   [--few=ROWS] [--expansion=MIB]
//
// Medians of repeated runs between events, after warm-ups. Weights are random; several copies are used in turn where
// one would stay in the L2 cache.
#include <cublas_v2.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "common/half.h"
#include "common/model/expert_layout.h"
#include "common/model/formats/formats.h"
#include "kernels/cuda/device_views.h"
#include "kernels/cuda/expert_mlp.h"
#include "kernels/cuda/staging.h"
#include "kernels/cuda/tiled_gemm.h"
#include "tests/testing/random_tensors.h"

namespace ferry {
namespace {

int64_t expansion_bytes = cuda::kExpansionBytes;

void Must(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}
void Must(const char* error, const char* what) {
  if (error == nullptr) return;
  std::fprintf(stderr, "%s: %s\n", what, error);
  std::exit(1);
}

std::byte* Allocate(int64_t bytes) {
  void* data = nullptr;
  Must(cudaMalloc(&data, bytes), "cudaMalloc");
  return static_cast<std::byte*>(data);
}
template <typename T>
T* ToDevice(const std::vector<T>& values) {
  std::byte* data = Allocate(values.size() * sizeof(T));
  Must(cudaMemcpy(data, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice), "cudaMemcpy");
  return reinterpret_cast<T*>(data);
}

// Median microseconds of one `run`, timed `repeats` times in groups of `group`.
double MedianUs(int repeats, int group, const std::function<void(int)>& run) {
  cudaEvent_t start, stop;
  Must(cudaEventCreate(&start), "event"), Must(cudaEventCreate(&stop), "event");
  int turn = 0;
  for (int i = 0; i < 2 * group; ++i) run(turn++);
  std::vector<float> times;
  for (int i = 0; i < repeats; ++i) {
    Must(cudaEventRecord(start), "record");
    for (int j = 0; j < group; ++j) run(turn++);
    Must(cudaEventRecord(stop), "record");
    Must(cudaEventSynchronize(stop), "run");
    float ms = 0;
    Must(cudaEventElapsedTime(&ms, start, stop), "elapsed");
    times.push_back(ms * 1000 / group);
  }
  std::sort(times.begin(), times.end());
  cudaEventDestroy(start), cudaEventDestroy(stop);
  return times[times.size() / 2];
}

std::vector<uint16_t> RandomBf16(int64_t count) {
  RandomBits random(1);
  std::vector<uint16_t> values(count);
  for (uint16_t& value : values) value = FloatToBFloat16(static_cast<float>(random.Uniform() * 2 - 1));
  return values;
}

// FLOP/s of the largest product cuBLAS runs fast; 0 when the library cannot be loaded.
double CublasFlops() {
  void* library = dlopen("libcublas.so.13", RTLD_NOW | RTLD_GLOBAL);
  if (library == nullptr) library = dlopen("libcublas.so", RTLD_NOW | RTLD_GLOBAL);
  if (library == nullptr) return 0;
  const auto create = reinterpret_cast<decltype(&cublasCreate_v2)>(dlsym(library, "cublasCreate_v2"));
  using GemmEx = cublasStatus_t (*)(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int, const void*, const void*,
                                    cudaDataType, int, const void*, cudaDataType, int, const void*, void*, cudaDataType, int,
                                    cublasComputeType_t, cublasGemmAlgo_t);
  const auto product = reinterpret_cast<GemmEx>(dlsym(library, "cublasGemmEx"));
  cublasHandle_t handle;
  if (create == nullptr || product == nullptr || create(&handle) != CUBLAS_STATUS_SUCCESS) return 0;
  const int n = 8192;
  uint16_t* a = ToDevice(RandomBf16(int64_t{n} * n));
  std::byte* c = Allocate(int64_t{n} * n * 2);
  const float one = 1, zero = 0;
  const double us = MedianUs(10, 3, [&](int) {
    product(handle, CUBLAS_OP_T, CUBLAS_OP_N, n, n, n, &one, a, CUDA_R_16BF, n, a, CUDA_R_16BF, n, &zero, c, CUDA_R_16BF, n,
            CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
  });
  cudaFree(a), cudaFree(c);
  return 2.0 * n * n * n / us * 1e6;
}

double CopyBytesPerSecond() {
  const int64_t bytes = int64_t{2} << 30;
  std::byte *a = Allocate(bytes), *b = Allocate(bytes);
  const double us = MedianUs(10, 1, [&](int) { Must(cudaMemcpyAsync(b, a, bytes, cudaMemcpyDeviceToDevice), "copy"); });
  cudaFree(a), cudaFree(b);
  return 2.0 * static_cast<double>(bytes) / us * 1e6;
}

struct Ceilings {
  double flops = 0, bytes = 0;
};
void Print(const Ceilings& ceilings, const std::string& what, double us, double flops, double bytes) {
  std::printf("%-58s %9.1f us  %6.1f TFLOP/s (%3.0f %%)  %6.0f GB/s (%3.0f %%)\n", what.c_str(), us, flops / us * 1e-6,
              ceilings.flops > 0 ? 100 * flops / us * 1e6 / ceilings.flops : 0, bytes / us * 1e-3,
              100 * bytes / us * 1e6 / ceilings.bytes);
  std::fflush(stdout);
}

// A layer of experts in device memory, all with the same random weights in different places.
class Experts {
 public:
  Experts(DType type, int64_t num_experts, int64_t n_embd, int64_t n_ff)
      : num_experts_(num_experts), layout_(*ExpertLayout::Create(type, type, type, n_embd, n_ff, true)) {
    const AlignedBytes record = RandomExpertRecord(layout_, 1);
    records_ = Allocate(num_experts * layout_.bytes);
    for (int64_t e = 0; e < num_experts; ++e) {
      Must(cudaMemcpy(records_ + e * layout_.bytes, record.data(), layout_.bytes, cudaMemcpyHostToDevice), "records");
    }
    shape_ = {.n_embd = n_embd,
              .n_ff = n_ff,
              .gate = cuda::MatrixOf(layout_.gate, layout_.gate_offset, layout_.gate_bias_offset),
              .up = cuda::MatrixOf(layout_.up, layout_.up_offset, layout_.up_bias_offset),
              .down = cuda::MatrixOf(layout_.down, layout_.down_offset, layout_.down_bias_offset)};
  }
  ~Experts() { cudaFree(records_); }

  // Time of one call; with `turns` > 1, turn t uses experts (e + t * rows.size()) instead, so that calls do not share
  // weights.
  void Time(const Ceilings& ceilings, const cuda::ProductDevice& device, const std::string& what,
            const std::vector<int32_t>& rows, int turns = 1, DType out_type = DType::kBF16) {
    std::vector<int32_t> offsets = {0};
    for (const int32_t count : rows) offsets.push_back(offsets.back() + count);
    const int64_t entries = offsets.back(), tokens = std::max<int64_t>(entries / 4, 1);
    RandomBits random(2);
    std::vector<int32_t> entry_rows(entries), entry_outs(entries);
    for (int32_t& row : entry_rows) row = static_cast<int32_t>(random.Below(tokens));
    std::iota(entry_outs.begin(), entry_outs.end(), 0);
    for (int64_t i = entries - 1; i > 0; --i) std::swap(entry_outs[i], entry_outs[random.Below(i + 1)]);
    cuda::ExpertMlpArgs args;
    args.shape = shape_;
    int32_t *device_offsets = ToDevice(offsets), *device_rows = ToDevice(entry_rows), *device_outs = ToDevice(entry_outs);
    uint16_t* in = ToDevice(RandomBf16(tokens * shape_.n_embd));
    std::byte* out = Allocate(entries * shape_.n_embd * (out_type == DType::kF32 ? 4 : 2));
    args.workspace_bytes = ExpertMlpWorkspaceBytes(shape_, entries);
    args.workspace = Allocate(args.workspace_bytes);
    args.expansion.bytes = expansion_bytes;
    args.expansion.data = Allocate(args.expansion.bytes);
    args.offsets = device_offsets, args.rows = device_rows, args.outs = device_outs;
    args.in = in, args.in_rows = tokens, args.in_stride = shape_.n_embd;
    args.contributions = out, args.out_type = out_type, args.out_rows = entries, args.out_stride = shape_.n_embd;
    std::vector<std::vector<cuda::ExpertMlpUse>> uses(turns);
    int64_t active = 0;
    for (int t = 0; t < turns; ++t) {
      for (size_t g = 0; g < rows.size(); ++g) {
        const int64_t expert = (static_cast<int64_t>(g) + t * static_cast<int64_t>(rows.size())) % num_experts_;
        uses[t].push_back({records_ + expert * layout_.bytes, static_cast<int32_t>(g), rows[g]});
      }
    }
    for (const int32_t count : rows) active += count > 0;
    const double us = MedianUs(11, turns > 1 ? turns : 2, [&](int turn) {
      args.uses = uses[turn % turns].data(), args.num_uses = static_cast<int64_t>(uses[turn % turns].size());
      Must(ExpertMlp(device, args, nullptr), "ExpertMlp");
    });
    Must(cudaDeviceSynchronize(), "ExpertMlp");
    Print(ceilings, what, us, static_cast<double>(entries * layout_.flops_per_token()),
          static_cast<double>(active * layout_.bytes));
    for (void* memory :
         {static_cast<void*>(device_offsets), static_cast<void*>(device_rows), static_cast<void*>(device_outs),
          static_cast<void*>(in), static_cast<void*>(out), args.workspace, static_cast<void*>(args.expansion.data)}) {
      cudaFree(memory);
    }
  }

 private:
  int64_t num_experts_;
  ExpertLayout layout_;
  cuda::ExpertShape shape_;
  std::byte* records_ = nullptr;
};

// Rows of each expert when `tokens` choose `top_k` of them by logits N(0, 1) plus a bias N(0, 1.5^2).
std::vector<int32_t> SkewedRows(int64_t num_experts, int64_t tokens, int top_k) {
  RandomBits random(3);
  std::vector<double> bias(num_experts);
  for (double& value : bias) value = 1.5 * random.Normal();
  std::vector<int32_t> rows(num_experts, 0);
  std::vector<std::pair<double, int>> logits(num_experts);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int e = 0; e < num_experts; ++e) logits[e] = {-(bias[e] + random.Normal()), e};
    std::partial_sort(logits.begin(), logits.begin() + top_k, logits.end());
    for (int i = 0; i < top_k; ++i) ++rows[logits[i].second];
  }
  return rows;
}

void TimeDense(const Ceilings& ceilings, const cuda::ProductDevice& device, DType type, int64_t n, int64_t k,
               const std::vector<int64_t>& row_counts) {
  const TiledLayout layout = *TiledLayout::Create(type, n, k);
  if (layout.row_bytes > 0) return;  // the planes below are two
  const OwnedTiledMatrix small = RandomTiledMatrix(type, 160, k, 1, 0.02f);
  const int turns = static_cast<int>(std::clamp<int64_t>((int64_t{160} << 20) / layout.bytes, 1, 8));
  std::vector<std::byte*> weights;
  for (int t = 0; t < turns; ++t) {
    weights.push_back(Allocate(layout.bytes));
    // Both planes of the small matrix, repeated.
    for (const auto [at, bytes, from, period] :
         {std::array<int64_t, 4>{0, layout.row_tiles() * layout.col_blocks() * layout.tile_code_bytes(), 0,
                                 small.matrix.layout.row_tiles() * layout.col_blocks() * layout.tile_code_bytes()},
          std::array<int64_t, 4>{layout.scales_offset, layout.bytes - layout.scales_offset, small.matrix.layout.scales_offset,
                                 small.matrix.layout.row_tiles() * layout.scale_blocks() * 16 * layout.scale_bytes}}) {
      for (int64_t done = 0; done < bytes && period > 0; done += period) {
        Must(cudaMemcpy(weights[t] + at + done, small.memory.data() + from, std::min(period, bytes - done),
                        cudaMemcpyHostToDevice),
             "weights");
      }
    }
  }
  const cuda::Expansion expansion = {Allocate(expansion_bytes), expansion_bytes};
  for (const int64_t m : row_counts) {
    uint16_t* act = ToDevice(RandomBf16(m * k));
    std::byte* out = Allocate(m * n * 2);
    cuda::TiledGemmArgs args;
    args.act = act, args.act_stride = k;
    args.matrix = cuda::MatrixOf(layout);
    args.expansion = expansion;
    args.m = m, args.n = n, args.k = k;
    args.out = out, args.out_type = DType::kBF16, args.out_stride = n;
    const double us = MedianUs(11, turns > 1 ? turns : 3, [&](int turn) {
      args.weight = weights[turn % turns];
      Must(TiledGemm(device, args, nullptr), "TiledGemm");
    });
    Must(cudaDeviceSynchronize(), "TiledGemm");
    Print(ceilings,
          "dense " + std::string(NameOf(type)) + " [" + std::to_string(n) + ", " + std::to_string(k) + "], " + std::to_string(m) +
              " rows",
          us, 2.0 * m * n * k, static_cast<double>(layout.bytes));
    cudaFree(act), cudaFree(out);
  }
  for (std::byte* weight : weights) cudaFree(weight);
  cudaFree(expansion.data);
}

int Run(int argc, char** argv) {
  bool cublas = true, portable = false;
  int few = -1;
  std::string only, type;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--no-cublas")
      cublas = false;
    else if (argument == "--portable")
      portable = true;
    else if (argument.starts_with("--few="))
      few = std::atoi(argument.c_str() + 6);
    else if (argument.starts_with("--expansion="))
      expansion_bytes = int64_t{std::atoi(argument.c_str() + 12)} << 20;
    else if (argument.starts_with("--only="))
      only = argument.substr(7);
    else if (argument.starts_with("--type="))
      type = argument.substr(7);
    else
      return std::fprintf(stderr, "unknown argument %s\n", argv[i]), 2;
  }
  cuda::ProductDevice device;
  Must(QueryProductDevice(0, &device), "GPU");
  if (portable) device.wgmma = false;
  if (few >= 0) device.few_rows_dense = device.few_rows_expert = few;
  const Ceilings ceilings = {cublas ? CublasFlops() : 798e12, CopyBytesPerSecond()};
  std::printf("ceilings: bf16 product %.0f TFLOP/s%s, copy %.0f GB/s; %s kernels\n", ceilings.flops * 1e-12,
              cublas ? " (cuBLAS, 8192^3)" : " (assumed)", ceilings.bytes * 1e-9, device.wgmma ? "wgmma" : "mma.sync");
  const auto wanted = [&](const char* name) { return only.empty() || only == name; };

  if (wanted("experts") || wanted("few") || wanted("single")) {
    Experts experts(DType::kMXFP4, 128, 2880, 2880);
    if (wanted("experts")) {
      experts.Time(ceilings, device, "128 experts, 128 rows each", std::vector<int32_t>(128, 128));
      experts.Time(ceilings, device, "128 experts, 4096 tokens, skewed", SkewedRows(128, 4096, 4));
      experts.Time(ceilings, device, "128 experts, 4096 tokens, skewed, F32 out", SkewedRows(128, 4096, 4), 1, DType::kF32);
      experts.Time(ceilings, device, "128 experts, 16384 tokens, skewed", SkewedRows(128, 16384, 4));
      experts.Time(ceilings, device, "32 experts, 512 rows each", std::vector<int32_t>(32, 512));
      experts.Time(ceilings, device, "32 experts, 4096 tokens, skewed", SkewedRows(32, 4096, 4));
      experts.Time(ceilings, device, "128 experts, 64 rows each", std::vector<int32_t>(128, 64));
    }
    if (wanted("few")) {
      for (const int rows : {1, 2, 4, 8, 12, 16, 17, 24, 32, 48}) {
        experts.Time(ceilings, device, "128 experts, " + std::to_string(rows) + " rows each", std::vector<int32_t>(128, rows));
      }
      experts.Time(ceilings, device, "4 experts, 1 row each (decode)", std::vector<int32_t>(4, 1), 32);
    }
    if (wanted("single")) {
      for (const int rows : {16, 64, 128, 256, 512, 2048}) {
        experts.Time(ceilings, device, "1 expert, " + std::to_string(rows) + " rows", {rows}, 16);
      }
      experts.Time(ceilings, device, "4 experts, 128 rows each", std::vector<int32_t>(4, 128), 16);
    }
  }
  if (wanted("formats")) {
    ForEachFormat([&]<DType kType>() {
      if (!type.empty() && type != Format<kType>::kName) return;
      // The shape of Qwen3-30B's experts.
      Experts experts(kType, 128, 2048, 768);
      const std::string name = std::string(Format<kType>::kName) + ", ";
      experts.Time(ceilings, device, name + "128 experts of 2048 x 768, 1 row each", std::vector<int32_t>(128, 1));
      experts.Time(ceilings, device, name + "8 experts, 1 row each (decode)", std::vector<int32_t>(8, 1), 16);
      experts.Time(ceilings, device, name + "128 experts, 12 rows each", std::vector<int32_t>(128, 12));
      experts.Time(ceilings, device, name + "128 experts, 256 rows each", std::vector<int32_t>(128, 256));
      if constexpr (kType == DType::kQ4_K || kType == DType::kQ6_K || kType == DType::kQ8_0) {
        TimeDense(ceilings, device, kType, 4096, 2048, {1, 8, 32, 512});
      }
    });
  }
  if (wanted("few-formats")) {
    ForEachFormat([&]<DType kType>() {
      if (!Format<kType>::kInteger || (!type.empty() && type != Format<kType>::kName)) return;
      Experts experts(kType, 128, 2048, 768);
      const std::string name = std::string(Format<kType>::kName) + ", ";
      for (const int rows : {1, 2, 4, 8, 16}) {
        experts.Time(ceilings, device, name + "128 experts of 2048 x 768, " + std::to_string(rows) + " rows each",
                     std::vector<int32_t>(128, rows));
      }
      experts.Time(ceilings, device, name + "8 experts, 1 row each (decode)", std::vector<int32_t>(8, 1), 16);
    });
  }
  if (wanted("dense")) {
    TimeDense(ceilings, device, DType::kQ8_0, 5120, 2880, {1, 8, 16, 32, 33, 64, 128, 512, 2048, 4096});
    TimeDense(ceilings, device, DType::kQ8_0, 2880, 4096, {1, 8, 32, 33, 128, 512, 4096});
    TimeDense(ceilings, device, DType::kBF16, 5120, 2880, {1, 128, 4096});
    TimeDense(ceilings, device, DType::kQ8_0, 201088, 2880, {1, 4, 32});
  }
  return 0;
}

}  // namespace
}  // namespace ferry

int main(int argc, char** argv) { return ferry::Run(argc, argv); }
