#include "coordinator/experts/expert_exchange.h"

#include <algorithm>
#include <atomic>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "common/deadline.h"
#include "common/expert_plan.h"
#include "common/log.h"
#include "common/thread_limit.h"

namespace ferry {
namespace {

// A worker that had a layer of another step planned so lately shares the engine with this one: longer than a layer takes.
constexpr absl::Duration kAtWork = absl::Milliseconds(20);
// How long a mailbox thread sleeps in one wait before it looks whether its worker is still there.
constexpr absl::Duration kMailboxPoll = absl::Milliseconds(200);

// In turns among this worker and its helpers, as far as the board has room.
void DivideEvenly(const ExpertRequest& request, const std::vector<WorkerId>& helpers, int64_t max_tokens,
                  std::vector<ExpertPlace>* places) {
  size_t turn = 0;
  int64_t tokens = 0;
  for (size_t i = 0; i < places->size(); ++i) {
    if (request.uses[i].resident != 0) continue;
    const size_t helper = turn++ % (helpers.size() + 1);
    if (helper == 0 || tokens + request.uses[i].tokens > max_tokens) continue;
    tokens += request.uses[i].tokens;
    (*places)[i] = PlaceOfHelper(helpers[helper - 1].value());
  }
}

}  // namespace

struct ExpertExchange::Peer {
  ExchangePeer info;                      // PeerRates are guarded by the exchange's mutex_; the rest is constant
  uint64_t last_step = 0;                 // of the newest request; guarded by mutex_
  std::optional<Deadline> at_work_until;  // guarded by mutex_
  RateCorrection link;                    // of its measured rate; guarded by mutex_
  std::vector<std::unique_ptr<ExpertMailbox>> mailboxes;
  std::string key;
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;  // one a mailbox

  ~Peer() { StopServing(); }
  // Joins the threads. The caller may hold mutex_ as long as no worker knows the key: without requests no thread takes it.
  void StopServing() {
    stop = true;
    for (std::thread& thread : threads) thread.join();
    threads.clear();
  }
};

absl::StatusOr<HelpMode> ParseHelpMode(const std::string& text) {
  if (text == "auto") return HelpMode::kAuto;
  if (text == "even") return HelpMode::kEven;
  if (text == "off") return HelpMode::kOff;
  return InvalidArgument("'%s', want auto, even or off", text);
}

ExpertExchange::ExpertExchange(const ExpertStore* store, ExpertComputer* engine, PlannerRates rates,
                               std::unique_ptr<DescriptorServer> descriptors)
    : store_(*store), engine_(*engine), descriptors_(std::move(descriptors)), rates_(rates) {}

absl::StatusOr<std::unique_ptr<ExpertExchange>> ExpertExchange::Create(const ExpertStore* store, ExpertComputer* engine,
                                                                       PlannerRates rates, const std::string& socket_name) {
  ASSIGN_OR_RETURN(std::unique_ptr<DescriptorServer> descriptors, DescriptorServer::Listen(socket_name));
  return std::unique_ptr<ExpertExchange>(new ExpertExchange(store, engine, rates, std::move(descriptors)));
}

ExpertExchange::~ExpertExchange() {
  std::map<WorkerId, std::shared_ptr<Peer>> peers;
  {
    const std::lock_guard lock(mutex_);
    peers.swap(peers_);
  }
}

const std::string& ExpertExchange::socket_name() const { return descriptors_->name(); }

void ExpertExchange::AddPeer(const ExchangePeer& info) {
  auto peer = std::make_shared<Peer>();
  peer->info = info;
  std::shared_ptr<Peer> earlier;  // ends its thread outside the lock
  const std::lock_guard lock(mutex_);
  std::shared_ptr<Peer>& place = peers_[info.worker];
  earlier = std::exchange(place, std::move(peer));
  if (earlier != nullptr) {
    descriptors_->Withdraw(earlier->key);
    earlier->stop = true;
  }
}

void ExpertExchange::UpdatePeer(WorkerId worker, const PeerRates& rates) {
  const std::lock_guard lock(mutex_);
  const auto found = peers_.find(worker);
  if (found == peers_.end()) return;
  ExchangePeer& info = found->second->info;
  info.num_slots = rates.num_slots;
  info.link_bytes_per_second = rates.link_bytes_per_second;
  info.way.cost = rates.exchange;
}

void ExpertExchange::SetRates(const PlannerRates& host, const std::vector<double>& links,
                              const std::vector<double>& device_flops) {
  const std::lock_guard lock(mutex_);
  rates_ = host;
  links_beside_host_ = links;
  device_flops_ = device_flops;
  for (auto& [worker, peer] : peers_) peer->link = RateCorrection();
}

double ExpertExchange::FlopsLocked(WorkerId worker) const {
  const auto index = static_cast<size_t>(worker.value());
  return index < device_flops_.size() ? device_flops_[index] : 0;
}

double ExpertExchange::MeasuredLinkLocked(WorkerId worker) const {
  const auto index = static_cast<size_t>(worker.value());
  return index < links_beside_host_.size() ? links_beside_host_[index] : 0;
}

double ExpertExchange::LinkRateLocked(const Peer& peer) const {
  const double measured = MeasuredLinkLocked(peer.info.worker);
  return measured > 0 ? measured / peer.link.factor() : peer.info.link_bytes_per_second;
}

void ExpertExchange::NoteStep(uint64_t step, int64_t num_rows) {
  newest_step_ = step;
  engine_.BeginStep(num_rows);
}

void ExpertExchange::NoteCopies(WorkerId worker, int64_t num_rows, const v1::ExpertCounters& counters) {
  // Decode copies without a plan. Small steps are not timed by the device's clock, and with copies for other workers among them
  // the bytes of a step's copies are not known.
  if (num_rows <= kMaxRowsWithoutPlan || !(counters.timed_seconds() > 0) || counters.computed_for_others() > 0) return;
  const std::lock_guard lock(mutex_);
  const auto found = peers_.find(worker);
  const double measured = MeasuredLinkLocked(worker);
  // Without a mailbox records come over the network: their copies to the device are a part of the way alone.
  if (found == peers_.end() || found->second->mailboxes.empty() || !(measured > 0)) return;
  found->second->link.Add(static_cast<double>(counters.bytes_shipped()) / measured, counters.copy_busy_seconds());
  found->second->link.EndStep();
}

double ExpertExchange::LinkSlowdown(WorkerId worker) const {
  const std::lock_guard lock(mutex_);
  const auto found = peers_.find(worker);
  return found != peers_.end() && found->second->link.known() ? found->second->link.factor() : 0;
}

absl::StatusOr<std::string> ExpertExchange::OpenMailboxes(WorkerId worker, const MailboxShape& shape) {
  const std::lock_guard lock(mutex_);
  const auto found = peers_.find(worker);
  if (found == peers_.end()) return FailedPrecondition("worker %d has not registered", worker.value());
  const std::shared_ptr<Peer>& peer = found->second;
  if (!peer->mailboxes.empty()) return FailedPrecondition("worker %d has mailboxes already", worker.value());
  std::vector<std::unique_ptr<ExpertMailbox>> mailboxes;
  std::vector<int> offered = {store_.arena().fd()};
  for (int i = 0; i < kMailboxesOfAWorker; ++i) {
    ASSIGN_OR_RETURN(std::unique_ptr<ExpertMailbox> mailbox, ExpertMailbox::Create(shape));
    offered.push_back(mailbox->fd());
    mailboxes.push_back(std::move(mailbox));
  }
  for (const std::unique_ptr<ExpertMailbox>& mailbox : mailboxes) {
    // The thread holds the peer by a plain pointer: ~Peer joins it.
    absl::StatusOr<std::thread> thread =
        StartThread([this, raw = peer.get(), mailbox = mailbox.get()] { Serve(*raw, *mailbox); });
    if (!thread.ok()) {
      peer->StopServing();  // before their mailboxes go
      peer->stop = false;
      return thread.status();
    }
    peer->threads.push_back(*std::move(thread));
  }
  peer->mailboxes = std::move(mailboxes);
  peer->key = RandomDescriptorKey();
  descriptors_->Offer(peer->key, offered);
  return peer->key;
}

void ExpertExchange::RemovePeer(WorkerId worker) {
  std::shared_ptr<Peer> peer;
  const std::lock_guard lock(mutex_);
  const auto found = peers_.find(worker);
  if (found == peers_.end()) return;
  peer = std::move(found->second);
  peers_.erase(found);
  descriptors_->Withdraw(peer->key);
  peer->stop = true;
}

void ExpertExchange::BeginEpoch() {
  const std::lock_guard lock(mutex_);
  newest_step_ = 0;
  for (auto& [worker, peer] : peers_) peer->last_step = 0;
}

absl::StatusOr<std::shared_ptr<ExpertExchange::Peer>> ExpertExchange::Find(WorkerId worker) {
  const std::lock_guard lock(mutex_);
  const auto found = peers_.find(worker);
  if (found == peers_.end()) return Aborted("worker %d is not part of the cluster", worker.value());
  return found->second;
}

absl::Status ExpertExchange::Admit(Peer& peer, const ExpertRequest& request) {
  const ExchangePeer& info = peer.info;
  if (request.incarnation != info.incarnation.value()) {
    return Aborted("incarnation %d of worker %d is over: it is %d now", request.incarnation, info.worker.value(),
                   info.incarnation.value());
  }
  if (request.layer < info.first_layer || request.layer >= info.end_layer) {
    return InvalidArgument("layer is %d, want one of worker %d's layers, %d to %d", request.layer, info.worker.value(),
                           info.first_layer, info.end_layer - 1);
  }
  if (const uint64_t newest = newest_step_; request.step > newest) {
    return Aborted("step %d has not begun: the newest is %d", request.step, newest);
  }
  const std::lock_guard lock(mutex_);
  if (request.step < peer.last_step) return Aborted("step %d is over: the newest is %d", request.step, peer.last_step);
  peer.last_step = request.step;
  return absl::OkStatus();
}

ExpertExchange::Helpers ExpertExchange::HelpersLocked(const Peer& peer, const ExpertRequest& request,
                                                      const ExpertLayout& layout) const {
  Helpers helpers;
  if (help_mode_ == HelpMode::kOff || request.helpers == 0 || request.num_rows > help_shape_.max_rows) return helpers;
  const double row_bytes = static_cast<double>(layout.gate.cols) * (peer.info.has_gpu ? 2 : 4);
  const double own_link = LinkRateLocked(peer);
  for (const auto& [worker, other] : peers_) {
    const bool asked = worker.value() < kMaxHelpers && (request.helpers & HelperBit(worker.value())) != 0;
    const double link = LinkRateLocked(*other);
    if (!asked || worker == peer.info.worker || other->info.has_gpu != peer.info.has_gpu || !(link > 0)) continue;
    const bool on_device = (request.helpers & NearHelperBit(worker.value())) != 0;
    if (!on_device && request.num_rows > help_shape_.board_rows()) continue;
    helpers.workers.push_back(worker);
    helpers.places.push_back(PlaceOf({.link_bytes_per_second = link,
                                      .own_link_bytes_per_second = own_link,
                                      .device_to_device = on_device,
                                      .flops_per_second = FlopsLocked(worker)},
                                     row_bytes));
  }
  return helpers;
}

std::vector<ExpertPlace> ExpertExchange::PlanFor(Peer& peer, const ExpertRequest& request) {
  const ExpertLayout& layout = store_.layout().layer(request.layer);
  PlannerInput input = {.uses = request.uses,
                        .bytes_per_expert = static_cast<double>(layout.bytes),
                        .flops_per_token = static_cast<double>(layout.flops_per_token()),
                        .ship_all = peer.info.ship_all};
  Helpers helpers;
  {
    const std::lock_guard lock(mutex_);
    input.num_slots = peer.info.num_slots;
    input.way = peer.info.way;
    input.rates = rates_;
    input.rates.link_bytes_per_second = LinkRateLocked(peer);
    helpers = HelpersLocked(peer, request, layout);
    // What lies on the board and what lies on a device have the same numbers, so the smaller bounds both.
    const uint32_t helping = request.helpers & (HelperBit(kMaxHelpers) - 1);
    const bool all_on_device = (helping & ~(request.helpers >> kMaxHelpers)) == 0;
    input.max_helper_tokens = all_on_device ? help_shape_.max_entries : help_shape_.board_entries();
    input.rates.device_flops_per_second = FlopsLocked(peer.info.worker);
    peer.at_work_until = Deadline::In(kAtWork);
    const auto others = static_cast<double>(std::count_if(peers_.begin(), peers_.end(), [&](const auto& entry) {
      return entry.second->last_step != peer.last_step && entry.second->at_work_until && !entry.second->at_work_until->Passed();
    }));
    input.rates.host = Slower(input.rates.host, 1 + others);
  }
  input.rates.host = Slower(input.rates.host, engine_.Slowdown(request.num_rows));
  const std::vector<EnginePlace> others = engine_.OtherPlaces(request.layer, request.num_rows);
  input.num_rows = request.num_rows;
  input.others = others;
  if (request.layer < static_cast<int64_t>(peer.info.overrides.size())) {
    input.host_allowed = peer.info.overrides[request.layer] != ExpertPlace::kShip;
    input.ship_allowed = peer.info.overrides[request.layer] != ExpertPlace::kHost;
  }
  if (help_mode_ == HelpMode::kAuto) input.helpers = helpers.places;
  ExpertPlan plan = PlanExperts(input);
  for (size_t i = 0; i < plan.helpers.size(); ++i) {
    if (plan.helpers[i] >= 0) plan.places[i] = PlaceOfHelper(helpers.workers[plan.helpers[i]].value());
  }
  if (help_mode_ == HelpMode::kEven && input.ship_allowed && input.num_slots > 0) {
    DivideEvenly(request, helpers.workers, input.max_helper_tokens, &plan.places);
  }
  return std::move(plan.places);
}

HelpOffer ExpertExchange::OfferHelp(const HelpBoardShape& shape) {
  HelpOffer offer = {.socket = descriptors_->name(), .shape = shape};
  const std::lock_guard lock(mutex_);
  for (const std::string& key : help_keys_) descriptors_->Withdraw(key);
  help_keys_.clear();
  help_shape_ = shape;
  for (const auto& [worker, peer] : peers_) {
    if (worker.value() < kMaxHelpers && !peer->mailboxes.empty()) offer.workers.push_back(worker);
  }
  if (help_mode_ == HelpMode::kOff || offer.workers.size() < 2) return offer;
  if (const absl::Status made = MakeBoards(&offer); !made.ok()) {
    spdlog::warn("workers of this host do not help each other: {}", made.ToString());
    offer.keys.clear();
  }
  return offer;
}

absl::Status ExpertExchange::MakeBoards(HelpOffer* offer) {
  std::vector<std::unique_ptr<HelpBoard>> boards;
  std::vector<int> descriptors;
  for (size_t i = 0; i < offer->workers.size(); ++i) {
    ASSIGN_OR_RETURN(boards.emplace_back(), HelpBoard::Create(offer->shape));
    descriptors.push_back(boards.back()->fd());
  }
  for (const WorkerId worker : offer->workers) {
    help_keys_.push_back(RandomDescriptorKey());
    if (!descriptors_->Offer(help_keys_.back(), descriptors)) return ResourceExhausted("no descriptors are left");
    offer->keys[worker] = help_keys_.back();
  }
  return absl::OkStatus();
}

void ExpertExchange::CountShipped(const ExpertRequest& request, const std::vector<ExpertPlace>& places) {
  if (misses_ == nullptr) return;
  for (size_t i = 0; i < places.size(); ++i) {
    if (places[i] == ExpertPlace::kShip || IsHelper(places[i])) misses_->Add(request.layer, request.uses[i].expert);
  }
}

void ExpertExchange::CountComputed(const ExpertRequest& request) {
  if (misses_ == nullptr) return;
  for (const ActivatedExpert& use : request.uses) misses_->Add(request.layer, use.expert);
}

absl::StatusOr<std::vector<ExpertPlace>> ExpertExchange::Plan(WorkerId worker, const ExpertRequest& request) {
  ASSIGN_OR_RETURN(const std::shared_ptr<Peer> peer, AdmitWithoutRows(worker, request));
  std::vector<ExpertPlace> places = PlanFor(*peer, request);
  CountShipped(request, places);
  return places;
}

absl::StatusOr<std::shared_ptr<ExpertExchange::Peer>> ExpertExchange::AdmitWithoutRows(WorkerId worker,
                                                                                       const ExpertRequest& request) {
  ASSIGN_OR_RETURN(std::shared_ptr<Peer> peer, Find(worker));
  // There are no rows, so there is nothing for their limits to bound.
  const MailboxShape shape = {
      .n_embd = 1, .max_rows = INT32_MAX, .max_entries = INT32_MAX, .max_experts = store_.layout().num_experts()};
  RETURN_IF_ERROR(CheckExpertRequest(request, shape, store_.layout().num_layers()));
  RETURN_IF_ERROR(Admit(*peer, request));
  return peer;
}

absl::Status ExpertExchange::Compute(WorkerId worker, const ExpertRequest& request, std::span<float> rows,
                                     std::span<float> contributions) {
  ASSIGN_OR_RETURN(const std::shared_ptr<Peer> peer, Find(worker));
  RETURN_IF_ERROR(Admit(*peer, request));
  RETURN_IF_ERROR(engine_.Compute(request, rows, contributions));
  CountComputed(request);
  return absl::OkStatus();
}

absl::Status ExpertExchange::CheckFetch(WorkerId worker, const ExpertRequest& request) {
  return AdmitWithoutRows(worker, request).status();
}

void ExpertExchange::Serve(Peer& peer, ExpertMailbox& mailbox) {
  while (!peer.stop) {
    absl::StatusOr<ExpertRequest> request = mailbox.WaitForRequest(Deadline::In(kMailboxPoll), store_.layout().num_layers());
    if (!request.ok()) {
      if (!absl::IsDeadlineExceeded(request.status())) {
        spdlog::warn("refused an expert request of worker {}: {}", peer.info.worker.value(),
                     std::string(request.status().message()));
      }
      continue;
    }
    absl::Status status = Admit(peer, *request);
    std::vector<ExpertPlace> places;
    if (status.ok() && request->kind == ExpertRequestKind::kPlan) {
      places = PlanFor(peer, *request);
      CountShipped(*request, places);
    } else if (status.ok()) {
      status = engine_.Compute(*request, mailbox.rows(), mailbox.contributions());
      if (status.ok()) CountComputed(*request);
    }
    mailbox.Answer(status, places);
  }
}

}  // namespace ferry
