// The socket over which shared memory is handed out, both ends: whatever bytes and descriptors a peer sends, nothing is
// given away without the key, nothing stays open, and a correct caller is served.
//
// Input (wire_input.h): which end is fuzzed; then for a server the messages of one caller, for a caller the messages of its
// server. A message is how many descriptors, which, and a piece.

#include <fcntl.h>
#include <linux/memfd.h>
#include <poll.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "common/deadline.h"
#include "common/shm/descriptor_socket.h"
#include "common/shm/expert_mailbox.h"
#include "common/shm/shm_arena.h"
#include "tests/fuzz/wire_input.h"
#include "tests/testing/raw_descriptor_socket.h"

namespace ferry {
namespace {

constexpr char kKey[] = "key of 8";
constexpr int64_t kArenaBytes = 8192;
constexpr MailboxShape kShape = {.n_embd = 4, .max_rows = 6, .max_entries = 10, .max_experts = 5};

std::string NameOf(const char* end) { return "ferry-fuzz-" + std::string(end) + std::to_string(::getpid()); }
Deadline Soon() { return Deadline::In(absl::Seconds(5)); }

// The number that the next descriptor gets: no higher after what leaves none open than before. Lower it may be, since the server
// of FuzzServer closes its last caller when it comes to it.
int NextDescriptor() { return UniqueFd(::dup(STDIN_FILENO)).get(); }

UniqueFd MakeMemfd(int64_t bytes, int seals) {
  UniqueFd fd(::memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  Require(::ftruncate(fd.get(), bytes) == 0 && ::fcntl(fd.get(), F_ADD_SEALS, seals) == 0);
  return fd;
}

// What a peer may pass on: good ones, and such as a reader must not map.
class Samples {
 public:
  Samples() {
    ShmArena arena = *ShmArena::Create("arena", kArenaBytes);
    Require(arena.Seal().ok());
    fds_.emplace_back(::dup(arena.fd()));
    mailbox_ = *ExpertMailbox::Create(kShape);
    fds_.emplace_back(::dup(mailbox_->fd()));
    fds_.push_back(MakeMemfd(kArenaBytes, 0));
    fds_.push_back(MakeMemfd(kArenaBytes, F_SEAL_GROW));
    fds_.push_back(MakeMemfd(kArenaBytes - 1, F_SEAL_SHRINK));
    fds_.push_back(MakeMemfd(INT64_MAX, F_SEAL_SHRINK));
    fds_.push_back(MakeMemfd(int64_t{1} << 20, F_SEAL_SHRINK));  // a mailbox of zeros, and too large for the arena's page
    fds_.emplace_back(::open("/dev/null", O_RDWR | O_CLOEXEC));
    fds_.emplace_back(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  }
  std::vector<int> Take(uint8_t count, uint8_t which) const {
    std::vector<int> taken;
    for (int i = 0; i < count && taken.size() < kMostRawDescriptors; ++i) taken.push_back(fds_[(which + i) % fds_.size()].get());
    return taken;
  }

 private:
  std::unique_ptr<ExpertMailbox> mailbox_;
  std::vector<UniqueFd> fds_;
};

const Samples& AllSamples() {
  static const Samples* const samples = new Samples();
  return *samples;
}

struct Message {
  std::vector<int> fds;
  std::string bytes;
};
std::vector<Message> ReadMessages(WireInput& input) {
  std::vector<Message> messages;
  while (!input.empty() && messages.size() < 4) {
    const uint8_t count = input.Byte(), which = input.Byte();
    messages.push_back({AllSamples().Take(count, which), std::string(input.Piece())});
  }
  return messages;
}

// One caller of a server that has descriptors for a caller with the key.
void FuzzServer(WireInput& input) {
  static DescriptorServer* const server = DescriptorServer::Listen(NameOf("server")).value().release();
  static const UniqueFd* const offered = new UniqueFd(MakeMemfd(4096, F_SEAL_SHRINK));
  const std::vector<Message> messages = ReadMessages(input);
  Require(server->Offer(kKey, {offered->get()}));
  {
    const UniqueFd caller = CallRaw(server->name());
    Require(caller.valid());
    bool sent = true;
    for (const Message& message : messages) sent = sent && SendRaw(caller.get(), message.bytes, message.fds);
    ::shutdown(caller.get(), SHUT_WR);  // so the server does not wait for a caller that has sent nothing
    size_t answers = 0, fds = 0;
    for (int i = 0; i < 3; ++i) {  // one may be the error of what the server left unread
      const RawMessage answer = ReceiveRaw(caller.get());
      answers += !answer.bytes.empty();
      fds += answer.fds.size();
      Require(answer.bytes.size() <= 1 && (answer.bytes.empty() || static_cast<size_t>(answer.bytes[0]) == answer.fds.size()));
    }
    const bool has_key = !messages.empty() && messages[0].bytes == kKey;
    Require(answers <= 1 && fds <= (has_key ? 1 : 0));
  }
  Require(server->Offer(kKey, {offered->get()}));
  const auto fetched = FetchDescriptors(server->name(), kKey, Soon());
  Require(fetched.ok() && fetched->size() == 1);
}

// One call of a worker, as it connects to its coordinator (worker/expert_link_shm.cc).
void FuzzCaller(WireInput& input) {
  static const std::string* const name = new std::string(NameOf("caller"));
  static const UniqueFd* const listener = new UniqueFd(ListenRaw(*name));
  const std::vector<Message> messages = ReadMessages(input);
  const int before = NextDescriptor();
  std::thread server([&] {
    const UniqueFd socket(::accept4(listener->get(), nullptr, nullptr, SOCK_CLOEXEC));
    Require(ReceiveRaw(socket.get()).bytes == kKey);
    for (const Message& message : messages) SendRaw(socket.get(), message.bytes, message.fds);
  });
  {
    absl::StatusOr<std::vector<UniqueFd>> fetched = FetchDescriptors(*name, kKey, Soon());
    server.join();
    if (fetched.ok()) {
      Require(!fetched->empty() && fetched->size() <= 16);
      Require(fetched->size() == messages[0].fds.size() && messages[0].bytes.size() == 1);
      const absl::StatusOr<ShmArena> arena = ShmArena::MapReadOnly((*fetched)[0].Release(), kArenaBytes);
      if (arena.ok()) {
        Require(arena->bytes().size() == kArenaBytes);
        for (const volatile std::byte* byte : {&arena->bytes().front(), &arena->bytes().back()}) static_cast<void>(*byte);
      }
      if (fetched->size() > 1) {
        const auto mailbox = ExpertMailbox::Map((*fetched)[1].Release(), kShape);
        if (mailbox.ok()) Require((*mailbox)->shape() == kShape);
      }
    }
  }
  Require(NextDescriptor() <= before);
}

}  // namespace
}  // namespace ferry

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  ferry::WireInput input(data, size);
  ferry::AllSamples();
  if (input.Byte() % 2 == 0) {
    ferry::FuzzServer(input);
  } else {
    ferry::FuzzCaller(input);
  }
  return 0;
}
