#include "gateway/metrics/prometheus_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <regex>
#include <set>
#include <sstream>

#include "gateway/json/json.h"
#include "tests/testing/source_path.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(PrometheusText, CountsBucketsUpwards) {
  GatewayMetrics metrics;
  metrics.time_to_first_token.Observe(0.0005);
  metrics.time_to_first_token.Observe(0.3);
  metrics.time_to_first_token.Observe(99999);
  const std::string text = PrometheusText(metrics, "m", nullptr);
  EXPECT_THAT(text, HasSubstr("ferry_time_to_first_token_seconds_bucket{model_name=\"m\",le=\"0.001\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("ferry_time_to_first_token_seconds_bucket{model_name=\"m\",le=\"0.5\"} 2\n"));
  EXPECT_THAT(text, HasSubstr("ferry_time_to_first_token_seconds_bucket{model_name=\"m\",le=\"2560\"} 2\n"));
  EXPECT_THAT(text, HasSubstr("ferry_time_to_first_token_seconds_bucket{model_name=\"m\",le=\"+Inf\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("ferry_time_to_first_token_seconds_count{model_name=\"m\"} 3\n"));
}

TEST(PrometheusText, ShowsRequestsCacheAndExperts) {
  GatewayMetrics metrics;
  metrics.CountFailure(429);
  metrics.CountFinished(v1::Finish::LENGTH);
  v1::GetServerInfoResponse server;
  server.set_state("serving");
  server.set_running_requests(2);
  server.set_kv_blocks_total(100);
  server.set_kv_blocks_free(75);
  server.mutable_prefix_cache()->set_prompt_tokens_total(900);
  server.mutable_prefix_cache()->set_found_tokens_total(600);
  server.mutable_prefix_cache()->set_host_blocks_total(40);
  server.mutable_prefix_cache()->set_host_blocks_free(10);
  v1::WorkerInfo* const worker = server.add_workers();
  worker->set_worker_id(3);
  worker->set_device("a \"device\"");
  worker->mutable_experts()->set_activated(10);
  worker->mutable_experts()->set_resident(4);
  worker->mutable_experts()->set_bytes_shipped(uint64_t{1} << 40);
  const std::string text = PrometheusText(metrics, "m", &server);
  EXPECT_THAT(text, HasSubstr("ferry_num_requests_running{model_name=\"m\"} 2\n"));
  EXPECT_THAT(text, HasSubstr("ferry_kv_cache_usage_perc{model_name=\"m\"} 0.25\n"));
  EXPECT_THAT(text, HasSubstr("ferry_prefix_cache_queries_total{model_name=\"m\"} 900\n"));
  EXPECT_THAT(text, HasSubstr("ferry_prefix_cache_hits_total{model_name=\"m\"} 600\n"));
  EXPECT_THAT(text, HasSubstr("ferry_prefix_cache_host_blocks{model_name=\"m\"} 30\n"));
  EXPECT_THAT(text, HasSubstr("ferry_request_failure_total{model_name=\"m\",status=\"429\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("ferry_request_success_total{model_name=\"m\",finished_reason=\"length\"} 1\n"));
  EXPECT_THAT(text,
              HasSubstr("ferry_link_bytes_total{model_name=\"m\",worker=\"3\",device=\"a \\\"device\\\"\"} 1099511627776\n"));
  EXPECT_THAT(text, HasSubstr("ferry_expert_slot_hit_rate{model_name=\"m\",worker=\"3\",device=\"a \\\"device\\\"\"} 0.4"));
  EXPECT_THAT(text, HasSubstr("place=\"resident\"} 4\n"));
}

// What promtool would say: each line is a comment or a sample, each metric has its type before its samples, once.
TEST(PrometheusText, IsWellFormed) {
  GatewayMetrics metrics;
  v1::GetServerInfoResponse server;
  server.add_workers();
  std::istringstream text(PrometheusText(metrics, "line\nbreak", &server));
  const std::regex type("# TYPE (ferry_[a-z0-9_]+) (gauge|counter|histogram)"), help("# HELP ferry_[a-z0-9_]+ [A-Z0-9].*\\.");
  const std::regex sample("(ferry_[a-z0-9_]+)\\{[a-z_]+=\"([^\"\\\\]|\\\\.)*\"(,[a-z_]+=\"([^\"\\\\]|\\\\.)*\")*\\} [-+.e0-9]+");
  std::set<std::string> types;
  std::smatch match;
  for (std::string line; std::getline(text, line);) {
    if (std::regex_match(line, help)) continue;
    if (std::regex_match(line, match, type)) {
      EXPECT_TRUE(types.insert(match[1]).second) << line;
      EXPECT_EQ(match[2] == "counter", match[1].str().ends_with("_total")) << line;
      continue;
    }
    ASSERT_TRUE(std::regex_match(line, match, sample)) << line;
    const std::string name = std::regex_replace(match[1].str(), std::regex("_(bucket|sum|count)$"), "");
    EXPECT_TRUE(types.contains(name) || types.contains(match[1])) << line;
  }
  EXPECT_GT(types.size(), 20u);
}

TEST(PrometheusText, GoesOnWithoutACoordinator) {
  const std::string text = PrometheusText(GatewayMetrics(), "", nullptr);
  EXPECT_THAT(text, HasSubstr("ferry_up{model_name=\"\"} 0\n"));
  EXPECT_THAT(text, Not(HasSubstr("num_requests_running")));
}

class Dashboard : public ::testing::Test {
 protected:
  Dashboard() {
    GatewayMetrics metrics;
    metrics.CountFailure(429);
    v1::GetServerInfoResponse server;
    server.add_workers();
    server.set_kv_blocks_total(1);  // a key of the role user is told no numbers
    text_ = PrometheusText(metrics, "m", &server);
    std::ifstream file(SourcePath("deploy/grafana-dashboard.json"));
    const Json dashboard = Json::parse(file);
    for (const Json& panel : dashboard.at("panels")) {
      if (!panel.contains("targets")) continue;
      for (const Json& target : panel.at("targets")) {
        std::string expression =
            std::regex_replace(target.at("expr").get<std::string>(), std::regex(R"(\$__rate_interval)"), "5m");
        expressions_.push_back(std::regex_replace(expression, std::regex(R"(\$model)"), ".*"));
      }
    }
  }

  // What `promtool check KIND` says about `text`; nothing where there is no promtool.
  static std::optional<int> Promtool(const std::string& kind, const std::string& text) {
    if (std::system("command -v promtool > /dev/null") != 0) return std::nullopt;
    const std::string path = ::testing::TempDir() + "/promtool-" + std::to_string(getpid());
    std::ofstream(path) << text;
    const int status = std::system(("promtool check " + kind + (kind == "metrics" ? " < " : " ") + path + " >&2").c_str());
    std::filesystem::remove(path);
    return status;
  }

  std::string text_;
  std::vector<std::string> expressions_;
};

TEST_F(Dashboard, AsksForMetricsThatAreThere) {
  std::set<std::string> names;
  const std::regex type("# TYPE (\\S+) (\\S+)"), name("ferry_[a-z0-9_]+");
  for (std::sregex_iterator at(text_.begin(), text_.end(), type), end; at != end; ++at) {
    names.insert((*at)[1]);
    if ((*at)[2] == "histogram") names.insert((*at)[1].str() + "_bucket");
  }
  ASSERT_GT(expressions_.size(), 20u);
  for (const std::string& expression : expressions_) {
    for (std::sregex_iterator at(expression.begin(), expression.end(), name), end; at != end; ++at) {
      EXPECT_TRUE(names.contains(at->str())) << at->str();
    }
  }
}

TEST_F(Dashboard, PromtoolTakesMetricsAndExpressions) {
  const std::optional<int> metrics = Promtool("metrics", text_);
  if (!metrics) GTEST_SKIP() << "there is no promtool here";
  EXPECT_EQ(*metrics, 0);
  std::string rules = "groups:\n- name: dashboard\n  rules:\n";
  for (size_t i = 0; i < expressions_.size(); ++i) {
    rules += "  - record: panel" + std::to_string(i) + "\n    expr: " + Json(expressions_[i]).dump() + "\n";
  }
  EXPECT_EQ(Promtool("rules", rules), 0);
  EXPECT_NE(Promtool("rules", rules + "  - record: wrong\n    expr: \"sum(\"\n"), 0) << "it does look";
}

}  // namespace
}  // namespace ferry
