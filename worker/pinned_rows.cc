#include "worker/pinned_rows.h"

#include <sys/mman.h>

#include <cerrno>
#include <utility>

#include "common/log.h"

namespace ferry {

absl::StatusOr<std::unique_ptr<PinnedRows>> PinnedRows::Create(Ops* ops, int64_t n_embd, int64_t num_rows) {
  const size_t num_floats = static_cast<size_t>(n_embd * num_rows);
  const size_t bytes = kRowsAt + std::max(num_floats * sizeof(float), static_cast<size_t>(kMaxFailureText));
  void* const memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return ResourceExhausted("no %d bytes of memory for hidden states", bytes);
  return std::unique_ptr<PinnedRows>(new PinnedRows(ops, static_cast<std::byte*>(memory), bytes, num_floats));
}

PinnedRows::~PinnedRows() {
  if (pinned_) ops_->UnpinHost({memory_, bytes_});
  ::munmap(memory_, bytes_);
}

void PinnedRows::Pin() {
  if (std::exchange(tried_, true) || ops_ == nullptr) return;
  const absl::Status pinned = ops_->PinHost({memory_, bytes_}, /*read_only=*/false);
  if (!pinned.ok()) spdlog::warn("hidden states cannot be pinned, and travel slower: {}", pinned.ToString());
  pinned_ = pinned.ok();
}

absl::StatusOr<std::unique_ptr<PinnedRows>> PinnedRowsPool::Take() {
  {
    const std::lock_guard lock(mutex_);
    if (!free_.empty()) {
      std::unique_ptr<PinnedRows> rows = std::move(free_.back());
      free_.pop_back();
      return rows;
    }
  }
  return PinnedRows::Create(ops_, n_embd_, num_rows_);
}

void PinnedRowsPool::GiveBack(std::unique_ptr<PinnedRows> rows) {
  const std::lock_guard lock(mutex_);
  free_.push_back(std::move(rows));
}

}  // namespace ferry
