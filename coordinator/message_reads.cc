#include "coordinator/message_reads.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace ferry {
namespace {

constexpr absl::Duration kReadWatchInterval = absl::Milliseconds(500);

int CountOf(const std::map<std::string, int>& counts, const std::string& name) {
  const auto count = counts.find(name);
  return count == counts.end() ? 0 : count->second;
}

}  // namespace

absl::StatusOr<std::unique_ptr<MessageReads>> MessageReads::Create(const Clock* clock, Options options) {
  std::unique_ptr<MessageReads> reads(new MessageReads(clock, options));
  ASSIGN_OR_RETURN(reads->watch_, RepeatingThread::Start(kReadWatchInterval, [raw = reads.get()] { raw->LookAfter(); }));
  return reads;
}

// Counts it for its connection and its host.
void MessageReads::CountLocked(const Entry& entry, int change, std::map<std::string, int>* counts) {
  if (entry.host.empty()) return;
  for (const std::string& name : {entry.connection, entry.host}) {
    const auto count = counts->emplace(name, 0).first;
    count->second += change;
    if (count->second == 0) counts->erase(count);
  }
}

void MessageReads::Begin(Read* read, const std::string& peer) {
  Entry entry = {.read = read, .connection = "", .host = "", .since = clock_.Now()};
  if (!peer.starts_with("unix:")) {
    entry.connection = peer;
    entry.host = peer.substr(0, peer.rfind(':'));  // without the port
  }
  absl::Status refused;
  Read* dropped = nullptr;
  {
    const std::lock_guard lock(mutex_);
    refused = MakeRoomLocked(entry, &dropped);
    if (refused.ok()) {
      CountLocked(entry, +1, &waiting_of_);
      waiting_.push_back(std::move(entry));
    }
  }
  if (dropped != nullptr) dropped->Refuse(ResourceExhausted("too many messages wait to be read, and this connection has most"));
  if (!refused.ok()) return read->Refuse(refused);
  StartSome();
}

absl::Status MessageReads::MakeRoomLocked(const Entry& entry, Read** dropped) {
  if (closed_) return Unavailable("the server is ending");
  const int of_connection = CountOf(waiting_of_, entry.connection);
  if (of_connection >= options_.of_connection_waiting) {
    return ResourceExhausted("%d messages of this connection wait to be read", of_connection);
  }
  const bool host_full = CountOf(waiting_of_, entry.host) >= options_.of_host_waiting;
  if (!host_full && static_cast<int>(waiting_.size()) < options_.all_waiting) return absl::OkStatus();
  auto most = waiting_.rend();
  int count = of_connection + 1;
  for (auto each = waiting_.rbegin(); each != waiting_.rend(); ++each) {  // a connection's last one comes first
    const int of_other = CountOf(waiting_of_, each->connection);
    if (of_other <= count || (host_full && each->host != entry.host)) continue;
    most = each;
    count = of_other;
  }
  if (most == waiting_.rend()) {
    return ResourceExhausted("%d messages%s wait to be read", host_full ? options_.of_host_waiting : options_.all_waiting,
                             host_full ? " of this host" : "");
  }
  *dropped = most->read;
  CountLocked(*most, -1, &waiting_of_);
  waiting_.erase(std::next(most).base());
  return absl::OkStatus();
}

bool MessageReads::MayStartLocked(const Entry& entry) const {
  if (static_cast<int>(reading_.size()) >= options_.all) return false;
  const int of_host = CountOf(reading_of_, entry.host), of_connection = CountOf(reading_of_, entry.connection);
  if (of_connection == 0) return of_host < options_.of_host_with_firsts;
  return of_host < options_.of_host && of_connection < options_.of_connection;
}

void MessageReads::StartSome() {
  while (true) {
    Read* read = nullptr;
    {
      const std::lock_guard lock(mutex_);
      const auto next =
          std::find_if(waiting_.begin(), waiting_.end(), [this](const Entry& entry) { return MayStartLocked(entry); });
      if (next == waiting_.end()) return;
      Entry entry = std::move(*next);
      waiting_.erase(next);
      CountLocked(entry, -1, &waiting_of_);
      CountLocked(entry, +1, &reading_of_);
      entry.since = clock_.Now();
      read = entry.read;
      reading_.emplace(read, std::move(entry));
    }
    read->Start();
  }
}

void MessageReads::Ended(Read* read) {
  {
    const std::lock_guard lock(mutex_);
    const auto ended = reading_.find(read);
    CountLocked(ended->second, -1, &reading_of_);
    reading_.erase(ended);
  }
  StartSome();
}

void MessageReads::LookAfter() {
  const absl::Time now = clock_.Now();
  std::vector<Read*> refused;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [read, entry] : reading_) {
      if (entry.since + options_.patience < now) entry.read->GiveUp();
    }
    while (!waiting_.empty() && waiting_.front().since + options_.waiting_patience < now) {
      refused.push_back(waiting_.front().read);
      CountLocked(waiting_.front(), -1, &waiting_of_);
      waiting_.pop_front();
    }
  }
  for (Read* const read : refused) read->Refuse(ResourceExhausted("other messages were read for too long"));
}

void MessageReads::Close() {
  std::deque<Entry> refused;
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    refused = std::exchange(waiting_, {});
    waiting_of_.clear();
  }
  for (const Entry& entry : refused) entry.read->Refuse(Unavailable("the server is ending"));
}

}  // namespace ferry
