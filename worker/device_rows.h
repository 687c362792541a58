#pragma once

// Hidden states between a device and its links: how a stage sends and takes them, and how a worker measures its ways.

#include <cstdint>

#include "common/deadline.h"
#include "common/status.h"
#include "kernels/ops.h"
#include "worker/stage_link.h"

namespace ferry {

// Sends rows [n, n_embd] F32 of the device's memory as those of a step from row 0 on. Errors of ops and of the sink.
absl::Status SendDeviceRows(Ops& ops, ActivationSink& sink, uint64_t step, Tensor rows, Deadline deadline);

// How many rows a chunk has or announces.
int64_t NumRowsOf(const ActivationChunk& chunk, int64_t n_embd);

// Brings a chunk's rows into `rows` of the device's memory, which has as many. When the event has passed, they are there and the
// chunk can be dropped. Errors of ops and of the source.
absl::StatusOr<Event> TakeDeviceRows(Ops& ops, ActivationSource& source, const ActivationChunk& chunk, Tensor rows,
                                     Deadline deadline);

// Receives all `rows` of a step, and returns when they are in the device's memory and their chunks are dropped. Errors as of
// TakeDeviceRows; InvalidArgument: more rows came.
absl::Status ReceiveDeviceRows(Ops& ops, ActivationSource& source, uint64_t step, Tensor rows, Deadline deadline);

}  // namespace ferry
