#include "kernels/cpu/host_probe.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstring>

namespace ferry {
namespace {

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

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

template <typename Body>
double BestSeconds(ThreadPool& pool, int repeats, const Body& body) {
  double best = 1e30;
  for (int i = 0; i < repeats; ++i) {
    const double start = Seconds();
    pool.ParallelFor(pool.num_threads(), [&](int64_t task, int) { body(task); });
    best = std::min(best, Seconds() - start);
  }
  return best;
}

double BestOpsPerSecond(ThreadPool& pool, int repeats, int64_t (*loop)(int64_t iterations)) {
  if (loop == nullptr) return 0;
  constexpr int64_t kIterations = 2'000'000;  // some ten milliseconds: past the wake-up of threads and a slow clock's start
  loop(kIterations);
  const int64_t ops = loop(1);
  const double seconds = BestSeconds(pool, repeats, [&](int64_t) { loop(kIterations); });
  return static_cast<double>(ops) * kIterations * pool.num_threads() / seconds;
}

}  // namespace

absl::StatusOr<HostRates> ProbeHost(ThreadPool& pool, CpuIsa isa, const HostProbeOptions& options) {
  const ProbeLoops* loops = isa == CpuIsa::kAvx512   ? Avx512ProbeLoops()
                            : isa == CpuIsa::kAvx2 ? Avx2ProbeLoops()
                                                   : PortableProbeLoops();
  if (loops == nullptr || !MachineHas(isa)) return FailedPrecondition("this machine or build lacks %s", NameOf(isa));
  const int64_t threads = pool.num_threads();
  const int64_t part = options.buffer_bytes / (2 * threads) / 4096 * 4096;  // half the buffer is copied to the other half
  if (part <= 0) return InvalidArgument("buffer_bytes is %d, want at least %d", options.buffer_bytes, 8192 * threads);
  if (options.repeats <= 0) return InvalidArgument("repeats is %d, want 1 or more", options.repeats);

  const Mapping buffer(2 * part * threads);
  if (buffer.data() == nullptr) return ResourceExhausted("no memory for a probe of %d bytes", 2 * part * threads);
  // Each thread's pages are touched by it first, and so lie on its node.
  pool.ParallelFor(threads, [&](int64_t task, int) {
    std::memset(buffer.data() + 2 * part * task, static_cast<int>(task + 1), static_cast<size_t>(2 * part));
  });

  HostRates rates;
  rates.num_threads = pool.num_threads();
  rates.isa = isa;
  rates.read_bytes_per_second =
      static_cast<double>(2 * part * threads) / BestSeconds(pool, options.repeats, [&](int64_t task) {
        loops->read(buffer.data() + 2 * part * task, 2 * part);
      });
  rates.copy_bytes_per_second =
      static_cast<double>(part * threads) / BestSeconds(pool, options.repeats, [&](int64_t task) {
        std::byte* from = buffer.data() + 2 * part * task;
        std::memcpy(from + part, from, static_cast<size_t>(part));
      });
  rates.int8_ops_per_second = BestOpsPerSecond(pool, options.repeats, loops->int8_dots);
  rates.bf16_ops_per_second = BestOpsPerSecond(pool, options.repeats, loops->bf16_dots);
  rates.f32_ops_per_second = BestOpsPerSecond(pool, options.repeats, loops->f32_fmas);
  return rates;
}

}  // namespace ferry
