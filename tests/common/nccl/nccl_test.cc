#include <dlfcn.h>

#include <atomic>
#include <cstdlib>
#include <thread>

#include "absl/time/clock.h"
#include "common/deadline.h"
#include "common/nccl/nccl_communicator.h"
#include "common/nccl/nccl_library.h"
#include "tests/testing/soon.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr auto kWrong = absl::StatusCode::kFailedPrecondition;

Deadline Shortly() { return Deadline::In(absl::Milliseconds(30)); }

TEST(NcclLibrary, TellsTheVersionOfWhatItLoaded) {
  ASSERT_OK_AND_ASSIGN(const auto library, NcclLibrary::Load(FAKE_NCCL));
  EXPECT_EQ(library->version(), "2.28.9");
}

TEST(NcclLibrary, RefusesAFileThatIsNotThere) {
  EXPECT_THAT(NcclLibrary::Load("/nowhere/libnccl.so.2"),
              StatusIs(kWrong, AllOf(HasSubstr("/nowhere/libnccl.so.2"), HasSubstr("--nccl-library"))));
}

TEST(NcclLibrary, RefusesAFileThatIsNoLibrary) {
  EXPECT_THAT(NcclLibrary::Load("/proc/self/status"), StatusIs(kWrong, HasSubstr("/proc/self/status")));
}

TEST(NcclLibrary, RefusesAVersionThatIsTooOldOrAnotherMajor) {
  EXPECT_THAT(NcclLibrary::Load(FAKE_NCCL_OLD), StatusIs(kWrong, HasSubstr("is NCCL 2.10.3, want 2.18 or later")));
  EXPECT_THAT(NcclLibrary::Load(FAKE_NCCL_NEXT), StatusIs(kWrong, HasSubstr("is NCCL 3.0.1, want 2.18 or later of version 2")));
}

TEST(NcclLibrary, RefusesALibraryThatLacksAFunction) {
  EXPECT_THAT(NcclLibrary::Load(FAKE_NCCL_PARTIAL), StatusIs(kWrong, HasSubstr("has no function ncclRecv")));
}

TEST(NcclLibrary, TakesTheOneOfThisMachine) {
  const auto library = NcclLibrary::Load("");
  if (!library.ok()) GTEST_SKIP() << library.status().message();
  EXPECT_THAT((*library)->version(), testing::StartsWith("2."));
}

TEST(NcclLibrary, BindsNcclToLoopbackOrToTheInterfaceNamed) {
  EXPECT_THAT(PrepareNcclEnvironment("nosuch0"), StatusIs(kWrong, AllOf(HasSubstr("--nccl-interface nosuch0"), HasSubstr("lo"))));
  ASSERT_OK(PrepareNcclEnvironment(""));
  EXPECT_STREQ(std::getenv("NCCL_SOCKET_IFNAME"), "=lo");
  EXPECT_STREQ(std::getenv("NCCL_NVLS_ENABLE"), "0");
}

class NcclCommunicatorTest : public testing::Test {
 protected:
  NcclCommunicatorTest() {
    options_.library = NcclLibrary::Load(FAKE_NCCL).value();
    options_.on_stuck = [this](const absl::Status&) { stuck_ = true; };
    handle_ = ::dlopen(FAKE_NCCL, RTLD_NOW);
    Call<void()>("FakeNcclReset")();
  }
  ~NcclCommunicatorTest() override { ::dlclose(handle_); }

  template <typename Function>
  Function* Call(const char* name) const {
    return reinterpret_cast<Function*>(::dlsym(handle_, name));
  }
  void SetAsyncError(int error) { Call<void(int)>("FakeNcclSetAsyncError")(error); }
  int Aborts() const { return Call<int()>("FakeNcclAborts")(); }
  std::unique_ptr<NcclCommunicator> Begun() {
    return NcclCommunicator::Begin(options_, NcclCommunicator::MakeId(*options_.library).value(), 0).value();
  }

  NcclCommunicator::Options options_;
  std::atomic<bool> stuck_{false};
  void* handle_ = nullptr;
};

absl::StatusOr<bool> Never() { return false; }

TEST_F(NcclCommunicatorTest, IsReadyWhenBothHaveJoinedAndEndsWithAnAbort) {
  {
    const auto communicator = Begun();
    ASSERT_OK(communicator->AwaitReady(Soon(), nullptr));
    std::byte row[4];
    ASSERT_OK(communicator->Send(row, 4, nullptr, Soon()));
    ASSERT_OK(communicator->Receive(row, 4, nullptr, Soon()));
    EXPECT_OK(communicator->Await([] { return true; }, Soon()));
  }
  EXPECT_EQ(Aborts(), 1);
}

TEST_F(NcclCommunicatorTest, RefusesWhatNcclRefusesAtOnce) {
  Call<void(int)>("FakeNcclSetInitResult")(5);
  EXPECT_THAT(NcclCommunicator::Begin(options_, NcclCommunicator::MakeId(*options_.library).value(), 0),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("ncclCommInitRankConfig: a fault: in detail")));
}

TEST_F(NcclCommunicatorTest, DoesNotWaitForeverForTheOtherToJoin) {
  SetAsyncError(NcclLibrary::kInProgress);
  const auto communicator = Begun();
  EXPECT_THAT(communicator->AwaitReady(Shortly(), nullptr), StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_EQ(Aborts(), 1);
  EXPECT_THAT(communicator->Send(nullptr, 0, nullptr, Soon()), StatusIs(absl::StatusCode::kDeadlineExceeded)) << "it stays lost";
}

TEST_F(NcclCommunicatorTest, EndsAJoinWhoseCallerIsGone) {
  SetAsyncError(NcclLibrary::kInProgress);
  EXPECT_THAT(Begun()->AwaitReady(Soon(), [] { return true; }), StatusIs(absl::StatusCode::kCancelled));
}

TEST_F(NcclCommunicatorTest, EndsATransferWhosePeerIsLost) {
  const auto communicator = Begun();
  SetAsyncError(6);  // ncclRemoteError
  EXPECT_THAT(communicator->Await(Never, Soon()), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("in detail")));
  EXPECT_EQ(Aborts(), 1);
}

TEST_F(NcclCommunicatorTest, EndsATransferInWhichThePeerTakesNoPart) {
  const auto communicator = Begun();
  EXPECT_THAT(communicator->Await(Never, Shortly()), StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_EQ(Aborts(), 1);
}

TEST_F(NcclCommunicatorTest, EndsATransferThatSetsUpItsConnectionForever) {
  const auto communicator = Begun();
  SetAsyncError(NcclLibrary::kInProgress);
  std::byte row[4];
  EXPECT_THAT(communicator->Receive(row, 4, nullptr, Shortly()), StatusIs(absl::StatusCode::kDeadlineExceeded));
}

TEST_F(NcclCommunicatorTest, EndsAWaitWhenItIsCut) {
  const auto communicator = Begun();
  std::thread cutter([&] {
    absl::SleepFor(absl::Milliseconds(20));
    communicator->Cut();
  });
  EXPECT_THAT(communicator->Await(Never, Soon()), StatusIs(absl::StatusCode::kAborted, HasSubstr("epoch is over")));
  cutter.join();
  EXPECT_EQ(Aborts(), 1);
}

TEST_F(NcclCommunicatorTest, SaysWhenAnAbortDoesNotReturn) {
  options_.abort_patience = absl::Milliseconds(20);
  Call<void(bool)>("FakeNcclBlockAborts")(true);
  Begun().reset();
  EXPECT_TRUE(stuck_);
  Call<void(bool)>("FakeNcclBlockAborts")(false);
  for (const Deadline end = Soon(); Aborts() == 0 && !end.Passed();) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_EQ(Aborts(), 1);
}

}  // namespace
}  // namespace ferry
