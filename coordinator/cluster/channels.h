#pragma once

// gRPC channels between Ferry's processes.

#include <grpcpp/channel.h>

#include <memory>
#include <string>

namespace ferry {

inline constexpr int kMaxMessageBytes = 64 << 20;

// A channel to `address` with Ferry's message limit. It uses no proxy, and shares no connection with another channel, whose
// back-off after a failure would delay this one.
std::shared_ptr<grpc::Channel> CreateFerryChannel(const std::string& address);

}  // namespace ferry
