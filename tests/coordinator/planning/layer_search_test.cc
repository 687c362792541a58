#include "coordinator/planning/layer_search.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

namespace ferry {
namespace {

std::vector<LayerRange> Even(int64_t workers, int64_t layers_each) {
  std::vector<LayerRange> ranges;
  for (int64_t w = 0; w < workers; ++w) ranges.push_back({.first = w * layers_each, .end = (w + 1) * layers_each});
  return ranges;
}
// Of the worker that takes longest, when worker w computes seconds[w] for a layer.
LayersCost Slowest(std::vector<double> seconds) {
  return [seconds](const std::vector<LayerRange>& ranges) {
    double slowest = 0;
    for (size_t w = 0; w < ranges.size(); ++w) {
      slowest = std::max(slowest, seconds[w] * static_cast<double>(ranges[w].end - ranges[w].first));
    }
    return slowest;
  };
}

TEST(LayerSearch, GivesAWorkerThatIsThreeTimesAsFastThreeQuarters) {
  const FoundLayers found = SearchLayers(Even(2, 18), Slowest({1, 3}), 100);
  EXPECT_EQ(found.ranges, (std::vector<LayerRange>{{0, 27}, {27, 36}}));
  EXPECT_EQ(found.cost, 27);
}

TEST(LayerSearch, MovesLayersPastTheWorkersBetween) {
  const FoundLayers found = SearchLayers(Even(3, 8), Slowest({10, 1, 1}), 200);
  EXPECT_LE(found.cost, 20);
  EXPECT_EQ(found.ranges.front().first, 0);
  EXPECT_EQ(found.ranges.back().end, 24);
}

TEST(LayerSearch, LeavesWhatIsBestAlready) {
  EXPECT_EQ(SearchLayers(Even(2, 8), Slowest({1, 1}), 100), (FoundLayers{.ranges = Even(2, 8), .cost = 8}));
  EXPECT_EQ(SearchLayers(Even(1, 8), Slowest({1}), 100).ranges, Even(1, 8));
}

TEST(LayerSearch, LeavesNoWorkerWithoutALayer) {
  const FoundLayers found = SearchLayers(Even(2, 4), Slowest({1, 1000}), 100);
  EXPECT_EQ(found.ranges, (std::vector<LayerRange>{{0, 7}, {7, 8}}));
}

TEST(LayerSearch, LeavesAnImpossibleDivision) {
  const LayersCost at_most_six = [](const std::vector<LayerRange>& ranges) {
    return ranges[1].end - ranges[1].first > 6 ? std::numeric_limits<double>::infinity() : 1.0;
  };
  EXPECT_EQ(SearchLayers(Even(2, 8), at_most_six, 100).cost, 1.0);
}

TEST(LayerSearch, AsksNoMoreThanItMay) {
  for (const int most : {1, 2, 7}) {
    int calls = 0;
    const LayersCost cost = [&](const std::vector<LayerRange>& ranges) {
      ++calls;
      return Slowest({1, 2, 3, 4})(ranges);
    };
    SearchLayers(Even(4, 16), cost, most);
    EXPECT_LE(calls, most);
  }
}

TEST(LayersText, IsWhatLayersTakes) { EXPECT_EQ(LayersText({{0, 10}, {10, 11}, {11, 24}}), "0-9,10-10,11-23"); }

}  // namespace
}  // namespace ferry
