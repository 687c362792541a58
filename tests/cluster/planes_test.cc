// Who may take part in a cluster on one host: its own user's processes, each in a place of its own.

#include <google/protobuf/descriptor.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <random>
#include <set>
#include <thread>

#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "cli/supervisor.h"
#include "common/access/api_keys.h"
#include "common/file_access.h"
#include "common/temporary_folder.h"
#include "ferry/internal/v1/cluster.pb.h"
#include "ferry/internal/v1/worker.pb.h"
#include "tests/cluster/cluster.h"
#include "tests/cluster/hostile_client.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;

// What a shell command printed, and its exit code.
struct Output {
  std::string text;
  int code = -1;
};
Output Execute(const std::string& command) {
  Output output;
  FILE* const pipe = ::popen((command + " 2>&1").c_str(), "r");
  char buffer[4096];
  for (size_t size; (size = ::fread(buffer, 1, sizeof(buffer), pipe)) > 0;) output.text.append(buffer, size);
  const int status = ::pclose(pipe);
  output.code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return output;
}

// The folder in which the server that this process started has its sockets: other tests start servers at the same time.
std::string FolderOfSockets() {
  for (const auto& process : std::filesystem::directory_iterator("/proc")) {
    std::ifstream status(process.path() / "status"), command(process.path() / "cmdline");
    const std::string about{std::istreambuf_iterator<char>(status), {}}, line{std::istreambuf_iterator<char>(command), {}};
    const std::vector<std::string> arguments = absl::StrSplit(line, '\0');
    const auto flag = std::find(arguments.begin(), arguments.end(), "--cluster-socket");
    if (about.find("\nPPid:\t" + std::to_string(getpid()) + "\n") == std::string::npos || flag == arguments.end()) continue;
    return std::filesystem::path(*(flag + 1)).parent_path();
  }
  return "";
}

// The sockets in it where the coordinator takes workers in, and where workers listen.
std::set<std::string> PlaneSockets(const std::string& folder) {
  std::set<std::string> sockets;
  std::ifstream file("/proc/net/unix");
  std::string line;
  while (std::getline(file, line)) {
    const size_t path = line.find(folder + "/");
    if (path == std::string::npos) continue;
    if (line.ends_with("/cluster") || line.find("/worker-") != std::string::npos) sockets.insert(line.substr(path));
  }
  return sockets;
}

class Planes : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK_AND_ASSIGN(client_, Client::Connect("", DemoModel(2)));
    const std::string folder = FolderOfSockets();
    ASSERT_FALSE(folder.empty());
    for (const std::string& socket : PlaneSockets(folder)) {
      if (socket.ends_with("/cluster")) {
        socket_ = socket;
      } else {
        worker_sockets_.push_back(socket);
      }
    }
    ASSERT_FALSE(socket_.empty());
    ASSERT_EQ(worker_sockets_.size(), 2u);
    ASSERT_OK_AND_ASSIGN(expected_, Greedy(*client_, SomePrompt(30), 12));
  }
  // Completions one after the other until `attack` has ended; each has to be what it was before.
  Output During(const std::string& attack) {
    std::atomic<bool> ended{false};
    Output output;
    std::thread attacker([&] {
      output = Execute(attack);
      ended = true;
    });
    int served = 0;
    for (; !ended || served < 20; ++served) {
      const absl::StatusOr<Completion> completion = Greedy(*client_, SomePrompt(30), 12);
      EXPECT_OK(completion.status());
      if (!completion.ok() || completion->ids != expected_.ids) {
        ADD_FAILURE() << "request " << served << " went wrong";
        break;
      }
    }
    attacker.join();
    return output;
  }
  std::string Worker() const {
    return Programs() + "/ferry-worker --backend cpu --worker-id 0 --connect-patience 1 --coordinator unix:" + socket_;
  }

  std::unique_ptr<Client> client_;
  std::string socket_;
  std::vector<std::string> worker_sockets_;
  Completion expected_;
};

TEST_F(Planes, AnotherUserDoesNotBecomeAWorker) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root can become another user";
  const std::string as_nobody = "setpriv --reuid 65534 --regid 65534 --clear-groups ";
  if (Execute(as_nobody + Programs() + "/ferry --version").code != 0) GTEST_SKIP() << "another user cannot run the programs here";
  const Output attack = During(as_nobody + Worker());
  EXPECT_NE(attack.code, 0);
  EXPECT_EQ(attack.text.find("layers"), std::string::npos) << attack.text;
}

TEST_F(Planes, AnotherUsersAttacksReachNobody) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root can become another user";
  const std::string as_nobody = "setpriv --reuid 65534 --regid 65534 --clear-groups ";
  if (Execute(as_nobody + Programs() + "/ferry --version").code != 0) GTEST_SKIP() << "another user cannot run the programs here";
  Victim victim(client_.get());
  const auto attack = [&] {
    const auto run = [&](const std::string& kind, const std::string& socket) {
      const Output output = Execute(as_nobody + Programs() + "/cluster_attacker " + kind + " unix:" + socket);
      EXPECT_EQ(output.code, 0) << output.text;
      EXPECT_TRUE(NobodyAnswered(output.text)) << kind << " at " << socket << ": " << output.text;
    };
    for (const char* kind : {"read_kv", "epoch_max", "steps_streams", "worker_fuzz"}) {
      for (const std::string& socket : worker_sockets_) run(kind, socket);
    }
    for (const char* kind : {"fake_worker", "compute_flood"}) run(kind, socket_);
  };
  EXPECT_OK(victim.AskDuring(attack, /*requests=*/200));
  const Output own = Execute(Programs() + "/cluster_attacker epoch_max unix:" + worker_sockets_[0]);
  EXPECT_FALSE(NobodyAnswered(own.text)) << "the service's own user is answered: " << own.text;
  ASSERT_OK_AND_ASSIGN(const proto::GetServerInfoResponse info, client_->ServerInfo());
  EXPECT_EQ(info.resumed_requests_total(), 0u) << "no epoch has ended";
}

TEST_F(Planes, NobodyTakesThePlaceOfAWorkerThatIsThere) {
  const Output attack = During("timeout 5 " + Worker());
  EXPECT_EQ(attack.code, 124) << "it waits until it is told to end: " << attack.text;
  EXPECT_THAT(attack.text, HasSubstr("worker 0 is still there"));
}

TEST_F(Planes, ClientsAreNotToldHowToReachWorkers) {
  ASSERT_OK_AND_ASSIGN(const proto::GetServerInfoResponse info, client_->ServerInfo());
  ASSERT_EQ(info.workers_size(), 2);
  for (const proto::WorkerInfo& worker : info.workers()) {
    EXPECT_EQ(worker.address(), "");
    EXPECT_EQ(worker.incarnation(), 0u);
  }
}

// The names of the methods that a file has, as gRPC calls them.
std::vector<std::string> MethodsIn(const google::protobuf::FileDescriptor& file) {
  std::vector<std::string> methods;
  for (int i = 0; i < file.service_count(); ++i) {
    const google::protobuf::ServiceDescriptor& service = *file.service(i);
    for (int j = 0; j < service.method_count(); ++j)
      methods.push_back("/" + service.full_name() + "/" + service.method(j)->name());
  }
  return methods;
}

TEST_F(Planes, TheApiHasNoMethodOfTheCluster) {
  for (const auto* const file :
       {internal::v1::HeartbeatRequest::descriptor()->file(), internal::v1::StepRequest::descriptor()->file()}) {
    const std::vector<std::string> methods = MethodsIn(*file);
    EXPECT_GE(methods.size(), 5u) << file->name();
    for (const std::string& method : methods) {
      const grpc::Status status = CallWithBytes(ChannelTo(client_->address()), method, "", absl::Seconds(30));
      EXPECT_EQ(status.error_code(), grpc::StatusCode::UNIMPLEMENTED) << method;
    }
  }
}

// A process of the same user that names places, but is none of those that have them.
TEST_F(Planes, WhoIsNoWorkerGetsNothingAndStopsNobody) {
  std::mt19937_64 random(5);
  internal::v1::ComputeExpertsRequest compute;  // its first field is what PlanExperts and FetchExperts take
  internal::v1::ExpertRequest& experts = *compute.mutable_request();
  experts.add_uses()->set_tokens(1);
  compute.set_num_rows(1);
  Victim victim(client_.get());
  const auto attack = [&] {
    const auto channel = ChannelTo("unix:" + socket_);
    for (int i = 0; i < 300; ++i) {
      const uint64_t incarnation = std::array<uint64_t, 3>{0, 1, random()}[i % 3];
      const uint32_t worker = std::array<uint32_t, 4>{0, 1, 7, UINT32_MAX}[random() % 4];
      experts.set_worker_id(worker);
      experts.set_incarnation(incarnation);
      experts.set_step(std::array<uint64_t, 3>{0, uint64_t{1} << 40, UINT64_MAX}[random() % 3]);
      experts.set_layer(static_cast<uint32_t>(random() % 4));
      internal::v1::HeartbeatRequest heartbeat;
      heartbeat.set_worker_id(worker);
      heartbeat.set_incarnation(incarnation);
      heartbeat.set_state("ready");
      internal::v1::StreamDenseTensorsRequest tensors;
      tensors.set_worker_id(worker);
      tensors.set_incarnation(incarnation);
      const std::array<std::pair<const char*, std::string>, 5> calls = {{{"Heartbeat", heartbeat.SerializeAsString()},
                                                                         {"StreamDenseTensors", tensors.SerializeAsString()},
                                                                         {"PlanExperts", experts.SerializeAsString()},
                                                                         {"FetchExperts", experts.SerializeAsString()},
                                                                         {"ComputeExperts", compute.SerializeAsString()}}};
      const auto& [method, message] = calls[random() % calls.size()];
      const grpc::Status status =
          CallWithBytes(channel, std::string("/ferry.internal.v1.Cluster/") + method, message, absl::Seconds(30));
      using Code = grpc::StatusCode;
      const bool refused = status.error_code() == Code::INVALID_ARGUMENT || status.error_code() == Code::ABORTED ||
                           status.error_code() == Code::NOT_FOUND || status.error_code() == Code::FAILED_PRECONDITION ||
                           status.error_code() == Code::PERMISSION_DENIED;
      EXPECT_TRUE(refused) << method << " of worker " << worker << ": " << status.error_code() << " " << status.error_message();
    }
  };
  EXPECT_OK(victim.AskDuring(attack));
  ASSERT_OK_AND_ASSIGN(const proto::GetServerInfoResponse info, client_->ServerInfo());
  EXPECT_EQ(info.resumed_requests_total(), 0u) << "no epoch has ended";
}

TEST_F(Planes, ACoordinatorHasAFilterOfSystemCalls) {
  ASSERT_OK_AND_ASSIGN(const proto::GetServerInfoResponse info, client_->ServerInfo());
  EXPECT_EQ(NumberInStatus(info.pid(), "Seccomp"), 2) << "a filter, by proc(5)";
}

// The keys' file becomes a link to a file that is none of the coordinator's.
TEST(OwnFiles, ACoordinatorReadsNoFilesButThoseItNeeds) {
  if (!HasLandlock()) GTEST_SKIP() << "this kernel has no Landlock";
  ASSERT_OK_AND_ASSIGN(const auto own, TemporaryFolder::Create());
  ASSERT_OK_AND_ASSIGN(const auto other, TemporaryFolder::Create());
  ASSERT_OK_AND_ASSIGN(const NewApiKey key, MakeApiKey("alice", Role::kUser));
  ASSERT_OK_AND_ASSIGN(const NewApiKey other_key, MakeApiKey("bob", Role::kUser));
  ModelOptions options = DemoModel(1);
  options.api_keys = own->File("keys");
  std::ofstream(options.api_keys) << key.line << "\n";
  std::ofstream(other->File("keys")) << other_key.line << "\n";
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Supervisor> supervisor, Supervisor::Start(options));
  const auto stub = proto::Ferry::NewStub(ChannelTo(supervisor->address()));
  const auto is_known = [&](const NewApiKey& who) {
    grpc::ClientContext context;
    context.AddMetadata("authorization", "Bearer " + who.key);
    proto::GetModelInfoResponse info;
    return stub->GetModelInfo(&context, {}, &info).ok();
  };
  ASSERT_TRUE(Eventually(absl::Seconds(60), [&] { return is_known(key); }));
  std::filesystem::remove(options.api_keys);
  std::filesystem::create_symlink(other->File("keys"), options.api_keys);
  for (int i = 0; i < 10; ++i) EXPECT_FALSE(is_known(other_key));
  EXPECT_TRUE(is_known(key)) << "the keys stay as they were";
  std::filesystem::remove(options.api_keys);
  std::ofstream(options.api_keys) << other_key.line << "\n";
  EXPECT_TRUE(Eventually(absl::Seconds(10), [&] { return is_known(other_key); }));
}

}  // namespace
}  // namespace ferry
