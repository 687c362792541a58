#pragma once

// Which way hidden states take to the next worker: the choice of --transport, and the rules by which auto weighs NCCL against
// memory that both workers share, and between hosts a data connection against gRPC.

#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "common/status.h"

namespace ferry {

// kAuto: memory within a host, and between its GPUs also NCCL where that is faster; between hosts the faster one of a data
// connection and gRPC.
enum class Transport { kAuto, kShm, kTcp, kNccl, kGrpc };
const char* NameOf(Transport transport);  // "auto", "shm", "tcp", "nccl", "grpc"

// How long a message of so many rows takes from the sender's device memory to the receiver's: medians. Zero: that way was not
// measured.
struct LinkTime {
  int64_t rows = 0;
  absl::Duration shm, nccl, tcp, grpc;
};

inline constexpr int64_t kNoMessage = std::numeric_limits<int64_t>::max();

// The sizes at which a worker measures whose steps have at most max_rows rows: of decode, of many streams, and of prompts.
std::vector<int64_t> RowsToMeasure(int64_t max_rows);

// From how many rows on NCCL is the faster way, at that size and at every larger one of `times`, which increase. kNoMessage: it
// is not at the largest.
int64_t NcclFromRows(std::span<const LinkTime> times);

// Whether hidden states go over the data connection: unless gRPC is faster in the geometric mean over the sizes.
bool TakesTcp(std::span<const LinkTime> times);

// For people: what was chosen, and the times of the largest message.
std::string DescribeChoice(std::span<const LinkTime> times);
// For people: all times of the data connection and of gRPC.
std::string DescribeTcpChoice(std::span<const LinkTime> times);

}  // namespace ferry
