// The table of flags, row by row: a flag typed for `ferry serve` reaches the process that needs it.

#include "cli/model_flags.h"

#include <algorithm>
#include <map>

#include "cli/gateway_process.h"
#include "common/command_line.h"
#include "coordinator/flags.h"
#include "tests/testing/status_matchers.h"
#include "worker/flags.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;

// A value for each flag that is not its default. Flags that this process acts on have one too: they must parse.
const std::map<std::string, std::string> kTyped = {
    {"-m,--model", "m.gguf"},
    {"--workers", "2"},
    {"--gpus", "0,1"},
    {"--layers", "0-1,2-5"},
    {"--override-tensor,--ot", "[a,b]=cpu"},
    {"--vram-experts", "3MiB"},
    {"--expert-transport", "grpc"},
    {"--divide-experts", "even"},
    {"--share-links", "even"},
    {"--transport", "nccl"},
    {"--nccl-library", "/opt/nccl/libnccl.so.2"},
    {"--nccl-interface", "eth1"},
    {"-c,--ctx-size", "12k"},
    {"-b,--batch-size", "777"},
    {"--ubatch-size,--ub", "333"},
    {"--parallel,--np", "5"},
    {"--cache-type-k,--ctk", "q8_0"},
    {"--cache-type-v,--ctv", "q8_0"},
    {"-t,--threads", "3"},
    {"--backend", "reference"},
    {"--isa", "portable"},
    {"--step-timeout", "7.5"},
    {"--trace", "-t.json"},
    {"--log-level", "error"},
    {"--port", "1234"},
    {"--listen", "127.0.0.2"},
    {"-a,--alias", "our-model"},
    {"--cache-ram,--cram", "64MiB"},
    {"--unified", "on"},
    {"--drain-seconds", "90"},
    {"--resume", "off"},
    {"--resume-patience", "12.5"},
    {"--tls-cert", "cert.pem"},
    {"--tls-key", "key.pem"},
    {"--api-keys", "keys"},
    {"--cluster-listen", "127.0.0.1:8091"},
    {"--cluster-data-port", "8093"},
    {"--cluster-certs", "certs"},
};

std::string LongName(const ModelFlag& flag) {
  const std::string names = flag.names;
  const size_t at = names.find("--");
  return names.substr(at, names.find(',', at) - at);
}

// The arguments for this flag alone.
std::vector<std::string> Typed(const ModelFlag& flag) {
  if (flag.is_switch) return {std::string(flag.names).find("!--no-") == std::string::npos ? LongName(flag) : flag.told};
  const auto value = kTyped.find(flag.names);
  if (value == kTyped.end()) return {};
  return {LongName(flag), value->second};
}

ModelOptions Parse(std::vector<std::string> arguments) {
  ModelOptions options;
  CLI::App app("", "ferry");
  options.AddTo(app, /*model_required=*/false, /*serve=*/true);
  EXPECT_OK(ParseArguments(app, arguments));
  return options;
}

bool Tells(const std::vector<std::string>& arguments, const ModelFlag& flag) {
  return std::find(arguments.begin(), arguments.end(), flag.told) != arguments.end();
}

TEST(ModelFlags, EachFlagIsPassedToTheProcessThatNeedsIt) {
  for (const ModelFlag& flag : ModelFlags()) {
    const std::vector<std::string> typed = Typed(flag);
    ASSERT_FALSE(typed.empty()) << flag.names << " is new: give this test a value for it";
    const ModelOptions options = Parse(typed);
    if (flag.told == nullptr) continue;
    EXPECT_TRUE(flag.coordinator || flag.worker) << flag.names;
    const bool coordinator_told = Tells(options.CoordinatorArguments(2, 0, "port", "/tmp/socket"), flag);
    EXPECT_EQ(coordinator_told, flag.coordinator) << flag.names;
    EXPECT_TRUE(!flag.worker || Tells(options.WorkerArguments(0, "cpu", "a:1"), flag)) << flag.names;
  }
}

TEST(ModelFlags, AreOfAServerThatIsStartedAndDoNotGoWithAnother) {
  for (const ModelFlag& flag : ModelFlags()) {
    if (flag.serve_only) continue;
    ModelOptions options;
    std::string server;
    CLI::App app("", "ferry");
    options.AddWithServer(app, server, "");
    std::vector<std::string> typed = Typed(flag);
    typed.insert(typed.end(), {"--server", "127.0.0.1:8090"});
    EXPECT_THAT(ParseArguments(app, typed), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("does not go with")))
        << flag.names;
  }
}

TEST(ModelFlags, TheGatewayIsToldWhatItNeeds) {
  const ModelOptions model =
      Parse({"--drain-seconds", "90", "--log-level", "error", "--api-keys", "keys", "--tls-cert", "cert", "--tls-key", "key"});
  const HttpOptions http = {.port = 81, .listen = "127.0.0.2", .chat_template_file = "t.jinja", .origins = {"https://a", "*"}};
  ASSERT_OK_AND_ASSIGN(const std::optional<GatewayProcess> gateway, GatewayOf(http, model));
  ASSERT_TRUE(gateway.has_value());
  EXPECT_THAT(gateway->arguments,
              ::testing::ElementsAre("--listen", "127.0.0.2:81", "--drain-timeout", "90.000000", "--log-level", "error",
                                     "--api-key-file", "keys", "--tls-cert", "cert", "--tls-key", "key", "--cors", "https://a",
                                     "--cors", "*", "--chat-template-file", "t.jinja"));
}

TEST(ModelFlags, TheChildrenTakeWhatTheyAreTold) {
  std::vector<std::string> typed;
  for (const ModelFlag& flag : ModelFlags()) {
    const std::vector<std::string> more = Typed(flag);
    typed.insert(typed.end(), more.begin(), more.end());
  }
  const ModelOptions options = Parse(typed);

  CLI::App coordinator_app("", "ferry-coordinator");
  CoordinatorFlags flags;
  flags.AddTo(coordinator_app);
  ASSERT_OK(ParseArguments(coordinator_app, options.CoordinatorArguments(2, int64_t{80} << 30, "port", "/tmp/socket")));
  ASSERT_OK_AND_ASSIGN(const CoordinatorOptions coordinator, flags.Options());
  EXPECT_EQ(coordinator.model, "m.gguf");
  EXPECT_EQ(coordinator.alias, "our-model");
  EXPECT_EQ(coordinator.cache_ram_bytes, int64_t{64} << 20);
  EXPECT_EQ(coordinator.listen, "127.0.0.2:1234");
  EXPECT_EQ(coordinator.port_file, "port");
  EXPECT_EQ(coordinator.cluster_socket, "/tmp/socket");
  EXPECT_EQ(coordinator.tls_cert, "cert.pem");
  EXPECT_EQ(coordinator.tls_key, "key.pem");
  EXPECT_EQ(coordinator.api_keys, "keys");
  EXPECT_TRUE(coordinator.insecure);
  EXPECT_EQ(coordinator.cluster_listen, "127.0.0.1:8091");
  EXPECT_EQ(coordinator.cluster_data_port, 8093);
  EXPECT_EQ(coordinator.cluster_certs, "certs");
  EXPECT_EQ(coordinator.placement.num_workers, 2);
  EXPECT_EQ(coordinator.placement.layers, "0-1,2-5");
  EXPECT_THAT(coordinator.placement.tensor_overrides, ::testing::ElementsAre("[a,b]=cpu"));
  EXPECT_EQ(coordinator.placement.context_tokens, 12288);
  EXPECT_EQ(coordinator.placement.batch_tokens, 777);
  EXPECT_EQ(coordinator.placement.micro_batch_tokens, 333);
  EXPECT_EQ(coordinator.placement.parallel, 5);
  EXPECT_EQ(coordinator.placement.gpu_bytes, int64_t{80} << 30);
  EXPECT_EQ(coordinator.placement.key_type, DType::kQ8_0);
  EXPECT_EQ(coordinator.placement.value_type, DType::kQ8_0);
  EXPECT_FALSE(coordinator.ooae);
  EXPECT_EQ(coordinator.threads, 3);
  EXPECT_EQ(coordinator.backend, "reference");
  EXPECT_EQ(coordinator.isa, "portable");
  EXPECT_EQ(coordinator.expert_transport, "grpc");
  EXPECT_EQ(coordinator.divide_experts, "even");
  EXPECT_EQ(coordinator.share_links, "even");
  EXPECT_EQ(coordinator.step_timeout, absl::Seconds(7.5));
  EXPECT_EQ(coordinator.drain_timeout, absl::Seconds(90));
  EXPECT_FALSE(coordinator.resume);
  EXPECT_EQ(coordinator.resume_patience, absl::Seconds(12.5));
  EXPECT_EQ(coordinator.trace, "-t.json");
  EXPECT_TRUE(coordinator.force);
  EXPECT_TRUE(coordinator.keep_rates);
  EXPECT_TRUE(coordinator.probe);
  EXPECT_EQ(coordinator.log_level, "error");

  CLI::App worker_app("", "ferry-worker");
  WorkerOptions worker;
  AddWorkerFlags(worker_app, worker);
  ASSERT_OK(ParseArguments(worker_app, options.WorkerArguments(1, "reference", "127.0.0.1:5")));
  EXPECT_EQ(worker.coordinator, "127.0.0.1:5");
  EXPECT_EQ(worker.wanted_worker_id, 1u);
  EXPECT_EQ(worker.backend.kind, "reference");
  EXPECT_EQ(worker.backend.num_threads, 3);
  EXPECT_EQ(worker.backend.isa, "portable");
  EXPECT_FALSE(worker.vram_experts.automatic);
  EXPECT_EQ(worker.vram_experts.bytes, 3 << 20);
  EXPECT_EQ(worker.expert_transport, "grpc");
  EXPECT_EQ(worker.log_level, "error");
  EXPECT_EQ(worker.unified, Unified::kOn);
  EXPECT_EQ(worker.transport, Transport::kNccl);
  EXPECT_EQ(worker.nccl_library, "/opt/nccl/libnccl.so.2");
  EXPECT_EQ(worker.nccl_interface, "eth1");
}

}  // namespace
}  // namespace ferry
