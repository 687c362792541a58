#include "coordinator/planning/probe_disturbance.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <sstream>

namespace ferry {
namespace {

constexpr double kShareOfOthers = 0.05, kLeastCores = 1.0 / 3;
constexpr double kAgreement = 1.25, kContradiction = 2;

double Seconds(const timeval& time) { return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec); }

bool Agree(double a, double b) { return a == b || (a > 0 && b > 0 && std::max(a, b) <= kAgreement * std::min(a, b)); }

}  // namespace

absl::StatusOr<ProcessorTime> ParseProcessorTime(const std::string& stat, double tick_seconds) {
  ProcessorTime time;
  std::istringstream lines(stat);
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with("cpu")) continue;
    std::istringstream words(line);
    std::string name;
    double user = 0, nice = 0, system = 0, idle = 0, waiting = 0, interrupts = 0, soft_interrupts = 0, stolen = 0;
    words >> name;
    if (name != "cpu") {
      ++time.cores;
      continue;
    }
    if (!(words >> user >> nice >> system >> idle >> waiting >> interrupts >> soft_interrupts)) break;
    words >> stolen;
    time.busy = tick_seconds * (user + nice + system + interrupts + soft_interrupts + stolen);
  }
  if (time.cores == 0) return NotFound("/proc/stat does not tell what the processors do");
  return time;
}

absl::StatusOr<ProcessorTime> ReadProcessorTime() {
  std::ifstream file("/proc/stat");
  const std::string text(std::istreambuf_iterator<char>(file), {});
  ASSIGN_OR_RETURN(ProcessorTime time, ParseProcessorTime(text, 1.0 / static_cast<double>(::sysconf(_SC_CLK_TCK))));
  rusage own;
  if (::getrusage(RUSAGE_SELF, &own) == 0) time.own = Seconds(own.ru_utime) + Seconds(own.ru_stime);
  return time;
}

std::string OthersAtWork(const ProcessorTime& before, const ProcessorTime& after, double seconds) {
  if (!(seconds > 0)) return "";
  const double cores = ((after.busy - before.busy) - (after.own - before.own)) / seconds;
  if (cores <= std::max(kLeastCores, kShareOfOthers * after.cores)) return "";
  return absl::StrFormat("other programs used %.1f of %d cores meanwhile", cores, after.cores);
}

std::string Disagreement(const ExpertRates& first, const ExpertRates& second) {
  if (!Agree(first.read_bytes_per_second, second.read_bytes_per_second)) {
    return absl::StrFormat("experts were read at %.1f and then at %.1f GB/s", first.read_bytes_per_second / 1e9,
                           second.read_bytes_per_second / 1e9);
  }
  if (!Agree(first.flops_per_second, second.flops_per_second)) {
    return absl::StrFormat("experts were multiplied at %.0f and then at %.0f GFLOP/s", first.flops_per_second / 1e9,
                           second.flops_per_second / 1e9);
  }
  return "";
}

std::string Contradiction(const v1::GetServerInfoResponse& info) {
  const auto contradicts = [](double slowdown) {
    return slowdown > 0 && (slowdown > kContradiction || slowdown < 1 / kContradiction);
  };
  const double host = info.host_experts().slowdown_of_large_steps();
  if (contradicts(host)) return absl::StrFormat("experts on the host took %.2f times as long in steps", host);
  for (const v1::WorkerInfo& worker : info.workers()) {
    if (!contradicts(worker.link_slowdown())) continue;
    return absl::StrFormat("copies to worker %d took %.2f times as long in steps", worker.worker_id(), worker.link_slowdown());
  }
  return "";
}

}  // namespace ferry
