#pragma once

// The coordinator's stream of dense weights as a DenseTensorSource. Each chunk's checksum is checked.

#include <functional>
#include <memory>

#include "common/ids.h"
#include "ferry/internal/v1/cluster.grpc.pb.h"
#include "worker/dense_chunk.h"

namespace ferry {

// The call's name. Errors of the coordinator that the source returns begin with it.
inline constexpr char kDenseStreamCall[] = "StreamDenseTensors";

// `cluster` outlives the source. `progress`, unless null, is called after each chunk with the bytes received so far. Errors of
// Next: DataLoss when a chunk is damaged, otherwise the status that the stream ended with.
std::unique_ptr<DenseTensorSource> OpenDenseStream(internal::v1::Cluster::StubInterface* cluster, uint32_t worker_id,
                                                   Incarnation incarnation, std::function<void(int64_t)> progress);

}  // namespace ferry
