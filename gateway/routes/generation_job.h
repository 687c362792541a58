#pragma once

// Runs the generations of one HTTP request and hands what comes to the writer of the API's form. When the client goes, they are
// cancelled at once.

#include <memory>
#include <string>
#include <vector>

#include "ferry/v1/generate.pb.h"
#include "gateway/engine_client.h"
#include "gateway/errors.h"
#include "gateway/http/message.h"
#include "gateway/metrics/gateway_metrics.h"

namespace ferry {

// Turns messages of the engine into what the client reads. Called by one thread at a time; does not wait.
class AnswerWriter {
 public:
  virtual ~AnswerWriter() = default;

  virtual bool streams() const = 0;
  // The pieces of the stream that follow from `message` of generation `index`; empty for none, and always when nothing streams.
  virtual std::string OnMessage(size_t index, const v1::GenerateResponse& message) = 0;
  // Generation `index` has said all that the answer needs: it is cancelled, which is no error.
  virtual bool ended(size_t index) const { return false; }
  // All generations have ended: the rest of the stream, or the whole body.
  virtual std::string End() = 0;
  // A stream that has begun ends with this error.
  virtual std::string OnError(const absl::Status& status) = 0;
};

// `metrics` outlives the job.
void RunGenerations(Engine& engine, std::vector<v1::GenerateRequest> requests, std::unique_ptr<AnswerWriter> writer, ApiForm form,
                    GatewayMetrics& metrics, std::shared_ptr<Exchange> exchange);

}  // namespace ferry
