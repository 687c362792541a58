#include "coordinator/planning/engine_turns.h"

#include <gtest/gtest.h>

namespace ferry {
namespace {

StepTurns StepOf(const std::vector<LayerTurn>& layers, double from_before = 0) {
  return {.from_before = from_before, .layers = layers};
}

TEST(EngineTurns, OneWorkerTakesTheSumOfItsLayers) {
  EXPECT_DOUBLE_EQ(SecondsInTurns({{StepOf({{1, 2, 3}, {4, 0, 5}})}, {StepOf({{1, 1, 1}})}}, {true}), 18);
  EXPECT_DOUBLE_EQ(SecondsInTurns({{StepOf({{1, 2, 3}, {4, 0, 5}})}, {StepOf({{1, 1, 1}})}}, {false}), 18);
  EXPECT_EQ(SecondsInTurns({}, {false}), 0);
}

TEST(EngineTurns, WorkersOnOtherHostsComputeAtOnce) {
  const std::vector<StepTurns> step = {StepOf({{3, 0, 0}}), StepOf({{3, 0, 0}})};
  EXPECT_DOUBLE_EQ(SecondsInTurns({step, step, step, step}, {false, false}), 15);
  EXPECT_DOUBLE_EQ(SecondsInTurns({step, step, step, step}, {true, false}), 15);
}

TEST(EngineTurns, WorkersOnTheFirstHostShareItsCores) {
  const std::vector<StepTurns> step = {StepOf({{3, 0, 0}}), StepOf({{3, 0, 0}})};
  EXPECT_DOUBLE_EQ(SecondsInTurns({step, step, step, step}, {true, true}), 24);
}

TEST(EngineTurns, TheEngineServesOneWorkerAtATime) {
  const std::vector<StepTurns> step = {StepOf({{0, 3, 0}}), StepOf({{0, 3, 0}})};
  EXPECT_DOUBLE_EQ(SecondsInTurns({step, step, step, step}, {false, false}), 24);
}

TEST(EngineTurns, TheEngineServesOneWorkerWhileAnotherComputes) {
  // The second step's first worker computes while the engine serves the second worker.
  const std::vector<StepTurns> step = {StepOf({{3, 3, 0}}), StepOf({{3, 3, 0}})};
  const double seconds = SecondsInTurns({step, step, step, step}, {false, false});
  EXPECT_GE(seconds, 3 + 8 * 3 + 0) << "the engine alone, after the first worker";
  EXPECT_LE(seconds, 33);
}

TEST(EngineTurns, TheEngineDoesNotWaitForALongComputationOnItsCores) {
  // While the first worker computes its second step for 100 s, the engine has 1 s of work for the other one, which takes 2.
  const std::vector<StepTurns> first = {StepOf({}), StepOf({{0, 1, 3}})}, second = {StepOf({{100, 0, 0}}), StepOf({})};
  EXPECT_NEAR(SecondsInTurns({first, second}, {true, false}), 101, 1e-9);
  const std::vector<StepTurns> third = {StepOf({}), StepOf({{0, 0, 7}})};
  EXPECT_NEAR(SecondsInTurns({first}, {true, false}), 4, 1e-9);
  EXPECT_NEAR(SecondsInTurns({first, second, third}, {true, false}), 108, 1e-9);
}

TEST(EngineTurns, RowsComeLater) {
  EXPECT_DOUBLE_EQ(SecondsInTurns({{StepOf({{1, 0, 0}}), StepOf({{1, 0, 0}}, 5)}}, {false, false}), 7);
  // Meanwhile the worker before goes on.
  const std::vector<StepTurns> step = {StepOf({{1, 0, 0}}), StepOf({{1, 0, 0}}, 5)};
  EXPECT_DOUBLE_EQ(SecondsInTurns({step, step}, {false, false}), 8);
}

TEST(EngineTurns, AWorkerWithoutLayersOfItsOwnPassesRowsOn) {
  EXPECT_DOUBLE_EQ(SecondsInTurns({{StepOf({}), StepOf({{1, 1, 1}}, 2)}}, {true, false}), 5);
}

}  // namespace
}  // namespace ferry
