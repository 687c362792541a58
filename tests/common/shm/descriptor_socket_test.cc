#include "common/shm/descriptor_socket.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstddef>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "common/deadline.h"
#include "common/shm/shm_arena.h"
#include "tests/testing/raw_descriptor_socket.h"
#include "tests/testing/soon.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using testing::HasSubstr;

std::string UniqueName(const char* test) { return "ferry-test-" + std::string(test) + std::to_string(::getpid()); }

// A file descriptor whose file can be told from others.
int64_t FileOf(int fd) {
  struct stat about = {};
  return ::fstat(fd, &about) == 0 ? static_cast<int64_t>(about.st_ino) : -1;
}

TEST(DescriptorServer, HandsOverWhatWasOfferedOnce) {
  ASSERT_OK_AND_ASSIGN(const auto server, DescriptorServer::Listen(UniqueName("once")));
  ASSERT_OK_AND_ASSIGN(const ShmArena a, ShmArena::Create("a", 4096));
  ASSERT_OK_AND_ASSIGN(const ShmArena b, ShmArena::Create("b", 4096));
  ASSERT_TRUE(server->Offer("secret", {a.fd(), b.fd()}));
  ASSERT_OK_AND_ASSIGN(const std::vector<UniqueFd> fds, FetchDescriptors(server->name(), "secret", Soon()));
  ASSERT_EQ(fds.size(), 2u);
  EXPECT_EQ(FileOf(fds[0].get()), FileOf(a.fd()));
  EXPECT_EQ(FileOf(fds[1].get()), FileOf(b.fd()));
  EXPECT_NE(::fcntl(fds[0].get(), F_GETFD) & FD_CLOEXEC, 0);
  EXPECT_THAT(FetchDescriptors(server->name(), "secret", Soon()), StatusIs(absl::StatusCode::kNotFound));
}

TEST(DescriptorServer, OutlivesTheOfferersOwnDescriptors) {
  ASSERT_OK_AND_ASSIGN(const auto server, DescriptorServer::Listen(UniqueName("dup")));
  {
    ASSERT_OK_AND_ASSIGN(const ShmArena arena, ShmArena::Create("a", 4096));
    ASSERT_TRUE(server->Offer("key", {arena.fd()}));
  }
  ASSERT_OK_AND_ASSIGN(const std::vector<UniqueFd> fds, FetchDescriptors(server->name(), "key", Soon()));
  EXPECT_NE(FileOf(fds[0].get()), -1);
}

TEST(DescriptorServer, GivesNothingForAnotherKeyOrAWithdrawnOne) {
  ASSERT_OK_AND_ASSIGN(const auto server, DescriptorServer::Listen(UniqueName("keys")));
  ASSERT_OK_AND_ASSIGN(const ShmArena arena, ShmArena::Create("a", 4096));
  ASSERT_TRUE(server->Offer("key", {arena.fd()}));
  EXPECT_THAT(FetchDescriptors(server->name(), "kez", Soon()), StatusIs(absl::StatusCode::kNotFound));
  server->Withdraw("key");
  EXPECT_THAT(FetchDescriptors(server->name(), "key", Soon()), StatusIs(absl::StatusCode::kNotFound));
}

TEST(DescriptorServer, RefusesKeysAndOffersOutOfRange) {
  ASSERT_OK_AND_ASSIGN(const auto server, DescriptorServer::Listen(UniqueName("range")));
  EXPECT_FALSE(server->Offer("", {0}));
  EXPECT_FALSE(server->Offer(std::string(65, 'k'), {0}));
  EXPECT_FALSE(server->Offer("key", {}));
  EXPECT_FALSE(server->Offer("key", std::vector<int>(17, 0)));
  EXPECT_FALSE(server->Offer("key", {-1}));
  EXPECT_THAT(FetchDescriptors(server->name(), "", Soon()), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(DescriptorServer::Listen(std::string(200, 'n')), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(DescriptorServer, ServesSixteenCallersAtOnce) {
  ASSERT_OK_AND_ASSIGN(const auto server, DescriptorServer::Listen(UniqueName("many")));
  ASSERT_OK_AND_ASSIGN(const ShmArena arena, ShmArena::Create("a", 4096));
  std::vector<std::thread> callers;
  for (int i = 0; i < 16; ++i) {
    ASSERT_TRUE(server->Offer("key" + std::to_string(i), {arena.fd()}));
    callers.emplace_back([&server, i] { EXPECT_OK(FetchDescriptors(server->name(), "key" + std::to_string(i), Soon())); });
  }
  for (std::thread& caller : callers) caller.join();
}

TEST(FetchDescriptors, SaysWhenNobodyListens) {
  EXPECT_THAT(FetchDescriptors(UniqueName("nobody"), "key", Soon()), StatusIs(absl::StatusCode::kUnavailable));
}

// ----------------------------------------------------------------------------------------------------------- hostile callers

class HostileCallers : public testing::Test {
 protected:
  HostileCallers()
      : server_(DescriptorServer::Listen(UniqueName("hostile")).value()), arena_(ShmArena::Create("a", 4096).value()) {}

  // Within `timeout`, whatever the others do.
  void ExpectServed(absl::Duration timeout) {
    ASSERT_TRUE(server_->Offer("key", {arena_.fd()}));
    EXPECT_OK(FetchDescriptors(server_->name(), "key", Deadline::In(timeout)));
  }

  std::unique_ptr<DescriptorServer> server_;
  ShmArena arena_;
};

TEST_F(HostileCallers, WhoSaysNothingHoldsNobodyUpAndIsHungUpOn) {
  const UniqueFd silent = CallRaw(server_->name());
  const Stopwatch start;
  ExpectServed(absl::Seconds(1));
  EXPECT_EQ(ReceiveRaw(silent.get()).bytes, "") << "the server hung up";
  EXPECT_GT(start.Elapsed(), absl::Seconds(1)) << "not at once: a caller may be slow";
  EXPECT_LT(start.Elapsed(), absl::Seconds(4));
}

TEST_F(HostileCallers, MoreSilentOnesThanThereArePlacesDelayAndDoNotBlock) {
  std::vector<UniqueFd> silent;
  for (int i = 0; i < 100; ++i) silent.push_back(CallRaw(server_->name()));
  ExpectServed(absl::Seconds(8));
}

TEST_F(HostileCallers, GetNothingForBytesThatAreNoKey) {
  ASSERT_TRUE(server_->Offer("key", {arena_.fd()}));
  for (const std::string& bytes : {std::string("ke"), std::string("key\0", 4), std::string("keykey"), std::string(64, 'k')}) {
    const UniqueFd caller = CallRaw(server_->name());
    ASSERT_TRUE(SendRaw(caller.get(), bytes, {}));
    const RawMessage answer = ReceiveRaw(caller.get());
    EXPECT_EQ(answer.bytes, std::string(1, '\0')) << bytes;
    EXPECT_TRUE(answer.fds.empty());
  }
  for (const size_t length : {65, 66, 100000}) {
    const UniqueFd caller = CallRaw(server_->name());
    ASSERT_TRUE(SendRaw(caller.get(), std::string(length, 'k'), {}));
    EXPECT_EQ(ReceiveRaw(caller.get()).bytes, "") << length << " bytes are no key, and get no answer";
  }
  ExpectServed(absl::Seconds(1));
}

TEST_F(HostileCallers, CannotLeaveDescriptorsBehind) {
  ASSERT_TRUE(server_->Offer("key", {arena_.fd()}));
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
  const UniqueFd read_end(ends[0]);
  {
    const UniqueFd write_end(ends[1]);
    const UniqueFd caller = CallRaw(server_->name());
    ASSERT_TRUE(SendRaw(caller.get(), "key", std::vector<int>(16, write_end.get())));
    EXPECT_EQ(ReceiveRaw(caller.get()).fds.size(), 1u) << "a caller with the key is served";
  }
  char byte;
  EXPECT_EQ(::read(read_end.get(), &byte, 1), 0) << "no copy of the other end is open";
}

TEST_F(HostileCallers, GetOneCopyHoweverOftenTheyAsk) {
  ASSERT_TRUE(server_->Offer("key", {arena_.fd()}));
  const UniqueFd caller = CallRaw(server_->name());
  for (int i = 0; i < 3; ++i) SendRaw(caller.get(), "key", {});
  size_t received = 0;
  // The first may fail with what the server did not read.
  for (int i = 0; i < 4; ++i) received += ReceiveRaw(caller.get()).fds.size();
  EXPECT_EQ(received, 1u);
}

// ------------------------------------------------------------------------------------------------------------ hostile server

// What a caller makes of an answer.
absl::StatusOr<std::vector<UniqueFd>> Fetch(const std::function<void(int socket)>& answer, Deadline deadline = Soon()) {
  const std::string name = UniqueName("hostile-server");
  const UniqueFd listener = ListenRaw(name);
  std::thread server([&] {
    const UniqueFd socket(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    ReceiveRaw(socket.get());  // the key
    answer(socket.get());
  });
  auto fetched = FetchDescriptors(name, "key", deadline);
  server.join();
  return fetched;
}

class HostileServer : public testing::Test {
 protected:
  HostileServer() {
    int ends[2];
    EXPECT_EQ(::pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
    read_end_ = UniqueFd(ends[0]);
    write_end_ = UniqueFd(ends[1]);
  }
  // Whatever was sent, nothing of it stays open on this side.
  ~HostileServer() override {
    write_end_ = UniqueFd();
    char byte;
    EXPECT_EQ(::read(read_end_.get(), &byte, 1), 0) << "a descriptor was left open";
  }
  std::function<void(int)> Sends(const std::string& bytes, int descriptors) {
    return [this, bytes, descriptors](int socket) { SendRaw(socket, bytes, std::vector<int>(descriptors, write_end_.get())); };
  }

  UniqueFd read_end_, write_end_;
};

TEST_F(HostileServer, ThatSaysNothingIsGivenUpAtTheDeadline) {
  const Stopwatch start;
  EXPECT_THAT(Fetch([](int) { absl::SleepFor(absl::Milliseconds(400)); }, Deadline::In(absl::Milliseconds(200))),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_LT(start.Elapsed(), absl::Seconds(2));
}

TEST_F(HostileServer, ThatHangsUpIsUnavailable) {
  EXPECT_THAT(Fetch([](int) {}), StatusIs(absl::StatusCode::kUnavailable));
}

TEST_F(HostileServer, ThatAnnouncesOtherDescriptorsThanItSendsIsRefused) {
  EXPECT_THAT(Fetch(Sends("\2", 1)), StatusIs(absl::StatusCode::kInternal, HasSubstr("announced 2 descriptors and sent 1")));
  EXPECT_THAT(Fetch(Sends("\1", 2)), StatusIs(absl::StatusCode::kInternal, HasSubstr("announced 1 descriptors and sent 2")));
  EXPECT_THAT(Fetch(Sends("\2", 0)), StatusIs(absl::StatusCode::kInternal, HasSubstr("announced 2 descriptors and sent 0")));
  EXPECT_THAT(Fetch(Sends(std::string(1, '\0'), 3)), StatusIs(absl::StatusCode::kInternal, HasSubstr("sent 3")));
  EXPECT_THAT(Fetch(Sends("\xFF", 16)), StatusIs(absl::StatusCode::kInternal, HasSubstr("announced 255")));
}

TEST_F(HostileServer, ThatSendsMoreThanThereIsRoomForIsRefused) {
  EXPECT_THAT(Fetch(Sends("\20", 17)), StatusIs(absl::StatusCode::kInternal, HasSubstr("sent more"))) << "16 announced, 17 sent";
  EXPECT_THAT(Fetch(Sends("\20", 200)), StatusIs(absl::StatusCode::kInternal, HasSubstr("sent more")));
  EXPECT_THAT(Fetch(Sends("\1\1", 1)), StatusIs(absl::StatusCode::kInternal, HasSubstr("sent more"))) << "bytes behind the count";
}

TEST_F(HostileServer, ThatOffersNothingIsNotFound) {
  EXPECT_THAT(Fetch(Sends(std::string(1, '\0'), 0)), StatusIs(absl::StatusCode::kNotFound));
}

}  // namespace
}  // namespace ferry
