#include "common/shm/expert_mailbox.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <thread>
#include <utility>

#include "absl/time/clock.h"
#include "common/deadline.h"
#include "common/shm/shm_arena.h"
#include "tests/testing/random_tensors.h"
#include "tests/testing/soon.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr int64_t kNumLayers = 6;
constexpr MailboxShape kShape = {.n_embd = 4, .max_rows = 8, .max_entries = 16, .max_experts = 32};

Deadline Shortly() { return Deadline::In(absl::Milliseconds(5)); }

// Rows 0 and 2 through expert 3, row 1 through expert 9.
ExpertRequest Compute() {
  ExpertRequest request;
  request.kind = ExpertRequestKind::kCompute;
  request.incarnation = 77;
  request.step = 5;
  request.layer = 2;
  request.num_rows = 3;
  request.uses = {{3, 2, 0}, {9, 1, 0}};
  request.entry_rows = {0, 2, 1};
  return request;
}
ExpertRequest Plan() {
  ExpertRequest request;
  request.layer = 1;
  request.num_rows = 3;
  request.uses = {{0, 3, 1}, {31, 1, 0}};
  return request;
}

// Both ends of one mailbox.
struct Ends {
  std::unique_ptr<ExpertMailbox> engine, worker;
};
Ends MakeEnds(const MailboxShape& shape = kShape) {
  Ends ends;
  ends.engine = *ExpertMailbox::Create(shape);
  ends.worker = *ExpertMailbox::Map(::dup(ends.engine->fd()), shape);
  return ends;
}

TEST(ExpertMailbox, CarriesARequestAndItsAnswer) {
  Ends ends = MakeEnds();
  ends.worker->rows()[2 * 4 + 1] = 1.5f;
  ASSERT_OK(ends.worker->Post(Compute()));
  ASSERT_OK_AND_ASSIGN(const ExpertRequest request, ends.engine->WaitForRequest(Soon(), kNumLayers));
  EXPECT_EQ(request.kind, ExpertRequestKind::kCompute);
  EXPECT_EQ(request.incarnation, 77u);
  EXPECT_EQ(request.step, 5u);
  EXPECT_EQ(request.layer, 2);
  EXPECT_EQ(request.num_rows, 3);
  EXPECT_EQ(request.uses, Compute().uses);
  EXPECT_EQ(request.entry_rows, Compute().entry_rows);
  EXPECT_EQ(ends.engine->rows()[2 * 4 + 1], 1.5f);
  ends.engine->contributions()[3] = 2.5f;
  ends.engine->Answer(absl::OkStatus(), {});
  ASSERT_OK(ends.worker->WaitForAnswer(Soon(), nullptr));
  EXPECT_EQ(ends.worker->contributions()[3], 2.5f);
}

TEST(ExpertMailbox, CarriesAPlan) {
  Ends ends = MakeEnds();
  ASSERT_OK(ends.worker->Post(Plan()));
  ASSERT_OK_AND_ASSIGN(const ExpertRequest request, ends.engine->WaitForRequest(Soon(), kNumLayers));
  EXPECT_EQ(request.uses, Plan().uses);
  ends.engine->Answer(absl::OkStatus(), std::vector{ExpertPlace::kResident, ExpertPlace::kHost});
  std::vector<ExpertPlace> places;
  ASSERT_OK(ends.worker->WaitForAnswer(Soon(), &places));
  EXPECT_THAT(places, ElementsAre(ExpertPlace::kResident, ExpertPlace::kHost));
}

TEST(ExpertMailbox, PlansMoreRowsThanItHolds) {
  Ends ends = MakeEnds();
  ExpertRequest plan = Plan();
  plan.num_rows = 5000;
  plan.uses = {{4, 5000, 0}};
  ASSERT_OK(ends.worker->Post(plan));
  EXPECT_OK(ends.engine->WaitForRequest(Soon(), kNumLayers));
}

TEST(ExpertMailbox, CarriesTheEnginesError) {
  Ends ends = MakeEnds();
  ASSERT_OK(ends.worker->Post(Compute()));
  ASSERT_OK(ends.engine->WaitForRequest(Soon(), kNumLayers));
  ends.engine->Answer(Aborted("step 5 is past"), {});
  EXPECT_THAT(ends.worker->WaitForAnswer(Soon(), nullptr), StatusIs(absl::StatusCode::kAborted, "step 5 is past"));
}

TEST(ExpertMailbox, CutsALongErrorMessage) {
  Ends ends = MakeEnds();
  ASSERT_OK(ends.worker->Post(Compute()));
  ASSERT_OK(ends.engine->WaitForRequest(Soon(), kNumLayers));
  ends.engine->Answer(absl::InternalError(std::string(5000, 'x')), {});
  EXPECT_THAT(ends.worker->WaitForAnswer(Soon(), nullptr), StatusIs(absl::StatusCode::kInternal, testing::MatchesRegex("x+")));
}

TEST(ExpertMailbox, ServesOneRequestAfterTheOther) {
  Ends ends = MakeEnds();
  std::thread engine([&] {
    for (int i = 0; i < 200; ++i) {
      const auto request = ends.engine->WaitForRequest(Soon(), kNumLayers);
      ASSERT_OK(request);
      ends.engine->contributions()[0] = ends.engine->rows()[0] * static_cast<float>(request->step);
      ends.engine->Answer(absl::OkStatus(), {});
    }
  });
  for (uint64_t step = 0; step < 200; ++step) {
    ExpertRequest request = Compute();
    request.step = step;
    ends.worker->rows()[0] = 2;
    ASSERT_OK(ends.worker->Post(request));
    ASSERT_OK(ends.worker->WaitForAnswer(Soon(), nullptr));
    EXPECT_EQ(ends.worker->contributions()[0], 2 * static_cast<float>(step));
  }
  engine.join();
}

TEST(ExpertMailbox, WorksAcrossProcesses) {
  const auto engine = *ExpertMailbox::Create(kShape);
  const pid_t child = ::fork();
  if (child == 0) {
    const auto worker = ExpertMailbox::Map(::dup(engine->fd()), kShape);
    bool good = worker.ok();
    for (int i = 0; good && i < 50; ++i) {
      (*worker)->rows()[0] = static_cast<float>(i);
      good = (*worker)->Post(Compute()).ok() && (*worker)->WaitForAnswer(Soon(), nullptr).ok() &&
             (*worker)->contributions()[0] == static_cast<float>(2 * i);
      if (i % 10 == 0) absl::SleepFor(absl::Milliseconds(2));  // long enough for the engine to sleep
    }
    ::_exit(good ? 0 : 1);
  }
  for (int i = 0; i < 50; ++i) {
    ASSERT_OK(engine->WaitForRequest(Soon(), kNumLayers));
    if (i % 10 == 5) absl::SleepFor(absl::Milliseconds(2));
    engine->contributions()[0] = 2 * engine->rows()[0];
    engine->Answer(absl::OkStatus(), {});
  }
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

TEST(ExpertMailbox, EndsItsWaitsAtTheDeadline) {
  Ends ends = MakeEnds();
  EXPECT_THAT(ends.engine->WaitForRequest(Shortly(), kNumLayers), StatusIs(absl::StatusCode::kDeadlineExceeded));
  ASSERT_OK(ends.worker->Post(Compute()));
  EXPECT_THAT(ends.worker->WaitForAnswer(Shortly(), nullptr), StatusIs(absl::StatusCode::kDeadlineExceeded));
}

TEST(ExpertMailbox, RefusesAPostUntilTheLateAnswerHasCome) {
  Ends ends = MakeEnds();
  ASSERT_OK(ends.worker->Post(Compute()));
  ASSERT_THAT(ends.worker->WaitForAnswer(Shortly(), nullptr), StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_THAT(ends.worker->Post(Plan()), StatusIs(absl::StatusCode::kFailedPrecondition));
  ASSERT_OK(ends.engine->WaitForRequest(Soon(), kNumLayers));
  ends.engine->Answer(Internal("the late answer"), {});
  ASSERT_OK(ends.worker->Post(Plan()));
  ASSERT_OK(ends.engine->WaitForRequest(Soon(), kNumLayers));
  ends.engine->Answer(absl::OkStatus(), std::vector{ExpertPlace::kShip, ExpertPlace::kHost});
  std::vector<ExpertPlace> places;
  EXPECT_OK(ends.worker->WaitForAnswer(Soon(), &places));
  EXPECT_THAT(places, ElementsAre(ExpertPlace::kShip, ExpertPlace::kHost));
}

TEST(ExpertMailbox, RefusesToWaitForNothingAndToPostTwice) {
  Ends ends = MakeEnds();
  EXPECT_THAT(ends.worker->WaitForAnswer(Soon(), nullptr), StatusIs(absl::StatusCode::kFailedPrecondition));
  ASSERT_OK(ends.worker->Post(Compute()));
  EXPECT_THAT(ends.worker->Post(Compute()), StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST(ExpertMailbox, RefusesAPostThatItCannotHold) {
  Ends ends = MakeEnds();
  const auto code = absl::StatusCode::kResourceExhausted;
  ExpertRequest request = Compute();
  request.num_rows = 9;
  EXPECT_THAT(ends.worker->Post(request), StatusIs(code, HasSubstr("num_rows is 9, the mailbox holds 8")));
  request = Compute();
  request.entry_rows.resize(17);
  EXPECT_THAT(ends.worker->Post(request), StatusIs(code, HasSubstr("entries is 17")));
  request = Compute();
  request.uses.resize(33);
  EXPECT_THAT(ends.worker->Post(request), StatusIs(code, HasSubstr("uses is 33")));
}

TEST(ExpertMailbox, RefusesARegionThatIsTooSmallOrOfAnotherShape) {
  const auto engine = *ExpertMailbox::Create(kShape);
  MailboxShape larger = kShape;
  larger.max_rows = 100000;
  EXPECT_THAT(ExpertMailbox::Map(::dup(engine->fd()), larger), StatusIs(kInvalid, HasSubstr("bytes, want at least")));
  MailboxShape other = kShape;
  other.max_experts = 31;
  EXPECT_THAT(ExpertMailbox::Map(::dup(engine->fd()), other), StatusIs(kInvalid, HasSubstr("another shape")));
  ASSERT_OK_AND_ASSIGN(const ShmArena unsealed, ShmArena::Create("unsealed", 1 << 20));
  EXPECT_THAT(ExpertMailbox::Map(::dup(unsealed.fd()), kShape), StatusIs(kInvalid, HasSubstr("shrinking")));
}

TEST(ExpertMailbox, RefusesAShapeOutOfRange) {
  const auto with = [](auto change) {
    MailboxShape shape = kShape;
    change(shape);
    return ExpertMailbox::Create(shape);
  };
  EXPECT_THAT(with([](MailboxShape& s) { s.n_embd = 0; }), StatusIs(kInvalid, HasSubstr("n_embd")));
  EXPECT_THAT(with([](MailboxShape& s) { s.max_rows = -1; }), StatusIs(kInvalid, HasSubstr("max_rows")));
  EXPECT_THAT(with([](MailboxShape& s) { s.max_entries = int64_t{1} << 40; }), StatusIs(kInvalid));
  EXPECT_THAT(with([](MailboxShape& s) { s.max_experts = 1025; }), StatusIs(kInvalid, HasSubstr("max_experts")));
}

// ------------------------------------------------------------------------------------------------------------ hostile
// peers

struct BadRequest {
  const char* name;
  std::function<void(ExpertRequest&)> change;
  const char* message;
};
class BadRequestTest : public testing::TestWithParam<BadRequest> {};

TEST_P(BadRequestTest, IsRefusedByNameOnBothSides) {
  ExpertRequest request = Compute();
  GetParam().change(request);
  EXPECT_THAT(CheckExpertRequest(request, kShape, kNumLayers), StatusIs(kInvalid, HasSubstr(GetParam().message)));
  Ends ends = MakeEnds();
  ASSERT_OK(ends.worker->Post(request));
  EXPECT_THAT(ends.engine->WaitForRequest(Soon(), kNumLayers), StatusIs(kInvalid, HasSubstr(GetParam().message)));
  EXPECT_THAT(ends.worker->WaitForAnswer(Soon(), nullptr), StatusIs(kInvalid, HasSubstr(GetParam().message)));
}
INSTANTIATE_TEST_SUITE_P(
    Requests, BadRequestTest,
    testing::Values(BadRequest{"UnknownKind", [](auto& r) { r.kind = static_cast<ExpertRequestKind>(9); }, "kind is 9"},
                    BadRequest{"LayerTooHigh", [](auto& r) { r.layer = 6; }, "layer is 6, want 0 to 5"},
                    BadRequest{"LayerNegative", [](auto& r) { r.layer = -1; }, "layer is -1"},
                    BadRequest{"ExpertTooHigh", [](auto& r) { r.uses[1].expert = 32; }, "uses[1].expert is 32, want 0 to 31"},
                    BadRequest{"ExpertGarbage", [](auto& r) { r.uses[0].expert = -1232513024; }, "uses[0].expert is -1232513024"},
                    BadRequest{"Duplicated", [](auto& r) { r.uses[1].expert = 3; }, "uses[1].expert is 3 after 3"},
                    BadRequest{"Unsorted", [](auto& r) { r.uses[1].expert = 1; }, "uses[1].expert is 1 after 3"},
                    BadRequest{"NoTokens", [](auto& r) { r.uses[0].tokens = 0; }, "uses[0].tokens is 0"},
                    BadRequest{"NegativeTokens", [](auto& r) { r.uses[0].tokens = -2; }, "uses[0].tokens is -2"},
                    BadRequest{"MoreTokensThanRows", [](auto& r) { r.uses[0].tokens = 4; }, "uses[0].tokens is 4"},
                    BadRequest{"SumIsNotTheEntries", [](auto& r) { r.uses[0].tokens = 1; }, "entry_rows has 3 entries, want 2"},
                    BadRequest{"Resident", [](auto& r) { r.uses[0].resident = 3; }, "uses[0].resident is 3"},
                    BadRequest{"RowTooHigh", [](auto& r) { r.entry_rows[1] = 3; }, "entry_rows[1] is 3, want 0 to 2"},
                    BadRequest{"RowNegative", [](auto& r) { r.entry_rows[1] = -1; }, "entry_rows[1] is -1"},
                    BadRequest{"NegativeRows", [](auto& r) { r.num_rows = -3; }, "num_rows is -3"},
                    BadRequest{"EntriesInAPlan", [](auto& r) { r.kind = ExpertRequestKind::kPlan; }, "want none in a plan"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(CheckExpertRequest, BoundsTheSumOfTokens) {
  ExpertRequest request = Compute();
  request.num_rows = 8;
  request.uses = {{0, 8, 0}, {1, 8, 0}, {2, 8, 0}};
  EXPECT_THAT(CheckExpertRequest(request, kShape, kNumLayers), StatusIs(kInvalid, HasSubstr("add up to 24")));
  request.num_rows = 9;
  EXPECT_THAT(CheckExpertRequest(request, kShape, kNumLayers), StatusIs(kInvalid, HasSubstr("num_rows is 9")));
}

// Words of the region that may hold something but rows: counts, ids, entries, answers (with kShape: 336).
constexpr size_t kControlWords = 352;

// The peer's own view of the region, to write into what Post would never write.
class HostileMapping {
 public:
  HostileMapping(int fd, size_t bytes)
      : bytes_(bytes),
        words_(static_cast<std::atomic<uint32_t>*>(::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0))) {}
  ~HostileMapping() { ::munmap(words_, bytes_); }
  std::atomic<uint32_t>& operator[](size_t i) { return words_[i]; }

 private:
  const size_t bytes_;
  std::atomic<uint32_t>* const words_;
};

TEST(ExpertMailbox, NeverReadsOutOfBoundsWhateverThePeerWrites) {
  // Every word before the rows takes every kind of bad value, one at a time; a request that comes through is a good
  // one.
  for (size_t word = 0; word < kControlWords; ++word) {
    for (const uint32_t value : {0u, 1u, 33u, 0x80000000u, 0xFFFFFFFFu}) {
      Ends ends = MakeEnds();
      HostileMapping region(ends.engine->fd(), 4096);
      ASSERT_OK(ends.worker->Post(Compute()));
      region[word] = value;
      const auto request = ends.engine->WaitForRequest(Deadline::In(absl::Microseconds(50)), kNumLayers);
      if (request.ok()) {
        ASSERT_OK(CheckExpertRequest(*request, kShape, kNumLayers));
        ends.engine->Answer(absl::OkStatus(), {});
      }
    }
  }
}

TEST(ExpertMailbox, ReadsCountsOnceWhileThePeerRewritesThem) {
  Ends ends = MakeEnds();
  HostileMapping region(ends.engine->fd(), 4096);
  std::atomic<bool> stop = false;
  std::thread peer([&] {
    RandomBits random(1);
    while (!stop) {
      // Small values at random: many requests are nearly right. The header's constants (the first line) are left.
      const size_t word = 16 + static_cast<size_t>(random.Below(static_cast<int64_t>(kControlWords) - 16));
      region[word] = static_cast<uint32_t>(random.Below(4) == 0 ? random.Next() : random.Below(20));
    }
  });
  for (int i = 0; i < 3000; ++i) {
    const auto request = ends.engine->WaitForRequest(Deadline::In(absl::Microseconds(200)), kNumLayers);
    if (!request.ok()) continue;
    ASSERT_OK(CheckExpertRequest(*request, kShape, kNumLayers));
    ends.engine->Answer(absl::OkStatus(), {});
  }
  stop = true;
  peer.join();
}

TEST(ExpertMailbox, BelievesNoAnswerThatCannotBe) {
  for (size_t word = 16; word < kControlWords; ++word) {
    for (const uint32_t value : {3u, 0xFFFFFFFFu}) {
      Ends ends = MakeEnds();
      HostileMapping region(ends.engine->fd(), 4096);
      ASSERT_OK(ends.worker->Post(Plan()));
      ASSERT_OK(ends.engine->WaitForRequest(Soon(), kNumLayers));
      ends.engine->Answer(absl::OkStatus(), std::vector{ExpertPlace::kShip, ExpertPlace::kHost});
      region[word] = value;
      std::vector<ExpertPlace> places;
      const absl::Status status = ends.worker->WaitForAnswer(Deadline::In(absl::Microseconds(50)), &places);
      if (!status.ok()) continue;
      ASSERT_EQ(places.size(), 2u);
      for (const ExpertPlace place : places) ASSERT_LE(static_cast<int>(place), 2);
    }
  }
}

}  // namespace
}  // namespace ferry
