#include "common/heap_trimmer.h"

#include <malloc.h>

namespace ferry {
namespace {

constexpr int kLargePieceBytes = 1 << 20;

}  // namespace

absl::StatusOr<std::unique_ptr<RepeatingThread>> StartHeapTrimmer(absl::Duration pause) {
  return RepeatingThread::Start(pause, [] { ::malloc_trim(0); });
}

void ReturnLargePiecesAtOnce() { ::mallopt(M_MMAP_THRESHOLD, kLargePieceBytes); }

}  // namespace ferry
