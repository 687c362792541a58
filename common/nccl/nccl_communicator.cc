#include "common/nccl/nccl_communicator.h"

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

#include "common/log.h"
#include "common/thread_limit.h"

namespace ferry {
namespace {

constexpr absl::Duration kTight = absl::Microseconds(200);  // most transfers pass within it; then the thread sleeps in between
constexpr auto kSleep = std::chrono::microseconds(50);
constexpr absl::Duration kErrorsEvery =
    absl::Milliseconds(1);  // a look at the communicator's errors costs more than one at an event

}  // namespace

absl::StatusOr<NcclUniqueId> NcclCommunicator::MakeId(const NcclLibrary& library) {
  NcclUniqueId id;
  RETURN_IF_ERROR(library.StatusOf(library.GetUniqueId(&id), "ncclGetUniqueId", nullptr));
  return id;
}

absl::StatusOr<std::unique_ptr<NcclCommunicator>> NcclCommunicator::Begin(const Options& options, const NcclUniqueId& id,
                                                                          int rank) {
  std::unique_ptr<NcclCommunicator> begun(new NcclCommunicator(options, rank));
  NcclConfig config;
  config.blocking = 0;
  const NcclLibrary& library = *options.library;
  const int result = library.CommInitRankConfig(&begun->comm_, /*num_ranks=*/2, id, rank, &config);
  RETURN_IF_ERROR(library.StatusOf(result, "ncclCommInitRankConfig", nullptr));
  return begun;
}

NcclCommunicator::~NcclCommunicator() { Abort(); }

absl::Status NcclCommunicator::AwaitReady(Deadline deadline, const std::function<bool()>& cancelled) {
  RETURN_IF_ERROR(Usable());
  return AwaitProgress("joining the other GPU", deadline, cancelled);
}

absl::Status NcclCommunicator::Send(const void* data, int64_t bytes, void* stream, Deadline deadline) {
  RETURN_IF_ERROR(Usable());
  return Posted(options_.library->Send(data, static_cast<size_t>(bytes), NcclLibrary::kBytesType, peer_, comm_, stream),
                "ncclSend", deadline);
}

absl::Status NcclCommunicator::Receive(void* data, int64_t bytes, void* stream, Deadline deadline) {
  RETURN_IF_ERROR(Usable());
  return Posted(options_.library->Recv(data, static_cast<size_t>(bytes), NcclLibrary::kBytesType, peer_, comm_, stream),
                "ncclRecv", deadline);
}

// A communicator that does not block posts by a thread of its own: tens of microseconds, and longer for the first transfer, which
// sets the connection up.
absl::Status NcclCommunicator::Posted(int result, const char* what, Deadline deadline) {
  if (const absl::Status posted = options_.library->StatusOf(result, what, comm_); !posted.ok()) return Fail(posted);
  return result == NcclLibrary::kInProgress ? AwaitProgress(what, deadline, nullptr) : absl::OkStatus();
}

absl::Status NcclCommunicator::AwaitProgress(const char* what, Deadline deadline, const std::function<bool()>& cancelled) {
  const Stopwatch waiting;
  while (true) {
    ASSIGN_OR_RETURN(const bool in_progress, InProgress(what));
    if (!in_progress) return absl::OkStatus();
    if (cut_) return Fail(Aborted("the epoch is over"));
    if (waiting.Elapsed() < kTight) continue;
    if (cancelled && cancelled()) return Fail(Cancelled("NCCL: %s: the other worker is gone", what));
    if (deadline.Passed()) return Fail(DeadlineExceeded("NCCL: %s takes too long", what));
    std::this_thread::sleep_for(kSleep);
  }
}

absl::StatusOr<bool> NcclCommunicator::InProgress(const char* what) {
  int error = NcclLibrary::kSuccess;
  const int result = options_.library->CommGetAsyncError(comm_, &error);
  for (const int each : {result, error}) {
    if (const absl::Status status = options_.library->StatusOf(each, what, comm_); !status.ok()) return Fail(status);
  }
  return error == NcclLibrary::kInProgress;
}

absl::Status NcclCommunicator::Await(const Passed& passed, Deadline deadline) {
  RETURN_IF_ERROR(Usable());
  const Stopwatch waiting;
  absl::Duration look = kErrorsEvery;
  while (true) {
    const absl::StatusOr<bool> done = passed();
    if (!done.ok()) return Fail(done.status());
    if (*done) return absl::OkStatus();
    if (cut_) return Fail(Aborted("the epoch is over"));
    const absl::Duration elapsed = waiting.Elapsed();
    if (elapsed < kTight) continue;
    if (elapsed > look) {
      look = elapsed + kErrorsEvery;
      RETURN_IF_ERROR(InProgress("a transfer").status());
      if (deadline.Passed()) return Fail(DeadlineExceeded("NCCL: the other worker took part in no transfer in time"));
    }
    std::this_thread::sleep_for(kSleep);
  }
}

absl::Status NcclCommunicator::Usable() {
  RETURN_IF_ERROR(failed_);
  return cut_ ? Fail(Aborted("the epoch is over")) : absl::OkStatus();
}

absl::Status NcclCommunicator::Fail(absl::Status why) {
  failed_ = std::move(why);
  Abort();
  return failed_;
}

// On a thread of its own, since NCCL promises no end.
void NcclCommunicator::Abort() {
  ncclComm* const comm = std::exchange(comm_, nullptr);
  if (comm == nullptr) return;
  struct Outcome {
    std::mutex mutex;
    std::condition_variable changed;
    bool returned = false;
  };
  const auto outcome = std::make_shared<Outcome>();
  absl::StatusOr<std::thread> thread = StartThread([library = options_.library, comm, outcome] {
    if (const absl::Status aborted = library->StatusOf(library->CommAbort(comm), "ncclCommAbort", nullptr); !aborted.ok()) {
      spdlog::warn("{}", aborted.ToString());
    }
    const std::lock_guard lock(outcome->mutex);
    outcome->returned = true;
    outcome->changed.notify_all();
  });
  absl::Status stuck = thread.status();
  if (thread.ok()) {
    std::unique_lock lock(outcome->mutex);
    const Deadline until = Deadline::In(options_.abort_patience);
    if (outcome->changed.wait_until(lock, until.time(), [&] { return outcome->returned; })) {
      lock.unlock();
      thread->join();
      return;
    }
    thread->detach();
    stuck = Internal("NCCL: an abort has not returned in %.1f s", absl::ToDoubleSeconds(options_.abort_patience));
  }
  spdlog::error("{}", stuck.ToString());
  if (options_.on_stuck) options_.on_stuck(stuck);
}

}  // namespace ferry
