#include "coordinator/planning/layer_search.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace ferry {
namespace {

// `ranges` with `count` layers more for worker `to` and as many less for worker `from`. Empty: that leaves a worker none.
std::vector<LayerRange> Moved(std::vector<LayerRange> ranges, size_t from, size_t to, int64_t count) {
  for (size_t worker = std::min(from, to); worker < std::max(from, to); ++worker) {
    const int64_t border = ranges[worker].end + (from < to ? -count : count);
    ranges[worker].end = ranges[worker + 1].first = border;
  }
  const bool all_have_some =
      std::all_of(ranges.begin(), ranges.end(), [](const LayerRange& range) { return range.first < range.end; });
  return all_have_some ? ranges : std::vector<LayerRange>();
}

}  // namespace

std::string LayersText(const std::vector<LayerRange>& ranges) {
  return absl::StrJoin(ranges, ",", [](std::string* text, const LayerRange& range) {
    absl::StrAppendFormat(text, "%d-%d", range.first, range.end - 1);
  });
}

FoundLayers SearchLayers(const std::vector<LayerRange>& begin, const LayersCost& cost, int most_calls) {
  FoundLayers best = {.ranges = begin, .cost = cost(begin)};
  int calls = 1;
  int64_t count = 0;
  for (const LayerRange& range : begin) count = std::max(count, (range.end - range.first) / 2);
  while (count > 0 && calls < most_calls) {
    bool better = false;
    for (size_t from = 0; from < begin.size(); ++from) {
      for (size_t to = 0; to < begin.size() && calls < most_calls; ++to) {
        if (from == to) continue;
        std::vector<LayerRange> moved = Moved(best.ranges, from, to, count);
        if (moved.empty()) continue;
        ++calls;
        if (const double seconds = cost(moved); seconds < best.cost) {
          best = {.ranges = std::move(moved), .cost = seconds};
          better = true;
        }
      }
    }
    if (!better) count /= 2;
  }
  return best;
}

}  // namespace ferry
