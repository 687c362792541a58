#pragma once

// When a process of a cluster gives up a silent peer, on gRPC and on data connections alike.

namespace ferry {

// A process that has received nothing for the first time asks its peer for a sign of life, and waits the second time for it.
inline constexpr int kPeerKeepaliveMs = 10000, kPeerKeepaliveTimeoutMs = 5000;

}  // namespace ferry
