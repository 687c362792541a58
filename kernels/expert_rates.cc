#include "kernels/expert_rates.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "common/deadline.h"
#include "kernels/element_bytes.h"

namespace ferry {
namespace {

constexpr int64_t kMadeUpBytes = int64_t{512} << 20;
constexpr int64_t kCopiedBytes = int64_t{256} << 20;
constexpr int64_t kFewestCalls = 3;
constexpr int64_t kOperations = 400;                  // queued at once: 1 to 2 ms of a host's time
constexpr int64_t kBefore = 160, kRowsBefore = 4096;  // 4 ms of an H100
constexpr int kRounds = 6;
constexpr double kMedian = 0.5, kFast = 0.1;
constexpr absl::Duration kCallTimeout = absl::Seconds(20);
// A byte that makes neither NaN nor denormal numbers, as a code or as a scale of any type, nor as F32, F16 or BF16.
constexpr int kPlainByte = 0x3c;

absl::StatusOr<DeviceBuffer> UploadInts(Ops& ops, std::span<const int32_t> values) {
  ASSIGN_OR_RETURN(DeviceBuffer buffer, ops.Allocate(static_cast<int64_t>(values.size_bytes())));
  RETURN_IF_ERROR(ops.Upload(buffer.data(), std::as_bytes(values)));
  return buffer;
}

// Puts `rows` rows through `experts` records at a time.
class Call {
 public:
  static absl::StatusOr<Call> Create(Ops* ops, const ExpertLayout& layout, int64_t experts, int64_t rows) {
    Call call(ops, layout, experts, rows);
    const int64_t entries = experts * rows;
    std::vector<int32_t> offsets, entry_rows, outs(entries);
    for (int64_t e = 0; e <= experts; ++e) offsets.push_back(static_cast<int32_t>(e * rows));
    for (int64_t i = 0; i < entries; ++i) entry_rows.push_back(static_cast<int32_t>(i % rows));
    std::iota(outs.begin(), outs.end(), 0);
    ASSIGN_OR_RETURN(call.offsets_, UploadInts(*ops, offsets));
    ASSIGN_OR_RETURN(call.entry_rows_, UploadInts(*ops, entry_rows));
    ASSIGN_OR_RETURN(call.outs_, UploadInts(*ops, outs));
    const std::vector<std::byte> in(rows * layout.down.rows * ElementBytes(ops->activation_dtype()), std::byte{kPlainByte});
    ASSIGN_OR_RETURN(call.in_, ops->Allocate(static_cast<int64_t>(in.size())));
    RETURN_IF_ERROR(ops->Upload(call.in_.data(), in));
    ASSIGN_OR_RETURN(call.out_, ops->Allocate(entries * layout.down.rows * ElementBytes(ops->contribution_dtype())));
    return call;
  }

  // Seconds of the call that a `share` of the calls undercut, each with the records behind those of the one before. The first
  // does not count: it warms up. The records' pages are in this process's tables: the arena's since its load, made-up ones since
  // they were written.
  absl::StatusOr<double> Seconds(std::span<const std::byte* const> records, absl::Duration time, double share) {
    size_t next = 0;
    const auto call = [&]() -> absl::Status {
      std::vector<ExpertUse> uses;
      for (int64_t e = 0; e < experts_; ++e) {
        uses.push_back({.record = records[next++ % records.size()], .group = static_cast<int32_t>(e), .num_rows = rows_});
      }
      RETURN_IF_ERROR(ops_->ExpertMlp(layout_, uses, Groups(), GluParams(),
                                      Tensor(in_.data(), ops_->activation_dtype(), rows_, layout_.down.rows),
                                      Tensor(out_.data(), ops_->contribution_dtype(), experts_ * rows_, layout_.down.rows)));
      return ops_->Synchronize(Deadline::In(kCallTimeout));
    };
    RETURN_IF_ERROR(call());
    std::vector<double> seconds;
    const Deadline end = Deadline::In(time);
    while (static_cast<int64_t>(seconds.size()) < kFewestCalls || !end.Passed()) {
      const Stopwatch running;
      RETURN_IF_ERROR(call());
      seconds.push_back(running.Seconds());
    }
    const auto at = static_cast<size_t>(static_cast<double>(seconds.size()) * share);
    std::nth_element(seconds.begin(), seconds.begin() + at, seconds.end());
    return seconds[at];
  }

 private:
  Call(Ops* ops, const ExpertLayout& layout, int64_t experts, int64_t rows)
      : ops_(ops), layout_(layout), experts_(experts), rows_(rows) {}
  ExpertGroups Groups() const {
    return {.num_groups = experts_,
            .num_entries = experts_ * rows_,
            .offsets = offsets_.as<int32_t>(),
            .rows = entry_rows_.as<int32_t>(),
            .outs = outs_.as<int32_t>()};
  }

  Ops* ops_;
  ExpertLayout layout_;
  int64_t experts_, rows_;
  DeviceBuffer offsets_, entry_rows_, outs_, in_, out_;
};

}  // namespace

absl::StatusOr<ExpertRates> MeasureExperts(Ops& ops, const ExpertLayout& layout, std::span<const std::byte* const> records,
                                           const ExpertRatesOptions& options) {
  if (records.empty()) return InvalidArgument("no expert records to measure with");
  const int64_t num_records = static_cast<int64_t>(records.size());
  ExpertRates rates;
  const int64_t to_read = std::clamp<int64_t>(options.read_bytes / layout.bytes, 1, num_records);
  ASSIGN_OR_RETURN(Call read, Call::Create(&ops, layout, to_read, /*rows=*/1));
  ASSIGN_OR_RETURN(const double read_seconds, read.Seconds(records, options.time, kMedian));
  rates.read_bytes_per_second = static_cast<double>(to_read * layout.bytes) / read_seconds;
  const int64_t to_multiply = std::min(num_records, options.many_row_experts);
  ASSIGN_OR_RETURN(Call multiply, Call::Create(&ops, layout, to_multiply, options.many_rows));
  ASSIGN_OR_RETURN(const double multiply_seconds, multiply.Seconds(records.first(to_multiply), options.time, kFast));
  rates.flops_per_second = static_cast<double>(to_multiply * options.many_rows * layout.flops_per_token()) / multiply_seconds;
  for (size_t i = 0; options.curve && i < kCurveRows.size(); ++i) {
    ASSIGN_OR_RETURN(Call call, Call::Create(&ops, layout, to_multiply, kCurveRows[i]));
    ASSIGN_OR_RETURN(const double seconds, call.Seconds(records, options.time / 4, kFast));
    rates.flops_at_rows[i] = static_cast<double>(to_multiply * kCurveRows[i] * layout.flops_per_token()) / seconds;
  }
  return rates;
}

absl::StatusOr<ExpertRates> MeasureExpertsOn(Ops& ops, const ExpertLayout& layout, const ExpertRatesOptions& options) {
  const int64_t count = std::clamp<int64_t>(kMadeUpBytes / layout.bytes, 1, 1024);
  ASSIGN_OR_RETURN(const DeviceBuffer buffer, ops.Allocate(count * layout.bytes));
  const std::vector<std::byte> record(layout.bytes, std::byte{kPlainByte});
  std::vector<const std::byte*> records;
  for (int64_t i = 0; i < count; ++i) {
    std::byte* const place = buffer.data() + i * layout.bytes;
    RETURN_IF_ERROR(ops.Upload(place, record));
    records.push_back(place);
  }
  return MeasureExperts(ops, layout, records, options);
}

absl::StatusOr<double> MeasureOperation(Ops& ops, int64_t cols) {
  // On a device larger operations come first, so that all are queued before the first small one begins: otherwise the host's time
  // to queue would be measured.
  const bool on_host = ops.activation_dtype() == DType::kF32;
  const int64_t rows_before = on_host ? 1 : kRowsBefore, before = on_host ? 0 : kBefore;
  const std::vector<std::byte> zeros(rows_before * cols * sizeof(float));
  ASSIGN_OR_RETURN(const DeviceBuffer x, ops.Allocate(static_cast<int64_t>(zeros.size())));
  ASSIGN_OR_RETURN(const DeviceBuffer weight, ops.Allocate(cols * static_cast<int64_t>(sizeof(float))));
  ASSIGN_OR_RETURN(const DeviceBuffer out, ops.Allocate(static_cast<int64_t>(zeros.size())));
  RETURN_IF_ERROR(ops.Upload(x.data(), zeros));
  RETURN_IF_ERROR(ops.Upload(weight.data(), std::span(zeros).first(weight.bytes())));
  const auto queue = [&](int64_t count, int64_t rows) -> absl::Status {
    for (int64_t i = 0; i < count; ++i) {
      RETURN_IF_ERROR(ops.RmsNorm(Tensor(x.data(), DType::kF32, rows, cols), weight.as<float>(), 1e-5,
                                  Tensor(out.data(), ops.activation_dtype(), rows, cols)));
    }
    return absl::OkStatus();
  };
  double with = std::numeric_limits<double>::infinity(), without = with;
  for (int round = 0; round < kRounds; ++round) {
    for (double* const fastest : {&with, &without}) {
      RETURN_IF_ERROR(ops.Synchronize(Deadline::In(kCallTimeout)));
      const Stopwatch running;
      RETURN_IF_ERROR(queue(before, rows_before));
      if (fastest == &with) RETURN_IF_ERROR(queue(kOperations, 1));
      RETURN_IF_ERROR(ops.Synchronize(Deadline::In(kCallTimeout)));
      *fastest = std::min(*fastest, running.Seconds());
    }
  }
  if (with <= without) return Internal("%d additional operations took no additional time: this machine is too busy", kOperations);
  return (with - without) / kOperations;
}

absl::StatusOr<double> MeasureCopies(Ops& ops, int64_t bytes_per_copy, absl::Duration time) {
  const int64_t places = std::clamp<int64_t>(kCopiedBytes / bytes_per_copy, 1, 1024);
  const std::vector<std::byte> host(places * bytes_per_copy, std::byte{kPlainByte});
  const bool pinned = ops.PinHost(host, /*read_only=*/false).ok();  // as a worker, which copies from pageable memory otherwise
  const auto copy = [&]() -> absl::StatusOr<double> {
    ASSIGN_OR_RETURN(const DeviceBuffer device, ops.Allocate(places * bytes_per_copy));
    const Stopwatch running;
    int64_t bytes = 0;
    do {  // a round of copies is queued behind the one before
      Event last;
      for (int64_t i = 0; i < places; ++i) {
        ASSIGN_OR_RETURN(last, ops.CopyAsync(device.data() + i * bytes_per_copy,
                                             std::span(host).subspan(i * bytes_per_copy, bytes_per_copy), {}));
        bytes += bytes_per_copy;
      }
      RETURN_IF_ERROR(ops.Wait(last, Deadline::In(kCallTimeout)));
    } while (running.Elapsed() < time);
    return static_cast<double>(bytes) / running.Seconds();
  };
  const absl::StatusOr<double> rate = copy();
  if (pinned) ops.UnpinHost(host);
  return rate;
}

}  // namespace ferry
