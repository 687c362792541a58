// What a bad network does to a cluster: delay, loss, and partitions that begin in each phase and end again. Real processes on
// namespaces. The far host has a cable in user space (bad_cable.h), the others have good ones.

#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "common/deadline.h"
#include "tests/cluster/cluster.h"
#include "tests/cluster/lan_fixture.h"
#include "tests/testing/source_path.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr absl::Duration kEnough = absl::Seconds(60);    // far longer than anything takes, on a busy machine too
constexpr absl::Duration kLostAfter = absl::Seconds(2);  // of silence; a user has ten seconds
constexpr absl::Duration kBusy = absl::Seconds(5);       // what a busy machine adds to a wait
constexpr BadCable::Trouble kFine = {}, kCut = {.cut = true}, kDeaf = {.deaf = true};
constexpr BadCable::Trouble kFar = {.delay = absl::Milliseconds(50)}, kLossy = {.delay = absl::Milliseconds(5), .loss = 0.05},
                            kFarAndLossy = {.delay = absl::Milliseconds(50), .loss = 0.05};
const std::string kHostFolder = " --cluster-certs /tmp/certs";  // every host has a /tmp of its own

MATCHER_P(IsOkAndHolds, value, "is OK and holds the value") {
  *result_listener << arg.status().ToString();
  return arg.ok() && *arg == value;
}

int Times(const std::string& what, const std::string& said) {
  int times = 0;
  for (size_t at = said.find(what); at != std::string::npos; at = said.find(what, at + 1)) ++times;
  return times;
}

class Trouble : public LanTest {
 protected:
  void SetUp() override {
    LanTest::SetUp();
    if (lan_ == nullptr) return;
    for (std::unique_ptr<Host>* host : {&head_, &near_, &far_}) {
      ASSERT_OK_AND_ASSIGN(*host, lan_->AddHost());
    }
    absl::StatusOr<std::unique_ptr<BadCable>> cable = lan_->Spoil(*far_);
    if (absl::IsFailedPrecondition(cable.status())) GTEST_SKIP() << cable.status().message();
    ASSERT_OK(cable.status());
    cable_ = *std::move(cable);
  }

  // A coordinator on the head.
  absl::Status Serve(const std::string& flags) {
    RETURN_IF_ERROR(head_
                        ->Run("rm -rf /tmp/own && mkdir -m 700 /tmp/own && { test -e /tmp/certs || ./ferry cluster-init" +
                                  kHostFolder + "; }",
                              kEnough)
                        .status());
    ASSIGN_OR_RETURN(const Command command,
                     head_->Start(absl::StrFormat("./ferry-coordinator -m %s --threads 1 -b 64 --heartbeat-interval 0.5 "
                                                  "--heartbeat-timeout %d --insecure --listen %s:8090 "
                                                  "--cluster-socket /tmp/own/cluster --cluster-listen %s%s %s",
                                                  kDemoModel, absl::ToInt64Seconds(kLostAfter), head_->address(),
                                                  head_->address(), kHostFolder, flags)));
    coordinator_ = std::make_unique<Command>(command);
    return EventuallySaid("listening on");
  }
  int TimesSaid(const std::string& what) const { return Times(what, coordinator_->err()); }
  absl::Status EventuallySaid(const std::string& what, int times = 1) const {
    if (Eventually(kEnough, [&] { return TimesSaid(what) >= times; })) return absl::OkStatus();
    return DeadlineExceeded("the coordinator has not said '%s' %d times: %s", what, times, coordinator_->err());
  }
  // For a host that has no certificate yet.
  absl::StatusOr<std::string> JoinCommand() {
    ASSIGN_OR_RETURN(const std::string token, ClusterToken(*head_, kHostFolder, kEnough));
    return absl::StrFormat("./ferry join %s%s --token %s", head_->address(), kHostFolder, token);
  }
  std::string Generate(const std::string& flags) const {
    return "./ferry generate --server " + head_->address() + " --temp 0 --ignore-eos " + flags;
  }
  static std::string Decode(int tokens) { return absl::StrFormat("-p 'Once upon a time' -n %d", tokens); }
  // Computes every row of a text anew and prints a number of each, bit for bit.
  std::string Score() const {
    return "./ferry score --json -f " + SourcePath("models/README.md") + " --server " + head_->address();
  }

  // A request that is in that phase.
  absl::StatusOr<Command> Decoding(int tokens) {
    ASSIGN_OR_RETURN(const Command request, head_->Start(Generate(Decode(tokens))));
    if (!Eventually(kEnough, [&] { return request.out().size() > 100; })) return Internal("no text came: %s", request.err());
    return request;
  }
  absl::StatusOr<Command> Prefilling() {
    cable_->Set(kFar);  // the text takes seconds
    ASSIGN_OR_RETURN(const Command request, head_->Start(Score()));
    absl::SleepFor(absl::Milliseconds(500));
    if (!request.out().empty()) return Internal("the prompt is over before the cable is cut");
    return request;
  }
  // What a request printed in the end. Says how long it printed nothing, and its rates: docs/measurements/hosts.md has them.
  static absl::StatusOr<std::string> TextOf(const Command& request, const std::string& what) {
    absl::Duration longest;
    Stopwatch since_text;
    size_t bytes = request.out().size();
    absl::StatusOr<int> code;
    Eventually(kEnough, [&] {
      code = request.Wait(absl::ZeroDuration());
      if (const size_t now = request.out().size(); now != bytes) {
        bytes = now;
        since_text.Restart();
      }
      longest = std::max(longest, since_text.Elapsed());
      return code.ok();
    });
    RETURN_IF_ERROR(code.status());
    const std::string said = request.err();
    if (*code != 0) return Internal("exit code %d: %s", *code, said);
    const size_t rates = said.rfind("prompt ");
    printf("%s: nothing for %.2f s; %s\n", what.c_str(), absl::ToDoubleSeconds(longest),
           rates == std::string::npos ? "" : std::string(absl::StripSuffix(said.substr(rates), "\n\n")).c_str());
    return request.out();
  }
  absl::StatusOr<std::string> Ask(const std::string& command, const std::string& what) {
    ASSIGN_OR_RETURN(const Command request, head_->Start(command));
    return TextOf(request, what);
  }

  std::unique_ptr<Host> head_, near_, far_;
  std::unique_ptr<BadCable> cable_;  // of the far host
  std::unique_ptr<Command> coordinator_;
};

// --------------------------------------------------------------------------------------------------------- an expert host

class ExpertHostInTrouble : public Trouble {
 protected:
  // A worker beside the coordinator.
  absl::Status ServeAlone(const std::string& flags) {
    RETURN_IF_ERROR(Serve(flags));
    RETURN_IF_ERROR(head_->Start("./ferry-worker --backend cpu --threads 1 --coordinator unix:/tmp/own/cluster").status());
    return EventuallySaid("serving on");
  }
  absl::StatusOr<Command> JoinExperts(const std::string& flags = "") {
    ASSIGN_OR_RETURN(const std::string join, JoinCommand());
    return far_->Start(join + " --experts --threads 1 " + flags);
  }
  absl::StatusOr<int64_t> Exchanges() {
    ASSIGN_OR_RETURN(const std::string status, head_->Run("./ferry status --json --server " + head_->address(), kEnough));
    return nlohmann::json::parse(status)["server"]["expert_hosts"][0]["exchanges"].get<int64_t>();
  }
  // A number that a shell on a host prints.
  static absl::StatusOr<int> Count(Host& host, const std::string& command) {
    ASSIGN_OR_RETURN(const std::string text, host.Run(command, kEnough));
    int number = 0;
    if (!absl::SimpleAtoi(text, &number)) return Internal("%s is no number", text);
    return number;
  }
};

// Descriptors and threads of a program on its host.
std::string Holdings(const std::string& program) {
  return absl::StrFormat("cd /proc/$(pidof %s) && ls fd task | wc -l", program);
}

// The coordinator is told that its host is so slow that a layer takes 65 ms: help within that is welcome.
const std::string kSlowHost = "--host-read-rate 5e6 --host-flops 1e11";

TEST_F(ExpertHostInTrouble, IsLeftOutWhileItIsFarAway) {
  constexpr int kTokens = 25, kLayers = 6;
  const std::string decode = Generate(Decode(kTokens));
  ASSERT_OK(ServeAlone(kSlowHost));
  ASSERT_OK_AND_ASSIGN(const std::string alone, Ask(decode, "alone"));
  cable_->Set(kFar);
  ASSERT_OK(JoinExperts("-m " + kDemoModel));
  ASSERT_OK(EventuallySaid("takes part:"));
  EXPECT_THAT(Ask(decode, "50 ms away when it came"), IsOkAndHolds(alone));
  EXPECT_THAT(Exchanges(), IsOkAndHolds(0)) << "it was measured when it came";
  // Near: measured again after some seconds without work.
  cable_->Set(kFine);
  ASSERT_TRUE(Eventually(kEnough, [&] { return head_->Run(Generate(Decode(2)), kEnough).ok() && Exchanges().value_or(0) > 0; }));
  ASSERT_OK_AND_ASSIGN(const int64_t before, Exchanges());
  EXPECT_THAT(Ask(decode, "near"), IsOkAndHolds(alone));
  ASSERT_OK_AND_ASSIGN(const int64_t near, Exchanges());
  EXPECT_GT(near - before, kTokens * kLayers / 2);
  // Far again, while it has work.
  cable_->Set(kFar);
  EXPECT_THAT(Ask(decode, "50 ms away from now on"), IsOkAndHolds(alone));
  ASSERT_OK_AND_ASSIGN(const int64_t far, Exchanges());
  EXPECT_LT(far - near, kTokens * kLayers / 4) << coordinator_->err();
}

TEST_F(ExpertHostInTrouble, IsLeftOutWhileItIsFarAwayAndPacketsAreLost) {
  constexpr int kTokens = 25, kLayers = 6;
  const std::string decode = Generate(Decode(kTokens));
  ASSERT_OK(ServeAlone(kSlowHost));
  ASSERT_OK_AND_ASSIGN(const std::string alone, Ask(decode, "alone"));
  ASSERT_OK(JoinExperts("-m " + kDemoModel));
  ASSERT_OK(EventuallySaid("takes part:"));
  EXPECT_THAT(Ask(decode, "near"), IsOkAndHolds(alone));
  ASSERT_OK_AND_ASSIGN(const int64_t near, Exchanges());
  EXPECT_GT(near, kTokens * kLayers / 2);
  cable_->Set(kFarAndLossy);
  const Stopwatch far_away;
  EXPECT_THAT(Ask(decode, "50 ms away and 5 % lost from now on"), IsOkAndHolds(alone));
  EXPECT_THAT(Ask(decode, "50 ms away and 5 % lost"), IsOkAndHolds(alone));
  EXPECT_LT(far_away.Elapsed(), 2 * kBusy);
  ASSERT_OK_AND_ASSIGN(const int64_t far, Exchanges());
  EXPECT_LT(far - near, kTokens * kLayers / 4) << coordinator_->err();
}

TEST_F(ExpertHostInTrouble, ChangesNoTokenWhenPacketsAreLost) {
  const std::string decode = Generate(Decode(12));
  ASSERT_OK(ServeAlone("--divide-experts even"));
  ASSERT_OK_AND_ASSIGN(const std::string alone, Ask(decode, "alone"));
  ASSERT_OK(JoinExperts());
  ASSERT_OK(EventuallySaid("takes part:"));
  EXPECT_THAT(Ask(decode, "near"), IsOkAndHolds(alone));
  cable_->Set(kLossy);
  EXPECT_THAT(Ask(decode, "5 % lost"), IsOkAndHolds(alone));
  EXPECT_GT(cable_->counts().lost, 0);
}

TEST_F(ExpertHostInTrouble, ComesBackAfterAPartitionThatChangesNoTokenAndLeaksNothing) {
  constexpr int kTokens = 400;
  ASSERT_OK(ServeAlone("--divide-experts even"));
  ASSERT_OK_AND_ASSIGN(const std::string decoded, Ask(Generate(Decode(kTokens)), "alone"));
  ASSERT_OK_AND_ASSIGN(const std::string scored, Ask(Score(), "alone, a text"));
  ASSERT_OK(JoinExperts());
  ASSERT_OK(EventuallySaid("takes part:"));
  EXPECT_THAT(Ask(Generate(Decode(kTokens)), "together"), IsOkAndHolds(decoded));
  ASSERT_OK_AND_ASSIGN(const int coordinator_holds, Count(*head_, Holdings("ferry-coordinator")));
  ASSERT_OK_AND_ASSIGN(const int host_holds, Count(*far_, Holdings("ferry-expert-host")));
  struct Round {
    bool prefill;
    BadCable::Trouble partition;
  };
  for (const auto& [prefill, partition] : {Round{false, kCut}, Round{true, kCut}, Round{false, kDeaf}}) {
    const int times = TimesSaid("takes part:"), left_out = TimesSaid("is left out");
    ASSERT_OK_AND_ASSIGN(const Command request, prefill ? Prefilling() : Decoding(kTokens));
    cable_->Set(partition);
    const Stopwatch cut;
    EXPECT_THAT(TextOf(request, prefill ? "cut in a text" : "cut in decode"), IsOkAndHolds(prefill ? scored : decoded));
    EXPECT_LT(cut.Elapsed(), absl::Seconds(1) + 2 * kBusy);
    EXPECT_GT(TimesSaid("is left out"), left_out);
    cable_->Set(kFine);
    EXPECT_OK(EventuallySaid("takes part:", times + 1));
  }
  // On a busy machine gRPC keeps a thread or two more. What each of three partitions left would be three.
  const auto holds = [](Host& host, const char* program) { return Count(host, Holdings(program)).value_or(1e6); };
  EXPECT_TRUE(Eventually(kEnough, [&] { return holds(*head_, "ferry-coordinator") <= coordinator_holds + 2; }))
      << holds(*head_, "ferry-coordinator") << " instead of " << coordinator_holds;
  EXPECT_TRUE(Eventually(kEnough, [&] { return holds(*far_, "ferry-expert-host") <= host_holds + 2; }))
      << holds(*far_, "ferry-expert-host") << " instead of " << host_holds;
}

// By then connections have been given up, and packets would be sent again after pauses as long as the silence was.
TEST_F(ExpertHostInTrouble, IsBackSoonAfterALongPartition) {
  ASSERT_OK(ServeAlone(""));
  ASSERT_OK(JoinExperts());
  ASSERT_OK(EventuallySaid("takes part:"));
  cable_->Set(kCut);
  absl::SleepFor(absl::Seconds(6));
  cable_->Set(kFine);
  const Stopwatch healed;
  ASSERT_OK(EventuallySaid("takes part:", 2));
  EXPECT_LT(healed.Elapsed(), 2 * kBusy);
  printf("back after %.1f s\n", healed.Seconds());
}

TEST_F(ExpertHostInTrouble, OffersItsRecordsToACoordinatorThatStartsAnew) {
  ASSERT_OK(ServeAlone(""));
  ASSERT_OK_AND_ASSIGN(const Command join, JoinExperts());
  ASSERT_OK(EventuallySaid("takes part:"));
  ASSERT_OK(head_->Run("kill -9 $(pidof ferry-coordinator); while pidof ferry-worker; do sleep 0.1; done", kEnough));
  ASSERT_OK(ServeAlone(""));
  const Stopwatch serving;
  EXPECT_OK(EventuallySaid("takes part:"));
  EXPECT_EQ(Times("loaded in", join.err()), 1) << join.err();
  printf("back after %.1f s\n", serving.Seconds());
}

TEST_F(ExpertHostInTrouble, GoesOnLoadingAfterAPartition) {
  ASSERT_OK(ServeAlone(""));
  cable_->Set(kFar);
  ASSERT_OK_AND_ASSIGN(const Command join, JoinExperts());
  ASSERT_TRUE(Eventually(kEnough, [&] { return absl::StrContains(join.err(), "this host holds"); })) << join.err();
  cable_->Set(kCut);
  ASSERT_OK(EventuallySaid("is silent"));
  cable_->Set(kFine);
  EXPECT_OK(EventuallySaid("takes part:"));
}

// ---------------------------------------------------------------------------------------------------------------- workers

class WorkerInTrouble : public Trouble, public ::testing::WithParamInterface<const char*> {
 protected:
  // The far worker computes the second half of the layers.
  absl::Status ServeWithWorkers(const std::string& flags) {
    RETURN_IF_ERROR(Serve("--workers 2 " + flags));
    RETURN_IF_ERROR(StartWorker(*near_, 0).status());
    RETURN_IF_ERROR(StartWorker(*far_, 1).status());
    return EventuallySaid("serving on");
  }
  // Which is started again whenever it ends, as by systemd.
  absl::StatusOr<Command> StartWorker(Host& host, int place) {
    ASSIGN_OR_RETURN(const std::string join, JoinCommand());
    return host.Start(absl::StrFormat(
        "%s && while true; do ./ferry-worker --backend cpu --threads 1 --coordinator %s%s --transport %s --expert-transport %s "
        "--listen %s --worker-id %d; echo it ended with $? >&2; sleep 0.3; done",
        join, head_->address(), kHostFolder, GetParam(), GetParam(), host.address(), place));
  }
};
using WorkerInTroubleByTcp = WorkerInTrouble;
INSTANTIATE_TEST_SUITE_P(Trouble, WorkerInTrouble, ::testing::Values("tcp", "grpc"),
                         [](const auto& info) { return std::string(info.param); });
INSTANTIATE_TEST_SUITE_P(Trouble, WorkerInTroubleByTcp, ::testing::Values("tcp"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(WorkerInTrouble, ChangesNoTokenAndComesBackWhenTheNetworkDoes) {
  constexpr int kFewTokens = 4, kTokens = 300;
  ASSERT_OK(ServeWithWorkers(""));
  ASSERT_OK_AND_ASSIGN(const std::string few, Ask(Generate(Decode(kFewTokens)), "near"));
  ASSERT_OK_AND_ASSIGN(const std::string decoded, Ask(Generate(Decode(kTokens)), "near, many"));
  ASSERT_OK_AND_ASSIGN(const std::string scored, Ask(Score(), "near, a text"));
  cable_->Set(kFar);
  EXPECT_THAT(Ask(Generate(Decode(kFewTokens)), "50 ms away"), IsOkAndHolds(few));
  cable_->Set(kLossy);
  EXPECT_THAT(Ask(Generate(Decode(kFewTokens)), "5 % lost"), IsOkAndHolds(few));
  cable_->Set(kFarAndLossy);
  EXPECT_THAT(Ask(Generate(Decode(kFewTokens)), "50 ms away and 5 % lost"), IsOkAndHolds(few));
  cable_->Set(kFine);
  ASSERT_OK_AND_ASSIGN(const Command request, Decoding(kTokens));
  cable_->Set(kCut);
  absl::SleepFor(absl::Seconds(1));
  cable_->Set(kFine);
  EXPECT_THAT(TextOf(request, "after a second"), IsOkAndHolds(decoded));
  for (const bool prefill : {false, true}) {
    const int lost = TimesSaid("worker 1 is lost");
    ASSERT_OK_AND_ASSIGN(const Command request, prefill ? Prefilling() : Decoding(kTokens));
    cable_->Set(prefill ? kDeaf : kCut);
    const Stopwatch cut;
    ASSERT_OK(EventuallySaid("worker 1 is lost", lost + 1));
    EXPECT_LT(cut.Elapsed(), kLostAfter + kBusy);
    cable_->Set(kFine);
    EXPECT_THAT(TextOf(request, prefill ? "after it was lost in a text" : "after it was lost in decode"),
                IsOkAndHolds(prefill ? scored : decoded));
  }
}

TEST_P(WorkerInTroubleByTcp, EndsARequestWhosePatienceIsOver) {
  constexpr absl::Duration kPatience = absl::Seconds(2);
  ASSERT_OK(ServeWithWorkers("--resume-patience 2"));
  ASSERT_OK_AND_ASSIGN(const Command request, Decoding(100000));
  cable_->Set(kCut);
  ASSERT_OK_AND_ASSIGN(const int code, request.Wait(kLostAfter + kPatience + kBusy));
  EXPECT_EQ(code, 1);
  EXPECT_THAT(request.err(), AllOf(HasSubstr("UNAVAILABLE"), HasSubstr("worker 1")));
  cable_->Set(kFine);
  ASSERT_OK(EventuallySaid("began with 2 workers", 2));
  EXPECT_OK(head_->Run(Generate(Decode(4)), kEnough));
}

TEST_P(WorkerInTroubleByTcp, ComesInAfterAPartitionWhileItLoads) {
  ASSERT_OK(Serve("--workers 2"));
  ASSERT_OK(StartWorker(*near_, 0));
  cable_->Set(kFar);
  ASSERT_OK_AND_ASSIGN(const Command worker, StartWorker(*far_, 1));
  ASSERT_TRUE(Eventually(kEnough, [&] { return absl::StrContains(worker.err(), "worker 1: layers"); })) << worker.err();
  cable_->Set(kCut);
  ASSERT_OK(EventuallySaid("worker 1 is lost"));
  cable_->Set(kFine);
  ASSERT_OK(EventuallySaid("serving on"));
  EXPECT_OK(head_->Run(Generate(Decode(4)), kEnough));
}

}  // namespace
}  // namespace ferry
