#include "common/shm/expert_mailbox.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>
#include <string>
#include <utility>

#include "common/checked_size.h"
#include "common/deadline.h"
#include "common/shm/futex.h"
#include "common/shm/paced_wait.h"
#include "common/shm/shared_region.h"

namespace ferry {
namespace {

constexpr uint32_t kMagic = 0x4D425846;  // "FXBM"
constexpr size_t kMaxMessageBytes = 448;
constexpr int64_t kPage = 4096;

// The start of the region. Everything the peer may write while we read is atomic, read once, and checked after that.
struct Control {
  ExpertRegionHead head;

  alignas(64) std::atomic<uint32_t> request_number;  // raised by Post when the request is written
  alignas(64) std::atomic<uint32_t> answer_number;   // set to the request's number when the answer is written

  alignas(64) std::atomic<uint32_t> kind;
  std::atomic<uint32_t> layer, num_rows, num_uses, num_entries, helpers;
  std::atomic<uint64_t> incarnation, step;

  alignas(64) std::atomic<uint32_t> code;  // absl::StatusCode
  std::atomic<uint32_t> message_bytes, num_places;
  std::atomic<uint32_t> message[kMaxMessageBytes / 4];
};
static_assert(std::atomic<uint64_t>::is_always_lock_free, "atomics of two processes must not need a lock");

using Word = std::atomic<uint32_t>;

// Where the arrays lie after Control, in bytes from the start of the region.
struct Regions {
  int64_t uses = 0;        // 3 words each
  int64_t entry_rows = 0;  // 1 word each
  int64_t places = 0;      // 1 word each
  int64_t rows = 0;
  int64_t contributions = 0;
  int64_t bytes = 0;
};

absl::StatusOr<Regions> RegionsOf(const MailboxShape& shape) {
  RETURN_IF_ERROR(CheckExpertRegionShape("mailbox", shape));
  Regions regions;
  CheckedSize end = sizeof(Control);
  const auto add = [&end](CheckedSize bytes, int64_t alignment) {
    const CheckedSize offset = end.AlignedUp(alignment);
    end = offset + bytes;
    return static_cast<int64_t>(offset.value_or(0));
  };
  const CheckedSize row_bytes = CheckedSize(shape.n_embd) * sizeof(float);
  regions.uses = add(CheckedSize(shape.max_experts) * 3 * sizeof(Word), 64);
  regions.entry_rows = add(CheckedSize(shape.max_entries) * sizeof(Word), 64);
  regions.places = add(CheckedSize(shape.max_experts) * sizeof(Word), 64);
  regions.rows = add(row_bytes * shape.max_rows, kPage);
  regions.contributions = add(row_bytes * shape.max_entries, kPage);
  end = end.AlignedUp(kPage);
  if (!end.valid()) return InvalidArgument("the mailbox is too large");
  regions.bytes = static_cast<int64_t>(end.value());
  return regions;
}

}  // namespace

absl::Status CheckExpertRequest(const ExpertRequest& request, const MailboxShape& shape, int64_t num_layers) {
  const bool compute = request.kind == ExpertRequestKind::kCompute;
  if (!compute && request.kind != ExpertRequestKind::kPlan) {
    return InvalidArgument("kind is %d, want 1 (plan) or 2 (compute)", static_cast<uint32_t>(request.kind));
  }
  if (request.layer < 0 || request.layer >= num_layers) {
    return InvalidArgument("layer is %d, want 0 to %d", request.layer, num_layers - 1);
  }
  if (request.num_rows < 0 || (compute && request.num_rows > shape.max_rows)) {
    return InvalidArgument("num_rows is %d, want 0 to %d", request.num_rows, compute ? shape.max_rows : INT32_MAX);
  }
  int64_t num_tokens = 0;
  for (size_t i = 0; i < request.uses.size(); ++i) {
    const ActivatedExpert& use = request.uses[i];
    if (use.expert < 0 || use.expert >= shape.max_experts) {
      return InvalidArgument("uses[%d].expert is %d, want 0 to %d", i, use.expert, shape.max_experts - 1);
    }
    if (i > 0 && use.expert <= request.uses[i - 1].expert) {
      return InvalidArgument("uses[%d].expert is %d after %d, want them to increase", i, use.expert, request.uses[i - 1].expert);
    }
    if (use.tokens < 1 || use.tokens > request.num_rows) {
      return InvalidArgument("uses[%d].tokens is %d, want 1 to num_rows, which is %d", i, use.tokens, request.num_rows);
    }
    if (use.resident > kComing) return InvalidArgument("uses[%d].resident is %d, want 0 to %d", i, use.resident, kComing);
    num_tokens += use.tokens;
  }
  const int64_t num_entries = static_cast<int64_t>(request.entry_rows.size());
  if (!compute) {
    if (num_entries == 0) return absl::OkStatus();
    return InvalidArgument("entry_rows has %d entries, want none in a plan", num_entries);
  }
  if (num_tokens > shape.max_entries) {
    return InvalidArgument("uses' tokens add up to %d, want at most %d", num_tokens, shape.max_entries);
  }
  if (num_entries != num_tokens) {
    return InvalidArgument("entry_rows has %d entries, want %d, the sum of uses' tokens", num_entries, num_tokens);
  }
  for (int64_t i = 0; i < num_entries; ++i) {
    if (request.entry_rows[i] < 0 || request.entry_rows[i] >= request.num_rows) {
      return InvalidArgument("entry_rows[%d] is %d, want 0 to %d", i, request.entry_rows[i], request.num_rows - 1);
    }
  }
  return absl::OkStatus();
}

struct ExpertMailbox::Impl {
  Impl(const MailboxShape& shape, const Regions& regions, SharedRegion memory)
      : shape(shape), regions(regions), memory(std::move(memory)), data(this->memory.data()) {}

  Control& control() { return *reinterpret_cast<Control*>(data); }
  Word* Words(int64_t offset) { return reinterpret_cast<Word*>(data + offset); }
  std::span<float> Floats(int64_t offset, int64_t rows) {
    return {reinterpret_cast<float*>(data + offset), static_cast<size_t>(rows * shape.n_embd)};
  }

  // Waits until `word` is (equal) or is no longer (!equal) `value`; whether it came to that.
  bool WaitUntil(const Word& word, uint32_t value, bool equal, Deadline deadline) {
    const auto is = [&](uint32_t seen) { return (seen == value) == equal; };
    return wait.Until(
        deadline, [&] { return is(word.load(std::memory_order_acquire)); },
        [&](Deadline until) {
          const uint32_t seen = word.load(std::memory_order_acquire);
          if (!is(seen)) FutexWait(word, seen, until, FutexScope::kShared);
        });
  }

  // Copies the request out of the region: every word is read once, and no count is believed beyond the region's
  // capacity.
  absl::StatusOr<ExpertRequest> CopyRequest() {
    const Control& from = control();
    constexpr auto kRelaxed = std::memory_order_relaxed;  // ordered by request_number
    ExpertRequest request;
    request.kind = static_cast<ExpertRequestKind>(from.kind.load(kRelaxed));
    request.incarnation = from.incarnation.load(kRelaxed);
    request.step = from.step.load(kRelaxed);
    request.layer = static_cast<int32_t>(from.layer.load(kRelaxed));
    request.num_rows = static_cast<int32_t>(from.num_rows.load(kRelaxed));
    request.helpers = from.helpers.load(kRelaxed);
    const uint32_t num_uses = from.num_uses.load(kRelaxed), num_entries = from.num_entries.load(kRelaxed);
    if (num_uses > shape.max_experts) {
      return InvalidArgument("num_uses is %d, want at most %d", num_uses, shape.max_experts);
    }
    if (num_entries > shape.max_entries) {
      return InvalidArgument("num_entries is %d, want at most %d", num_entries, shape.max_entries);
    }
    request.uses.resize(num_uses);
    const Word* words = Words(regions.uses);
    for (ActivatedExpert& use : request.uses) {
      use.expert = static_cast<int32_t>(words[0].load(kRelaxed));
      use.tokens = static_cast<int32_t>(words[1].load(kRelaxed));
      use.resident = words[2].load(kRelaxed);
      words += 3;
    }
    request.entry_rows.resize(num_entries);
    words = Words(regions.entry_rows);
    for (int32_t& row : request.entry_rows) row = static_cast<int32_t>((words++)->load(kRelaxed));
    return request;
  }

  // The answer to the request that was posted last.
  absl::Status CopyAnswer(std::vector<ExpertPlace>* places) {
    const Control& from = control();
    constexpr auto kRelaxed = std::memory_order_relaxed;  // ordered by answer_number
    const uint32_t code = from.code.load(kRelaxed);
    if (code > static_cast<uint32_t>(absl::StatusCode::kUnauthenticated)) {
      return Internal("the expert engine answered with the unknown code %d", code);
    }
    if (code != 0) {
      const size_t bytes = std::min<size_t>(from.message_bytes.load(kRelaxed), kMaxMessageBytes);
      std::string message(kMaxMessageBytes, '\0');
      for (size_t at = 0; at < kMaxMessageBytes; at += 4) {
        const uint32_t word = from.message[at / 4].load(kRelaxed);
        std::memcpy(message.data() + at, &word, 4);
      }
      message.resize(bytes);
      return absl::Status(static_cast<absl::StatusCode>(code), message);
    }
    if (posted_kind != ExpertRequestKind::kPlan) return absl::OkStatus();
    const uint32_t num_places = from.num_places.load(kRelaxed);
    if (num_places != posted_uses) {
      return Internal("the expert engine answered with %d places for %d uses", num_places, posted_uses);
    }
    std::vector<ExpertPlace> result(num_places);
    const Word* words = Words(regions.places);
    for (ExpertPlace& place : result) {
      const uint32_t value = (words++)->load(kRelaxed);
      place = static_cast<ExpertPlace>(value);
      if (value > UINT8_MAX || (place > ExpertPlace::kHost && !IsHelper(place))) {
        return Internal("the expert engine answered with the unknown place %d", value);
      }
    }
    if (places != nullptr) *places = std::move(result);
    return absl::OkStatus();
  }

  const MailboxShape shape;
  const Regions regions;
  const SharedRegion memory;
  std::byte* const data;

  PacedWait wait;  // of this side

  // The worker's own state.
  uint32_t posted = 0;   // number of the last request
  bool waiting = false;  // its answer has not been taken
  bool late = false;     // and a deadline has passed
  ExpertRequestKind posted_kind = ExpertRequestKind::kPlan;
  uint32_t posted_uses = 0;

  // The coordinator's own state.
  uint32_t taken = 0;      // number of the request that was taken last
  bool answering = false;  // it has not been answered
};

ExpertMailbox::ExpertMailbox(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ExpertMailbox::~ExpertMailbox() = default;

absl::StatusOr<std::unique_ptr<ExpertMailbox>> ExpertMailbox::Create(const MailboxShape& shape) {
  ASSIGN_OR_RETURN(const Regions regions, RegionsOf(shape));
  ASSIGN_OR_RETURN(SharedRegion memory, SharedRegion::Create("ferry-mailbox", regions.bytes));
  (new (memory.data()) Control())->head = ExpertRegionHead(kMagic, shape);
  return std::unique_ptr<ExpertMailbox>(new ExpertMailbox(std::make_unique<Impl>(shape, regions, std::move(memory))));
}

absl::StatusOr<std::unique_ptr<ExpertMailbox>> ExpertMailbox::Map(int fd, const MailboxShape& shape) {
  UniqueFd taken(fd);
  ASSIGN_OR_RETURN(const Regions regions, RegionsOf(shape));
  ASSIGN_OR_RETURN(SharedRegion memory, SharedRegion::Map(taken.Release(), regions.bytes));
  auto impl = std::make_unique<Impl>(shape, regions, std::move(memory));
  if (impl->control().head != ExpertRegionHead(kMagic, shape)) {
    return InvalidArgument("the mailbox was made for another shape");
  }
  return std::unique_ptr<ExpertMailbox>(new ExpertMailbox(std::move(impl)));
}

int ExpertMailbox::fd() const { return impl_->memory.fd(); }
const MailboxShape& ExpertMailbox::shape() const { return impl_->shape; }
std::span<float> ExpertMailbox::rows() { return impl_->Floats(impl_->regions.rows, impl_->shape.max_rows); }
std::span<float> ExpertMailbox::contributions() { return impl_->Floats(impl_->regions.contributions, impl_->shape.max_entries); }

absl::Status ExpertMailbox::Post(const ExpertRequest& request) {
  Impl& impl = *impl_;
  Control& to = impl.control();
  if (impl.late && to.answer_number.load(std::memory_order_acquire) == impl.posted) impl.waiting = impl.late = false;
  if (impl.late) return FailedPrecondition("the expert engine is still busy with a request that was given up");
  if (impl.waiting) return FailedPrecondition("the answer to the last request was not waited for");
  const auto check = [](const char* name, size_t count, int64_t most) {
    if (count <= static_cast<size_t>(most)) return absl::OkStatus();
    return ResourceExhausted("%s is %d, the mailbox holds %d", name, count, most);
  };
  RETURN_IF_ERROR(check("number of uses", request.uses.size(), impl.shape.max_experts));
  RETURN_IF_ERROR(check("number of entries", request.entry_rows.size(), impl.shape.max_entries));
  if (request.kind == ExpertRequestKind::kCompute && request.num_rows > 0) {
    RETURN_IF_ERROR(check("num_rows", static_cast<size_t>(request.num_rows), impl.shape.max_rows));
  }

  constexpr auto kRelaxed = std::memory_order_relaxed;  // ordered by request_number
  to.kind.store(static_cast<uint32_t>(request.kind), kRelaxed);
  to.incarnation.store(request.incarnation, kRelaxed);
  to.step.store(request.step, kRelaxed);
  to.layer.store(static_cast<uint32_t>(request.layer), kRelaxed);
  to.num_rows.store(static_cast<uint32_t>(request.num_rows), kRelaxed);
  to.helpers.store(request.helpers, kRelaxed);
  to.num_uses.store(static_cast<uint32_t>(request.uses.size()), kRelaxed);
  to.num_entries.store(static_cast<uint32_t>(request.entry_rows.size()), kRelaxed);
  Word* words = impl.Words(impl.regions.uses);
  for (const ActivatedExpert& use : request.uses) {
    words[0].store(static_cast<uint32_t>(use.expert), kRelaxed);
    words[1].store(static_cast<uint32_t>(use.tokens), kRelaxed);
    words[2].store(use.resident, kRelaxed);
    words += 3;
  }
  words = impl.Words(impl.regions.entry_rows);
  for (const int32_t row : request.entry_rows) (words++)->store(static_cast<uint32_t>(row), kRelaxed);

  impl.posted_kind = request.kind;
  impl.posted_uses = static_cast<uint32_t>(request.uses.size());
  impl.waiting = true;
  to.request_number.store(++impl.posted, std::memory_order_release);
  FutexWake(to.request_number, FutexScope::kShared);
  return absl::OkStatus();
}

absl::Status ExpertMailbox::WaitForAnswer(Deadline deadline, std::vector<ExpertPlace>* places) {
  Impl& impl = *impl_;
  if (!impl.waiting) return FailedPrecondition("nothing was posted");
  if (!impl.WaitUntil(impl.control().answer_number, impl.posted, /*equal=*/true, deadline)) {
    impl.late = true;
    return DeadlineExceeded("the expert engine has not answered in time");
  }
  impl.waiting = impl.late = false;
  return impl.CopyAnswer(places);
}

bool ExpertMailbox::Answered() const {
  return impl_->waiting && impl_->control().answer_number.load(std::memory_order_acquire) == impl_->posted;
}

absl::StatusOr<ExpertRequest> ExpertMailbox::WaitForRequest(Deadline deadline, int64_t num_layers) {
  Impl& impl = *impl_;
  const Word& number = impl.control().request_number;
  if (!impl.WaitUntil(number, impl.taken, /*equal=*/false, deadline)) return DeadlineExceeded("no request has come");
  impl.taken = number.load(std::memory_order_acquire);
  impl.answering = true;
  absl::StatusOr<ExpertRequest> request = impl.CopyRequest();
  if (request.ok()) {
    if (const absl::Status check = CheckExpertRequest(*request, impl.shape, num_layers); !check.ok()) request = check;
  }
  if (!request.ok()) Answer(request.status(), {});
  return request;
}

void ExpertMailbox::Answer(const absl::Status& status, std::span<const ExpertPlace> places) {
  Impl& impl = *impl_;
  if (!impl.answering) return;
  impl.answering = false;
  Control& to = impl.control();
  constexpr auto kRelaxed = std::memory_order_relaxed;  // ordered by answer_number
  const size_t num_places = std::min<size_t>(places.size(), impl.shape.max_experts);
  to.code.store(static_cast<uint32_t>(status.code()), kRelaxed);
  const std::string message(status.message().substr(0, kMaxMessageBytes));
  to.message_bytes.store(static_cast<uint32_t>(message.size()), kRelaxed);
  for (size_t at = 0; at < message.size(); at += 4) {
    uint32_t word = 0;
    std::memcpy(&word, message.data() + at, std::min<size_t>(4, message.size() - at));
    to.message[at / 4].store(word, kRelaxed);
  }
  to.num_places.store(static_cast<uint32_t>(num_places), kRelaxed);
  Word* words = impl.Words(impl.regions.places);
  for (size_t i = 0; i < num_places; ++i) words[i].store(static_cast<uint32_t>(places[i]), kRelaxed);
  to.answer_number.store(impl.taken, std::memory_order_release);
  FutexWake(to.answer_number, FutexScope::kShared);
}

}  // namespace ferry
