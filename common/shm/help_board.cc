#include "common/shm/help_board.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <new>
#include <utility>

#include "common/checked_size.h"
#include "common/shm/futex.h"
#include "common/shm/paced_wait.h"
#include "common/shm/shared_region.h"

namespace ferry {
namespace {

constexpr uint32_t kMagic = 0x42485846;  // "FXHB"
constexpr int64_t kPage = 4096;
constexpr auto kRelaxed = std::memory_order_relaxed;  // ordered by a request's state

using Word = std::atomic<uint32_t>;

enum Memory : uint32_t { kUnknown = 0, kNoMemory = 1, kHasKey = 2 };

// The lowest bits of a request's state; the others count the requests of its helper.
enum Phase : uint32_t { kNone = 0, kPosted = 1, kTaken = 2, kAnswered = 3 };
uint32_t StateOf(uint32_t number, Phase phase) { return number << 2 | phase; }
Phase PhaseOf(uint32_t state) { return static_cast<Phase>(state & 3); }

// What the other side may write while we read is atomic, read once, and checked after that.
struct Request {
  alignas(64) Word state;
  Word code;  // absl::StatusCode of the answer
  Word layer, num_rows, num_uses, num_entries, first_entry, row_type, contribution_type, on_device;
  std::atomic<uint64_t> step;
};

// The start of the region.
struct Control {
  ExpertRegionHead head;
  uint64_t board_rows;  // constant once it was made

  alignas(64) Word available;
  std::atomic<int64_t> available_at_ns;  // of the monotonic clock; INT64_MAX: not expected
  alignas(64) Word bell;
  alignas(64) Word memory;  // Memory: what is published of the owner's device memory
  Word key[HelpBoard::kKeyBytes / sizeof(uint32_t)];
  Word reach[kMaxHelpers];  // MB/s
  Request requests[kMaxHelpers];
};
static_assert(std::atomic<uint64_t>::is_always_lock_free, "atomics of two processes must not need a lock");

// Where the arrays lie after Control, in bytes from the start of the region.
struct Regions {
  int64_t uses = 0;        // for each helper max_experts times 2 words
  int64_t entry_rows = 0;  // 1 word each
  int64_t rows = 0, row_bytes = 0;
  int64_t contributions = 0, contribution_bytes = 0;
  int64_t bytes = 0;
};

int64_t MonotonicNs() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Deadline::Clock::now().time_since_epoch()).count();
}

absl::StatusOr<Regions> RegionsOf(const HelpBoardShape& shape) {
  RETURN_IF_ERROR(CheckExpertRegionShape("help board", shape.region()));
  if (shape.most_board_rows < 1)
    return InvalidArgument("help board most_board_rows is %d, want at least 1", shape.most_board_rows);
  Regions regions;
  CheckedSize end = sizeof(Control);
  const auto add = [&end](CheckedSize bytes) {
    const CheckedSize offset = end.AlignedUp(kPage);
    end = offset + bytes;
    return static_cast<int64_t>(offset.value_or(0));
  };
  const CheckedSize row_bytes = CheckedSize(shape.n_embd) * sizeof(float);
  regions.uses = add(CheckedSize(shape.max_experts) * 2 * kMaxHelpers * sizeof(Word));
  regions.entry_rows = add(CheckedSize(shape.max_entries) * sizeof(Word));
  regions.rows = add(row_bytes * shape.board_rows());
  regions.contributions = add(row_bytes * shape.board_entries());
  end = end.AlignedUp(kPage);
  if (!end.valid()) return InvalidArgument("the help board is too large");
  regions.row_bytes = shape.board_rows() * shape.n_embd * static_cast<int64_t>(sizeof(float));
  regions.contribution_bytes = shape.board_entries() * shape.n_embd * static_cast<int64_t>(sizeof(float));
  regions.bytes = static_cast<int64_t>(end.value());
  return regions;
}

}  // namespace

int64_t HelpBoardShape::row_bytes(DType type) const {
  constexpr int64_t kAlignment = 256;
  return (max_rows * n_embd * (type == DType::kF32 ? 4 : 2) + kAlignment - 1) / kAlignment * kAlignment;
}
int64_t HelpBoardShape::contribution_bytes(DType type) const { return max_entries * n_embd * (type == DType::kF32 ? 4 : 2); }

HelpBoardShape HelpShapeFor(int64_t n_embd, int64_t max_rows, int64_t top_k, int64_t max_experts) {
  return {.n_embd = n_embd, .max_rows = max_rows, .max_entries = (max_rows * top_k + 1) / 2, .max_experts = max_experts};
}

struct HelpBoard::Impl {
  Impl(const HelpBoardShape& shape, const Regions& regions, SharedRegion memory)
      : shape(shape), regions(regions), memory(std::move(memory)), data(this->memory.data()) {}

  Control& control() const { return *reinterpret_cast<Control*>(data); }
  Request& request(int64_t helper) const { return control().requests[helper]; }
  Word* Uses(int64_t helper) const { return reinterpret_cast<Word*>(data + regions.uses) + helper * 2 * shape.max_experts; }
  Word* EntryRows() const { return reinterpret_cast<Word*>(data + regions.entry_rows); }

  absl::StatusOr<HelpRequest> Copy(int64_t helper) const {
    const Request& from = request(helper);
    HelpRequest out;
    out.share.kind = ExpertRequestKind::kCompute;
    out.share.step = from.step.load(kRelaxed);
    out.share.layer = static_cast<int32_t>(from.layer.load(kRelaxed));
    out.share.num_rows = static_cast<int32_t>(from.num_rows.load(kRelaxed));
    out.row_type = static_cast<DType>(from.row_type.load(kRelaxed));
    out.contribution_type = static_cast<DType>(from.contribution_type.load(kRelaxed));
    out.on_device = from.on_device.load(kRelaxed) == 1;
    const uint32_t num_uses = from.num_uses.load(kRelaxed), num_entries = from.num_entries.load(kRelaxed);
    const uint32_t first_entry = from.first_entry.load(kRelaxed);
    if (num_uses > shape.max_experts) return InvalidArgument("num_uses is %d, want at most %d", num_uses, shape.max_experts);
    const int64_t max_entries = out.on_device ? shape.max_entries : shape.board_entries();
    if (first_entry > max_entries || num_entries > max_entries - first_entry) {
      return InvalidArgument("%d entries from %d on, want them below %d", num_entries, first_entry, max_entries);
    }
    out.first_entry = first_entry;
    out.share.uses.resize(num_uses);
    const Word* words = Uses(helper);
    for (ActivatedExpert& use : out.share.uses) {
      use.expert = static_cast<int32_t>(words[0].load(kRelaxed));
      use.tokens = static_cast<int32_t>(words[1].load(kRelaxed));
      words += 2;
    }
    out.share.entry_rows.resize(num_entries);
    words = EntryRows() + first_entry;
    for (int32_t& row : out.share.entry_rows) row = static_cast<int32_t>((words++)->load(kRelaxed));
    return out;
  }

  const HelpBoardShape shape;
  const Regions regions;
  const SharedRegion memory;
  std::byte* const data;

  std::array<uint32_t, kMaxHelpers> numbers = {};  // the owner's: of each helper's last request
  std::array<uint32_t, kMaxHelpers> taken = {};    // the helper's: state of the request that it took
  PacedWait wait;                                  // the owner's
};

HelpBoard::HelpBoard(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HelpBoard::~HelpBoard() = default;

absl::StatusOr<std::unique_ptr<HelpBoard>> HelpBoard::Create(const HelpBoardShape& shape) {
  ASSIGN_OR_RETURN(const Regions regions, RegionsOf(shape));
  ASSIGN_OR_RETURN(SharedRegion memory, SharedRegion::Create("ferry-help-board", regions.bytes));
  auto* const control = new (memory.data()) Control();
  control->head = ExpertRegionHead(kMagic, shape.region());
  control->board_rows = static_cast<uint64_t>(shape.board_rows());
  control->available_at_ns.store(INT64_MAX, kRelaxed);
  return std::unique_ptr<HelpBoard>(new HelpBoard(std::make_unique<Impl>(shape, regions, std::move(memory))));
}

absl::StatusOr<std::unique_ptr<HelpBoard>> HelpBoard::Map(int fd, const HelpBoardShape& shape) {
  UniqueFd taken(fd);
  ASSIGN_OR_RETURN(const Regions regions, RegionsOf(shape));
  ASSIGN_OR_RETURN(SharedRegion memory, SharedRegion::Map(taken.Release(), regions.bytes));
  auto impl = std::make_unique<Impl>(shape, regions, std::move(memory));
  const Control& control = impl->control();
  if (control.head != ExpertRegionHead(kMagic, shape.region()) ||
      control.board_rows != static_cast<uint64_t>(shape.board_rows())) {
    return InvalidArgument("the help board was made for another shape");
  }
  return std::unique_ptr<HelpBoard>(new HelpBoard(std::move(impl)));
}

int HelpBoard::fd() const { return impl_->memory.fd(); }
const HelpBoardShape& HelpBoard::shape() const { return impl_->shape; }
std::span<std::byte> HelpBoard::rows() const {
  return {impl_->data + impl_->regions.rows, static_cast<size_t>(impl_->regions.row_bytes)};
}
std::span<std::byte> HelpBoard::contributions() const {
  return {impl_->data + impl_->regions.contributions, static_cast<size_t>(impl_->regions.contribution_bytes)};
}

void HelpBoard::PublishMemory(std::span<const std::byte> key) {
  Control& control = impl_->control();
  std::array<uint32_t, kKeyBytes / sizeof(uint32_t)> words;
  if (key.size() == kKeyBytes) {
    std::memcpy(words.data(), key.data(), kKeyBytes);
    for (size_t i = 0; i < words.size(); ++i) control.key[i].store(words[i], kRelaxed);
  }
  control.memory.store(key.size() == kKeyBytes ? kHasKey : kNoMemory, std::memory_order_release);
}
std::optional<std::string> HelpBoard::memory_key() const {
  const Control& control = impl_->control();
  const uint32_t memory = control.memory.load(std::memory_order_acquire);
  if (memory == kUnknown) return std::nullopt;
  std::string key;
  if (memory != kHasKey) return key;
  for (const Word& word : control.key) {
    const uint32_t value = word.load(kRelaxed);
    key.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  return key;
}
void HelpBoard::SetReach(int64_t helper, double bytes_per_second) {
  const double megabytes = std::clamp(bytes_per_second / 1e6, 0.0, 4e9);
  impl_->control().reach[helper].store(static_cast<uint32_t>(megabytes), std::memory_order_release);
}
double HelpBoard::reach(int64_t helper) const {
  return 1e6 * static_cast<double>(impl_->control().reach[helper].load(std::memory_order_acquire));
}

void HelpBoard::SetAvailable(bool available) { impl_->control().available.store(available, std::memory_order_release); }
bool HelpBoard::available() const { return impl_->control().available.load(std::memory_order_acquire) == 1; }
void HelpBoard::ExpectAvailable(absl::Duration from_now) {
  constexpr absl::Duration kSoon = absl::Hours(1);
  impl_->control().available_at_ns.store(from_now > kSoon ? INT64_MAX : MonotonicNs() + absl::ToInt64Nanoseconds(from_now),
                                         kRelaxed);
}
bool HelpBoard::AvailableWithin(absl::Duration time) const {
  if (available()) return true;
  const int64_t at = impl_->control().available_at_ns.load(kRelaxed);
  return at != INT64_MAX && absl::Nanoseconds(at - MonotonicNs()) <= time;
}

void HelpBoard::Ring() {
  Word& bell = impl_->control().bell;
  bell.fetch_add(1, std::memory_order_release);
  FutexWake(bell, FutexScope::kShared);
}
uint32_t HelpBoard::bell() const { return impl_->control().bell.load(std::memory_order_acquire); }
void HelpBoard::WaitForBell(uint32_t seen, Deadline until) const {
  FutexWait(impl_->control().bell, seen, until, FutexScope::kShared);
}

// ------------------------------------------------------------------------------------------------------------------ the owner

absl::Status HelpBoard::Post(int64_t helper, const HelpRequest& request) {
  const auto check = [](const char* name, int64_t count, int64_t most) {
    if (count <= most) return absl::OkStatus();
    return ResourceExhausted("%s is %d, the help board holds %d", name, count, most);
  };
  const ExpertRequest& share = request.share;
  const auto num_entries = static_cast<int64_t>(share.entry_rows.size());
  RETURN_IF_ERROR(check("helper", helper, kMaxHelpers - 1));
  const HelpBoardShape& shape = impl_->shape;
  RETURN_IF_ERROR(check("num_rows", share.num_rows, request.on_device ? shape.max_rows : shape.board_rows()));
  RETURN_IF_ERROR(check("number of uses", static_cast<int64_t>(share.uses.size()), shape.max_experts));
  RETURN_IF_ERROR(check("end of the entries", request.first_entry + num_entries,
                        request.on_device ? shape.max_entries : shape.board_entries()));
  Request& to = impl_->request(helper);
  const Phase phase = PhaseOf(to.state.load(std::memory_order_acquire));
  if (phase != kNone && phase != kAnswered) return FailedPrecondition("worker %d has a request already", helper);
  to.layer.store(static_cast<uint32_t>(share.layer), kRelaxed);
  to.num_rows.store(static_cast<uint32_t>(share.num_rows), kRelaxed);
  to.num_uses.store(static_cast<uint32_t>(share.uses.size()), kRelaxed);
  to.num_entries.store(static_cast<uint32_t>(num_entries), kRelaxed);
  to.first_entry.store(static_cast<uint32_t>(request.first_entry), kRelaxed);
  to.row_type.store(static_cast<uint32_t>(request.row_type), kRelaxed);
  to.contribution_type.store(static_cast<uint32_t>(request.contribution_type), kRelaxed);
  to.on_device.store(request.on_device ? 1 : 0, kRelaxed);
  to.step.store(share.step, kRelaxed);
  Word* words = impl_->Uses(helper);
  for (const ActivatedExpert& use : share.uses) {
    words[0].store(static_cast<uint32_t>(use.expert), kRelaxed);
    words[1].store(static_cast<uint32_t>(use.tokens), kRelaxed);
    words += 2;
  }
  words = impl_->EntryRows() + request.first_entry;
  for (const int32_t row : share.entry_rows) (words++)->store(static_cast<uint32_t>(row), kRelaxed);
  to.state.store(StateOf(++impl_->numbers[helper], kPosted), std::memory_order_release);
  return absl::OkStatus();
}

bool HelpBoard::Withdraw(int64_t helper) {
  const uint32_t number = impl_->numbers[helper];
  uint32_t posted = StateOf(number, kPosted);
  return impl_->request(helper).state.compare_exchange_strong(posted, StateOf(number, kNone));
}

absl::Status HelpBoard::WaitForAnswer(int64_t helper, Deadline deadline) {
  const Request& from = impl_->request(helper);
  const uint32_t answered = StateOf(impl_->numbers[helper], kAnswered);
  const auto done = [&] { return from.state.load(std::memory_order_acquire) == answered; };
  const bool in_time = impl_->wait.Until(deadline, done, [&](Deadline until) {
    const uint32_t seen = from.state.load(std::memory_order_acquire);
    if (seen != answered) FutexWait(from.state, seen, until, FutexScope::kShared);
  });
  if (!in_time) return DeadlineExceeded("worker %d has not computed its share in time", helper);
  const uint32_t code = from.code.load(kRelaxed);
  if (code == 0) return absl::OkStatus();
  return Internal("worker %d failed to compute its share, with code %d", helper, code);
}

// ----------------------------------------------------------------------------------------------------------------- the helper

bool HelpBoard::Posted(int64_t helper) const {
  return PhaseOf(impl_->request(helper).state.load(std::memory_order_acquire)) == kPosted;
}

absl::StatusOr<std::optional<HelpRequest>> HelpBoard::Take(int64_t helper, int64_t num_layers) {
  Word& state = impl_->request(helper).state;
  uint32_t seen = state.load(std::memory_order_acquire);
  const uint32_t taken = (seen & ~uint32_t{3}) | kTaken;
  if (PhaseOf(seen) != kPosted || !state.compare_exchange_strong(seen, taken, std::memory_order_acq_rel)) return std::nullopt;
  impl_->taken[helper] = taken;
  absl::StatusOr<HelpRequest> request = impl_->Copy(helper);
  if (request.ok()) {
    const bool on_device = request->on_device;
    const MailboxShape shape = {.n_embd = impl_->shape.n_embd,
                                .max_rows = on_device ? impl_->shape.max_rows : impl_->shape.board_rows(),
                                .max_entries = on_device ? impl_->shape.max_entries : impl_->shape.board_entries(),
                                .max_experts = impl_->shape.max_experts};
    if (const absl::Status valid = CheckExpertRequest(request->share, shape, num_layers); !valid.ok()) request = valid;
  }
  if (!request.ok()) {
    Answer(helper, request.status());
    return request.status();
  }
  return *std::move(request);
}

void HelpBoard::Answer(int64_t helper, const absl::Status& status) {
  Request& to = impl_->request(helper);
  to.code.store(static_cast<uint32_t>(status.code()), kRelaxed);
  to.state.store((impl_->taken[helper] & ~uint32_t{3}) | kAnswered, std::memory_order_release);
  FutexWake(to.state, FutexScope::kShared);
}

}  // namespace ferry
