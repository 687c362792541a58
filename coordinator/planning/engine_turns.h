#pragma once

// How long steps take through workers that all need the first host: its engine computes for one worker at a time, and shares the
// cores with workers that compute there. A pure function.

#include <vector>

namespace ferry {

// A worker's way through one layer, in seconds: it computes by itself, then the first host has work for it, then it waits for
// whatever takes longer than that.
struct LayerTurn {
  double own = 0;
  double first_host = 0;
  double rest = 0;
};
// One step of one worker.
struct StepTurns {
  double from_before = 0;  // seconds of its rows on their way from the worker before
  std::vector<LayerTurn> layers;
};

// `steps[i][w]`: step i of worker w, which begins when the worker has ended step i - 1 and its rows have come.
// `on_first_host[w]`: the worker computes on the first host's cores. The engine serves the worker that is furthest behind, and
// serves it to the end.
double SecondsInTurns(const std::vector<std::vector<StepTurns>>& steps, const std::vector<bool>& on_first_host);

}  // namespace ferry
