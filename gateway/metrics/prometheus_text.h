#pragma once

// What the gateway and the coordinator count, in Prometheus' text format, version 0.0.4. Names begin with ferry_ and go on as
// vLLM's do where vLLM has them.

#include <string>

#include "ferry/v1/generate.pb.h"
#include "gateway/metrics/gateway_metrics.h"

namespace ferry {

inline constexpr char kPrometheusContentType[] = "text/plain; version=0.0.4; charset=utf-8";

// `server` is null while the coordinator does not answer: then ferry_up is 0 and only the gateway's own numbers follow.
std::string PrometheusText(const GatewayMetrics& metrics, const std::string& model_name, const v1::GetServerInfoResponse* server);

}  // namespace ferry
