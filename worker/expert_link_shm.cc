#include <algorithm>
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
  ShmLink(const ShmLinkOptions& options, ShmArena arena, std::unique_ptr<ExpertMailbox> mailbox, Ops* ops)
      : incarnation_(options.incarnation),
        layout_(options.arena),
        arena_(std::move(arena)),
        mailbox_(std::move(mailbox)),
        ops_(*ops) {}
  ~ShmLink() override {
    if (pinned_) ops_.UnpinHost(arena_.bytes());
    if (contributions_pinned_) ops_.UnpinHost(FirstContributions());
  }

  void Pin() {
    if (const absl::Status pinned = ops_.PinHost(arena_.bytes(), /*read_only=*/true); !pinned.ok()) {
      spdlog::warn("the expert arena could not be pinned, copies will be slower: {}", pinned.ToString());
      return;
    }
    pinned_ = true;
    contributions_pinned_ = ops_.PinHost(FirstContributions(), /*read_only=*/false).ok();  // otherwise they are copied first
  }

  std::string name() const override { return "shm"; }

  absl::StatusOr<std::vector<ExpertPlace>> Plan(uint64_t step, int64_t layer, int64_t num_rows,
                                                std::span<const ActivatedExpert> uses, uint32_t helpers,
                                                Deadline deadline) override {
    RETURN_IF_ERROR(mailbox_->Post({.kind = ExpertRequestKind::kPlan,
                                    .incarnation = incarnation_.value(),
                                    .step = step,
                                    .layer = static_cast<int32_t>(layer),
                                    .num_rows = static_cast<int32_t>(num_rows),
                                    .uses = {uses.begin(), uses.end()},
                                    .entry_rows = {},
                                    .helpers = helpers}));
    std::vector<ExpertPlace> places;
    RETURN_IF_ERROR(mailbox_->WaitForAnswer(deadline, &places));
    return places;
  }

  int64_t max_rows() const override { return mailbox_->shape().max_rows; }
  int64_t max_entries() const override { return mailbox_->shape().max_entries; }
  std::span<float> HostRows(int64_t num_rows) override { return mailbox_->rows().first(num_rows * mailbox_->shape().n_embd); }

  absl::Status StartCompute(const HostRequest& request) override {
    num_entries_ = request.entry_rows.size();
    return mailbox_->Post({.kind = ExpertRequestKind::kCompute,
                           .incarnation = incarnation_.value(),
                           .step = request.step,
                           .layer = request.layer,
                           .num_rows = request.num_rows,
                           .uses = {request.uses.begin(), request.uses.end()},
                           .entry_rows = {request.entry_rows.begin(), request.entry_rows.end()}});
  }

  absl::StatusOr<std::span<const float>> FinishCompute(Deadline deadline) override {
    RETURN_IF_ERROR(mailbox_->WaitForAnswer(deadline, nullptr));
    return mailbox_->contributions().first(num_entries_ * mailbox_->shape().n_embd);
  }

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
  // What decode's few rows fill: a device then reads them where they lie.
  std::span<const std::byte> FirstContributions() const {
    const std::span<const std::byte> all = std::as_bytes(mailbox_->contributions());
    return all.first(std::min<size_t>(all.size(), 4 << 20));
  }

  const Incarnation incarnation_;
  const ArenaLayout layout_;
  const ShmArena arena_;
  const std::unique_ptr<ExpertMailbox> mailbox_;
  Ops& ops_;
  bool pinned_ = false, contributions_pinned_ = false;
  size_t num_entries_ = 0;  // of the computation that is running
  std::set<ExpertId> asked_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ExpertLink>> ConnectShmLink(const ShmLinkOptions& options, Ops* ops, bool pin, Deadline deadline) {
  absl::StatusOr<std::vector<UniqueFd>> fetched = FetchDescriptors(options.descriptor_socket, options.descriptor_key, deadline);
  if (!fetched.ok()) {
    return Annotate(fetched.status(), "shared memory with the coordinator; --expert-transport grpc does without");
  }
  std::vector<UniqueFd>& descriptors = *fetched;
  if (descriptors.size() != 2) return Internal("the coordinator handed out %d descriptors, want 2", descriptors.size());
  absl::StatusOr<ShmArena> arena = ShmArena::MapReadOnly(descriptors[0].Release(), options.arena.bytes());
  absl::StatusOr<std::unique_ptr<ExpertMailbox>> mailbox = ExpertMailbox::Map(descriptors[1].Release(), options.mailbox);
  if (!arena.ok()) return Annotate(arena.status(), "the expert arena");
  if (!mailbox.ok()) return Annotate(mailbox.status(), "the expert mailbox");
  auto link = std::make_unique<ShmLink>(options, *std::move(arena), *std::move(mailbox), ops);
  if (pin) link->Pin();
  return link;
}

}  // namespace ferry
