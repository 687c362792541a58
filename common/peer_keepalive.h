#pragma once

// When a process of a cluster gives up another one of which it hears nothing: on gRPC and on data connections alike.

namespace ferry {

// A side that hears nothing for so long asks whether its peer is there, and then waits so long for the answer.
inline constexpr int kPeerKeepaliveMs = 10000, kPeerKeepaliveTimeoutMs = 5000;

}  // namespace ferry
