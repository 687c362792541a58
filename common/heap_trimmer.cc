#include "common/heap_trimmer.h"

#include <malloc.h>

namespace ferry {
namespace {

// All logits of a row, 800 kB of them and a buffer that grew to hold them, come and go with every token of a constrained request:
// they stay, or each token would fault their pages in again. What stays is what the trimmer returns.
constexpr int kLargePieceBytes = 2 << 20;
constexpr int kKeptAtTheTopBytes = 8 << 20;

}  // namespace

absl::StatusOr<std::unique_ptr<RepeatingThread>> StartHeapTrimmer(absl::Duration pause) {
  return RepeatingThread::Start(pause, [] { ::malloc_trim(0); });
}

void ReturnLargePiecesAtOnce() {
  ::mallopt(M_MMAP_THRESHOLD, kLargePieceBytes);
  ::mallopt(M_TRIM_THRESHOLD, kKeptAtTheTopBytes);
}

}  // namespace ferry
