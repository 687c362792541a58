#include "common/access/api_keys.h"

#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;

class ApiKeysTest : public ::testing::Test {
 protected:
  ~ApiKeysTest() override { std::filesystem::remove(path_); }

  void Write(const std::string& text) {
    std::ofstream(path_) << text;
    ASSERT_EQ(::chmod(path_.c_str(), 0600), 0);
  }
  absl::StatusCode CodeFor(const ApiKeys& keys, const std::string& key) { return keys.Authenticate(key).status().code(); }

  const std::string path_ = ::testing::TempDir() + "/api_keys_" + std::to_string(::getpid());
};

TEST_F(ApiKeysTest, KnowsAKeyByItsNameRoleAndLimits) {
  ASSERT_OK_AND_ASSIGN(const NewApiKey user, MakeApiKey("alice", Role::kUser));
  ASSERT_OK_AND_ASSIGN(const NewApiKey admin, MakeApiKey("ops.1", Role::kAdmin));
  Write("# keys\n\n" + user.line + " parallel=4 queue=2 tokens-per-minute=9000 share-cache  # a guest\n" + admin.line + "\n");
  ASSERT_OK_AND_ASSIGN(const auto keys, ApiKeys::Load(path_));
  ASSERT_OK_AND_ASSIGN(const Principal alice, keys->Authenticate(user.key));
  EXPECT_EQ(alice.name, "alice");
  EXPECT_EQ(alice.role, Role::kUser);
  EXPECT_EQ(alice.max_parallel, 4);
  EXPECT_EQ(alice.max_queued, 2);
  EXPECT_EQ(alice.tokens_per_minute, 9000);
  EXPECT_TRUE(alice.shares_cache);
  ASSERT_OK_AND_ASSIGN(const Principal ops, keys->Authenticate(admin.key));
  EXPECT_EQ(ops.role, Role::kAdmin);
  EXPECT_EQ(ops.max_parallel, 0);
  EXPECT_FALSE(ops.shares_cache);
}

TEST_F(ApiKeysTest, AddsALineBehindAFileThatDoesNotEndInOne) {
  ASSERT_OK_AND_ASSIGN(const NewApiKey alice, MakeApiKey("alice", Role::kUser));
  ASSERT_OK_AND_ASSIGN(const NewApiKey bob, MakeApiKey("bob", Role::kUser));
  ASSERT_OK(ApiKeys::AddLine(path_, alice.line));
  Write(alice.line);  // without an end of line, as some editors leave it
  ASSERT_OK(ApiKeys::AddLine(path_, bob.line));
  ASSERT_OK_AND_ASSIGN(const auto keys, ApiKeys::Load(path_));
  EXPECT_OK(keys->Authenticate(alice.key));
  EXPECT_OK(keys->Authenticate(bob.key));
  EXPECT_THAT(ApiKeys::AddLine(path_, bob.line), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("an earlier line")));
  Write("no keys");
  EXPECT_THAT(ApiKeys::AddLine(path_, bob.line), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("line 1")));
}

TEST_F(ApiKeysTest, RefusesWhatIsNoKeyOfTheFile) {
  ASSERT_OK_AND_ASSIGN(const NewApiKey known, MakeApiKey("alice", Role::kUser));
  ASSERT_OK_AND_ASSIGN(const NewApiKey other, MakeApiKey("alice", Role::kUser));
  Write(known.line + "\n");
  ASSERT_OK_AND_ASSIGN(const auto keys, ApiKeys::Load(path_));
  std::string wrong = known.key;
  wrong.back() = wrong.back() == '0' ? '1' : '0';
  for (const std::string& key : {other.key, wrong, std::string(), std::string("fk-"), known.key + "0", known.key.substr(1),
                                 known.line, std::string(100000, 'f')}) {
    EXPECT_EQ(CodeFor(*keys, key), absl::StatusCode::kUnauthenticated) << key.substr(0, 80);
  }
  EXPECT_OK(keys->Authenticate(known.key));
}

TEST_F(ApiKeysTest, TheFileHoldsNoSecret) {
  ASSERT_OK_AND_ASSIGN(const NewApiKey made, MakeApiKey("alice", Role::kUser));
  const std::string secret = made.key.substr(made.key.rfind('-') + 1);
  EXPECT_EQ(made.line.find(secret), std::string::npos);
  EXPECT_EQ(secret.size(), 64u);
}

TEST_F(ApiKeysTest, TakesChangesWithoutARestart) {
  ASSERT_OK_AND_ASSIGN(const NewApiKey first, MakeApiKey("first", Role::kUser));
  ASSERT_OK_AND_ASSIGN(const NewApiKey second, MakeApiKey("second", Role::kUser));
  Write(first.line + "\n");
  ASSERT_OK_AND_ASSIGN(const auto keys, ApiKeys::Load(path_));
  Write(second.line + " parallel=1\n");
  ASSERT_OK(keys->ReloadIfChanged());
  EXPECT_EQ(CodeFor(*keys, first.key), absl::StatusCode::kUnauthenticated) << "it was revoked";
  EXPECT_OK(keys->Authenticate(second.key));
  Write("nonsense\n");
  EXPECT_THAT(keys->ReloadIfChanged(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("line 1")));
  EXPECT_OK(keys->Authenticate(second.key)) << "an unreadable file changes nothing";
}

TEST_F(ApiKeysTest, TriesAgainToReadAFileThatCouldNotBeRead) {
  ASSERT_OK_AND_ASSIGN(const NewApiKey made, MakeApiKey("alice", Role::kUser));
  Write(made.line + "\n");
  ASSERT_OK_AND_ASSIGN(const auto keys, ApiKeys::Load(path_));
  std::filesystem::remove(path_);
  std::filesystem::create_directory(path_);
  for (int i = 0; i < 2; ++i) EXPECT_FALSE(keys->ReloadIfChanged().ok()) << i;
  std::filesystem::remove(path_);
  Write(made.line + "\n");
  EXPECT_OK(keys->ReloadIfChanged());
}

TEST_F(ApiKeysTest, NamesTheLineThatIsWrong) {
  ASSERT_OK_AND_ASSIGN(const NewApiKey made, MakeApiKey("alice", Role::kUser));
  ASSERT_OK_AND_ASSIGN(const NewApiKey again, MakeApiKey("alice", Role::kUser));
  for (const std::string& bad : {std::string("alice"), "root" + made.line.substr(5, 5), made.line + " parallel=0",
                                 made.line + " speed=1", made.line.substr(0, made.line.size() - 1), again.line, made.line}) {
    Write(made.line + "\n" + bad + "\n");
    EXPECT_THAT(ApiKeys::Load(path_), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("line 2"))) << bad;
  }
}

TEST_F(ApiKeysTest, RefusesAFileThatOthersMayWrite) {
  Write("");
  ASSERT_EQ(::chmod(path_.c_str(), 0620), 0);
  EXPECT_THAT(ApiKeys::Load(path_), StatusIs(absl::StatusCode::kPermissionDenied));
  EXPECT_THAT(ApiKeys::Load("/nonexistent/keys"), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(ApiKeys::Load("/dev/null"), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(MakeApiKey, RefusesNamesThatDoNotFitOneWord) {
  for (const std::string& name : {std::string(), std::string("a b"), std::string("a\nb"), std::string(65, 'a')}) {
    EXPECT_THAT(MakeApiKey(name, Role::kUser), StatusIs(absl::StatusCode::kInvalidArgument));
  }
}

TEST(BearerToken, IsWhatFollowsTheScheme) {
  EXPECT_EQ(BearerToken("Bearer abc"), "abc");
  EXPECT_EQ(BearerToken("bearer abc"), "abc");
  EXPECT_EQ(BearerToken("Basic abc"), "");
  EXPECT_EQ(BearerToken("Bearer "), "");
  EXPECT_EQ(BearerToken(""), "");
}

}  // namespace
}  // namespace ferry
