#pragma once

// Hidden states between workers of different hosts, on a data connection (common/tls/data_connection.h) that carries nothing
// else: activation_wire.h has its messages. gRPC carries the same more slowly (stage_link_grpc.h).
//
// A small message is written by the thread that computes, and read by the thread that waits for it, so that no other thread has
// to wake. Large ones are written by a thread of the sink while the stage computes on, and read ahead by a thread of the source
// while the stage computes, up to the rows of one step. Buffers are pinned, and used again.

#include <cstdint>
#include <memory>

#include "common/status.h"
#include "common/tls/data_connection.h"
#include "kernels/ops.h"
#include "worker/stage_link.h"

namespace ferry {

struct TcpLinkOptions {
  Ops* ops = nullptr;  // null: nothing is pinned
  int64_t n_embd = 0;
  int64_t max_rows = 0;  // of a step
  uint64_t epoch = 0;
};

// What a stage calls of both, the thread that computes with options.ops calls. They are destroyed while that thread does not use
// it. ResourceExhausted: no thread can be started.
absl::StatusOr<std::unique_ptr<ActivationSink>> MakeTcpSink(std::unique_ptr<DataConnection> connection,
                                                            const TcpLinkOptions& options);
// Next also returns InvalidArgument, which names what is wrong with a message that came.
absl::StatusOr<std::unique_ptr<ActivationSource>> MakeTcpSource(std::unique_ptr<DataConnection> connection,
                                                                const TcpLinkOptions& options);

}  // namespace ferry
