#include "worker/host_rows.h"

#include <algorithm>
#include <cstring>

#include "common/half.h"
#include "kernels/element_bytes.h"

namespace ferry {
namespace {

constexpr int64_t kGatherRows = 256;  // rows gathered at once
constexpr size_t kPage = 4096;        // pinned memory shares no page with other pinned memory

void ToFloats(DType dtype, const std::byte* from, std::span<float> out) {
  if (dtype == DType::kF32) {
    std::memcpy(out.data(), from, out.size_bytes());
    return;
  }
  const uint16_t* const raw = reinterpret_cast<const uint16_t*>(from);
  for (size_t i = 0; i < out.size(); ++i) out[i] = dtype == DType::kBF16 ? BFloat16ToFloat(raw[i]) : HalfToFloat(raw[i]);
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
  rows_ahead_ = wanted && in.rows <= kMaxRowsAhead ? in.rows : 0;
  if (rows_ahead_ == 0) return absl::OkStatus();
  return ops_.DownloadAsync(ahead().first(rows_ahead_ * n_embd_ * ElementBytes(in.dtype)), in.data);
}

absl::Status HostRows::Read(Tensor in, std::span<const int32_t> rows, std::span<float> out) {
  const int64_t num_rows = static_cast<int64_t>(rows.size()), row_bytes = n_embd_ * ElementBytes(in.dtype);
  if (rows_ahead_ > 0) {
    for (int64_t i = 0; i < num_rows; ++i) {
      ToFloats(in.dtype, ahead_.get() + rows[i] * row_bytes, out.subspan(i * n_embd_, n_embd_));
    }
    return absl::OkStatus();
  }
  const bool all_rows = num_rows == in.rows;
  const int64_t rows_at_once = all_rows ? num_rows : kGatherRows;
  for (int64_t first = 0; first < num_rows; first += rows_at_once) {
    const int64_t count = std::min(rows_at_once, num_rows - first);
    Tensor from = in;
    if (!all_rows) {
      from = {gathered_.data(), in.dtype, count, n_embd_};
      RETURN_IF_ERROR(ops_.GatherRows(in, rows.subspan(first, count), from));
    }
    const std::span<float> part = out.subspan(first * n_embd_, count * n_embd_);
    if (in.dtype == DType::kF32) {
      RETURN_IF_ERROR(ops_.Download(std::as_writable_bytes(part), from.data));
      continue;
    }
    raw_rows_.resize(count * row_bytes);
    RETURN_IF_ERROR(ops_.Download(raw_rows_, from.data));
    ToFloats(in.dtype, raw_rows_.data(), part);
  }
  return absl::OkStatus();
}

}  // namespace ferry
