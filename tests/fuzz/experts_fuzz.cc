// The exchanges of experts over both links: what a worker may write into the coordinator's memory or send it, and what it takes
// back. Whatever passes the checks names experts, rows and places that exist.
//
// Input (wire_input.h): a byte that chooses the target; then for the mailbox raw words and for gRPC messages of that kind.

#include <fcntl.h>
#include <sys/mman.h>
#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "common/deadline.h"
#include "common/shm/expert_mailbox.h"
#include "coordinator/experts/expert_messages.h"
#include "coordinator/experts/expert_planner.h"
#include "tests/fuzz/wire_input.h"
#include "worker/expert_answers.h"
#include "worker/host_chunks.h"
#include "worker/record_assembler.h"

namespace ferry {
namespace {

constexpr MailboxShape kShape = {.n_embd = 4, .max_rows = 6, .max_entries = 10, .max_experts = 5};
constexpr int64_t kNumLayers = 3;

// What the engine indexes by, once a request has passed.
void RequireSound(const ExpertRequest& request, const MailboxShape& shape) {
  const bool compute = request.kind == ExpertRequestKind::kCompute;
  Require(compute || request.kind == ExpertRequestKind::kPlan);
  Require(request.layer >= 0 && request.layer < kNumLayers);
  int32_t last = -1;
  int64_t tokens = 0;
  for (const ActivatedExpert& use : request.uses) {
    Require(use.expert > last && use.expert < shape.max_experts && use.tokens > 0 && use.resident <= kComing);
    last = use.expert;
    tokens += use.tokens;
  }
  if (!compute) {
    Require(request.entry_rows.empty());
    return;
  }
  Require(request.num_rows >= 0 && request.num_rows <= shape.max_rows && tokens <= shape.max_entries);
  Require(tokens == static_cast<int64_t>(request.entry_rows.size()));
  for (const int32_t row : request.entry_rows) Require(row >= 0 && row < request.num_rows);
}

// The planner's answer to a plan that has passed.
void FuzzPlanner(const ExpertRequest& request, uint8_t knobs) {
  PlannerInput planner = {.uses = request.uses, .bytes_per_expert = 1e6, .flops_per_token = 1e6};
  planner.num_slots = knobs & 3;
  planner.rates = {.link_bytes_per_second = knobs & 4 ? 1e9 : 0,
                   .host = {.read_bytes_per_second = 1e10, .flops_per_second = 1e11}};
  planner.host_allowed = knobs & 8;
  planner.ship_allowed = knobs & 16;
  const ExpertPlan plan = PlanExperts(planner);
  Require(CheckPlaces(plan.places, request.uses, 0, request.layer).ok());
  const absl::StatusOr<std::vector<ExpertPlace>> sent = PlacesFromProto(ToProto(plan.places));
  Require(sent.ok() && *sent == plan.places);
}

// A mailbox whose other side writes every byte.
struct Mailbox {
  Mailbox() {
    coordinator = *ExpertMailbox::Create(kShape);
    worker = *ExpertMailbox::Map(::fcntl(coordinator->fd(), F_DUPFD_CLOEXEC, 0), kShape);
    bytes = static_cast<size_t>(::lseek(coordinator->fd(), 0, SEEK_END));
    data = static_cast<std::byte*>(::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, coordinator->fd(), 0));
    Require(data != MAP_FAILED);
  }
  ~Mailbox() { ::munmap(data, bytes); }
  // Writes pieces of the input where it says, in words; a byte behind each may raise or lower one of them.
  void Scribble(WireInput& input) {
    for (int i = 0; i < 8 && !input.empty(); ++i) {
      const size_t at = (input.Byte() | size_t{input.Byte()} << 8) * 4 % bytes;
      const std::string_view piece = input.Piece();
      std::memcpy(data + at, piece.data(), std::min(piece.size(), bytes - at));
      const uint8_t nudge = input.Byte();
      const size_t word = at + size_t{nudge & 0x3Fu} * sizeof(uint32_t);
      if (nudge < 0x40 || word + sizeof(uint32_t) > bytes) continue;
      uint32_t value = 0;
      std::memcpy(&value, data + word, sizeof(value));
      value += nudge & 0x80 ? 1 : -1;
      std::memcpy(data + word, &value, sizeof(value));
    }
  }
  std::unique_ptr<ExpertMailbox> coordinator, worker;
  size_t bytes = 0;
  std::byte* data = nullptr;
};

// The coordinator reads a request out of a region that its worker has written all over; and the worker an answer.
void FuzzMailbox(WireInput& input) {
  Mailbox mailbox;
  const uint8_t what = input.Byte();
  if (what & 1) {
    mailbox.Scribble(input);
    const absl::StatusOr<ExpertRequest> request =
        mailbox.coordinator->WaitForRequest(Deadline::In(absl::ZeroDuration()), kNumLayers);
    if (!request.ok()) return;
    RequireSound(*request, kShape);
    FuzzPlanner(*request, what >> 3);
    mailbox.coordinator->Answer(absl::OkStatus(), std::vector<ExpertPlace>(request->uses.size()));
  } else {
    const ExpertRequest plan = {.kind = ExpertRequestKind::kPlan,
                                .incarnation = 1,
                                .step = 1,
                                .layer = 0,
                                .num_rows = 2,
                                .uses = {{.expert = 1, .tokens = 1}, {.expert = 3, .tokens = 2}},
                                .entry_rows = {}};
    Require(mailbox.worker->Post(plan).ok());
    if (what & 2) {
      Require(mailbox.coordinator->WaitForRequest(Deadline::In(absl::ZeroDuration()), kNumLayers).ok());
      mailbox.coordinator->Answer(absl::OkStatus(), std::vector{ExpertPlace::kShip, ExpertPlace::kHost});
    }
    mailbox.Scribble(input);
    std::vector<ExpertPlace> places;
    if (!mailbox.worker->WaitForAnswer(Deadline::In(absl::ZeroDuration()), &places).ok()) return;
    Require(places.size() == plan.uses.size());
    for (const ExpertPlace place : places) Require(place <= ExpertPlace::kHost || IsHelper(place));
    // The worker, which asked for no helper, then takes only these.
    if (CheckPlaces(places, plan.uses, plan.helpers, plan.layer).ok()) {
      for (const ExpertPlace place : places) Require(place == ExpertPlace::kShip || place == ExpertPlace::kHost);
    }
  }
  // A region whose shape was overwritten is refused, or is the shape that was asked for.
  const auto mapped = ExpertMailbox::Map(::fcntl(mailbox.coordinator->fd(), F_DUPFD_CLOEXEC, 0), kShape);
  if (mapped.ok()) Require((*mapped)->shape() == kShape);
}

// PlanExperts and FetchExperts, as the coordinator reads them.
void FuzzPlanRequest(WireInput& input) {
  const uint8_t knobs = input.Byte();
  const auto request = ExpertRequestFromProto(input.Next<internal::v1::ExpertRequest>(), ExpertRequestKind::kPlan);
  if (!request.ok() || !CheckExpertRequest(*request, kShape, kNumLayers).ok()) return;
  RequireSound(*request, kShape);
  FuzzPlanner(*request, knobs);
}

void FuzzComputeRequest(WireInput& input) {
  const absl::StatusOr<ComputeRequest> compute =
      ComputeRequestFromProto(input.Next<internal::v1::ComputeExpertsRequest>(), kShape.n_embd);
  if (!compute.ok()) return;
  Require(static_cast<int64_t>(compute->rows.size()) == compute->request.num_rows * kShape.n_embd);
  Require(compute->contributions.size() == compute->request.entry_rows.size() * kShape.n_embd);
  if (!CheckExpertRequest(compute->request, kShape, kNumLayers).ok()) return;
  RequireSound(compute->request, kShape);
}

// The worker's side: the plan, the contributions, and the chunks of a record.
void FuzzAnswers(WireInput& input) {
  const ActivatedExpert uses[] = {{.expert = 0, .tokens = 3, .resident = 1}, {.expert = 2, .tokens = 1}};
  const absl::StatusOr<std::vector<ExpertPlace>> places = PlacesFromProto(input.Next<internal::v1::ExpertPlan>());
  if (places.ok() && CheckPlaces(*places, uses, 0, 1).ok()) {
    Require(places->size() == 2 && (*places)[1] != ExpertPlace::kResident);
    for (const ExpertPlace place : *places) Require(place <= ExpertPlace::kHost);
  }
  const internal::v1::ComputeExpertsResponse answer = input.Next<internal::v1::ComputeExpertsResponse>();
  const auto contributions = ContributionsFrom(answer.contributions(), 4, kShape.n_embd);
  if (contributions.ok()) Require(contributions->size() == 4 * kShape.n_embd);

  std::vector<std::byte> record(96);  // in memory of exactly its size, so that a byte too many is seen
  RecordAssembler assembler(7, {.layer = 1, .expert = 2}, record);
  absl::Status status;
  uint64_t checksum = 0;
  while (status.ok() && !input.empty()) {
    const internal::v1::ExpertRecordChunk chunk = input.Next<internal::v1::ExpertRecordChunk>();
    checksum = chunk.xxh3();
    status = assembler.Add(chunk);
  }
  if (status.ok() && assembler.Finish().ok()) Require(XXH3_64bits(record.data(), record.size()) == checksum);
}

// The division of the host's share into requests, whose groups come from a device: every entry goes once, and every request
// passes the check of the other side.
void FuzzHostShare(WireInput& input) {
  const int64_t max_rows = 1 + input.Byte() % 8, max_entries = 1 + input.Byte() % 12;
  std::vector<int32_t> offsets = {0}, rows, outs, experts;
  for (int32_t expert = 0; expert < kShape.max_experts; ++expert) {
    const uint8_t entries = input.Byte() % 8;
    std::vector<int32_t> of_expert;
    for (int i = 0; i < entries; ++i) of_expert.push_back(input.Byte() % 16);
    std::sort(of_expert.begin(), of_expert.end());  // a row chooses an expert once
    of_expert.erase(std::unique(of_expert.begin(), of_expert.end()), of_expert.end());
    for (const int32_t row : of_expert) outs.push_back(static_cast<int32_t>(rows.size())), rows.push_back(row);
    offsets.push_back(static_cast<int32_t>(rows.size()));
    if (!of_expert.empty()) experts.push_back(expert);
  }
  std::vector<int> times(outs.size());
  const MailboxShape shape = {.n_embd = 1, .max_rows = max_rows, .max_entries = max_entries, .max_experts = kShape.max_experts};
  for (const HostChunk& chunk : CutIntoChunks(experts, {offsets, rows, outs}, max_rows, max_entries)) {
    for (const int32_t out : chunk.outs) ++times[out];
    const ExpertRequest request = {.kind = ExpertRequestKind::kCompute,
                                   .num_rows = static_cast<int32_t>(chunk.rows.size()),
                                   .uses = chunk.uses,
                                   .entry_rows = chunk.entry_rows};
    Require(CheckExpertRequest(request, shape, kNumLayers).ok());
  }
  for (const int count : times) Require(count == 1);
}

}  // namespace
}  // namespace ferry

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  ferry::WireInput input(data, size);
  switch (input.Byte() % 5) {
    case 0:
      ferry::FuzzMailbox(input);
      break;
    case 1:
      ferry::FuzzPlanRequest(input);
      break;
    case 2:
      ferry::FuzzComputeRequest(input);
      break;
    case 3:
      ferry::FuzzAnswers(input);
      break;
    case 4:
      ferry::FuzzHostShare(input);
      break;
  }
  return 0;
}
