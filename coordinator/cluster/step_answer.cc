#include "coordinator/cluster/step_answer.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

namespace ferry {
namespace {

static_assert(std::endian::native == std::endian::little, "logits cross the wire little-endian");

// One wanted row of the last worker's answer.
absl::StatusOr<LogitsResult> LogitsFromProto(const internal::v1::LogitsRow& row, const LogitsRequest& wanted,
                                             int64_t vocab_size) {
  const bool whole = wanted.top_n >= vocab_size;
  const int64_t num_logits = whole ? vocab_size : wanted.top_n;
  if (row.logits().size() != static_cast<size_t>(num_logits) * sizeof(float)) {
    return Internal("a row of logits has %d bytes, want %d logits", row.logits().size(), num_logits);
  }
  if (row.ids_size() != (whole ? 0 : num_logits)) return Internal("a row of %d logits has %d ids", num_logits, row.ids_size());
  LogitsResult result{.log_sum_exp = row.log_sum_exp(), .target_logit = row.target_logit(), .ids = {}, .logits = {}};
  result.logits.resize(num_logits);
  if (num_logits > 0) std::memcpy(result.logits.data(), row.logits().data(), row.logits().size());
  for (const uint32_t id : row.ids()) {
    if (id >= vocab_size) return Internal("a row of logits names token %d of %d", id, vocab_size);
    result.ids.push_back(static_cast<int32_t>(id));
  }
  std::vector<int32_t> sorted = result.ids;
  std::sort(sorted.begin(), sorted.end());
  if (const auto twice = std::adjacent_find(sorted.begin(), sorted.end()); twice != sorted.end()) {
    return Internal("a row of logits names token %d twice", *twice);
  }
  return result;
}

absl::Status CheckSpan(const internal::v1::TraceSpan& span) {
  if (span.name().empty() || span.name().size() > kMaxSpanName) {
    return Internal("a span's name has %d bytes, want 1 to %d", span.name().size(), kMaxSpanName);
  }
  if (!internal::v1::TraceSpan::Track_IsValid(span.track())) return Internal("a span is of track %d", span.track());
  if (span.duration_ns() < 0) return Internal("a span of %d ns", span.duration_ns());
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<LogitsResult>> CheckStepResponse(const internal::v1::StepResponse& response,
                                                            const StepExpectation& expected) {
  const int32_t worker = expected.worker.value();
  if (response.epoch() != expected.epoch || response.step() != expected.step) {
    return Internal("worker %d answered for step %d of epoch %d, which was not its next", worker, response.step(),
                    response.epoch());
  }
  if (response.code() != 0) {
    const bool known = response.code() > 0 && response.code() <= static_cast<int>(absl::StatusCode::kUnauthenticated);
    return absl::Status(known ? static_cast<absl::StatusCode>(response.code()) : absl::StatusCode::kInternal,
                        absl::StrFormat("worker %d failed in step %d: %s", worker, response.step(),
                                        response.message().substr(0, kMaxErrorBytes)));
  }
  if (response.logits_size() != static_cast<int64_t>(expected.wanted.size())) {
    return Internal("worker %d sent %d rows of logits, want %d", worker, response.logits_size(), expected.wanted.size());
  }
  for (const internal::v1::TraceSpan& span : response.spans()) {
    RETURN_IF_ERROR(Annotate(CheckSpan(span), absl::StrFormat("worker %d", worker)));
  }
  std::vector<LogitsResult> logits;
  for (size_t i = 0; i < expected.wanted.size(); ++i) {
    absl::StatusOr<LogitsResult> row =
        LogitsFromProto(response.logits(static_cast<int>(i)), expected.wanted[i], expected.vocab_size);
    if (!row.ok()) return Annotate(row.status(), absl::StrFormat("worker %d", worker));
    logits.push_back(*std::move(row));
  }
  return logits;
}

}  // namespace ferry
