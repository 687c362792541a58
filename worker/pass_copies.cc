#include "worker/pass_copies.h"

#include <algorithm>
#include <utility>

#include "common/deadline.h"

namespace ferry {
namespace {

// Most tokens first. With `keep_neighbours`, experts that one copy can move stay together and count as the one of them with the
// most tokens.
std::vector<ActivatedExpert> InOrderOfCopies(std::span<const ActivatedExpert> uses, bool keep_neighbours) {
  std::vector<std::pair<int32_t, ActivatedExpert>> keyed;  // the tokens that decide, ids increasing
  for (size_t begin = 0, end = 0; begin < uses.size(); begin = end) {
    int32_t most = 0;
    do {
      most = std::max(most, uses[end].tokens);
      ++end;
    } while (keep_neighbours && end < uses.size() && uses[end].expert == uses[end - 1].expert + 1);
    for (size_t i = begin; i < end; ++i) keyed.emplace_back(most, uses[i]);
  }
  std::stable_sort(keyed.begin(), keyed.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  std::vector<ActivatedExpert> ordered;
  for (const auto& [most, use] : keyed) ordered.push_back(use);
  return ordered;
}

}  // namespace

void PassCopies::Begin(int64_t layer, std::span<const ActivatedExpert> uses, std::span<const int32_t> tokens, bool copy_unused) {
  layer_ = layer;
  tokens_ = tokens;
  wanted_.clear();
  next_wanted_ = 0;
  coming_.clear();
  for (const ActivatedExpert& use : InOrderOfCopies(uses, cache_.JoinsRecordsOf(layer))) {
    if (cache_.Contains(IdOf(use.expert))) {
      cache_.Pin(IdOf(use.expert));
      coming_.push_back(use.expert);
    } else {
      wanted_.push_back(use.expert);
    }
  }
  if (!copy_unused) return;
  for (int32_t expert = 0; expert < static_cast<int32_t>(tokens.size()); ++expert) {
    if (tokens[expert] == 0 && !cache_.Contains(IdOf(expert))) wanted_.push_back(expert);
  }
}

absl::StatusOr<bool> PassCopies::Start(Deadline deadline) {
  for (; next_wanted_ < wanted_.size(); ++next_wanted_) {
    const ExpertId id = IdOf(wanted_[next_wanted_]);
    ASSIGN_OR_RETURN(const bool fetched, cache_.Fetch(id, ExpertCache::Purpose::kThisStep, deadline));
    if (!fetched) {
      RETURN_IF_ERROR(cache_.StartReadyCopies());
      return false;
    }
    cache_.Pin(id);
    coming_.push_back(id.expert);
  }
  return true;
}

absl::StatusOr<std::vector<int32_t>> PassCopies::NextReady(Deadline deadline) {
  std::vector<int32_t> ready;
  if (coming_.empty() && !done()) RETURN_IF_ERROR(cache_.WaitForRecord(deadline));  // every slot waits for a background copy
  std::erase_if(coming_, [&](int32_t expert) {
    const bool unused = tokens_[expert] == 0;
    if (unused) cache_.Unpin(IdOf(expert));
    const bool arrived = !unused && cache_.Arrived(IdOf(expert));
    if (arrived) ready.push_back(expert);
    return unused || arrived;
  });
  if (ready.empty() && !coming_.empty()) {
    ready.push_back(coming_.front());
    coming_.pop_front();
  }
  return ready;
}

void PassCopies::Recover() {
  wanted_.clear();
  next_wanted_ = 0;
  coming_.clear();
}

}  // namespace ferry
