#include "gateway/metrics/prometheus_text.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"

namespace ferry {
namespace {

// Backslash, quote and line break are written with a backslash; the coordinator has replaced bytes that are not UTF-8.
std::string Quoted(const std::string& value) {
  std::string text = "\"";
  for (const char c : value) {
    if (c == '\\' || c == '"') text.push_back('\\');
    if (c == '\n') {
      text += "\\n";
    } else {
      text.push_back(c);
    }
  }
  return text + '"';
}

using Labels = std::vector<std::pair<const char*, std::string>>;

class TextWriter {
 public:
  explicit TextWriter(std::string model) : model_(std::move(model)) {}

  void Begin(const char* name, const char* type, const char* help) {
    name_ = name;
    absl::StrAppendFormat(&text_, "# HELP ferry_%s %s\n# TYPE ferry_%s %s\n", name, help, name, type);
  }
  // A sample of the metric that was begun last.
  void Sample(double value, const Labels& labels = {}) { Line("", value, labels); }
  void Metric(const char* name, const char* type, const char* help, double value) {
    Begin(name, type, help);
    Sample(value);
  }
  void HistogramOf(const char* name, const char* help, const Histogram& histogram) {
    Begin(name, "histogram", help);
    uint64_t count = 0;
    for (size_t i = 0; i < histogram.bounds().size(); ++i) {
      count += histogram.count(i);
      Line("_bucket", static_cast<double>(count), {{"le", absl::StrFormat("%g", histogram.bounds()[i])}});
    }
    count += histogram.count(histogram.bounds().size());
    Line("_bucket", static_cast<double>(count), {{"le", "+Inf"}});
    Line("_sum", histogram.sum(), {});
    Line("_count", static_cast<double>(count), {});
  }
  std::string Take() { return std::move(text_); }

 private:
  void Line(const char* suffix, double value, const Labels& labels) {
    absl::StrAppendFormat(&text_, "ferry_%s%s{model_name=%s", name_, suffix, Quoted(model_));
    for (const auto& [label, text] : labels) absl::StrAppendFormat(&text_, ",%s=%s", label, Quoted(text));
    absl::StrAppendFormat(&text_, "} %.17g\n", value);
  }

  const std::string model_;
  const char* name_ = "";
  std::string text_;
};

double Share(double part, double whole) { return whole > 0 ? part / whole : 0; }

void WriteRequests(const GatewayMetrics& metrics, TextWriter& writer) {
  writer.Begin("request_success_total", "counter", "Generations that ended, by what ended them.");
  writer.Sample(static_cast<double>(metrics.finished_by_stop), {{"finished_reason", "stop"}});
  writer.Sample(static_cast<double>(metrics.finished_by_length), {{"finished_reason", "length"}});
  writer.Sample(static_cast<double>(metrics.aborted), {{"finished_reason", "abort"}});
  writer.Begin("request_failure_total", "counter", "Requests that the engine failed or refused, by HTTP status.");
  for (const auto& [status, count] : metrics.Failures()) {
    writer.Sample(static_cast<double>(count), {{"status", std::to_string(status)}});
  }
  writer.HistogramOf("time_to_first_token_seconds", "From the request to its first token.", metrics.time_to_first_token);
  writer.HistogramOf("time_per_output_token_seconds", "Mean time of a request's tokens after the first.",
                     metrics.time_per_output_token);
  writer.HistogramOf("e2e_request_latency_seconds", "From the request to its last token.", metrics.e2e_request_latency);
  writer.HistogramOf("request_prompt_tokens", "Tokens of a request's prompt.", metrics.request_prompt_tokens);
  writer.HistogramOf("request_generation_tokens", "Tokens that a request generated.", metrics.request_generation_tokens);
}

void WriteServer(const v1::GetServerInfoResponse& server, TextWriter& writer) {
  writer.Metric("serving", "gauge", "1 while requests can be served.", server.state() == "serving" ? 1 : 0);
  writer.Metric("num_requests_running", "gauge", "Requests in execution.", server.running_requests());
  writer.Metric("num_requests_waiting", "gauge", "Requests that wait for a place.", server.queued_requests());
  writer.Metric("uptime_seconds", "gauge", "Age of the coordinator.", server.uptime_seconds());
  if (server.kv_blocks_total() == 0) return;  // a key of the role user is told no more
  const double used = static_cast<double>(server.kv_blocks_total()) - static_cast<double>(server.kv_blocks_free());
  writer.Metric("kv_cache_usage_perc", "gauge", "Share of the KV cache's blocks in use; 1 is all.",
                Share(used, server.kv_blocks_total()));
  const v1::PrefixCacheInfo& cache = server.prefix_cache();
  writer.Metric("prefix_cache_queries_total", "counter", "Tokens of prompts of requests that began to run.",
                static_cast<double>(cache.prompt_tokens_total()));
  writer.Metric("prefix_cache_hits_total", "counter", "Of these tokens, those that were in the KV cache.",
                static_cast<double>(cache.found_tokens_total()));
  writer.Metric("prefix_cache_blocks", "gauge", "Free blocks of the KV cache that keep tokens of earlier requests.",
                cache.blocks());
  writer.Metric("prefix_cache_host_blocks", "gauge", "Blocks of --cache-ram in use.",
                static_cast<double>(cache.host_blocks_total()) - static_cast<double>(cache.host_blocks_free()));
  writer.Metric("prefix_cache_blocks_saved_total", "counter", "Blocks that went to host memory.",
                static_cast<double>(cache.blocks_saved_total()));
  writer.Metric("prefix_cache_blocks_loaded_total", "counter", "Blocks that came back from host memory.",
                static_cast<double>(cache.blocks_loaded_total()));
  writer.Metric("prefix_cache_states_saved_total", "counter", "States of sequences that went to host memory.",
                static_cast<double>(cache.states_saved_total()));
  writer.Metric("prefix_cache_states_loaded_total", "counter", "States of sequences that came back from host memory.",
                static_cast<double>(cache.states_loaded_total()));
  writer.Metric("prompt_tokens_total", "counter", "Tokens of prompts since the coordinator started.",
                static_cast<double>(server.prompt_tokens_total()));
  writer.Metric("generation_tokens_total", "counter", "Generated tokens since the coordinator started.",
                static_cast<double>(server.generated_tokens_total()));
  writer.Metric("requests_resumed_total", "counter", "How often requests went on after a worker was lost.",
                static_cast<double>(server.resumed_requests_total()));
  writer.Metric("requests_suspended_total", "counter", "How often requests gave their place to a request of another key.",
                static_cast<double>(server.suspended_requests_total()));
  writer.Metric("experts_arena_bytes", "gauge", "Experts in the host's memory.", static_cast<double>(server.arena_bytes()));
  writer.Metric("coordinator_resident_memory_bytes", "gauge", "Memory of the coordinator's process.",
                static_cast<double>(server.resident_bytes()));
  writer.Metric("host_read_rate_bytes_per_second", "gauge", "What the host reads experts at, as probed at start.",
                server.host_read_bytes_per_second());
}

struct WorkerNumber {
  const char* name;
  const char* type;
  const char* help;
  double (*of)(const v1::WorkerInfo&);
};

void WriteWorkers(const v1::GetServerInfoResponse& server, TextWriter& writer) {
  const auto labels = [](const v1::WorkerInfo& worker) {
    return Labels{{"worker", std::to_string(worker.worker_id())}, {"device", worker.device()}};
  };
  constexpr WorkerNumber kNumbers[] = {
      {"worker_ready", "gauge", "1 while the worker takes part.",
       [](const v1::WorkerInfo& w) { return w.state() == "ready" ? 1.0 : 0.0; }},
      {"worker_expert_slots", "gauge", "Places for experts in the worker's memory.",
       [](const v1::WorkerInfo& w) { return static_cast<double>(w.expert_slots()); }},
      {"worker_resident_memory_bytes", "gauge", "Memory of the worker's process.",
       [](const v1::WorkerInfo& w) { return static_cast<double>(w.resident_bytes()); }},
      {"worker_link_rate_bytes_per_second", "gauge", "What the worker's link reaches alone, as measured at its start.",
       [](const v1::WorkerInfo& w) { return w.link_bytes_per_second(); }},
      {"link_bytes_total", "counter", "Expert bytes that crossed the worker's link.",
       [](const v1::WorkerInfo& w) { return static_cast<double>(w.experts().bytes_shipped()); }},
      {"link_busy_seconds_total", "counter", "Time in which the worker's link copied.",
       [](const v1::WorkerInfo& w) { return w.experts().copy_busy_seconds(); }},
      {"host_expert_bytes_read_total", "counter", "Expert bytes that the host's engine read for the worker's layers.",
       [](const v1::WorkerInfo& w) { return static_cast<double>(w.experts().host_bytes_read()); }},
      {"copy_wait_seconds_total", "counter", "Time in which the worker's compute waited for copies.",
       [](const v1::WorkerInfo& w) { return w.experts().copy_wait_seconds(); }},
      {"host_wait_seconds_total", "counter", "Time in which the worker's compute waited for the host's engine.",
       [](const v1::WorkerInfo& w) { return w.experts().host_wait_seconds(); }},
      {"expert_slot_hit_rate", "gauge", "Share of activated experts that lay in the worker's memory, since its start.",
       [](const v1::WorkerInfo& w) {
         return Share(static_cast<double>(w.experts().resident()), static_cast<double>(w.experts().activated()));
       }},
  };
  for (const WorkerNumber& number : kNumbers) {
    writer.Begin(number.name, number.type, number.help);
    for (const v1::WorkerInfo& worker : server.workers()) writer.Sample(number.of(worker), labels(worker));
  }
  writer.Begin("experts_activated_total", "counter",
               "Activated experts of a step and layer, by the place where they were computed.");
  for (const v1::WorkerInfo& worker : server.workers()) {
    const std::pair<const char*, uint64_t> places[] = {
        {"resident", worker.experts().resident()}, {"shipped", worker.experts().shipped()}, {"host", worker.experts().on_host()}};
    for (const auto& [place, count] : places) {
      Labels all = labels(worker);
      all.push_back({"place", place});
      writer.Sample(static_cast<double>(count), all);
    }
  }
}

}  // namespace

std::string PrometheusText(const GatewayMetrics& metrics, const std::string& model_name,
                           const v1::GetServerInfoResponse* server) {
  TextWriter writer(model_name);
  writer.Metric("up", "gauge", "1 while the coordinator answers the gateway.", server == nullptr ? 0 : 1);
  WriteRequests(metrics, writer);
  if (server != nullptr) {
    WriteServer(*server, writer);
    WriteWorkers(*server, writer);
  }
  return writer.Take();
}

}  // namespace ferry
