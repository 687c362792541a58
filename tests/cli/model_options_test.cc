#include "cli/model_options.h"

#include <algorithm>

#include "coordinator/options.h"
#include "kernels/ops.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::SizeIs;

TEST(ModelOptions, OneCpuWorkerWithoutGpus) {
  ModelOptions options;
  options.backend = "cpu";
  EXPECT_THAT(*options.Devices(), ElementsAre("cpu"));
  options.workers = 3;
  EXPECT_THAT(*options.Devices(), SizeIs(3));
}

TEST(ModelOptions, RefusesGpusThatAreNotThere) {
  ModelOptions options;
  options.gpus = std::to_string(NumCudaDevices());
  EXPECT_THAT(options.Devices(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("this machine has")));
  options.gpus = "x";
  EXPECT_THAT(options.Devices(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("want numbers")));
}

TEST(ModelOptions, WorkersOnCpusHoldNoExpertsUnlessTold) {
  ModelOptions options;
  const auto value_of = [](const std::vector<std::string>& arguments, const char* flag) {
    const auto found = std::find(arguments.begin(), arguments.end(), flag);
    return found == arguments.end() ? std::string("absent") : *(found + 1);
  };
  EXPECT_EQ(value_of(options.WorkerArguments(0, "cpu", "a:1"), "--vram-experts"), "0");
  EXPECT_EQ(value_of(options.WorkerArguments(0, "cuda:1", "a:1"), "--vram-experts"), "auto");
  EXPECT_EQ(value_of(options.WorkerArguments(0, "cuda:1", "a:1"), "--device"), "1");
  options.vram_experts = "2GiB";
  EXPECT_EQ(value_of(options.WorkerArguments(0, "cpu", "a:1"), "--vram-experts"), "2GiB");
}

TEST(ModelOptions, PassesOnWhatIsGivenAndNothingElse) {
  ModelOptions options;
  options.model = "m.gguf";
  EXPECT_THAT(options.CoordinatorArguments(2, 0, "port", "socket"), Not(Contains("--ctx-size")));
  EXPECT_THAT(options.CoordinatorArguments(2, 0, "port", "socket"), Not(Contains("--probe")));
  options.context = 8192;
  options.overrides = {"exps=cpu", "x=gpu0"};
  options.probe = true;
  const std::vector<std::string> arguments = options.CoordinatorArguments(2, 0, "port", "socket");
  EXPECT_THAT(arguments, Contains("--ctx-size"));
  EXPECT_THAT(arguments, Contains("--probe"));
  EXPECT_EQ(std::count(arguments.begin(), arguments.end(), "--override-tensor"), 2);
  EXPECT_THAT(arguments, Not(Contains("--gpu-memory")));
  EXPECT_THAT(options.CoordinatorArguments(2, int64_t{80} << 30, "port", "socket"), Contains("--gpu-memory"));
}

TEST(ModelOptions, KnowsNoGpuMemoryOfCpuWorkers) {
  EXPECT_EQ(ModelOptions::GpuBytes({}), 0);
  EXPECT_EQ(ModelOptions::GpuBytes({"cpu", "cpu"}), 0);
  EXPECT_EQ(ModelOptions::GpuBytes({"cuda:1000"}), 0) << "there is no such GPU";
}

TEST(ModelOptions, KnowsTheTypesOfTheCache) {
  EXPECT_EQ(*ParseKvType("-ctk", "f16"), DType::kF16);
  EXPECT_EQ(*ParseKvType("-ctk", "Q8_0"), DType::kQ8_0);
  EXPECT_THAT(ParseKvType("-ctk", "q4_0"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("-ctk is 'q4_0'")));
}

}  // namespace
}  // namespace ferry
