#include "common/tls/data_connection.h"

#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <array>
#include <fstream>
#include <future>
#include <iterator>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "common/temporary_folder.h"
#include "common/unique_fd.h"
#include "tests/testing/socket_folder.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kLong = absl::Seconds(60);

// A cluster's folder and those of two members, and a cluster of somebody else.
class DataConnectionTest : public ::testing::Test {
 protected:
  void SetUp() override {
    signal(SIGPIPE, SIG_IGN);
    ASSERT_OK_AND_ASSIGN(folder_, TemporaryFolder::Create());
    ASSERT_OK(MakeClusterCa(Path("coordinator")));
    ASSERT_OK(MakeClusterCa(Path("stranger")));
    ASSERT_OK_AND_ASSIGN(const NodeRequest node, MakeNodeRequest());
    ASSERT_OK_AND_ASSIGN(const std::string certificate,
                         IssueNodeCertificate(Path("coordinator"), node.request_pem, NodeRole::kWorker));
    ASSERT_OK_AND_ASSIGN(const std::string ca, Read(CaCertificatePath(Path("coordinator"))));
    ASSERT_OK(WriteNodeFiles(Path("worker"), ca, certificate, node.key_pem));
    ASSERT_OK_AND_ASSIGN(listener_,
                         DataListener::Listen(Loopback(0), {.folder = Path("worker"), .peer = NodeRole::kCoordinator}));
  }
  static absl::StatusOr<std::string> Read(const std::string& path) {
    std::ifstream file(path);
    return std::string(std::istreambuf_iterator<char>(file), {});
  }
  std::string Path(const std::string& member) const { return (folder_->path() / member).string(); }
  static ListenAddress Loopback(int port) { return {.host = "127.0.0.1", .port = port, .loopback = true}; }
  std::future<absl::StatusOr<std::unique_ptr<DataConnection>>> AcceptInTheBackground() {
    return std::async(std::launch::async, [this] { return listener_->Accept(Deadline::In(kLong), kLong); });
  }
  absl::StatusOr<std::unique_ptr<DataConnection>> Connect(const std::string& member, NodeRole peer = NodeRole::kWorker) {
    return DataConnection::Connect(listener_->address(), {.folder = Path(member), .peer = peer}, Deadline::In(kLong));
  }
  // Connects, and says nothing.
  UniqueFd SilentCaller() const {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(static_cast<uint16_t>(listener_->address().port));
    UniqueFd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
    return socket;
  }

  std::unique_ptr<TemporaryFolder> folder_;
  std::unique_ptr<DataListener> listener_;
};

std::vector<std::byte> SomeBytes(size_t count) {
  std::vector<std::byte> bytes(count);
  for (size_t i = 0; i < count; ++i) bytes[i] = static_cast<std::byte>(i * 2654435761u >> 13);
  return bytes;
}

void ExpectEcho(DataConnection& client, DataConnection& server, size_t count) {
  const std::vector<std::byte> sent = SomeBytes(count);
  std::thread echo([&] {
    std::vector<std::byte> bytes(count);
    EXPECT_OK(server.Receive(bytes, Deadline::In(kLong)));
    EXPECT_OK(server.Send(bytes, Deadline::In(kLong)));
  });
  std::vector<std::byte> back(count);
  EXPECT_OK(client.Send(sent, Deadline::In(kLong)));
  EXPECT_OK(client.Receive(back, Deadline::In(kLong)));
  echo.join();
  EXPECT_TRUE(back == sent) << count << " bytes";
}

TEST_F(DataConnectionTest, CarriesBytesBothWaysWhateverTheirNumber) {
  auto accepted = AcceptInTheBackground();
  ASSERT_OK_AND_ASSIGN(const auto client, Connect("coordinator"));
  ASSERT_OK_AND_ASSIGN(const auto server, accepted.get());
  for (const size_t count : {1u, 64u, 11584u, 3000000u}) ExpectEcho(*client, *server, count);
}

TEST_F(DataConnectionTest, CarriesThemOnAUnixSocketToo) {
  const SocketFolder sockets;
  const ListenAddress at = {.loopback = true, .unix_path = sockets.path() + "/data"};
  ASSERT_OK_AND_ASSIGN(listener_, DataListener::Listen(at, {}));
  auto accepted = AcceptInTheBackground();
  ASSERT_OK_AND_ASSIGN(const auto client, DataConnection::Connect(at, {}, Deadline::In(kLong)));
  ASSERT_OK_AND_ASSIGN(const auto server, accepted.get());
  for (const size_t count : {1u, 3000000u}) ExpectEcho(*client, *server, count);
}

TEST_F(DataConnectionTest, RefusesTheCertificateOfAnotherCluster) {
  auto accepted = AcceptInTheBackground();
  EXPECT_THAT(Connect("stranger"), StatusIs(absl::StatusCode::kPermissionDenied, HasSubstr("worker.ferry.internal")));
  EXPECT_THAT(accepted.get(), StatusIs(absl::StatusCode::kPermissionDenied));
}

TEST_F(DataConnectionTest, RefusesACallerOfAnotherRole) {
  auto accepted = AcceptInTheBackground();
  const auto client = Connect("worker");  // TLS 1.3 tells a client later what the server thinks of it
  EXPECT_THAT(accepted.get(), StatusIs(absl::StatusCode::kPermissionDenied, HasSubstr("coordinator.ferry.internal")));
  if (!client.ok()) return;
  std::array<std::byte, 1> byte;
  EXPECT_THAT((*client)->Receive(byte, Deadline::In(kLong)), StatusIs(absl::StatusCode::kUnavailable));
}

TEST_F(DataConnectionTest, RefusesAListenerOfAnotherRole) {
  auto accepted = AcceptInTheBackground();
  EXPECT_THAT(Connect("coordinator", NodeRole::kCoordinator),
              StatusIs(absl::StatusCode::kPermissionDenied, HasSubstr("coordinator.ferry.internal")));
  EXPECT_FALSE(accepted.get().ok());
}

TEST_F(DataConnectionTest, AWaitEndsAtItsDeadlineOrWhenTheOtherEndGoes) {
  auto accepted = AcceptInTheBackground();
  ASSERT_OK_AND_ASSIGN(const auto client, Connect("coordinator"));
  ASSERT_OK_AND_ASSIGN(auto server, accepted.get());
  std::array<std::byte, 8> bytes;
  EXPECT_THAT(client->Receive(bytes, Deadline::In(absl::Milliseconds(20))), StatusIs(absl::StatusCode::kDeadlineExceeded));
  std::thread ending([&] { server = nullptr; });
  EXPECT_THAT(client->Receive(bytes, Deadline::In(kLong)), StatusIs(absl::StatusCode::kUnavailable));
  ending.join();
}

TEST_F(DataConnectionTest, ACutEndsTheWaitOfAnotherThread) {
  auto accepted = AcceptInTheBackground();
  ASSERT_OK_AND_ASSIGN(const auto client, Connect("coordinator"));
  ASSERT_OK_AND_ASSIGN(const auto server, accepted.get());
  std::thread cutting([&] { client->Cut(); });
  std::array<std::byte, 8> bytes;
  EXPECT_THAT(client->Receive(bytes, Deadline::In(kLong)), StatusIs(absl::StatusCode::kUnavailable));
  cutting.join();
}

// Of the calling thread's network.
absl::Status PlugLoopback(bool in) {
  const UniqueFd socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq loopback = {.ifr_ifrn = {.ifrn_name = "lo"},
                    .ifr_ifru = {.ifru_flags = static_cast<short>(in ? IFF_UP | IFF_RUNNING : 0)}};
  return ::ioctl(socket.get(), SIOCSIFFLAGS, &loopback) == 0 ? absl::OkStatus() : absl::ErrnoToStatus(errno, "lo");
}

struct Ends {
  std::unique_ptr<DataConnection> client, server;
};

TEST_F(DataConnectionTest, AnEndThatAnswersNothingFor15SecondsIsLostAndOneThatOnlyDoesNotReadIsNot) {
  const auto connect = [&]() -> absl::StatusOr<Ends> {
    auto accepted = AcceptInTheBackground();
    Ends ends;
    ASSIGN_OR_RETURN(ends.client, Connect("coordinator"));
    ASSIGN_OR_RETURN(ends.server, accepted.get());
    return ends;
  };
  const auto seconds = [](int count) { return Deadline::In(absl::Seconds(count)); };
  const std::vector<std::byte> many(64 << 20);  // more than any socket holds
  ASSERT_OK_AND_ASSIGN(const Ends with_slow_reader, connect());
  auto to_slow_reader = std::async(std::launch::async, [&] { return with_slow_reader.client->Send(many, seconds(20)); });

  // A thread may leave the test's network for one of its own, whose cable it pulls.
  bool may = true;
  std::thread elsewhere([&] {
    may = ::unshare(CLONE_NEWNET) == 0 && PlugLoopback(true).ok();
    if (!may) return;
    ASSERT_OK_AND_ASSIGN(listener_,
                         DataListener::Listen(Loopback(0), {.folder = Path("worker"), .peer = NodeRole::kCoordinator}));
    ASSERT_OK_AND_ASSIGN(const Ends idle, connect());
    ASSERT_OK_AND_ASSIGN(const Ends asked, connect());
    ASSERT_OK_AND_ASSIGN(const Ends sent, connect());
    for (const Ends* const ends : {&idle, &asked, &sent}) ExpectEcho(*ends->client, *ends->server, 1000);
    absl::SleepFor(absl::Seconds(1));  // a system confirms bytes a moment after they came
    ASSERT_OK(PlugLoopback(false));
    const Stopwatch silent;
    const auto receive = [&](DataConnection& connection) {
      std::array<std::byte, 8> bytes;
      const absl::Status received = connection.Receive(bytes, seconds(60));
      return std::pair(received, silent.Elapsed());
    };
    auto waits_for_rows = std::async(std::launch::async, [&] { return receive(*idle.server); });
    auto waits_for_an_answer = std::async(std::launch::async, [&] {
      EXPECT_OK(asked.client->Send(std::span(many).first(100), seconds(60)));
      return receive(*asked.client);
    });
    auto waits_for_room = std::async(std::launch::async, [&] {
      const absl::Status sending = sent.client->Send(many, seconds(60));
      return std::pair(sending, silent.Elapsed());
    });
    for (auto* const wait : {&waits_for_rows, &waits_for_an_answer, &waits_for_room}) {
      const auto [status, elapsed] = wait->get();
      EXPECT_THAT(status, StatusIs(absl::StatusCode::kUnavailable, HasSubstr("is lost")));
      EXPECT_GE(elapsed, absl::Seconds(14)) << "a short break is none";
    }
  });
  elsewhere.join();
  EXPECT_THAT(to_slow_reader.get(), StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("does not read")));
  if (!may) GTEST_SKIP() << "only root may make a network whose cable can be pulled";
}

TEST_F(DataConnectionTest, CallersThatSayNothingKeepNobodyOut) {
  auto accepted = AcceptInTheBackground();  // each caller may take kLong
  std::vector<UniqueFd> silent;
  for (int i = 0; i < 100; ++i) silent.push_back(SilentCaller());
  ASSERT_OK_AND_ASSIGN(const auto client, Connect("coordinator"));
  ASSERT_OK_AND_ASSIGN(const auto server, accepted.get());
  ExpectEcho(*client, *server, 100);
}

TEST_F(DataConnectionTest, ACallerThatSaysNothingIsGivenUpByName) {
  const UniqueFd silent = SilentCaller();
  EXPECT_THAT(listener_->Accept(Deadline::In(kLong), absl::Milliseconds(50)),
              StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("first words of TLS")));
}

TEST_F(DataConnectionTest, NobodyIsNoError) {
  ASSERT_OK_AND_ASSIGN(const auto nobody, listener_->Accept(Deadline::In(absl::Milliseconds(10)), kLong));
  EXPECT_EQ(nobody, nullptr);
}

TEST_F(DataConnectionTest, SaysThatNobodyListens) {
  const ListenAddress at = listener_->address();
  listener_ = nullptr;
  EXPECT_THAT(DataConnection::Connect(at, {.folder = Path("coordinator")}, Deadline::In(kLong)),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("127.0.0.1")));
}

}  // namespace
}  // namespace ferry
