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

internal::v1::TraceSpan Span(const std::string& name, int64_t nanoseconds) {
  internal::v1::TraceSpan span;
  span.set_name(name);
  span.set_layer(-1);
  span.set_duration_ns(nanoseconds);
  return span;
}

class TraceWriterTest : public ::testing::Test {
 protected:
  TraceWriterTest() { writer_ = TraceWriter::Create(path_).value(); }
  ~TraceWriterTest() override { std::filesystem::remove(path_); }

  void Add(const internal::v1::TraceSpan& span) {
    google::protobuf::RepeatedPtrField<internal::v1::TraceSpan> spans;
    *spans.Add() = span;
    writer_->AddWorker(WorkerId(1), spans);
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
  Add(Span("attention", 10));
  Add(Span("experts here", 10));
  writer_->AddEngine(2, 5, 40, absl::Now(), absl::Now());
  int rows = 0;
  for (const auto& event : Events()) rows += event["name"] == "thread_name";
  EXPECT_EQ(rows, 2) << "a worker's thread and the expert engine";
}

TEST_F(TraceWriterTest, ANameOfAnyBytesLeavesTheFileReadable) {
  Add(Span("quote \" and \xff byte", 10));
  EXPECT_TRUE(Events().is_array());
}

TEST(TraceWriter, RefusesAFileThatCannotBeWritten) {
  EXPECT_THAT(TraceWriter::Create("/no/such/folder/trace.json"),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("/no/such/folder/trace.json")));
}

}  // namespace
}  // namespace ferry
