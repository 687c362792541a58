#include "coordinator/trace_writer.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;

v1::TraceSpan Span(const std::string& name, int64_t nanoseconds) {
  v1::TraceSpan span;
  span.set_name(name);
  span.set_layer(-1);
  span.set_duration_ns(nanoseconds);
  return span;
}

class TraceWriterTest : public ::testing::Test {
 protected:
  TraceWriterTest() { writer_ = TraceWriter::Create(path_).value(); }
  ~TraceWriterTest() override { std::filesystem::remove(path_); }

  absl::Status Add(const v1::TraceSpan& span) {
    google::protobuf::RepeatedPtrField<v1::TraceSpan> spans;
    *spans.Add() = span;
    return writer_->AddWorker(WorkerId(1), spans);
  }
  nlohmann::json Events() {
    writer_.reset();
    return nlohmann::json::parse(std::ifstream(path_));
  }

  const std::string path_ = ::testing::TempDir() + "/trace-" + std::to_string(getpid());
  std::unique_ptr<TraceWriter> writer_;
};

TEST_F(TraceWriterTest, WithoutEventsItIsStillATrace) { EXPECT_TRUE(Events().is_array()); }

TEST_F(TraceWriterTest, NamesEveryRowOnce) {
  ASSERT_OK(Add(Span("attention", 10)));
  ASSERT_OK(Add(Span("experts here", 10)));
  writer_->AddEngine(2, 5, 40, absl::Now(), absl::Now());
  int rows = 0;
  for (const auto& event : Events()) rows += event["name"] == "thread_name";
  EXPECT_EQ(rows, 2) << "a worker's thread and the expert engine";
}

TEST_F(TraceWriterTest, ANameOfAnyBytesLeavesTheFileReadable) {
  ASSERT_OK(Add(Span("quote \" and \xff byte", 10)));
  EXPECT_TRUE(Events().is_array());
}

TEST_F(TraceWriterTest, RefusesSpansThatNoneCanBe) {
  EXPECT_THAT(Add(Span("", 1)), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("want 1 to 64")));
  EXPECT_THAT(Add(Span(std::string(65, 'x'), 1)), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(Add(Span("back", -1)), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("-1 ns")));
  v1::TraceSpan nowhere = Span("nowhere", 1);
  nowhere.set_track(static_cast<v1::TraceSpan::Track>(7));
  EXPECT_THAT(Add(nowhere), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("track 7")));
}

TEST(TraceWriter, RefusesAFileThatCannotBeWritten) {
  EXPECT_THAT(TraceWriter::Create("/no/such/folder/trace.json"),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("/no/such/folder/trace.json")));
}

}  // namespace
}  // namespace ferry
