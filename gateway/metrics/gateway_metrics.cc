#include "gateway/metrics/gateway_metrics.h"

#include "absl/time/clock.h"

namespace ferry {

void GatewayMetrics::CountFailure(int http_status) {
  const std::lock_guard lock(mutex_);
  ++failures_[http_status];
}

std::map<int, uint64_t> GatewayMetrics::Failures() const {
  const std::lock_guard lock(mutex_);
  return failures_;
}

RequestTiming::RequestTiming() : started_(absl::Now()) {}

void RequestTiming::OnMessage(const v1::GenerateResponse& message, GatewayMetrics& metrics) {
  tokens_ += static_cast<uint64_t>(message.token_ids_size());
  if (!first_token_ && tokens_ > 0) {
    first_token_ = absl::Now();
    metrics.time_to_first_token.Observe(absl::ToDoubleSeconds(*first_token_ - started_));
  }
  if (!message.has_finish()) return;
  const absl::Time now = absl::Now();
  metrics.e2e_request_latency.Observe(absl::ToDoubleSeconds(now - started_));
  if (tokens_ > 1) {
    metrics.time_per_output_token.Observe(absl::ToDoubleSeconds(now - *first_token_) / static_cast<double>(tokens_ - 1));
  }
  metrics.request_prompt_tokens.Observe(message.finish().prompt_tokens());
  metrics.request_generation_tokens.Observe(message.finish().generated_tokens());
  metrics.CountFinished(message.finish().reason());
}

}  // namespace ferry
