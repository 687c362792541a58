#pragma once

// Which calls' messages are read now. A message that comes slowly, or never whole, holds up to its full size, so a few are read
// at once, in all and of each host and connection; the others wait in order of arrival, and what their clients may send meanwhile
// is one window of HTTP/2 each (64 KiB). A message that has come whole is read within microseconds.
//
// Connections of one host are fair to each other as far as that goes: some reads of a host are kept for connections that have
// none, and when too many wait, the last one of the connection that has most is refused.
//
// Thread-safe.

#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "absl/time/time.h"
#include "common/clock.h"
#include "common/repeating_thread.h"
#include "common/status.h"

namespace ferry {

class MessageReads {
 public:
  struct Options {
    int all = 24;
    int of_host = 12;
    int of_host_with_firsts = 18;  // with those that are the only one of their connection
    int of_connection = 4;
    int all_waiting = 1024;
    int of_host_waiting = 512;
    int of_connection_waiting = 128;
    absl::Duration patience = absl::Seconds(20);          // of one message
    absl::Duration waiting_patience = absl::Seconds(60);  // of one that waits
  };

  // The message of one call.
  class Read {
   public:
    virtual ~Read() = default;
    // Begins to read. Ended follows, perhaps from within.
    virtual void Start() = 0;
    // Makes it end soon. Must not call back from within.
    virtual void GiveUp() = 0;
    // Instead of Start: the call ends with `status`.
    virtual void Refuse(const absl::Status& status) = 0;
  };

  // `clock` outlives this. ResourceExhausted: no thread can be started.
  static absl::StatusOr<std::unique_ptr<MessageReads>> Create(const Clock* clock, Options options);
  // No call is left.
  ~MessageReads() = default;

  // Starts `read` when its turn comes, or refuses it. `peer` is the connection as gRPC names it. Those of this machine's sockets
  // count in all alone: the gateway brings the calls of many by one.
  void Begin(Read* read, const std::string& peer);
  // `read` was started and has ended.
  void Ended(Read* read);
  // Refuses those that wait, and those that come.
  void Close();

 private:
  struct Entry {
    Read* read = nullptr;
    std::string connection, host;  // empty: a local one
    absl::Time since;              // it waits, or is read
  };
  MessageReads(const Clock* clock, Options options) : clock_(*clock), options_(options) {}
  void StartSome();
  // Room for `entry` among those that wait: OK, and perhaps another one that has to go for it. Otherwise why there is none.
  absl::Status MakeRoomLocked(const Entry& entry, Read** dropped);
  bool MayStartLocked(const Entry& entry) const;
  static void CountLocked(const Entry& entry, int change, std::map<std::string, int>* counts);
  void LookAfter();

  const Clock& clock_;
  const Options options_;
  std::mutex mutex_;
  std::deque<Entry> waiting_;
  std::map<const Read*, Entry> reading_;
  std::map<std::string, int> reading_of_;  // by connection, and by host
  std::map<std::string, int> waiting_of_;  // likewise
  bool closed_ = false;
  std::unique_ptr<RepeatingThread> watch_;
};

}  // namespace ferry
