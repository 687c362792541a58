#include "common/rpc/acceptor.h"

#include <grpcpp/grpcpp.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <fstream>

#include "common/deadline.h"
#include "common/unique_fd.h"
#include "ferry/internal/v1/cluster.grpc.pb.h"
#include "tests/testing/socket_folder.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;

constexpr uid_t kNobody = 65534;

class AcceptorTest : public ::testing::Test {
 protected:
  ~AcceptorTest() override {
    if (acceptor_ != nullptr) acceptor_->Stop();
    if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
  }

  absl::Status Start(const std::string& address, const AcceptorOptions& options = {}) {
    ASSIGN_OR_RETURN(const ListenAddress listen, ParseListenAddress(address, 0));
    ASSIGN_OR_RETURN(acceptor_, Acceptor::Listen(listen, options));
    grpc::ServerBuilder builder;
    acceptor_->AddTo(builder, grpc::InsecureServerCredentials());
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    return acceptor_->Start();
  }
  // Whether a new client is answered: the service has no methods of its own.
  bool Answers() {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    const auto stub = internal::v1::Cluster::NewStub(
        grpc::CreateCustomChannel(acceptor_->address().ToString(), grpc::InsecureChannelCredentials(), arguments));
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
    internal::v1::HeartbeatResponse response;
    return stub->Heartbeat(&context, {}, &response).error_code() == grpc::StatusCode::UNIMPLEMENTED;
  }
  // A connection that says nothing.
  UniqueFd Connect() {
    UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = {}};
    std::strncpy(address.sun_path, acceptor_->address().unix_path.c_str(), sizeof(address.sun_path) - 1);
    if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) return UniqueFd();
    return socket;
  }
  // Whether the other end has closed it; waits for some seconds.
  static bool IsClosed(const UniqueFd& socket, int milliseconds = 10000) {
    const Deadline end = Deadline::In(absl::Milliseconds(milliseconds));
    char buffer[256];
    while (!end.Passed()) {
      pollfd poll = {socket.get(), POLLIN, 0};
      if (::poll(&poll, 1, 50) > 0 && ::recv(socket.get(), buffer, sizeof(buffer), MSG_DONTWAIT) <= 0) return true;
    }
    return false;
  }

  const SocketFolder folder_;
  internal::v1::Cluster::Service service_;
  std::unique_ptr<Acceptor> acceptor_;
  std::unique_ptr<grpc::Server> server_;
};

TEST_F(AcceptorTest, ServesOnAUnixSocketForItsOwnerAlone) {
  ASSERT_OK(Start(folder_.address()));
  EXPECT_TRUE(Answers());
  struct stat info = {};
  ASSERT_EQ(::stat(acceptor_->address().unix_path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  acceptor_->Stop();
  EXPECT_NE(::stat(acceptor_->address().unix_path.c_str(), &info), 0) << "it takes the file away";
}

TEST_F(AcceptorTest, ServesOnAPort) {
  ASSERT_OK(Start("127.0.0.1:0"));
  EXPECT_GT(acceptor_->address().port, 0);
  EXPECT_TRUE(Answers());
  EXPECT_THAT(Acceptor::Listen(acceptor_->address(), {}),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("another server")));
}

TEST_F(AcceptorTest, AnotherUserIsTurnedAway) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root can become another user";
  ASSERT_OK(Start(folder_.address()));
  // Folder and file are opened, so that nothing but the check of the user is left.
  ASSERT_EQ(::chmod(folder_.path().c_str(), 0755), 0);
  ASSERT_EQ(::chmod(acceptor_->address().unix_path.c_str(), 0666), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    if (::setgid(kNobody) != 0 || ::setuid(kNobody) != 0) ::_exit(10);
    const UniqueFd socket = Connect();
    if (!socket.valid()) ::_exit(11);
    ::_exit(IsClosed(socket) ? 0 : 12);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_TRUE(Answers());
}

TEST_F(AcceptorTest, OneConnectionTooManyIsClosedAndThereIsRoomAgain) {
  ASSERT_OK(Start(folder_.address(), {.max_connections = 3, .max_of_one_peer = 3}));
  std::vector<UniqueFd> held;
  for (int i = 0; i < 3; ++i) held.push_back(Connect());
  EXPECT_TRUE(IsClosed(Connect()));
  for (const UniqueFd& socket : held) EXPECT_FALSE(IsClosed(socket, 200));
  held.clear();
  bool answered = false;
  for (int i = 0; i < 50 && !answered; ++i) answered = Answers();  // gRPC closes its ends soon after
  EXPECT_TRUE(answered);
}

TEST_F(AcceptorTest, AcceptsAgainAfterDescriptorsRanOut) {
  ASSERT_OK(Start(folder_.address()));
  ASSERT_TRUE(Answers());
  rlimit before = {};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  std::vector<UniqueFd> held;
  {
    const UniqueFd next(::dup(0));
    rlimit low = before;
    low.rlim_cur = static_cast<rlim_t>(next.get()) + 24;
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &low), 0);
  }
  // Connections take two descriptors each here, until there are none; then callers are turned away instead of left to wait.
  UniqueFd spare(::dup(0));  // given up once this end has none left, so that the other end is the one that lacks it
  int turned_away = 0;
  for (int i = 0; i < 40; ++i) {
    UniqueFd socket = Connect();
    if (!socket.valid()) {
      spare = UniqueFd();
      socket = Connect();
    }
    if (!socket.valid()) break;
    if (IsClosed(socket, 100)) ++turned_away;
    held.push_back(std::move(socket));
  }
  held.clear();
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_GT(turned_away, 0);
  const Stopwatch freed;
  EXPECT_TRUE(Answers());
  EXPECT_LT(freed.Elapsed(), absl::Seconds(5));
}

TEST_F(AcceptorTest, RefusesAFolderThatOthersMayEnter) {
  ASSERT_EQ(::chmod(folder_.path().c_str(), 0750), 0);
  EXPECT_THAT(Start(folder_.address()), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("chmod 0700")));
  EXPECT_THAT(Start("unix:/nonexistent/socket"), StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST_F(AcceptorTest, ReplacesTheSocketOfAServerThatIsGoneAndNoOther) {
  const std::string path = folder_.path() + "/socket";
  {
    const UniqueFd dead(::socket(AF_UNIX, SOCK_STREAM, 0));
    sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = {}};
    std::strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
    ASSERT_EQ(::bind(dead.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  }
  ASSERT_OK(Start(folder_.address()));
  EXPECT_TRUE(Answers());
  EXPECT_THAT(Acceptor::Listen(acceptor_->address(), {}), StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_TRUE(Answers());
}

TEST_F(AcceptorTest, TellsWhetherTheProcessAtAnAddressIsGone) {
  ASSERT_OK(Start(folder_.address()));
  EXPECT_FALSE(NobodyListens(acceptor_->address()));
  const ListenAddress address = acceptor_->address();
  acceptor_->Stop();
  EXPECT_TRUE(NobodyListens(address));
  EXPECT_FALSE(NobodyListens(*ParseListenAddress("no.such.host.invalid:1", 0))) << "the name may exist elsewhere";
}

}  // namespace
}  // namespace ferry
