#include "worker/link_choice.h"

#include <cmath>

namespace ferry {
namespace {

constexpr double kMargin = 0.95;  // a way that is as fast by chance is not worth a second one

}  // namespace

const char* NameOf(Transport transport) {
  switch (transport) {
    case Transport::kAuto:
      return "auto";
    case Transport::kShm:
      return "shm";
    case Transport::kTcp:
      return "tcp";
    case Transport::kNccl:
      return "nccl";
    case Transport::kGrpc:
      return "grpc";
  }
  return "";
}

std::vector<int64_t> RowsToMeasure(int64_t max_rows) {
  std::vector<int64_t> rows;
  for (const int64_t each : {int64_t{1}, int64_t{64}, int64_t{512}, int64_t{4096}}) {
    if (each <= max_rows) rows.push_back(each);
  }
  return rows;
}

int64_t NcclFromRows(std::span<const LinkTime> times) {
  int64_t from = kNoMessage;
  for (size_t i = times.size(); i-- > 0 && times[i].nccl < kMargin * times[i].shm;) from = times[i].rows;
  return from;
}

std::string DescribeChoice(std::span<const LinkTime> times) {
  if (times.empty()) return "nothing was measured";
  const int64_t from = NcclFromRows(times);
  const LinkTime& most = times.back();
  const std::string choice = from == kNoMessage           ? "shared memory"
                             : from == times.front().rows ? "NCCL"
                                                          : absl::StrFormat("NCCL from %d rows on, shared memory below", from);
  return absl::StrFormat("%s: %d rows took %.0f us over NCCL and %.0f us through shared memory", choice, most.rows,
                         absl::ToDoubleMicroseconds(most.nccl), absl::ToDoubleMicroseconds(most.shm));
}

bool TakesTcp(std::span<const LinkTime> times) {
  double logs = 0;  // of the ratios
  for (const LinkTime& time : times) logs += std::log(absl::FDivDuration(time.tcp, time.grpc));
  return !(logs > 0);
}

std::string DescribeTcpChoice(std::span<const LinkTime> times) {
  if (times.empty()) return "nothing was measured";
  std::string text = "tcp and gRPC took";
  for (const LinkTime& time : times) {
    text += absl::StrFormat("%s %.0f and %.0f us for %d rows", time.rows == times.front().rows ? "" : ",",
                            absl::ToDoubleMicroseconds(time.tcp), absl::ToDoubleMicroseconds(time.grpc), time.rows);
  }
  return text;
}

}  // namespace ferry
