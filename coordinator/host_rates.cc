#include "coordinator/host_rates.h"

#include <algorithm>
#include <cstring>

#include "absl/time/clock.h"

namespace ferry {
namespace {

constexpr int64_t kManyRows = 64;               // of one expert: products are bound by arithmetic from about 32 on
constexpr int64_t kManyRowExperts = 4;
constexpr int64_t kMaxReadBytes = 256 << 20;    // several times the last cache of common machines
constexpr int kRepeats = 3;

// Seconds of the fastest of some calls that put `rows` rows through each of `records`.
absl::StatusOr<double> Time(Ops& ops, const ExpertLayout& layout, std::span<const std::byte* const> records, int64_t rows) {
  const int64_t n_embd = layout.down.rows;
  const int64_t entries = rows * static_cast<int64_t>(records.size());
  std::vector<float> in(rows * n_embd), out(entries * n_embd);
  for (size_t i = 0; i < in.size(); ++i) in[i] = 0.01f * static_cast<float>(static_cast<int>(i % 201) - 100);
  std::vector<int32_t> offsets, entry_rows(entries), outs(entries);
  std::vector<ExpertUse> uses;
  for (size_t e = 0; e < records.size(); ++e) {
    uses.push_back({.record = records[e], .group = static_cast<int32_t>(e), .num_rows = rows});
    offsets.push_back(static_cast<int32_t>(e * rows));
  }
  offsets.push_back(static_cast<int32_t>(entries));
  for (int64_t i = 0; i < entries; ++i) entry_rows[i] = static_cast<int32_t>(i % rows), outs[i] = static_cast<int32_t>(i);
  const ExpertGroups groups = {.num_groups = static_cast<int64_t>(records.size()), .num_entries = entries,
                               .offsets = offsets.data(), .rows = entry_rows.data(), .outs = outs.data()};
  double best = 0;
  for (int repeat = 0; repeat < kRepeats; ++repeat) {
    const absl::Time start = absl::Now();
    RETURN_IF_ERROR(ops.ExpertMlp(layout, uses, groups, SwigluParams{}, Tensor(in.data(), DType::kF32, rows, n_embd),
                                  Tensor(out.data(), DType::kF32, entries, n_embd)));
    const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
    if (repeat == 0 || seconds < best) best = seconds;
  }
  return best;
}

}  // namespace

absl::StatusOr<HostExpertRates> MeasureHostExperts(Ops& ops, const ExpertLayout& layout,
                                                   std::span<const std::byte* const> records) {
  if (records.empty()) return InvalidArgument("no expert records to measure with");
  const size_t to_read = std::clamp<size_t>(static_cast<size_t>(kMaxReadBytes / layout.bytes), 1, records.size());
  HostExpertRates rates;
  ASSIGN_OR_RETURN(const double read_seconds, Time(ops, layout, records.first(to_read), 1));
  rates.read_bytes_per_second = static_cast<double>(to_read) * static_cast<double>(layout.bytes) / read_seconds;
  const size_t to_multiply = std::min<size_t>(records.size(), kManyRowExperts);
  ASSIGN_OR_RETURN(const double many_seconds, Time(ops, layout, records.first(to_multiply), kManyRows));
  rates.flops_per_second =
      static_cast<double>(to_multiply) * kManyRows * static_cast<double>(layout.flops_per_token()) / many_seconds;
  return rates;
}

absl::StatusOr<HostExpertRates> MeasureHostExpertsOn(Ops& ops, const ExpertLayout& layout) {
  const int64_t count = std::clamp<int64_t>(kMaxReadBytes / layout.bytes, 1, 1024);
  ASSIGN_OR_RETURN(const DeviceBuffer buffer, ops.Allocate(count * layout.bytes + kRecordAlignment));
  // A byte that makes neither NaN nor denormal numbers, as a code or as a scale of any type.
  std::memset(buffer.data(), 0x3c, static_cast<size_t>(buffer.bytes()));
  std::vector<const std::byte*> records;
  for (int64_t i = 0; i < count; ++i) records.push_back(buffer.data() + i * layout.bytes);
  return MeasureHostExperts(ops, layout, records);
}

}  // namespace ferry
