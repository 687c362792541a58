#pragma once

// Measures the peak rates of this machine, the ceilings of kernels. Benchmarks measure them in the same run as the kernels, since
// a shared machine changes within an hour.

#include <cstddef>
#include <cstdint>
#include <span>

#include "common/status.h"
#include "common/thread_pool.h"
#include "kernels/cpu/cpu_features.h"

namespace ferry {

struct CpuPeaksOptions {
  int64_t buffer_bytes = int64_t{1} << 30;  // read and copied; several times the last cache, or the cache is measured
  // Read instead of the buffer, unless empty: what a process has in memory anyway may be far larger.
  std::span<const std::byte> memory;
  // Of a millisecond or a few each. The best counts, since the load of others is no limit of the machine.
  int repetitions = 64;
};

// Rates with all threads of a pool at once. A product and its addition count as two operations.
struct CpuPeaks {
  int num_threads = 0;
  CpuIsa isa = CpuIsa::kPortable;
  double read_bytes_per_second = 0;  // straight lines, one for each thread, nothing but loads
  double copy_bytes_per_second = 0;  // bytes copied; twice as many cross the memory bus
  double int8_ops_per_second = 0;    // dot products of bytes into i32, as the instruction set has them
  double bf16_ops_per_second = 0;    // vdpbf16ps, BFDOT; 0 where the machine lacks it
  double f32_ops_per_second = 0;     // fused multiply-add
  double tile_ops_per_second = 0;    // int8 tiles of AMX, twice those of bf16; 0 unless `isa` is kAmx

  // What products of quantised weights can reach: tiles have 64 columns and a scale covers 32, so half of theirs.
  double product_ops_per_second() const { return tile_ops_per_second > 0 ? tile_ops_per_second / 2 : int8_ops_per_second; }
};

// Takes about a second. ResourceExhausted: no memory for the buffer; FailedPrecondition: the machine lacks `isa`.
// InvalidArgument: sizes that are not positive.
absl::StatusOr<CpuPeaks> MeasureCpuPeaks(ThreadPool& pool, CpuIsa isa, const CpuPeaksOptions& options);

// The loops of one instruction set, in files of their own (cpu_kernels.h says why). Each arithmetic loop runs `iterations`
// times and returns how many operations one iteration holds; null where there is no such instruction.
struct PeakLoops {
  void (*read)(const std::byte* data, int64_t bytes);  // a multiple of 256
  int64_t (*int8_dots)(int64_t iterations);
  int64_t (*bf16_dots)(int64_t iterations);
  int64_t (*f32_fmas)(int64_t iterations);
  int64_t (*int8_tiles)(int64_t iterations) = nullptr;
};
const PeakLoops* PortablePeakLoops();
const PeakLoops* Avx2PeakLoops();
const PeakLoops* Avx512PeakLoops();
const PeakLoops* AmxPeakLoops();
const PeakLoops* NeonPeakLoops(CpuIsa isa);  // kNeon, kDotprod or kI8mm

}  // namespace ferry
