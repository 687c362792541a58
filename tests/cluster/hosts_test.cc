// Ferry on several hosts: nothing joins them but a network, whose cables can be pulled.

#include <algorithm>
#include <array>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "common/deadline.h"
#include "tests/cluster/cluster.h"
#include "tests/cluster/lan_fixture.h"
#include "tests/testing/source_path.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr absl::Duration kStartTimeout = absl::Seconds(60);
constexpr absl::Duration kKeepalive = absl::Seconds(30);  // 15 s, and what a busy machine adds
const std::string kServe = std::string("./ferry serve -m ") + kDemoModel + " --coordinator-only --workers 2 --resume off";
const std::string kCerts = " --cluster-certs /tmp/certs";  // every host has a /tmp of its own

class Hosts : public LanTest {
 protected:
  void SetUp() override {
    LanTest::SetUp();
    if (lan_ == nullptr) return;
    for (std::unique_ptr<Host>* host : {&head_, &near_, &far_, &desk_}) {
      ASSERT_OK_AND_ASSIGN(*host, lan_->AddHost());
    }
  }

  static bool EventuallySays(const Command& command, const std::string& what) {
    return Eventually(kStartTimeout, [&] { return command.err().find(what) != std::string::npos; });
  }
  // A coordinator for two workers.
  void ServeOnHead() {
    ASSERT_OK(head_->Run("./ferry cluster-init" + kCerts, kStartTimeout));
    ASSERT_OK_AND_ASSIGN(const Command serve, head_->Start(kServe + kCerts + " --insecure --listen " + head_->address() +
                                                           " --cluster-listen " + head_->address()));
    coordinator_ = std::make_unique<Command>(serve);
    ASSERT_TRUE(EventuallySays(serve, "coordinator at")) << serve.err();
    for (Host* const host : {near_.get(), far_.get()}) ASSERT_OK(Join(*host));
  }
  // Gives a host its certificate.
  absl::Status Join(Host& host) {
    ASSIGN_OR_RETURN(const std::string token, ClusterToken(*head_, kCerts, kStartTimeout));
    return host.Run("./ferry join " + head_->address() + kCerts + " --token " + token, kStartTimeout).status();
  }
  std::string Worker() const {
    return "./ferry-worker --backend cpu --coordinator " + head_->address() + kCerts + " --transport " + transport_ +
           " --expert-transport " + transport_;
  }
  // For a worker on the coordinator's own host, which has said where its socket is.
  std::string WorkerOnHead() const {
    const std::string said = coordinator_->err();
    const size_t begin = said.find("unix:"), end = said.find('\n', begin);
    return "./ferry-worker --backend cpu --coordinator " + said.substr(begin, end - begin);
  }
  absl::StatusOr<Command> StartWorker(Host& host, int place) {
    return host.Start(absl::StrFormat("%s --listen %s --worker-id %d", Worker(), host.address(), place));
  }
  void StartAll() {
    ServeOnHead();
    ASSERT_OK(StartWorker(*near_, 0));
    ASSERT_OK(StartWorker(*far_, 1));
  }
  std::string FromServer() const { return "--server " + head_->address(); }
  // A short completion, asked for at the desk.
  absl::StatusOr<std::string> Complete(const std::string& source) {
    return desk_->Run("./ferry generate " + source + " -p 'Once upon a time' -n 40 --temp 0", kStartTimeout);
  }
  absl::StatusOr<Command> LongCompletion() {
    ASSIGN_OR_RETURN(const Command request, desk_->Start("./ferry generate " + FromServer() + " -p Once -n 100000 --ignore-eos"));
    const bool came = Eventually(kStartTimeout, [&] { return request.out().size() > 100; });
    if (!came) return Internal("no text came: %s", request.err());
    return request;
  }

  std::unique_ptr<Host> head_, near_, far_, desk_;
  std::unique_ptr<Command> coordinator_;
  std::string transport_ = "auto";  // of hidden states between workers, and of experts
};

class HostsBy : public Hosts, public ::testing::WithParamInterface<const char*> {
 protected:
  HostsBy() { transport_ = GetParam(); }
};
INSTANTIATE_TEST_SUITE_P(Hosts, HostsBy, ::testing::Values("tcp", "grpc"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(HostsBy, GenerateWhatOneHostGenerates) {
  ServeOnHead();
  // One is told its address and computes experts in slots, the other finds its address out and has no slots.
  ASSERT_OK(near_->Start(Worker() + " --vram-experts 64MiB --listen " + near_->address()));
  ASSERT_OK(far_->Start(Worker() + " --listen 0.0.0.0"));
  ASSERT_OK_AND_ASSIGN(const std::string together, Complete(FromServer()));
  ASSERT_OK_AND_ASSIGN(const std::string alone, Complete(std::string("-m ") + kDemoModel));
  EXPECT_EQ(together, alone);

  const std::string score = "./ferry score --json -f " + SourcePath("models/README.md") + " ";
  ASSERT_OK_AND_ASSIGN(const std::string scored_together, desk_->Run(score + FromServer(), kStartTimeout));
  ASSERT_OK_AND_ASSIGN(const std::string scored_alone, desk_->Run(score + "-m " + kDemoModel, kStartTimeout));
  EXPECT_EQ(scored_together, scored_alone) << "bit for bit";

  ASSERT_OK_AND_ASSIGN(const std::string status, desk_->Run("./ferry status " + FromServer(), kStartTimeout));
  EXPECT_THAT(status, AllOf(HasSubstr(" over " + transport_), HasSubstr("--transport " + transport_), Not(HasSubstr("shm"))));
}

TEST_F(Hosts, ANarrowCableChangesNoToken) {
  if (const absl::Status narrow = lan_->Narrow(*far_, 10); !narrow.ok()) GTEST_SKIP() << narrow.message();
  StartAll();
  ASSERT_OK_AND_ASSIGN(const std::string together, Complete(FromServer()));
  ASSERT_OK_AND_ASSIGN(const std::string alone, Complete(std::string("-m ") + kDemoModel));
  EXPECT_EQ(together, alone);
}

// In a step of 2,048 rows an expert has about 256 of them. Their contributions are 256 kB, its record is 80.
TEST_F(Hosts, OverANarrowCableComeRecordsAndNotMoreBytesOfContributions) {
  if (const absl::Status narrow = lan_->Narrow(*far_, 100); !narrow.ok()) GTEST_SKIP() << narrow.message();
  ServeOnHead();
  ASSERT_OK(StartWorker(*near_, 0));
  ASSERT_OK(far_->Start(Worker() + " --worker-id 1 --vram-experts 4MiB --listen " + far_->address()));
  ASSERT_OK(desk_->Run("head -c 4000 " + SourcePath("docs/cli.md") + " >/tmp/text", kStartTimeout));
  ASSERT_OK_AND_ASSIGN(const std::string together,
                       desk_->Run("./ferry score --json -f /tmp/text " + FromServer(), kStartTimeout));
  nlohmann::json far, experts;
  ASSERT_TRUE(Eventually(kStartTimeout, [&] {
    far =
        nlohmann::json::parse(desk_->Run("./ferry status --json " + FromServer(), kStartTimeout).value())["server"]["workers"][1];
    experts = far["experts"];
    return experts.is_object() && experts.value("activated", 0) > 0;
  }));
  EXPECT_GT(experts.value("shipped", 0), 4 * experts.value("on_host", 0)) << far.dump();
  EXPECT_LT(far.value("row_bytes_per_second", 1e9), 2 * 100e6 / 8) << far.dump();
  ASSERT_OK_AND_ASSIGN(const std::string alone, desk_->Run("./ferry score --json -f /tmp/text -m " + kDemoModel, kStartTimeout));
  EXPECT_EQ(together, alone);
}

TEST_F(Hosts, AHostThatLosesPowerEndsItsRequestsAndAnotherTakesItsPlace) {
  StartAll();
  ASSERT_OK_AND_ASSIGN(const Command request, LongCompletion());
  far_->PowerOff();
  const Stopwatch off;
  ASSERT_OK_AND_ASSIGN(const int code, request.Wait(absl::Seconds(2)));
  EXPECT_EQ(code, 1);
  EXPECT_THAT(request.err(), AllOf(HasSubstr("UNAVAILABLE"), HasSubstr("worker 1")));
  EXPECT_LT(off.Elapsed(), absl::Seconds(2));
  ASSERT_OK_AND_ASSIGN(far_, lan_->AddHost());
  ASSERT_OK(Join(*far_));
  ASSERT_OK(StartWorker(*far_, 1));
  EXPECT_OK(Complete(FromServer()));
}

TEST_F(Hosts, AHostThatFallsSilentEndsItsRequestsAndMayComeBack) {
  StartAll();
  ASSERT_OK_AND_ASSIGN(const Command request, LongCompletion());
  ASSERT_OK(lan_->Plug(*far_, false));
  // Ten seconds without a heartbeat.
  ASSERT_OK_AND_ASSIGN(const int code, request.Wait(absl::Seconds(13)));
  EXPECT_EQ(code, 1);
  EXPECT_THAT(request.err(), AllOf(HasSubstr("UNAVAILABLE"), HasSubstr("worker 1 on another host")));
  ASSERT_OK(lan_->Plug(*far_, true));
  ASSERT_OK(StartWorker(*far_, 1));
  EXPECT_OK(Complete(FromServer()));
}

TEST_F(Hosts, AClientWhoseCoordinatorFallsSilentIsTold) {
  StartAll();
  ASSERT_OK_AND_ASSIGN(const Command request, LongCompletion());
  ASSERT_OK(lan_->Plug(*head_, false));
  ASSERT_OK_AND_ASSIGN(const int code, request.Wait(kKeepalive));
  EXPECT_EQ(code, 1);
  EXPECT_THAT(request.err(), HasSubstr("UNAVAILABLE"));
}

TEST_F(Hosts, AWorkerWhoseCoordinatorFallsSilentEnds) {
  ServeOnHead();
  ASSERT_OK_AND_ASSIGN(const Command worker, StartWorker(*near_, 0));
  ASSERT_OK(StartWorker(*far_, 1));
  ASSERT_OK(Complete(FromServer()));
  ASSERT_OK(lan_->Plug(*near_, false));
  ASSERT_OK_AND_ASSIGN(const int code, worker.Wait(absl::Seconds(20)));
  EXPECT_EQ(code, 1);
  EXPECT_THAT(worker.err(), HasSubstr("the coordinator is lost"));
}

TEST_F(Hosts, AWorkerThatOthersCannotReachIsToldWhatToDo) {
  ServeOnHead();
  const auto cannot_run = [](const auto& why) {
    return StatusIs(absl::StatusCode::kInternal, AllOf(HasSubstr("exit code 2"), why));
  };
  EXPECT_THAT(near_->Run(Worker(), kStartTimeout), cannot_run(HasSubstr("start it with --listen")));
  EXPECT_THAT(near_->Run(Worker() + " --expert-transport shm --listen " + near_->address(), kStartTimeout),
              cannot_run(HasSubstr("another host")));
  EXPECT_THAT(near_->Run(Worker() + " --listen " + far_->address(), kStartTimeout),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("cannot listen on " + far_->address())));
  // The place before this one is taken on another host, which has to send hidden states here.
  ASSERT_OK(StartWorker(*near_, 0));
  ASSERT_TRUE(EventuallySays(*coordinator_, "worker 0 registered"));
  EXPECT_THAT(head_->Run(WorkerOnHead() + " --worker-id 1", kStartTimeout),
              cannot_run(AllOf(HasSubstr("worker 0 on another host"), HasSubstr("start this one with --listen"))));
}

TEST_F(Hosts, ACoordinatorOnLoopbackSaysThatItIs) {
  ASSERT_OK_AND_ASSIGN(const Command serve, head_->Start(kServe));
  EXPECT_TRUE(EventuallySays(serve, "for those of other hosts, start with --cluster-listen"));
  EXPECT_THAT(near_->Run(Worker() + " --connect-patience 1 --listen " + near_->address(), kStartTimeout),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("no certificates of a cluster")));
  EXPECT_THAT(desk_->Run("./ferry status " + FromServer(), kStartTimeout), StatusIs(absl::StatusCode::kInternal));
}

TEST_F(Hosts, AHostOfAnotherClusterDoesNotComeIn) {
  ServeOnHead();
  ASSERT_OK(far_->Run("./ferry cluster-init --cluster-certs /tmp/own", kStartTimeout));
  EXPECT_THAT(far_->Run("./ferry-worker --backend cpu --connect-patience 1 --cluster-certs /tmp/own --coordinator " +
                            head_->address() + " --listen " + far_->address(),
                        kStartTimeout),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("exit code 1")));
  EXPECT_EQ(coordinator_->err().find("registered"), std::string::npos);
}

// In clear, with TLS and no certificate, and with the certificate of another cluster.
TEST_F(Hosts, AnotherHostsAttacksReachNobody) {
  ServeOnHead();
  const std::string worker = near_->address() + ":8092", plane = head_->address() + ":8091";
  ASSERT_OK(near_->Start(Worker() + " --worker-id 0 --listen " + worker));
  ASSERT_OK(StartWorker(*far_, 1));
  ASSERT_OK_AND_ASSIGN(const std::string expected, Complete(FromServer()));
  ASSERT_OK(desk_->Run("./ferry cluster-init --cluster-certs /tmp/own", kStartTimeout));
  std::vector<std::string> attacks;
  for (const char* identity : {"", " --tls", " --certs /tmp/own"}) {
    for (const char* kind : {"read_kv", "epoch_max", "steps_streams", "worker_fuzz"}) {
      attacks.push_back(absl::StrFormat("./cluster_attacker %s %s%s", kind, worker, identity));
    }
    for (const char* kind : {"fake_worker", "compute_flood"}) {
      attacks.push_back(absl::StrFormat("./cluster_attacker %s %s%s", kind, plane, identity));
    }
  }
  for (const std::string& attack : attacks) {
    ASSERT_OK_AND_ASSIGN(const Command attacker, desk_->Start(attack));
    absl::StatusOr<int> code;
    do {
      ASSERT_OK_AND_ASSIGN(const std::string completion, Complete(FromServer()));
      EXPECT_EQ(completion, expected) << attack;
      code = attacker.Wait(absl::ZeroDuration());
    } while (!code.ok());
    EXPECT_EQ(*code, 0) << attack << ": " << attacker.err();
    EXPECT_TRUE(NobodyAnswered(attacker.out())) << attack << ": " << attacker.out();
  }
  const std::string log = coordinator_->err();
  EXPECT_EQ(log.find("worker 0 registered"), log.rfind("worker 0 registered")) << "nobody has lost a place";
  EXPECT_NE(log.find("worker 0 registered"), std::string::npos) << log;
}

// Pieces of the model file that are no repetition of a few bytes.
std::vector<std::string> PiecesOfTheModel() {
  constexpr size_t kPieceBytes = 48, kEvery = 20011;
  std::ifstream file(kDemoModel, std::ios::binary);
  const std::string model((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  std::vector<std::string> pieces;
  for (size_t begin = 0; begin + kPieceBytes <= model.size(); begin += kEvery) {
    std::string piece = model.substr(begin, kPieceBytes);
    if (std::set<char>(piece.begin(), piece.end()).size() >= kPieceBytes / 3) pieces.push_back(std::move(piece));
  }
  return pieces;
}

// The share of the most frequent byte: 1/256 of what a cipher makes, and much more of text, numbers and weights.
double ShareOfOneByte(const std::string& bytes) {
  std::array<size_t, 256> counts = {};
  for (const char byte : bytes) ++counts[static_cast<unsigned char>(byte)];
  return static_cast<double>(*std::max_element(counts.begin(), counts.end())) / static_cast<double>(bytes.size());
}

TEST_F(Hosts, ACableBetweenHostsShowsNoTokenWeightOrRow) {
  const std::string capture = "./packet_capture eth0 /tmp/seen";
  for (Host* const host : {near_.get(), desk_.get()}) {
    ASSERT_OK_AND_ASSIGN(const Command command, host->Start(capture));
    if (!EventuallySays(command, "capturing")) GTEST_SKIP() << "packets cannot be captured here: " << command.err();
  }
  StartAll();  // weights and experts go to the near host
  ASSERT_OK_AND_ASSIGN(const std::string text, Complete(FromServer()));
  ASSERT_OK_AND_ASSIGN(
      std::string ids,
      desk_->Run(std::string("./ferry tokenize --ids -m ") + kDemoModel + " -p 'Once upon a time'", kStartTimeout));
  std::string tokens;  // as a message has them
  for (const absl::string_view word : absl::StrSplit(ids, absl::ByAnyChar(", \n"), absl::SkipEmpty())) {
    uint32_t id = 0;
    ASSERT_TRUE(absl::SimpleAtoi(word, &id)) << ids;
    for (; id >= 128; id >>= 7) tokens += static_cast<char>(id | 128);
    tokens += static_cast<char>(id);
  }
  ASSERT_GE(tokens.size(), 5u) << ids;
  const std::string seen = near_->Contents("/tmp/seen"), clear = desk_->Contents("/tmp/seen");
  EXPECT_NE(clear.find("Once upon a time"), std::string::npos) << "clients come in clear here, so the capture sees what there is";
  EXPECT_GT(ShareOfOneByte(clear), 0.02);
  EXPECT_GT(seen.size(), size_t{1} << 20);
  EXPECT_EQ(seen.find("Once upon a time"), std::string::npos);
  EXPECT_EQ(seen.find(tokens), std::string::npos);
  const std::vector<std::string> pieces = PiecesOfTheModel();
  EXPECT_GT(pieces.size(), 50u);
  for (const std::string& piece : pieces) EXPECT_EQ(seen.find(piece), std::string::npos) << "a part of the model";
  EXPECT_LT(ShareOfOneByte(seen), 0.01) << "rows are floating-point numbers, whose exponents differ little";
}

TEST_F(Hosts, ATokenIsGoodForOneHost) {
  ServeOnHead();
  ASSERT_OK_AND_ASSIGN(const std::string token, ClusterToken(*head_, kCerts, kStartTimeout));
  const std::string join = "./ferry join " + head_->address() + " --cluster-certs /tmp/again --token " + token;
  EXPECT_OK(desk_->Run(join, kStartTimeout));
  EXPECT_THAT(near_->Run(join, kStartTimeout), StatusIs(absl::StatusCode::kInternal, HasSubstr("was used")));
}

TEST_P(HostsBy, WorkersThatLoseEachOtherEndRequestsAndMayMeetAgain) {
  StartAll();
  ASSERT_OK_AND_ASSIGN(const Command request, LongCompletion());
  ASSERT_OK(near_->Run("ip route add blackhole " + far_->address() + "/32", kStartTimeout));
  ASSERT_OK_AND_ASSIGN(const int code, request.Wait(kKeepalive));
  EXPECT_EQ(code, 1);
  EXPECT_THAT(request.err(), HasSubstr("UNAVAILABLE"));
  ASSERT_OK(near_->Run("ip route delete blackhole " + far_->address() + "/32", kStartTimeout));
  EXPECT_OK(Complete(FromServer()));
}

}  // namespace
}  // namespace ferry
