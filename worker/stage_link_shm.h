#pragma once

// Hidden states between workers of one host, through an ActivationRing in pinned memory, which both devices reach at link speed.
// The compute threads wait for each other directly: no message and no other thread takes part.

#include <memory>

#include "common/status.h"
#include "kernels/ops.h"
#include "worker/activation_ring.h"
#include "worker/stage_link.h"

namespace ferry {

// Both pin the ring's memory at the first use and unpin it on destruction. The thread that computes with `ops` uses them; they
// are destroyed while that thread does not use `ops`. `ops` outlives them. If pinning fails they work more slowly.
std::unique_ptr<ActivationSink> MakeRingSink(std::unique_ptr<ActivationRing> ring, Ops* ops);
std::unique_ptr<ActivationSource> MakeRingSource(std::unique_ptr<ActivationRing> ring, Ops* ops);

}  // namespace ferry
