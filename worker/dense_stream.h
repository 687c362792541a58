#pragma once

// The coordinator's stream of dense weights as a DenseTensorSource. Each chunk's checksum is checked.

#include <functional>
#include <memory>

#include "common/ids.h"
#include "ferry/internal/v1/cluster.grpc.pb.h"
#include "worker/stage_weights.h"

namespace ferry {

// `cluster` must outlive the source. `progress` hears the bytes so far after each chunk; may be null. Next: DataLoss: a chunk
// came damaged; Unavailable and others: the stream's own end.
std::unique_ptr<DenseTensorSource> OpenDenseStream(internal::v1::Cluster::StubInterface* cluster, uint32_t worker_id,
                                                   Incarnation incarnation, std::function<void(int64_t)> progress);

}  // namespace ferry
