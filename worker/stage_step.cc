#include "worker/stage_step.h"

#include <algorithm>
#include <string>

#include "kernels/ops.h"

namespace ferry {
namespace {

absl::Status CheckBelow(const std::string& field, uint64_t value, int64_t limit) {
  if (value < static_cast<uint64_t>(limit)) return absl::OkStatus();
  return InvalidArgument("%s is %d, want less than %d", field, value, limit);
}

absl::Status CheckBlocks(const std::string& field, const internal::v1::StepSequence& sequence, const StepLimits& limits) {
  const int64_t end = int64_t{sequence.first_position()} + sequence.num_tokens();
  const int64_t wanted = (end + kKvBlockTokens - 1) / kKvBlockTokens;
  if (sequence.blocks_size() < wanted || sequence.blocks_size() > limits.num_blocks) {
    return InvalidArgument("%s.blocks has %d entries, want %d to %d for %d tokens", field, sequence.blocks_size(), wanted,
                           limits.num_blocks, end);
  }
  for (const uint32_t block : sequence.blocks()) RETURN_IF_ERROR(CheckBelow(field + ".blocks", block, limits.num_blocks));
  std::vector<uint32_t> sorted(sequence.blocks().begin(), sequence.blocks().end());
  std::sort(sorted.begin(), sorted.end());
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  if (twice != sorted.end()) return InvalidArgument("%s.blocks holds block %d twice", field, *twice);
  return absl::OkStatus();
}

absl::StatusOr<StageSequence> CheckSequence(const std::string& field, const internal::v1::StepSequence& sequence,
                                            int64_t first_row, const StepLimits& limits) {
  RETURN_IF_ERROR(CheckBelow(field + ".slot", sequence.slot(), limits.num_slots));
  if (sequence.num_tokens() < 1 || first_row + sequence.num_tokens() > limits.max_rows) {
    return InvalidArgument("%s.num_tokens is %d, want 1 to %d: a step has at most %d rows", field, sequence.num_tokens(),
                           limits.max_rows - first_row, limits.max_rows);
  }
  if (int64_t{sequence.first_position()} + sequence.num_tokens() > limits.context_length) {
    return InvalidArgument("%s.first_position is %d, want at most %d for %d tokens: the context is %d", field,
                           sequence.first_position(), limits.context_length - sequence.num_tokens(), sequence.num_tokens(),
                           limits.context_length);
  }
  RETURN_IF_ERROR(CheckBlocks(field, sequence, limits));
  StageSequence checked = {.slot = static_cast<int32_t>(sequence.slot()),
                           .first_row = first_row,
                           .num_rows = sequence.num_tokens(),
                           .first_position = sequence.first_position(),
                           .blocks = {sequence.blocks().begin(), sequence.blocks().end()}};
  if (limits.first_stage) {
    if (sequence.token_ids_size() != static_cast<int64_t>(sequence.num_tokens())) {
      return InvalidArgument("%s.token_ids has %d entries, want num_tokens, %d", field, sequence.token_ids_size(),
                             sequence.num_tokens());
    }
    for (const uint32_t id : sequence.token_ids()) RETURN_IF_ERROR(CheckBelow(field + ".token_ids", id, limits.vocab_size));
    checked.token_ids.assign(sequence.token_ids().begin(), sequence.token_ids().end());
  }
  return checked;
}

absl::StatusOr<CacheMove> CheckMove(const std::string& field, const internal::v1::CacheMove& move, const StepLimits& limits) {
  CacheMove checked = {.block = static_cast<int32_t>(move.block()),
                       .from_block = static_cast<int32_t>(move.from_block()),
                       .host = static_cast<int32_t>(move.host()),
                       .slot = static_cast<int32_t>(move.slot()),
                       .position = move.position()};
  switch (move.kind()) {
    case internal::v1::CacheMove::SAVE_BLOCK:
    case internal::v1::CacheMove::LOAD_BLOCK: {
      const bool saves = move.kind() == internal::v1::CacheMove::SAVE_BLOCK;
      checked.kind = saves ? CacheMove::Kind::kSaveBlock : CacheMove::Kind::kLoadBlock;
      RETURN_IF_ERROR(CheckBelow(field + ".block", move.block(), limits.num_blocks));
      RETURN_IF_ERROR(CheckBelow(field + ".host", move.host(), limits.num_host_blocks));
      return checked;
    }
    case internal::v1::CacheMove::COPY_BLOCK:
      checked.kind = CacheMove::Kind::kCopyBlock;
      RETURN_IF_ERROR(CheckBelow(field + ".block", move.block(), limits.num_blocks));
      RETURN_IF_ERROR(CheckBelow(field + ".from_block", move.from_block(), limits.num_blocks));
      return checked;
    case internal::v1::CacheMove::SAVE_STATE:
    case internal::v1::CacheMove::LOAD_STATE: {
      const bool saves = move.kind() == internal::v1::CacheMove::SAVE_STATE;
      checked.kind = saves ? CacheMove::Kind::kSaveState : CacheMove::Kind::kLoadState;
      RETURN_IF_ERROR(CheckBelow(field + ".host", move.host(), limits.num_host_states));
      RETURN_IF_ERROR(CheckBelow(field + ".slot", move.slot(), limits.num_slots));
      if (move.position() >= 1 && move.position() <= limits.context_length) return checked;
      return InvalidArgument("%s.position is %d, want 1 to %d", field, move.position(), limits.context_length);
    }
    default:
      return InvalidArgument("%s.kind is %d, which is none", field, static_cast<int>(move.kind()));
  }
}

}  // namespace

absl::StatusOr<StageStep> CheckStep(const internal::v1::StepRequest& request, const StepLimits& limits) {
  // Checked as a duration: a positive number may be shorter than its tick, and NaN becomes infinite.
  const absl::Duration timeout = absl::Seconds(request.timeout_seconds());
  if (timeout <= absl::ZeroDuration() || timeout > limits.max_timeout) {
    return InvalidArgument("timeout_seconds is %g, want above 0 and at most %g", request.timeout_seconds(),
                           absl::ToDoubleSeconds(limits.max_timeout));
  }
  if (request.sequences_size() < 1 || request.sequences_size() > limits.num_slots) {
    return InvalidArgument("sequences has %d entries, want 1 to %d", request.sequences_size(), limits.num_slots);
  }
  StageStep step = {.epoch = request.epoch(),
                    .step = request.step(),
                    .timeout = timeout,
                    .forget_experts = request.forget_experts(),
                    .trace = request.trace()};
  // Those of requests that came and went while other steps ran, and those of one more request.
  const int64_t max_moves = kMaxWaitingMoves + 4 * (limits.num_blocks + limits.num_slots);
  if (request.moves_size() > max_moves) {
    return InvalidArgument("moves has %d entries, want at most %d", request.moves_size(), max_moves);
  }
  for (int i = 0; i < request.moves_size(); ++i) {
    ASSIGN_OR_RETURN(const CacheMove move, CheckMove(absl::StrFormat("moves[%d]", i), request.moves(i), limits));
    step.moves.push_back(move);
  }
  std::vector<bool> slot_taken(limits.num_slots);
  int64_t logits_bytes = 0;
  for (int i = 0; i < request.sequences_size(); ++i) {
    const internal::v1::StepSequence& sequence = request.sequences(i);
    const std::string field = absl::StrFormat("sequences[%d]", i);
    const int64_t first_row = step.num_rows();
    ASSIGN_OR_RETURN(StageSequence checked, CheckSequence(field, sequence, first_row, limits));
    if (slot_taken[checked.slot]) return InvalidArgument("%s.slot is %d, which another sequence has", field, checked.slot);
    slot_taken[checked.slot] = true;
    step.sequences.push_back(std::move(checked));

    int64_t end_of_last = 0;
    for (const internal::v1::LogitsWanted& wanted : sequence.logits()) {
      RETURN_IF_ERROR(CheckBelow(field + ".logits.offset", wanted.offset(), sequence.num_tokens()));
      if (wanted.offset() < end_of_last) {
        return InvalidArgument("%s.logits.offset is %d after %d, want them increasing", field, wanted.offset(), end_of_last - 1);
      }
      end_of_last = int64_t{wanted.offset()} + 1;
      if (wanted.has_target()) RETURN_IF_ERROR(CheckBelow(field + ".logits.target", wanted.target(), limits.vocab_size));
      const int64_t top_n = std::min<int64_t>(wanted.top_n(), limits.vocab_size);
      logits_bytes += 32 + top_n * 9;  // an id takes up to 5 bytes on the wire, a logit 4
      step.logits.push_back({.row = first_row + wanted.offset(),
                             .top_n = static_cast<int32_t>(top_n),
                             .target = wanted.has_target() ? static_cast<int32_t>(wanted.target()) : -1});
    }
  }
  if (logits_bytes > limits.max_logits_bytes) {
    return InvalidArgument("logits.top_n: the answer would take %d bytes, want at most %d", logits_bytes,
                           limits.max_logits_bytes);
  }
  return step;
}

}  // namespace ferry
