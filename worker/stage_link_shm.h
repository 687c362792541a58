#pragma once

// Hidden states to a worker of the same host, through an ActivationRing in pinned memory, so that both devices reach it at the
// rate of their links. The compute thread itself waits for the other side: no message, no other thread in between.

#include <memory>

#include "common/status.h"
#include "kernels/ops.h"
#include "worker/activation_ring.h"
#include "worker/stage_link.h"

namespace ferry {

// Both pin the ring's memory at the first use and unpin it at the end: used by, and destroyed beside, the thread that computes
// with `ops`, which must outlive them. Memory that cannot be pinned works too, slower.
std::unique_ptr<ActivationSink> MakeRingSink(std::unique_ptr<ActivationRing> ring, Ops* ops);
std::unique_ptr<ActivationSource> MakeRingSource(std::unique_ptr<ActivationRing> ring, Ops* ops);

}  // namespace ferry
