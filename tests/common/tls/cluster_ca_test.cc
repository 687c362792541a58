#include "common/tls/cluster_ca.h"

#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "absl/time/clock.h"
#include "common/small_file.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

class ClusterCaTest : public ::testing::Test {
 protected:
  ~ClusterCaTest() override { std::filesystem::remove_all(folder_); }
  std::string Read(const std::string& path) { return ReadSmallFile(path).value_or(""); }

  const std::string folder_ = ::testing::TempDir() + "/cluster_ca_" + std::to_string(::getpid());
};

TEST_F(ClusterCaTest, FilesAreForTheirOwnerAlone) {
  ASSERT_OK(MakeClusterCa(folder_));
  struct stat info = {};
  ASSERT_EQ(::stat(folder_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0700u);
  for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
    ASSERT_EQ(::stat(entry.path().c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, 0600u) << entry.path();
  }
  EXPECT_EQ(MakeClusterCa(folder_).code(), absl::StatusCode::kAlreadyExists);
}

TEST_F(ClusterCaTest, ACertificateLastsAsLongAsItWasAskedFor) {
  ASSERT_OK(MakeClusterCa(folder_));
  ASSERT_OK_AND_ASSIGN(const NodeRequest request, MakeNodeRequest());
  ASSERT_OK_AND_ASSIGN(const std::string pem,
                       IssueNodeCertificate(folder_, request.request_pem, NodeRole::kWorker, absl::Hours(5)));
  ASSERT_OK_AND_ASSIGN(const absl::Time end, CertificateEnd(pem));
  EXPECT_LT(absl::AbsDuration(end - absl::Now() - absl::Hours(5)), absl::Minutes(2));
  EXPECT_TRUE(pem.ends_with(Read(CaCertificatePath(folder_)))) << "the chain has the CA";
}

TEST_F(ClusterCaTest, RefusesWhatIsNoRequest) {
  ASSERT_OK(MakeClusterCa(folder_));
  ASSERT_OK_AND_ASSIGN(NodeRequest request, MakeNodeRequest());
  request.request_pem[request.request_pem.size() / 2] ^= 1;
  for (const std::string& bad :
       {request.request_pem, std::string(), Read(NodeCertificatePath(folder_)), std::string(1 << 20, 'x')}) {
    EXPECT_THAT(IssueNodeCertificate(folder_, bad, NodeRole::kWorker), StatusIs(absl::StatusCode::kInvalidArgument));
  }
  EXPECT_THAT(IssueNodeCertificate("/nonexistent", request.request_pem, NodeRole::kWorker),
              StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST_F(ClusterCaTest, ATokenIsGoodOnce) {
  ASSERT_OK(MakeClusterCa(folder_));
  ASSERT_OK_AND_ASSIGN(const std::string text, MakeJoinToken(folder_, absl::Hours(1)));
  ASSERT_OK_AND_ASSIGN(const JoinToken token, ParseJoinToken(text));
  ASSERT_OK_AND_ASSIGN(const std::string fingerprint, CertificateFingerprint(Read(CaCertificatePath(folder_))));
  EXPECT_EQ(token.ca_fingerprint, fingerprint);
  EXPECT_EQ(Read(folder_ + "/tokens").find(token.secret), std::string::npos) << "only its hash is kept";
  const auto unauthenticated = StatusIs(absl::StatusCode::kUnauthenticated);
  EXPECT_THAT(RedeemJoinToken(folder_, token.id, std::string(64, '0')), unauthenticated);
  EXPECT_THAT(RedeemJoinToken(folder_, "00000000", token.secret), unauthenticated);
  EXPECT_OK(RedeemJoinToken(folder_, token.id, token.secret));
  EXPECT_THAT(RedeemJoinToken(folder_, token.id, token.secret), unauthenticated);
}

TEST_F(ClusterCaTest, ATokenThatIsOverIsRefused) {
  ASSERT_OK(MakeClusterCa(folder_));
  ASSERT_OK_AND_ASSIGN(const std::string text, MakeJoinToken(folder_, -absl::Seconds(1)));
  ASSERT_OK_AND_ASSIGN(const JoinToken token, ParseJoinToken(text));
  EXPECT_THAT(RedeemJoinToken(folder_, token.id, token.secret), StatusIs(absl::StatusCode::kUnauthenticated));
}

TEST_F(ClusterCaTest, RefusesTokensOfAnotherForm) {
  for (const char* const text : {"", "fj", "fj-1-2-3", "fk-00000000-11-22"}) {
    EXPECT_THAT(ParseJoinToken(text), StatusIs(absl::StatusCode::kInvalidArgument));
  }
}

}  // namespace
}  // namespace ferry
