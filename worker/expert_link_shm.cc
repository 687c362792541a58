#include <algorithm>
#include <array>
#include <set>
#include <utility>

#include "common/deadline.h"
#include "common/log.h"
#include "common/shm/descriptor_socket.h"
#include "common/shm/shm_arena.h"
#include "kernels/ops.h"
#include "worker/expert_link.h"

namespace ferry {
namespace {

class ShmLink final : public ExpertLink {
 public:
  using Mailboxes = std::array<std::unique_ptr<ExpertMailbox>, kMailboxesOfAWorker>;

  ShmLink(const ShmLinkOptions& options, ShmArena arena, Mailboxes mailboxes, Ops* ops)
      : incarnation_(options.incarnation),
        layout_(options.arena),
        arena_(std::move(arena)),
        mailboxes_(std::move(mailboxes)),
        ops_(*ops) {}
  ~ShmLink() override {
    if (pinned_) ops_.UnpinHost(arena_.bytes());
    if (rows_pinned_) ops_.UnpinHost(FirstRows());
    if (contributions_pinned_) ops_.UnpinHost(FirstContributions());
  }

  void Pin() {
    if (const absl::Status pinned = ops_.PinHost(arena_.bytes(), /*read_only=*/true); !pinned.ok()) {
      spdlog::warn("the expert arena could not be pinned, copies will be slower: {}", pinned.ToString());
      return;
    }
    pinned_ = true;
    // Otherwise they are copied on the way.
    rows_pinned_ = ops_.PinHost(FirstRows(), /*read_only=*/false).ok();
    contributions_pinned_ = ops_.PinHost(FirstContributions(), /*read_only=*/false).ok();
  }

  std::string name() const override { return "shm"; }

  absl::StatusOr<std::vector<ExpertPlace>> Plan(uint64_t step, int64_t layer, int64_t num_rows,
                                                std::span<const ActivatedExpert> uses, uint32_t helpers,
                                                Deadline deadline) override {
    ExpertMailbox& mailbox = *mailboxes_.front();
    RETURN_IF_ERROR(mailbox.Post({.kind = ExpertRequestKind::kPlan,
                                  .incarnation = incarnation_.value(),
                                  .step = step,
                                  .layer = static_cast<int32_t>(layer),
                                  .num_rows = static_cast<int32_t>(num_rows),
                                  .uses = {uses.begin(), uses.end()},
                                  .entry_rows = {},
                                  .helpers = helpers}));
    std::vector<ExpertPlace> places;
    RETURN_IF_ERROR(mailbox.WaitForAnswer(deadline, &places));
    return places;
  }

  int64_t max_rows() const override { return mailboxes_.front()->shape().max_rows; }
  int64_t max_entries() const override { return mailboxes_.front()->shape().max_entries; }
  int max_running() const override { return kMailboxesOfAWorker; }
  std::span<float> HostRows(int64_t num_rows) override { return Next().rows().first(num_rows * Next().shape().n_embd); }

  absl::Status StartCompute(const HostRequest& request) override {
    if (num_running_ == kMailboxesOfAWorker) return FailedPrecondition("%d host computations are running", num_running_);
    RETURN_IF_ERROR(Next().Post({.kind = ExpertRequestKind::kCompute,
                                 .incarnation = incarnation_.value(),
                                 .step = request.step,
                                 .layer = request.layer,
                                 .num_rows = request.num_rows,
                                 .uses = {request.uses.begin(), request.uses.end()},
                                 .entry_rows = {request.entry_rows.begin(), request.entry_rows.end()}}));
    num_entries_[(oldest_ + num_running_) % kMailboxesOfAWorker] = request.entry_rows.size();
    ++num_running_;
    return absl::OkStatus();
  }

  absl::StatusOr<std::span<const float>> FinishCompute(Deadline deadline) override {
    if (num_running_ == 0) return FailedPrecondition("no host computation is running");
    ExpertMailbox& mailbox = *mailboxes_[oldest_];
    const size_t num_entries = num_entries_[oldest_];
    // The first mailbox is next when none is running: its rows and contributions are pinned.
    oldest_ = --num_running_ == 0 ? 0 : (oldest_ + 1) % kMailboxesOfAWorker;
    RETURN_IF_ERROR(mailbox.WaitForAnswer(deadline, nullptr));
    return mailbox.contributions().first(num_entries * mailbox.shape().n_embd);
  }

  bool Answered() const override { return num_running_ > 0 && mailboxes_[oldest_]->Answered(); }

  absl::StatusOr<std::span<const std::byte>> RecordInPlace(ExpertId id) const override {
    return layout_.RecordIn(arena_.bytes(), id.layer, id.expert);
  }

  // Every record is in host memory already: asking only remembers what may be read.
  absl::Status AskRecord(uint64_t, ExpertId id) override {
    RETURN_IF_ERROR(layout_.RecordIn(arena_.bytes(), id.layer, id.expert).status());
    asked_.insert(id);
    return absl::OkStatus();
  }
  bool RecordHere(ExpertId id) override { return true; }
  absl::StatusOr<std::span<const std::byte>> WaitRecord(ExpertId id, Deadline) override {
    if (!asked_.contains(id)) return FailedPrecondition("expert %d of layer %d was not asked for", id.expert, id.layer);
    return layout_.RecordIn(arena_.bytes(), id.layer, id.expert);
  }
  void ReleaseRecord(ExpertId id) override { asked_.erase(id); }

 private:
  // Where the next computation starts.
  ExpertMailbox& Next() { return *mailboxes_[(oldest_ + num_running_) % kMailboxesOfAWorker]; }

  // As much as most shares fill, which a device writes and reads where it lies. What reaches beyond is copied on the way.
  static constexpr size_t kMostPinned = 16 << 20;
  std::span<const std::byte> FirstRows() const { return MostOf(mailboxes_.front()->rows()); }
  std::span<const std::byte> FirstContributions() const { return MostOf(mailboxes_.front()->contributions()); }
  static std::span<const std::byte> MostOf(std::span<const float> numbers) {
    const std::span<const std::byte> all = std::as_bytes(numbers);
    return all.first(std::min(all.size(), kMostPinned));
  }

  const Incarnation incarnation_;
  const ArenaLayout layout_;
  const ShmArena arena_;
  const Mailboxes mailboxes_;
  Ops& ops_;
  bool pinned_ = false, rows_pinned_ = false, contributions_pinned_ = false;
  // Computations run in the mailboxes from the oldest one's on.
  int oldest_ = 0, num_running_ = 0;
  std::array<size_t, kMailboxesOfAWorker> num_entries_ = {};
  std::set<ExpertId> asked_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ExpertLink>> ConnectShmLink(const ShmLinkOptions& options, Ops* ops, bool pin, Deadline deadline) {
  absl::StatusOr<std::vector<UniqueFd>> fetched = FetchDescriptors(options.descriptor_socket, options.descriptor_key, deadline);
  if (!fetched.ok()) {
    return Annotate(fetched.status(), "shared memory with the coordinator; --expert-transport grpc does without");
  }
  std::vector<UniqueFd>& descriptors = *fetched;
  if (descriptors.size() != 1 + kMailboxesOfAWorker) {
    return Internal("the coordinator handed out %d descriptors, want %d", descriptors.size(), 1 + kMailboxesOfAWorker);
  }
  absl::StatusOr<ShmArena> arena = ShmArena::MapReadOnly(descriptors[0].Release(), options.arena.bytes());
  if (!arena.ok()) return Annotate(arena.status(), "the expert arena");
  ShmLink::Mailboxes mailboxes;
  for (int i = 0; i < kMailboxesOfAWorker; ++i) {
    absl::StatusOr<std::unique_ptr<ExpertMailbox>> mailbox = ExpertMailbox::Map(descriptors[1 + i].Release(), options.mailbox);
    if (!mailbox.ok()) return Annotate(mailbox.status(), "the expert mailbox");
    mailboxes[i] = *std::move(mailbox);
  }
  auto link = std::make_unique<ShmLink>(options, *std::move(arena), std::move(mailboxes), ops);
  if (pin) link->Pin();
  return link;
}

}  // namespace ferry
