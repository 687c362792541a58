#include "coordinator/experts/expert_messages.h"

#include <bit>
#include <cstring>
#include <limits>

#include "common/checked_size.h"

namespace ferry {
namespace {

static_assert(std::endian::native == std::endian::little, "rows cross the wire little-endian");

constexpr uint32_t kMaxInt32 = static_cast<uint32_t>(std::numeric_limits<int32_t>::max());

absl::Status CheckInt32(const char* field, uint32_t value) {
  if (value <= kMaxInt32) return absl::OkStatus();
  return InvalidArgument("%s is %d, want at most %d", field, value, kMaxInt32);
}

}  // namespace

absl::StatusOr<ExpertRequest> ExpertRequestFromProto(const internal::v1::ExpertRequest& proto, ExpertRequestKind kind) {
  RETURN_IF_ERROR(CheckInt32("layer", proto.layer()));
  RETURN_IF_ERROR(CheckInt32("num_rows", proto.num_rows()));
  const bool bounded = kind != ExpertRequestKind::kPlan || proto.num_rows() > 0;
  ExpertRequest request = {.kind = kind,
                           .incarnation = proto.incarnation(),
                           .step = proto.step(),
                           .layer = static_cast<int32_t>(proto.layer()),
                           // A fetch carries no rows: nothing bounds the tokens but their type.
                           .num_rows = bounded ? static_cast<int32_t>(proto.num_rows()) : std::numeric_limits<int32_t>::max(),
                           .uses = {},
                           .entry_rows = {}};
  request.uses.reserve(proto.uses_size());
  for (const internal::v1::ActivatedExpert& use : proto.uses()) {
    RETURN_IF_ERROR(CheckInt32("uses.expert", use.expert()));
    RETURN_IF_ERROR(CheckInt32("uses.tokens", use.tokens()));
    request.uses.push_back({.expert = static_cast<int32_t>(use.expert()),
                            .tokens = static_cast<int32_t>(use.tokens()),
                            .resident = use.resident() ? 1u
                                        : use.coming() ? kComing
                                                       : 0u});
  }
  return request;
}

absl::StatusOr<ComputeRequest> ComputeRequestFromProto(const internal::v1::ComputeExpertsRequest& proto, int64_t n_embd) {
  ComputeRequest result;
  ASSIGN_OR_RETURN(result.request, ExpertRequestFromProto(proto.request(), ExpertRequestKind::kCompute));
  RETURN_IF_ERROR(CheckInt32("num_rows", proto.num_rows()));
  const CheckedSize row_bytes = CheckedSize(n_embd) * CheckedSize(sizeof(float));
  const CheckedSize rows_bytes = CheckedSize(proto.num_rows()) * row_bytes;
  if (!rows_bytes.valid() || rows_bytes.value() != proto.rows().size()) {
    return InvalidArgument("rows has %d bytes, want %d rows of %d numbers", proto.rows().size(), proto.num_rows(), n_embd);
  }
  if (const CheckedSize answer = CheckedSize(proto.entry_rows_size()) * row_bytes; !answer.AtMost(kMaxAnswerBytes)) {
    return InvalidArgument("entry_rows has %d entries, whose answer would exceed %d bytes", proto.entry_rows_size(),
                           kMaxAnswerBytes);
  }
  for (const uint32_t row : proto.entry_rows()) RETURN_IF_ERROR(CheckInt32("entry_rows", row));
  result.request.num_rows = static_cast<int32_t>(proto.num_rows());
  result.request.entry_rows.assign(proto.entry_rows().begin(), proto.entry_rows().end());
  result.rows.resize(proto.rows().size() / sizeof(float));
  if (!result.rows.empty()) std::memcpy(result.rows.data(), proto.rows().data(), proto.rows().size());
  result.contributions.resize(static_cast<size_t>(proto.entry_rows_size()) * n_embd);
  return result;
}

internal::v1::ExpertPlan ToProto(const std::vector<ExpertPlace>& places) {
  internal::v1::ExpertPlan plan;
  for (const ExpertPlace place : places) {
    plan.add_places(place == ExpertPlace::kResident ? internal::v1::ExpertPlan::RESIDENT
                    : place == ExpertPlace::kShip   ? internal::v1::ExpertPlan::SHIP
                                                    : internal::v1::ExpertPlan::HOST);
  }
  return plan;
}

}  // namespace ferry
