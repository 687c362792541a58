#include "gateway/access.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "tests/testing/fake_clock.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

class KeyedAccessTest : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ = ::testing::TempDir() + "/keys-" + std::to_string(getpid());
    Write({alice_});
    absl::StatusOr<std::unique_ptr<ApiKeys>> keys = ApiKeys::Load(path_);
    ASSERT_OK(keys);
    access_ = std::make_unique<KeyedAccess>(*std::move(keys), &clock_);
  }
  void TearDown() override { std::filesystem::remove(path_); }
  void Write(const std::vector<NewApiKey>& keys) {
    std::ofstream file(path_ + ".new");
    for (const NewApiKey& key : keys) file << key.line << '\n';
    file.close();
    std::filesystem::permissions(path_ + ".new", std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
    std::filesystem::rename(path_ + ".new", path_);
  }
  absl::Status Check(const std::string& name, const std::string& value) { return access_->Check({.headers = {{name, value}}}); }

  const NewApiKey alice_ = *MakeApiKey("alice", Role::kUser), bob_ = *MakeApiKey("bob", Role::kUser);
  std::string path_;
  FakeClock clock_;
  std::unique_ptr<KeyedAccess> access_;
};

TEST_F(KeyedAccessTest, TakesAKeyInEitherHeaderAndAnyCaseOfBearer) {
  EXPECT_OK(Check("authorization", "Bearer " + alice_.key));
  EXPECT_OK(Check("authorization", "bearer " + alice_.key));
  EXPECT_OK(Check("authorization", "BEARER " + alice_.key));
  EXPECT_OK(Check("x-api-key", alice_.key));
}

TEST_F(KeyedAccessTest, RefusesWhoHasNone) {
  for (const std::string& value :
       {std::string(), std::string("Bearer "), "Bearer " + bob_.key, alice_.key, "Basic " + alice_.key}) {
    EXPECT_THAT(Check("authorization", value), StatusIs(absl::StatusCode::kUnauthenticated)) << value;
  }
  EXPECT_THAT(Check("x-api-key", "Bearer " + alice_.key), StatusIs(absl::StatusCode::kUnauthenticated));
  EXPECT_THAT(access_->Check({}), StatusIs(absl::StatusCode::kUnauthenticated));
}

TEST_F(KeyedAccessTest, KnowsNewKeysASecondLater) {
  EXPECT_FALSE(Check("x-api-key", bob_.key).ok());
  Write({bob_});
  EXPECT_FALSE(Check("x-api-key", bob_.key).ok());
  clock_.Advance(absl::Seconds(2));
  EXPECT_OK(Check("x-api-key", bob_.key));
  EXPECT_FALSE(Check("x-api-key", alice_.key).ok());
}

}  // namespace
}  // namespace ferry
