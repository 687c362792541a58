#pragma once

// The shared-memory exchange between a worker and the coordinator of its host: "divide these activated experts" and "compute
// these rows through these experts where they lie". The coordinator makes one region (a memfd of
// its own, since the arena is sealed) and passes it with the arena's descriptor. It carries one request at a time; a worker has
// several, so that the engine finds the next computation there when it ends one.
//
// Neither side trusts the other's bytes: the engine copies the counts and ids out before it checks and uses them, and
// addresses are computed from checked (layer, expert) alone. Rows and contributions are plain numbers and need no check.
//
// Both sides wait as common/shm/paced_wait.h does, on a futex on the sequence word, with a deadline.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "common/deadline.h"
#include "common/shm/expert_region.h"
#include "common/status.h"

namespace ferry {

// Capacities for one request.
using MailboxShape = ExpertRegionShape;

// Of one worker. While the engine computes the request in one, the worker fills another or takes its answer.
inline constexpr int kMailboxesOfAWorker = 2;

enum class ExpertRequestKind : uint32_t { kPlan = 1, kCompute = 2 };

// Where an activated expert is computed: on the worker from a slot, on the worker after a copy, on the coordinator's host, or by
// another worker of the host, which PlaceOfHelper names.
enum class ExpertPlace : uint8_t { kResident = 0, kShip = 1, kHost = 2, kFirstHelper = 16 };

// Workers that may help are numbered by their ids, below this.
inline constexpr int64_t kMaxHelpers = 16;
inline constexpr ExpertPlace PlaceOfHelper(int64_t worker) {
  return static_cast<ExpertPlace>(static_cast<int64_t>(ExpertPlace::kFirstHelper) + worker);
}
inline constexpr bool IsHelper(ExpertPlace place) {
  return place >= ExpertPlace::kFirstHelper && place < PlaceOfHelper(kMaxHelpers);
}
// Of ExpertRequest::helpers: the worker has nothing else to do.
inline constexpr uint32_t HelperBit(int64_t worker) { return uint32_t{1} << worker; }
// Besides: its device and that of the worker that asks reach each other fast.
inline constexpr uint32_t NearHelperBit(int64_t worker) { return uint32_t{1} << (kMaxHelpers + worker); }
static_assert(2 * kMaxHelpers <= 32);
inline constexpr int64_t HelperOf(ExpertPlace place) {
  return static_cast<int64_t>(place) - static_cast<int64_t>(ExpertPlace::kFirstHelper);
}

struct ActivatedExpert {
  int32_t expert = 0;
  int32_t tokens = 0;     // rows that chose it, > 0
  uint32_t resident = 0;  // kPlan: 0 in no slot of the worker, 1 in one, kComing on its way into one
  bool operator==(const ActivatedExpert&) const = default;
};

inline constexpr uint32_t kComing = 2;

// A request, in the receiver's own memory. Checked: ids strictly increasing and < max_experts, 0 < tokens <= num_rows. kCompute:
// the tokens' sum is the number of entries and at most max_entries, num_rows at most max_rows, entry rows < num_rows. kPlan
// carries no rows and no entries, so one request can plan a step longer than the mailbox.
struct ExpertRequest {
  ExpertRequestKind kind = ExpertRequestKind::kPlan;
  uint64_t incarnation = 0;  // of the worker
  uint64_t step = 0;
  int32_t layer = 0;
  int32_t num_rows = 0;
  std::vector<ActivatedExpert> uses;
  std::vector<int32_t> entry_rows;  // kCompute: input row of each entry, grouped by use in order
  uint32_t helpers = 0;             // kPlan: HelperBit and NearHelperBit of workers
};
// InvalidArgument naming the field, for a request that came over any transport. Incarnation and step are the caller's to check.
absl::Status CheckExpertRequest(const ExpertRequest& request, const MailboxShape& shape, int64_t num_layers);

class ExpertMailbox {
 public:
  // The coordinator's side makes the region and passes fd() on.
  static absl::StatusOr<std::unique_ptr<ExpertMailbox>> Create(const MailboxShape& shape);
  // The worker's side maps it. InvalidArgument: the region is smaller than the shape says, was made for another shape, or may
  // shrink. Takes the descriptor.
  static absl::StatusOr<std::unique_ptr<ExpertMailbox>> Map(int fd, const MailboxShape& shape);
  ~ExpertMailbox();

  int fd() const;
  const MailboxShape& shape() const;

  // Both sides. Rows [max_rows, n_embd] and contributions [max_entries, n_embd], row-major F32.
  std::span<float> rows();
  std::span<float> contributions();

  // The worker's side. Post after filling rows(); then one Wait. ResourceExhausted: more than the shape holds;
  // FailedPrecondition: the answer to the last request has not come.
  absl::Status Post(const ExpertRequest& request);
  // OK: the answer is in contributions() for kCompute, and in `places`, one per use, for kPlan. Otherwise the engine's error;
  // DeadlineExceeded: no answer in time, and the mailbox refuses further posts until the late answer has come (another Wait
  // waits on for it). FailedPrecondition: nothing was posted. Internal: an invalid answer.
  absl::Status WaitForAnswer(Deadline deadline, std::vector<ExpertPlace>* places);
  // Whether WaitForAnswer would return at once with an answer.
  bool Answered() const;

  // The coordinator's side. Copies the next request out of the region and checks it against the shape. Answers a request that
  // fails the check with its error, and returns that error. DeadlineExceeded: no request came.
  absl::StatusOr<ExpertRequest> WaitForRequest(Deadline deadline, int64_t num_layers);
  // Answers the request that WaitForRequest returned last; no effect without one. `places`: kPlan, one for each use.
  void Answer(const absl::Status& status, std::span<const ExpertPlace> places);

 private:
  struct Impl;
  explicit ExpertMailbox(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace ferry
