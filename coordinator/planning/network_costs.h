#pragma once

// What a worker's way to the coordinator and to the next worker costs where a network is between them, for predictions. Pure
// functions; without a network they are 0.

#include <cstdint>

#include "coordinator/experts/share_way.h"

namespace ferry {

// Where a worker is.
struct WorkerNetwork {
  int host = 0;                 // workers with the same number share a host; 0: the coordinator's
  double exchange_seconds = 0;  // of a request to the coordinator and its answer
  double bytes_per_second = 0;  // either way between the two; above 0 unless `host` is 0
};

// What the coordinator's engines compute for a worker in a layer: `entries` (row, expert) pairs of `rows` rows. A request may
// have at most `most_rows` rows and `most_rows * top_k` entries, or fewer (ShapeOfDataConnection).
struct HostShareSize {
  int64_t rows = 0, n_embd = 0;
  double entries = 0;
  int64_t most_rows = 0, top_k = 0;
};
// As the planner reckons with it.
ShareWay WayOf(const WorkerNetwork& worker, const HostShareSize& share);
double HostShareSeconds(const WorkerNetwork& worker, const HostShareSize& share);
// Of that, the part during which the way to the worker is taken: its contributions.
double ContributionSeconds(const WorkerNetwork& worker, const HostShareSize& share);

// Hidden states F32 [rows, n_embd] from a worker to the next one. Of the way between two hosts that are both not the
// coordinator's nothing is known, so the slower one of their ways to the coordinator stands for it.
double HiddenStatesSeconds(const WorkerNetwork& from, const WorkerNetwork& to, int64_t rows, int64_t n_embd);

// A step to a worker of another host, or its answer: over gRPC, which takes this longer than an exchange on a data connection
// (docs/measurements/hosts.md, one row with a word back: 101 us by 36 us).
inline constexpr double kGrpcSeconds = 65e-6;
inline double StepMessageSeconds(const WorkerNetwork& worker) {
  return worker.host == 0 ? 0 : worker.exchange_seconds + kGrpcSeconds;
}

}  // namespace ferry
