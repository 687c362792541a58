#include "coordinator/planning/engine_turns.h"

#include <algorithm>
#include <cstddef>
#include <limits>

namespace ferry {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

enum class Doing { kAwaitsRows, kOwn, kAsks, kIsServed, kRest, kDone };

struct WorkerState {
  Doing doing = Doing::kAwaitsRows;
  double left = kNever;  // seconds of it, alone
  size_t step = 0, layer = 0;
};

class Turns {
 public:
  Turns(const std::vector<std::vector<StepTurns>>& steps, const std::vector<bool>& on_first_host)
      : steps_(steps), on_first_host_(on_first_host), workers_(on_first_host.size()) {
    ended_.assign(workers_.size(), std::vector<double>(steps.size(), kNever));
    BeginStep(0);
  }

  double Run() {
    while (workers_.back().doing != Doing::kDone) {
      const double share = 1 / std::max(1.0, NumOnFirstHost());
      double wait = kNever;
      size_t next = 0;
      for (size_t w = 0; w < workers_.size(); ++w) {
        if (const double ends = workers_[w].left / Rate(w, share); ends < wait) wait = ends, next = w;
      }
      for (size_t w = 0; w < workers_.size(); ++w) workers_[w].left -= wait * Rate(w, share);
      now_ += wait;
      Next(next);
      Serve();
    }
    return now_;
  }

 private:
  bool OnFirstHost(size_t worker) const {
    const Doing doing = workers_[worker].doing;
    return doing == Doing::kIsServed || (doing == Doing::kOwn && on_first_host_[worker]);
  }
  double NumOnFirstHost() const {
    double number = 0;
    for (size_t w = 0; w < workers_.size(); ++w) number += OnFirstHost(w) ? 1 : 0;
    return number;
  }
  double Rate(size_t worker, double share) const { return OnFirstHost(worker) ? share : 1; }

  const StepTurns& StepOf(size_t worker) const { return steps_[workers_[worker].step][worker]; }

  // A worker has ended what it did.
  void Next(size_t worker) {
    WorkerState& state = workers_[worker];
    const std::vector<LayerTurn>& layers = StepOf(worker).layers;
    if (state.doing == Doing::kOwn) {
      state = {Doing::kAsks, kNever, state.step, state.layer};
    } else if (state.doing == Doing::kIsServed) {
      served_ = false;
      state.doing = Doing::kRest, state.left = layers[state.layer].rest;
    } else {
      if (state.doing == Doing::kRest) ++state.layer;
      if (state.layer < layers.size()) {
        state.doing = Doing::kOwn, state.left = layers[state.layer].own;
      } else {
        EndStep(worker);
      }
    }
  }

  // Gives the engine, if it is free, to a worker that asks for it: the one that is furthest behind.
  void Serve() {
    size_t first = workers_.size();
    for (size_t w = 0; w < workers_.size(); ++w) {
      WorkerState& state = workers_[w];
      if (state.doing != Doing::kAsks) continue;
      const double needed = StepOf(w).layers[state.layer].first_host;
      if (needed <= 0) {
        state.doing = Doing::kRest, state.left = StepOf(w).layers[state.layer].rest;
      } else if (first == workers_.size() || state.step <= workers_[first].step) {
        first = w;
      }
    }
    if (served_ || first == workers_.size()) return;
    served_ = true;
    workers_[first].doing = Doing::kIsServed, workers_[first].left = StepOf(first).layers[workers_[first].layer].first_host;
  }

  void EndStep(size_t worker) {
    const size_t step = workers_[worker].step;
    ended_[worker][step] = now_;
    workers_[worker] = {step + 1 < steps_.size() ? Doing::kAwaitsRows : Doing::kDone, kNever, step + 1, 0};
    if (worker + 1 < workers_.size() && workers_[worker + 1].step == step) BeginStep(worker + 1);
    if (step + 1 < steps_.size()) BeginStep(worker);
  }

  // The worker is free. Where its rows are not on their way yet, the worker before calls this again.
  void BeginStep(size_t worker) {
    const size_t step = workers_[worker].step;
    const double come = worker == 0 ? now_ : ended_[worker - 1][step] + steps_[step][worker].from_before;
    workers_[worker].left = std::max(0.0, come - now_);
  }

  const std::vector<std::vector<StepTurns>>& steps_;
  const std::vector<bool>& on_first_host_;
  std::vector<WorkerState> workers_;
  std::vector<std::vector<double>> ended_;  // by worker, then by step
  bool served_ = false;                     // the engine computes for somebody
  double now_ = 0;
};

}  // namespace

double SecondsInTurns(const std::vector<std::vector<StepTurns>>& steps, const std::vector<bool>& on_first_host) {
  return steps.empty() || on_first_host.empty() ? 0 : Turns(steps, on_first_host).Run();
}

}  // namespace ferry
