// How `ferry serve` keeps its processes running, when it gives up, and what it tells a service manager.

#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "absl/time/clock.h"
#include "cli/client.h"
#include "cli/restart_pause.h"
#include "cli/service_manager.h"
#include "cli/supervisor.h"
#include "tests/cli/run_ferry.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;

TEST(RestartPause, GrowsWhileAProcessKeepsDying) {
  RestartPause pause;
  for (const int seconds : {0, 1, 2, 4, 8, 16, 30, 30}) {
    EXPECT_EQ(pause.After(absl::Milliseconds(100)), absl::Seconds(seconds));
  }
}

TEST(RestartPause, ShrinksWithTheTimeThatAProcessRan) {
  RestartPause pause;
  for (int i = 0; i < 6; ++i) pause.After(absl::ZeroDuration());  // the next one is 30 s
  EXPECT_EQ(pause.After(absl::Seconds(25)), absl::Seconds(7.5));
  for (int i = 0; i < 3; ++i) pause.After(absl::ZeroDuration());
  EXPECT_EQ(pause.After(absl::Minutes(1)), absl::ZeroDuration());
  EXPECT_EQ(pause.After(absl::Seconds(20)), absl::ZeroDuration()) << "one death in twenty seconds needs no pause";
}

// The environment of a service whose manager listens on a socket of the test's own.
class ServiceManagerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string path = folder_.File("notify");
    sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = {}};
    ASSERT_LT(path.size(), sizeof(address.sun_path));
    path.copy(address.sun_path, path.size());
    socket_ = UniqueFd(socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0));
    ASSERT_EQ(bind(socket_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
    setenv("NOTIFY_SOCKET", path.c_str(), 1);
    setenv("WATCHDOG_USEC", "30000000", 1);
    setenv("WATCHDOG_PID", std::to_string(getpid()).c_str(), 1);
  }
  void TearDown() override {
    for (const char* const name : {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}) unsetenv(name);
  }
  std::string Heard() const {
    char buffer[256];
    const ssize_t size = recv(socket_.get(), buffer, sizeof(buffer), 0);
    return size < 0 ? "nothing" : std::string(buffer, static_cast<size_t>(size));
  }

  const TestFolder folder_;
  UniqueFd socket_;
};

TEST_F(ServiceManagerTest, HearsWhatItIsTold) {
  const ServiceManager manager;
  EXPECT_EQ(manager.watchdog(), absl::Seconds(30));
  manager.Notify("READY=1\nSTATUS=up");
  EXPECT_EQ(Heard(), "READY=1\nSTATUS=up");
}

TEST_F(ServiceManagerTest, AWatchdogOfAnotherProcessIsNotOurs) {
  setenv("WATCHDOG_PID", "1", 1);
  EXPECT_EQ(ServiceManager().watchdog(), absl::InfiniteDuration());
}

TEST_F(ServiceManagerTest, WithoutAManagerNothingIsSaid) {
  unsetenv("NOTIFY_SOCKET");
  const ServiceManager manager;
  manager.Notify("READY=1");
  EXPECT_EQ(manager.watchdog(), absl::InfiniteDuration());
  EXPECT_EQ(Heard(), "nothing");
}

TEST(Supervision, AModelFileThatWasChangedEndsServeByName) {
  const OwnCache cache;
  const TestFolder folder;
  ModelOptions options;
  options.model = folder.File("model.gguf");
  options.workers = 1;
  options.backend = "cpu";
  std::filesystem::copy_file(kDemoModel, options.model);
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Supervisor> supervisor, Supervisor::Start(options));
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Client> client, Client::Connect(supervisor->address(), options));
  ASSERT_OK_AND_ASSIGN(const proto::GetServerInfoResponse info, client->ServerInfo());
  std::filesystem::last_write_time(options.model, std::filesystem::file_time_type::clock::now());
  ASSERT_EQ(kill(info.workers(0).pid(), SIGKILL), 0);
  for (int i = 0; i < 600 && supervisor->Health().ok(); ++i) absl::SleepFor(absl::Milliseconds(100));
  EXPECT_THAT(supervisor->Health(), StatusIs(absl::StatusCode::kFailedPrecondition,
                                             HasSubstr("worker 0 cannot load the model, whose file was changed")));
}

}  // namespace
}  // namespace ferry
