#include "gateway/metrics/gateway_metrics.h"

namespace ferry {

void GatewayMetrics::CountFailure(int http_status) {
  const std::lock_guard lock(mutex_);
  ++failures_[http_status];
}

std::map<int, uint64_t> GatewayMetrics::Failures() const {
  const std::lock_guard lock(mutex_);
  return failures_;
}

void RequestTiming::OnMessage(const v1::GenerateResponse& message, GatewayMetrics& metrics) {
  tokens_ += static_cast<uint64_t>(message.token_ids_size());
  if (!since_first_token_ && tokens_ > 0) {
    since_first_token_.emplace();
    metrics.time_to_first_token.Observe(since_start_.Seconds());
  }
  if (!message.has_finish()) return;
  metrics.e2e_request_latency.Observe(since_start_.Seconds());
  if (tokens_ > 1) {
    metrics.time_per_output_token.Observe(since_first_token_->Seconds() / static_cast<double>(tokens_ - 1));
  }
  metrics.request_prompt_tokens.Observe(message.finish().prompt_tokens());
  metrics.request_generation_tokens.Observe(message.finish().generated_tokens());
  metrics.CountFinished(message.finish().reason());
}

}  // namespace ferry
