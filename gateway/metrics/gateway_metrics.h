#pragma once

// What the gateway itself counts and times: requests as HTTP clients see them.

#include <atomic>
#include <map>
#include <mutex>
#include <optional>

#include "common/deadline.h"
#include "ferry/v1/generate.pb.h"
#include "gateway/metrics/histogram.h"

namespace ferry {

class GatewayMetrics {
 public:
  // Any thread.
  void CountFinished(v1::Finish::Reason reason) { (reason == v1::Finish::LENGTH ? finished_by_length : finished_by_stop)++; }
  void CountAbort() { ++aborted; }
  void CountFailure(int http_status);
  std::map<int, uint64_t> Failures() const;

  std::atomic<uint64_t> finished_by_stop{0}, finished_by_length{0}, aborted{0};
  // Seconds; vLLM's buckets.
  Histogram time_to_first_token{{0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1,  0.25,  0.5,   0.75,
                                 1.0,   2.5,   5.0,  7.5,  10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0}};
  Histogram time_per_output_token{
      {0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0}};
  Histogram e2e_request_latency{{0.3,  0.5,  0.8,  1.0,  1.5,   2.0,   2.5,   5.0,   10.0,   15.0,  20.0,
                                 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0}};
  // Tokens.
  Histogram request_prompt_tokens{{1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000}};
  Histogram request_generation_tokens{{1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000}};

 private:
  mutable std::mutex mutex_;
  std::map<int, uint64_t> failures_;  // by HTTP status
};

// The times of one generation, from the moment it was asked for.
class RequestTiming {
 public:
  void OnMessage(const v1::GenerateResponse& message, GatewayMetrics& metrics);

 private:
  Stopwatch since_start_;
  std::optional<Stopwatch> since_first_token_;
  uint64_t tokens_ = 0;
};

}  // namespace ferry
