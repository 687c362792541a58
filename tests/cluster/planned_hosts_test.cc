// What `ferry plan --hosts` says to type, typed on several hosts.

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/deadline.h"
#include "tests/cluster/cluster.h"
#include "tests/cluster/lan_fixture.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kPlannedTimeout = absl::Seconds(60);

class PlannedHosts : public LanTest {
 protected:
  void SetUp() override {
    LanTest::SetUp();
    if (lan_ == nullptr) return;
    for (int i = 0; i < 3; ++i) {
      ASSERT_OK_AND_ASSIGN(hosts_.emplace_back(), lan_->AddHost());
    }
  }

  // The second one has cores that read fast and no room for all layers, the third one an engine.
  std::string Cluster() const {
    return absl::StrFormat(
        R"({"network": {"rate": "10GB/s", "exchange_us": 1}, "hosts": [)"
        R"({"name": "head", "address": "%s", "memory": "8GiB", "cores": 1, "read": "100MB/s", "flops": 1e12},)"
        R"({"name": "second", "address": "%s", "memory": "20MiB", "cores": 1, "read": "10GB/s", "flops": 1e12, "cpu_worker": true},)"
        R"({"name": "third", "address": "%s", "memory": "1200MiB", "cores": 1, "read": "100MB/s", "flops": 1e12}]})",
        hosts_[0]->address(), hosts_[1]->address(), hosts_[2]->address());
  }
  // Every host has a home of its own, and so certificates of its own.
  static std::string Typed(const std::string& command) {
    const std::string line = command.substr(0, command.find("     "));  // what follows is for people
    return "HOME=/tmp ./" + line;
  }
  absl::Status TypeAll(const nlohmann::json& plan) {
    for (const std::string line : plan["hosts"][0]["commands"]) RETURN_IF_ERROR(TypeOnHead(line));
    for (size_t i = 1; i < hosts_.size(); ++i) {
      for (const std::string line : plan["hosts"][i]["commands"]) RETURN_IF_ERROR(TypeMember(*hosts_[i], line));
    }
    return absl::OkStatus();
  }
  absl::Status TypeOnHead(const std::string& line) {
    if (line.starts_with("ferry cluster-token")) {
      ASSIGN_OR_RETURN(std::string token, hosts_[0]->Run(Typed(line), kPlannedTimeout));
      while (token.ends_with('\n')) token.pop_back();
      tokens_.push_back(token);
      return absl::OkStatus();
    }
    if (line.starts_with("ferry cluster-init")) return hosts_[0]->Run(Typed(line), kPlannedTimeout).status();
    if (serve_ != nullptr) return TypeMember(*hosts_[0], line);
    ASSIGN_OR_RETURN(const Command command, hosts_[0]->Start(Typed(line)));
    serve_ = std::make_unique<Command>(command);
    const bool listens = Eventually(kPlannedTimeout, [&] { return serve_->err().find("coordinator at") != std::string::npos; });
    return listens ? absl::OkStatus() : Internal("no coordinator: %s", serve_->err());
  }
  // Tokens are good for any host, once.
  absl::Status TypeMember(Host& host, std::string line) {
    if (line.find("fj-...") != std::string::npos) {
      line = absl::StrReplaceAll(line, {{"fj-...", tokens_.front()}});
      tokens_.erase(tokens_.begin());
    }
    if (line.starts_with("ferry join") && line.find("--experts") == std::string::npos) {
      return host.Run(Typed(line), kPlannedTimeout).status();
    }
    return host.Start(Typed(line)).status();
  }

  std::vector<std::unique_ptr<Host>> hosts_;
  std::unique_ptr<Command> serve_;
  std::vector<std::string> tokens_;
};

TEST_F(PlannedHosts, AnswerAPromptWhenAllIsTypedThatThePlanSays) {
  ASSERT_OK(hosts_[0]->Run("echo '" + Cluster() + "' >/tmp/cluster.json", kPlannedTimeout));
  const std::string model = std::string(" -m ") + kDemoModel;
  ASSERT_OK_AND_ASSIGN(const std::string text,
                       hosts_[0]->Run("./ferry plan -p 64 --hosts /tmp/cluster.json --json" + model, kPlannedTimeout));
  const nlohmann::json plan = nlohmann::json::parse(text, nullptr, false);
  ASSERT_EQ(plan["hosts"][0]["workers"].size() + plan["hosts"][1]["workers"].size(), 2u) << text;
  ASSERT_TRUE(plan["hosts"][2]["engine"]) << text;
  ASSERT_OK(TypeAll(plan));

  const std::string generate = "./ferry generate -p 'Once upon a time' -n 40 --temp 0";
  ASSERT_OK_AND_ASSIGN(const std::string together, hosts_[0]->Run(generate + " --server 127.0.0.1:8090", kPlannedTimeout));
  ASSERT_OK_AND_ASSIGN(const std::string alone, hosts_[0]->Run(generate + model, kPlannedTimeout));
  EXPECT_EQ(together, alone);
  ASSERT_OK_AND_ASSIGN(const std::string status, hosts_[0]->Run("./ferry status --server 127.0.0.1:8090", kPlannedTimeout));
  EXPECT_THAT(status, HasSubstr("experts 0 connected"));
  const std::string said = serve_->err();
  const std::string of_first = said.substr(said.find("worker 0 registered"));
  EXPECT_THAT(of_first.substr(0, of_first.find('\n')), HasSubstr("experts over shm")) << "it is on the coordinator's host";
  for (size_t host = 0; host < 2; ++host) {  // who has which layers
    for (const nlohmann::json& worker : plan["hosts"][host]["workers"]) {
      EXPECT_THAT(serve_->err(), HasSubstr(absl::StrFormat("worker %d registered: layers %d-%d, ", worker["worker_id"].get<int>(),
                                                           worker["first_layer"].get<int>(), worker["last_layer"].get<int>())));
    }
  }
}

}  // namespace
}  // namespace ferry
