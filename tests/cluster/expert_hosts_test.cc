// Experts of one token in the memory of several hosts: real processes on namespaces that nothing but a network joins.

#include <signal.h>

#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "tests/cluster/cluster.h"
#include "tests/cluster/lan_fixture.h"
#include "tests/testing/source_path.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr absl::Duration kHostPatience = absl::Seconds(90);
const std::string kHostCerts = " --cluster-certs /tmp/certs";  // every host has a /tmp of its own

class ExpertHostsTest : public LanTest {
 protected:
  void SetUp() override {
    LanTest::SetUp();
    if (lan_ == nullptr) return;
    for (std::unique_ptr<Host>* host : {&head_, &near_, &far_}) {
      ASSERT_OK_AND_ASSIGN(*host, lan_->AddHost());
    }
    ASSERT_OK(head_->Run("./ferry cluster-init" + kHostCerts, kHostPatience));
    ASSERT_OK_AND_ASSIGN(const Command serve,
                         head_->Start(std::string("./ferry serve -m ") + kDemoModel +
                                      " --backend cpu --threads 1 --http-port 0 --divide-experts even --insecure --listen " +
                                      head_->address() + " --cluster-listen " + head_->address() + kHostCerts));
    serve_ = std::make_unique<Command>(serve);
    ASSERT_TRUE(Eventually(kHostPatience, [&] { return absl::StrContains(serve_->err(), "serving on"); })) << serve_->err();
  }

  absl::StatusOr<Command> StartExperts(Host& host, const std::string& flags = "") {
    ASSIGN_OR_RETURN(const std::string token, ClusterToken(*head_, kHostCerts, kHostPatience));
    return host.Start("./ferry join " + head_->address() + kHostCerts + " --token " + token + " --experts --threads 1 " + flags);
  }
  bool EventuallyTakesPart(int times) {
    return Eventually(kHostPatience, [&] {
      const std::string said = serve_->err();
      int count = 0;
      for (size_t at = said.find("takes part:"); at != std::string::npos; at = said.find("takes part:", at + 1)) ++count;
      return count >= times;
    });
  }
  std::string Generate(int tokens) const {
    return absl::StrFormat("./ferry generate --server %s -p 'Once upon a time' -n %d --temp 0 --ignore-eos", head_->address(),
                           tokens);
  }
  absl::StatusOr<std::string> Status() { return head_->Run("./ferry status --server " + head_->address(), kHostPatience); }

  std::unique_ptr<Host> head_, near_, far_;
  std::unique_ptr<Command> serve_;
};

TEST_F(ExpertHostsTest, GiveTheTokensThatOneHostGives) {
  ASSERT_OK_AND_ASSIGN(const std::string alone, head_->Run(Generate(60), kHostPatience));
  const std::string score = "./ferry score --json -f " + SourcePath("models/README.md") + " --server " + head_->address();
  ASSERT_OK_AND_ASSIGN(const std::string scored_alone, head_->Run(score, kHostPatience));
  // One has its own file, the other is sent its records, and has room for a part of them.
  ASSERT_OK(StartExperts(*near_, std::string("-m ") + kDemoModel));
  ASSERT_OK(StartExperts(*far_, "--memory 10MiB"));
  ASSERT_TRUE(EventuallyTakesPart(2)) << serve_->err();
  ASSERT_OK_AND_ASSIGN(const std::string together, head_->Run(Generate(60), kHostPatience));
  EXPECT_EQ(together, alone);
  ASSERT_OK_AND_ASSIGN(const std::string scored_together, head_->Run(score, kHostPatience));
  EXPECT_EQ(scored_together, scored_alone) << "bit for bit";
  ASSERT_OK_AND_ASSIGN(const std::string status, Status());
  EXPECT_THAT(status, AllOf(HasSubstr("experts 0 connected"), HasSubstr("experts 1 connected"), HasSubstr(" 0 failures")));
}

TEST_F(ExpertHostsTest, AHostThatIsKilledInAStreamChangesNoToken) {
  ASSERT_OK_AND_ASSIGN(const std::string alone, head_->Run(Generate(1500), kHostPatience));
  ASSERT_OK(StartExperts(*near_));
  ASSERT_TRUE(EventuallyTakesPart(1)) << serve_->err();
  ASSERT_OK_AND_ASSIGN(const Command request, head_->Start(Generate(1500)));
  ASSERT_TRUE(Eventually(kHostPatience, [&] { return request.out().size() > 100; })) << request.err();
  ASSERT_OK(near_->Run("kill -9 $(pidof ferry-expert-host)", kHostPatience));
  ASSERT_OK_AND_ASSIGN(const int code, request.Wait(kHostPatience));
  EXPECT_EQ(code, 0) << request.err();
  EXPECT_EQ(request.out(), alone);
  // `ferry join` has started it again.
  EXPECT_TRUE(EventuallyTakesPart(2)) << serve_->err();
}

TEST_F(ExpertHostsTest, AHostThatIsFrozenOrUnpluggedChangesNoToken) {
  ASSERT_OK_AND_ASSIGN(const std::string alone, head_->Run(Generate(1500), kHostPatience));
  ASSERT_OK(StartExperts(*near_));
  ASSERT_OK(StartExperts(*far_));
  ASSERT_TRUE(EventuallyTakesPart(2)) << serve_->err();
  ASSERT_OK_AND_ASSIGN(const Command request, head_->Start(Generate(1500)));
  ASSERT_TRUE(Eventually(kHostPatience, [&] { return request.out().size() > 100; })) << request.err();
  ASSERT_OK(near_->Run("kill -STOP $(pidof ferry-expert-host)", kHostPatience));
  ASSERT_OK(lan_->Plug(*far_, false));
  ASSERT_OK_AND_ASSIGN(const int code, request.Wait(kHostPatience));
  EXPECT_EQ(code, 0) << request.err();
  EXPECT_EQ(request.out(), alone);
  EXPECT_THAT(serve_->err(), HasSubstr("is left out"));
  // Silent for ten seconds, then there again.
  ASSERT_TRUE(Eventually(kHostPatience, [&] { return absl::StrContains(serve_->err(), "expert host 1 is silent"); }));
  ASSERT_OK(near_->Run("kill -CONT $(pidof ferry-expert-host)", kHostPatience));
  ASSERT_OK(lan_->Plug(*far_, true));
  EXPECT_TRUE(EventuallyTakesPart(4)) << serve_->err();
}

TEST_F(ExpertHostsTest, ANarrowCableIsMeasuredAndChangesNoToken) {
  if (const absl::Status narrow = lan_->Narrow(*near_, 10); !narrow.ok()) GTEST_SKIP() << narrow.message();
  ASSERT_OK_AND_ASSIGN(const std::string alone, head_->Run(Generate(60), kHostPatience));
  ASSERT_OK(StartExperts(*near_, std::string("-m ") + kDemoModel));
  ASSERT_TRUE(EventuallyTakesPart(1)) << serve_->err();
  ASSERT_OK_AND_ASSIGN(const std::string together, head_->Run(Generate(60), kHostPatience));
  EXPECT_EQ(together, alone);
  ASSERT_OK_AND_ASSIGN(const std::string status, head_->Run("./ferry status --json --server " + head_->address(), kHostPatience));
  const nlohmann::json host = nlohmann::json::parse(status)["server"]["expert_hosts"][0];
  EXPECT_GT(host["exchanges"].get<double>(), 0);
  EXPECT_EQ(host["failures"].get<double>(), 0);
  EXPECT_LT(host["row_bytes_per_second"].get<double>(), 2 * 10e6 / 8) << "what the planner divides by";
}

TEST_F(ExpertHostsTest, AHostWithAnotherModelOrNoCertificateIsRefusedByName) {
  ASSERT_OK(near_->Run("./ferry make-model /tmp/other.gguf", kHostPatience));
  ASSERT_OK_AND_ASSIGN(const Command other, StartExperts(*near_, "-m /tmp/other.gguf"));
  ASSERT_OK_AND_ASSIGN(const int code, other.Wait(kHostPatience));
  EXPECT_EQ(code, 1);
  EXPECT_THAT(other.err(), HasSubstr("another model than the coordinator's"));
  ASSERT_OK(StartExperts(*near_));
  EXPECT_TRUE(EventuallyTakesPart(1)) << serve_->err();
  EXPECT_THAT(far_->Run("./ferry join " + head_->address() + kHostCerts + " --experts", kHostPatience),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("no certificates of a cluster")));
}

}  // namespace
}  // namespace ferry
