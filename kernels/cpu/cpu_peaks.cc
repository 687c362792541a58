#include "kernels/cpu/cpu_peaks.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstring>

namespace ferry {
namespace {

double Seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Memory in huge pages where the system gives them, as weights are kept: the walk through page tables costs 6 % here.
class Mapping {
 public:
  explicit Mapping(int64_t bytes) : bytes_(bytes) {
    void* data = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) return;
    data_ = static_cast<std::byte*>(data);
    madvise(data, static_cast<size_t>(bytes), MADV_HUGEPAGE);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() {
    if (data_ != nullptr) munmap(data_, static_cast<size_t>(bytes_));
  }
  std::byte* data() const { return data_; }

 private:
  std::byte* data_ = nullptr;
  int64_t bytes_;
};

// Cuts memory into slices, one for each repetition in turn, so that a repetition is short and yet finds nothing in the caches. A
// thread's part of a slice is contiguous, and its parts of all slices are.
template <typename Byte>
class Slices {
 public:
  Slices(Byte* data, int64_t bytes, int64_t threads)
      : data_(data), threads_(threads), part_bytes_(std::min(kPartBytes, bytes / (2 * threads) / kPage * kPage)) {
    if (part_bytes_ > 0) count_ = bytes / (part_bytes_ * threads);
  }

  int64_t part_bytes() const { return part_bytes_; }  // 0: too little memory for so many threads
  double slice_bytes() const { return static_cast<double>(part_bytes_ * threads_); }
  int64_t thread_bytes() const { return count_ * part_bytes_; }
  int64_t bytes() const { return thread_bytes() * threads_; }
  Byte* Part(int64_t slice, int64_t thread) const { return data_ + (thread * count_ + slice % count_) * part_bytes_; }

 private:
  static constexpr int64_t kPartBytes = int64_t{16} << 20, kPage = 4096;

  Byte* data_;
  int64_t threads_, part_bytes_, count_ = 0;
};

// Seconds of the fastest of `repetitions` calls of body(repetition, thread) on all threads at once.
template <typename Body>
double BestSeconds(ThreadPool& pool, int repetitions, const Body& body) {
  double best = 1e30;
  for (int repetition = 0; repetition < repetitions; ++repetition) {
    const double start = Seconds();
    pool.ParallelFor(pool.num_threads(), [&](int64_t task, int) { body(repetition, task); });
    best = std::min(best, Seconds() - start);
  }
  return best;
}

double BestOpsPerSecond(ThreadPool& pool, int repetitions, int64_t (*loop)(int64_t iterations)) {
  if (loop == nullptr) return 0;
  constexpr int64_t kIterations = 300'000;  // a millisecond or a few: past the wake-up of threads
  const int64_t ops = loop(1);
  const double seconds = BestSeconds(pool, repetitions, [&](int, int64_t) { loop(kIterations); });
  return static_cast<double>(ops) * kIterations * pool.num_threads() / seconds;
}

const PeakLoops* LoopsOf(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kPortable:
      return PortablePeakLoops();
    case CpuIsa::kAvx2:
      return Avx2PeakLoops();
    case CpuIsa::kAvx512:
      return Avx512PeakLoops();
    case CpuIsa::kAmx:
      return AmxPeakLoops();
    default:
      return NeonPeakLoops(isa);
  }
}

}  // namespace

absl::StatusOr<CpuPeaks> MeasureCpuPeaks(ThreadPool& pool, CpuIsa isa, const CpuPeaksOptions& options) {
  const PeakLoops* const loops = LoopsOf(isa);
  if (loops == nullptr || !MachineHas(isa)) return FailedPrecondition("this machine or build lacks %s", NameOf(isa));
  const int64_t threads = pool.num_threads();
  if (options.repetitions <= 0) return InvalidArgument("repetitions is %d, want 1 or more", options.repetitions);
  const int64_t wanted = Slices<std::byte>(nullptr, options.buffer_bytes, threads).bytes();
  if (wanted <= 0) return InvalidArgument("buffer_bytes is %d, want at least %d", options.buffer_bytes, 8192 * threads);
  const Mapping buffer(wanted);
  if (buffer.data() == nullptr) return ResourceExhausted("no memory for a buffer of %d bytes", wanted);
  const Slices<std::byte> own(buffer.data(), wanted, threads);
  // Each thread's pages are touched by it first, and so lie on its node.
  pool.ParallelFor(threads, [&](int64_t thread, int) {
    std::memset(own.Part(0, thread), static_cast<int>(thread + 1), static_cast<size_t>(own.thread_bytes()));
  });
  const Slices<const std::byte> given(options.memory.data(), static_cast<int64_t>(options.memory.size()), threads);
  const Slices<const std::byte> read = given.bytes() > 0 ? given : Slices<const std::byte>(buffer.data(), wanted, threads);

  CpuPeaks rates;
  rates.num_threads = pool.num_threads();
  rates.isa = isa;
  rates.read_bytes_per_second = read.slice_bytes() / BestSeconds(pool, options.repetitions, [&](int repetition, int64_t thread) {
                                  loops->read(read.Part(repetition, thread), read.part_bytes());
                                });
  rates.copy_bytes_per_second = own.slice_bytes() / BestSeconds(pool, options.repetitions, [&](int repetition, int64_t thread) {
                                  std::memcpy(own.Part(2 * repetition + 1, thread), own.Part(2 * repetition, thread),
                                              static_cast<size_t>(own.part_bytes()));
                                });
  rates.int8_ops_per_second = BestOpsPerSecond(pool, options.repetitions, loops->int8_dots);
  rates.bf16_ops_per_second = BestOpsPerSecond(pool, options.repetitions, loops->bf16_dots);
  rates.f32_ops_per_second = BestOpsPerSecond(pool, options.repetitions, loops->f32_fmas);
  rates.tile_ops_per_second = BestOpsPerSecond(pool, options.repetitions, loops->int8_tiles);
  return rates;
}

}  // namespace ferry
