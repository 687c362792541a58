// `ferry plan --hosts` on the bundled model: hosts that are not here.

#include <algorithm>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"
#include "tests/cli/run_ferry.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

// A file of a slow first host and `others`; the command that plans with it. `more`: of the first host, or of the network.
std::string PlanOf(const std::string& others, const std::string& head_memory = "8GiB", const std::string& more = "",
                   const std::string& network = R"("rate": "10GB/s", "exchange_us": 1)") {
  // ctest runs tests beside each other.
  const std::string path =
      ::testing::TempDir() + ::testing::UnitTest::GetInstance()->current_test_info()->name() + "-cluster.json";
  std::ofstream(path) << R"({"network": {)" << network << R"(},
"hosts": [{"name": "head", "address": "192.0.2.1", "memory": ")"
                      << head_memory << R"(", "cores": 4, "read": "100MB/s", "flops": 1e12)" << more << "}\n"
                      << others << "]}\n";
  return "plan -p 64 --hosts " + path + kOfDemoModel;
}
std::string HostOf(const std::string& name, const std::string& read) {
  return R"(,{"name": ")" + name + R"(", "memory": "8GiB", "cores": 3, "read": ")" + read + R"(", "flops": 1e12})" + "\n";
}

// A host whose engine is slow; `devices`: what it gives beside that.
std::string WorkersOf(const std::string& name, const std::string& devices) {
  return R"(,{"name": ")" + name + R"(", "memory": "8GiB", "cores": 3, "read": "1MB/s", "flops": 1e9, )" + devices + "}\n";
}
nlohmann::json PlannedJson(const std::string& plan) {
  const Output output = Ferry(plan + " --json");
  EXPECT_EQ(output.exit_code, 0) << output.err;
  return nlohmann::json::parse(output.out, nullptr, false);
}
// All workers by their numbers; checks that each layer has one.
std::vector<nlohmann::json> WorkersIn(const nlohmann::json& plan) {
  std::map<int, nlohmann::json> by_id;
  for (const nlohmann::json& host : plan["hosts"]) {
    for (const nlohmann::json& worker : host["workers"]) EXPECT_TRUE(by_id.emplace(worker["worker_id"], worker).second);
  }
  std::vector<nlohmann::json> workers;
  int next_layer = 0;
  for (const auto& [id, worker] : by_id) {
    EXPECT_EQ(id, static_cast<int>(workers.size()));
    EXPECT_EQ(worker["first_layer"], next_layer);
    next_layer = worker["last_layer"].get<int>() + 1;
    workers.push_back(worker);
  }
  EXPECT_EQ(next_layer, 6) << "the demo model's layers";
  return workers;
}

TEST(PlanHosts, SaysWhatLiesWhereAndWhatToType) {
  const std::string plan = PlanOf(HostOf("second", "100MB/s") + HostOf("snail", "10MB/s"));
  const Output text = Ferry(plan);
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_THAT(text.out, AllOf(HasSubstr("worker 0 on its cores: layers 0-5"), HasSubstr("192 of 192 expert records"),
                              HasSubstr("its engine is left out: decode is predicted at")));
  EXPECT_THAT(text.out, AllOf(HasSubstr("on head: ferry cluster-init"), HasSubstr("on head: ferry serve -m "),
                              HasSubstr("--cluster-listen 192.0.2.1"),
                              HasSubstr("on second: ferry join 192.0.2.1 --token fj-... --experts --memory "),
                              HasSubstr("--threads 3"), Not(HasSubstr("on snail:"))));
  const nlohmann::json json = nlohmann::json::parse(Ferry(plan + " --json").out, nullptr, false);
  ASSERT_TRUE(json.is_object());
  EXPECT_TRUE(json["hosts"][1]["used"]);
  EXPECT_FALSE(json["hosts"][2]["used"]);
  EXPECT_NEAR(json["hosts"][1]["decode_share"].get<double>(), 0.5, 0.05);
  EXPECT_NEAR(json["hosts"][0]["decode_share"].get<double>(), 0.5, 0.05);
  EXPECT_GT(json["decode_tokens_per_second"].get<double>(), 1.15 * json["decode_first_host_alone"].get<double>());
}

TEST(PlanHosts, GpusOfAnotherHostTakeLayersWhereTheFirstHasNone) {
  const std::string plan = PlanOf(WorkersOf("second", R"("address": "192.0.2.2", "gpus": ["8GiB", "8GiB"])"));
  const Output text = Ferry(plan);
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_THAT(text.out, AllOf(HasSubstr("worker 0 on GPU 0: layers 0-"), HasSubstr("slots for all experts of its layers"),
                              HasSubstr("its engine is left out"), HasSubstr("It leaves no worker out by itself")));
  EXPECT_THAT(
      text.out,
      AllOf(HasSubstr("on head: ferry cluster-init"), HasSubstr(" --coordinator-only --workers 2 --cluster-listen 192.0.2.1"),
            HasSubstr("on second: ferry join 192.0.2.1 --token fj-...\n"),
            HasSubstr("on second: ferry-worker --coordinator 192.0.2.1 --listen 192.0.2.2 --worker-id 1 --backend cuda "
                      "--device 1\n"),
            Not(HasSubstr("on head: ferry-worker"))));
  const nlohmann::json json = PlannedJson(plan);
  EXPECT_EQ(WorkersIn(json).size(), 2u);
  EXPECT_TRUE(json["hosts"][1]["used"]);
  EXPECT_FALSE(json["hosts"][1]["engine"]);
  EXPECT_GT(json["decode_tokens_per_second"].get<double>(), 2 * json["decode_first_host_alone"].get<double>());
}

TEST(PlanHosts, SaysTheSizesThatACoordinatorAloneCannotKnow) {
  const std::string others = WorkersOf("second", R"("gpus": ["8GiB"])");
  EXPECT_THAT(Ferry(PlanOf(others)).out, AllOf(HasSubstr(" -b "), HasSubstr(" -c ")));
  EXPECT_THAT(Ferry(PlanOf(others) + " -b 512 -c 8192 --vram-experts 1GiB -ctk q8_0").out,
              AllOf(HasSubstr(" -c 8192 "), HasSubstr(" -b 512 "), HasSubstr("--device 0 --vram-experts 1GiB\n"),
                    Not(HasSubstr("--vram-experts 1GiB --coordinator-only"))));
}

TEST(PlanHosts, TheFirstHostsGpusTakeTheFirstLayers) {
  // Neither GPU has room for half of the experts.
  const std::string gpu = R"("gpus": ["8GiB"], "link": "1MB/s")";
  const std::string plan = PlanOf(WorkersOf("second", gpu), "8GiB", ", " + gpu) + " --vram-experts 4MiB";
  const nlohmann::json json = PlannedJson(plan);
  ASSERT_EQ(WorkersIn(json).size(), 2u);
  EXPECT_EQ(json["hosts"][0]["workers"][0]["worker_id"], 0);
  EXPECT_THAT(Ferry(plan).out,
              HasSubstr("on head: ferry-worker --coordinator 192.0.2.1 --listen 192.0.2.1 --worker-id 0 --backend "
                        "cuda --device 0 --cluster-certs worker-certs"));
}

TEST(PlanHosts, AGpuBehindASlowNetworkIsLeftOutAndSaysWhy) {
  const std::string plan = PlanOf(WorkersOf("second", R"("gpus": ["8GiB"])"), "8GiB", R"(, "gpus": ["8GiB"])",
                                  R"("rate": "1MB/s", "exchange_us": 50000)");
  const Output text = Ferry(plan);
  EXPECT_THAT(text.out,
              AllOf(HasSubstr("its GPUs are left out: a prompt of 64 tokens with an answer of 256 takes"),
                    HasSubstr("on head: ferry serve -m "), Not(HasSubstr("on second:")), Not(HasSubstr("--coordinator-only"))));
  EXPECT_EQ(WorkersIn(PlannedJson(plan)).size(), 1u);
}

TEST(PlanHosts, AGpuThatCannotHoldItsLayersIsLeftOut) {
  const std::string plan = PlanOf(WorkersOf("second", R"("gpus": ["1MiB"])"));
  EXPECT_THAT(Ferry(plan).out,
              AllOf(HasSubstr("| with workers"), HasSubstr("GPU 0 of second lacks"), Not(HasSubstr("on second:"))));
  EXPECT_EQ(WorkersIn(PlannedJson(plan)).size(), 1u);
}

TEST(PlanHosts, AHostWithMoreGpusThanLayersIsLeftOut) {
  const std::string gpus = R"("gpus": ["8GiB", "8GiB", "8GiB", "8GiB", "8GiB", "8GiB", "8GiB"])";
  EXPECT_THAT(Ferry(PlanOf(WorkersOf("second", gpus))).out,
              AllOf(HasSubstr("its GPUs are left out: 7 workers for a model of 6 layers"), Not(HasSubstr("on second:"))));
}

TEST(PlanHosts, ExpertsThatAFlagLeavesToTheHostAreItsShare) {
  const std::string plan = PlanOf("", "8GiB", R"(, "gpus": ["8GiB"])") + " -ot 'ffn_.*_exps=cpu'";
  EXPECT_THAT(Ferry(plan).out, HasSubstr("computes 100 % of the experts"));
}

TEST(PlanHosts, ASlowerGpuGetsFewerLayersByAFlagThatSaysSo) {
  const std::string plan = PlanOf(WorkersOf("second", R"("gpus": ["8GiB"], "gpu_flops": 1e10)") +
                                  WorkersOf("third", R"("gpus": ["8GiB"], "gpu_flops": 5e10)")) +
                           " -p 2048 -ub 64 -b 64";
  const nlohmann::json json = PlannedJson(plan);
  const std::vector<nlohmann::json> workers = WorkersIn(json);
  ASSERT_EQ(workers.size(), 2u);
  EXPECT_LT(workers[0]["last_layer"], 2);
  const std::string layers = json["layers"];
  EXPECT_EQ(layers, absl::StrFormat("0-%d,%d-5", workers[0]["last_layer"].get<int>(), workers[1]["first_layer"].get<int>()));
  EXPECT_THAT(Ferry(plan).out, HasSubstr(" --layers " + layers + " "));
}

TEST(PlanHosts, LayersByHandAreTaken) {
  const std::string plan = PlanOf(WorkersOf("second", R"("gpus": ["8GiB", "8GiB"])")) + " --layers 0-0,1-5";
  const std::vector<nlohmann::json> workers = WorkersIn(PlannedJson(plan));
  ASSERT_EQ(workers.size(), 2u);
  EXPECT_EQ(workers[0]["last_layer"], 0);
  EXPECT_THAT(Ferry(plan).out, HasSubstr(" --layers 0-0,1-5 "));
  EXPECT_THAT(Ferry(PlanOf("") + " --layers 0-0,1-5").err, HasSubstr("--layers has 2 ranges for 1 workers"));
}

TEST(PlanHosts, WithoutAnyGpuAHostsCoresTakeLayersWhereItOffersThem) {
  const auto second = [](const std::string& more) {
    return R"(,{"name": "second", "memory": "20MiB", "cores": 3, "read": "10GB/s", "flops": 1e12)" + more + "}\n";
  };
  // It reads dense weights faster than the first host, and has no room for all layers.
  const std::string plan = PlanOf(second(R"(, "cpu_worker": true)"));
  EXPECT_THAT(Ferry(plan).out, AllOf(HasSubstr("worker 1 on its cores: layers "), HasSubstr("no slots"),
                                     HasSubstr("--worker-id 1 --backend cpu --threads 3\n"),
                                     HasSubstr("--worker-id 0 --backend cpu --cluster-certs worker-certs --threads 4\n")));
  EXPECT_EQ(WorkersIn(PlannedJson(plan)).size(), 2u);
  EXPECT_EQ(WorkersIn(PlannedJson(PlanOf(second("")))).size(), 1u) << "it does not offer them";
}

TEST(PlanHosts, TheChoiceTakenIsNeverSlowerThanTheFirstHostAlone) {
  for (const char* network : {R"("rate": "10GB/s", "exchange_us": 1)", R"("rate": "100MB/s", "exchange_us": 200)",
                              R"("rate": "1MB/s", "exchange_us": 20000)"}) {
    for (const char* gpu : {"1MiB", "64MiB", "8GiB"}) {
      const std::string devices = absl::StrFormat(R"("gpus": ["%s"])", gpu);
      const nlohmann::json json =
          PlannedJson(PlanOf(WorkersOf("second", devices) + HostOf("third", "100MB/s"), "8GiB", "", network));
      double taken = 0, least = 1e9;
      for (const nlohmann::json& choice : json["choices"]) {
        if (choice["taken"]) taken = choice["seconds"];
        if (choice["fits"]) least = std::min(least, choice["seconds"].get<double>());
      }
      EXPECT_LE(taken, 1.02 * least) << network << " " << gpu;
    }
  }
}

TEST(PlanHosts, OneHostNeedsNoCluster) {
  const Output text = Ferry(PlanOf(""));
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_THAT(text.out, AllOf(HasSubstr("on head: ferry serve"), Not(HasSubstr("cluster"))));
}

TEST(PlanHosts, SaysWhichHostHasTheMemoryThatTheFirstLacks) {
  const Output output = Ferry(PlanOf(HostOf("second", "100MB/s"), "1MiB"));
  EXPECT_EQ(output.exit_code, 1);
  EXPECT_THAT(output.err, AllOf(HasSubstr("head, the first host of "), HasSubstr("second has that memory: make it the first")));
}

TEST(PlanHosts, NamesTheFileAndTheLineOfAMistake) {
  const Output output = Ferry(PlanOf(HostOf("second", "quick")));
  EXPECT_NE(output.exit_code, 0);
  EXPECT_THAT(output.err, HasSubstr("cluster.json: line 3: \"read\" is \"quick\""));
  EXPECT_THAT(Ferry(PlanOf("") + " --host-memory 1GiB").err, HasSubstr("leave out the flags that give them"));
}

}  // namespace
}  // namespace ferry
