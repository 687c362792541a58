#include "worker/host_rows.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "common/half.h"
#include "kernels/element_bytes.h"

namespace ferry {
namespace {

constexpr int64_t kGatherRows = 256;  // rows gathered at once
constexpr int64_t kWholeFrom = 2;     // where half of the rows or more are wanted, all come: one copy costs less than gathers
constexpr size_t kPage = 4096;        // pinned memory shares no page with other pinned memory

void ToFloats(DType dtype, const std::byte* from, std::span<float> out) {
  if (dtype == DType::kF32) {
    std::memcpy(out.data(), from, out.size_bytes());
    return;
  }
  const uint16_t* const raw = reinterpret_cast<const uint16_t*>(from);
  if (dtype == DType::kBF16) {
    for (size_t i = 0; i < out.size(); ++i) out[i] = BFloat16ToFloat(raw[i]);
  } else {
    for (size_t i = 0; i < out.size(); ++i) out[i] = HalfToFloat(raw[i]);
  }
}

}  // namespace

HostRows::HostRows(Ops* ops, int64_t n_embd) : ops_(*ops), n_embd_(n_embd) {
  const size_t bytes = kMaxRowsAhead * n_embd * ElementBytes(ops->activation_dtype());
  ahead_bytes_ = (bytes + kPage - 1) / kPage * kPage;
  ahead_.reset(static_cast<std::byte*>(std::aligned_alloc(kPage, ahead_bytes_)));
}

HostRows::~HostRows() {
  if (pinned_) ops_.UnpinHost(ahead());
}

int64_t HostRows::BytesOf(const Ops& ops, int64_t n_embd) { return kGatherRows * n_embd * ElementBytes(ops.activation_dtype()); }

absl::StatusOr<std::unique_ptr<HostRows>> HostRows::Create(Ops* ops, int64_t n_embd) {
  std::unique_ptr<HostRows> rows(new HostRows(ops, n_embd));
  if (rows->ahead_ == nullptr) return ResourceExhausted("no %d bytes for rows on their way to the host", rows->ahead_bytes_);
  rows->pinned_ = ops->PinHost(rows->ahead(), /*read_only=*/false).ok();  // otherwise a queued download waits
  ASSIGN_OR_RETURN(rows->gathered_, ops->Allocate(BytesOf(*ops, n_embd)));
  return rows;
}

absl::Status HostRows::Begin(Tensor in, bool wanted) {
  dtype_ = in.dtype;
  rows_ahead_ = wanted && in.rows <= kMaxRowsAhead ? in.rows : 0;
  if (rows_ahead_ == 0) return absl::OkStatus();
  return ops_.DownloadAsync(ahead().first(rows_ahead_ * n_embd_ * ElementBytes(in.dtype)), in.data);
}

absl::Status HostRows::Fetch(Tensor in, std::span<const int32_t> rows) {
  if (rows_ahead_ > 0) return absl::OkStatus();
  const int64_t num_rows = static_cast<int64_t>(rows.size()), row_bytes = n_embd_ * ElementBytes(in.dtype);
  place_in_fetched_.resize(in.rows);
  if (num_rows >= in.rows / kWholeFrom) {
    fetched_.resize(in.rows * row_bytes);
    std::iota(place_in_fetched_.begin(), place_in_fetched_.end(), 0);
    return ops_.Download(fetched_, in.data);
  }
  fetched_.resize(num_rows * row_bytes);
  for (int64_t i = 0; i < num_rows; ++i) place_in_fetched_[rows[i]] = static_cast<int32_t>(i);
  for (int64_t first = 0; first < num_rows; first += kGatherRows) {
    const int64_t count = std::min(kGatherRows, num_rows - first);
    const Tensor gathered = {gathered_.data(), in.dtype, count, n_embd_};
    RETURN_IF_ERROR(ops_.GatherRows(in, rows.subspan(first, count), gathered));
    RETURN_IF_ERROR(ops_.Download(std::span(fetched_).subspan(first * row_bytes, count * row_bytes), gathered.data));
  }
  return absl::OkStatus();
}

absl::Status HostRows::Download(Tensor in, std::span<const int32_t> rows, std::span<float> out) {
  if (rows_ahead_ == 0) return ops_.DownloadRows(in, rows, out);
  Read(rows, out);
  return absl::OkStatus();
}

void HostRows::Read(std::span<const int32_t> rows, std::span<float> out) const {
  const int64_t row_bytes = n_embd_ * ElementBytes(dtype_);
  for (size_t i = 0; i < rows.size(); ++i) {
    const std::byte* const row =
        rows_ahead_ > 0 ? ahead_.get() + rows[i] * row_bytes : fetched_.data() + place_in_fetched_[rows[i]] * row_bytes;
    ToFloats(dtype_, row, out.subspan(i * n_embd_, n_embd_));
  }
}

}  // namespace ferry
