#include "coordinator/planning/routing_probabilities.h"

#include <algorithm>
#include <numeric>

#include "tests/coordinator/planning/prediction_fixture.h"

namespace ferry {
namespace {

using RoutingProbabilitiesTest = PredictionTest;

TEST_F(RoutingProbabilitiesTest, RoutesEveryTokenToTopKExperts) {
  ASSERT_EQ(routing_.size(), 4u);
  for (const std::vector<double>& layer : routing_) {
    EXPECT_NEAR(std::accumulate(layer.begin(), layer.end(), 0.0), 4, 0.15) << "within the sampling's error";
    for (const double p : layer) EXPECT_GT(p, 0) << "an expert that is never drawn may still be used by somebody";
    EXPECT_GT(*std::max_element(layer.begin(), layer.end()), 0.3) << "biases spread the experts";
  }
}

}  // namespace
}  // namespace ferry
