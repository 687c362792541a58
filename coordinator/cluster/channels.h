#pragma once

// How Ferry's processes reach each other, in one place.

#include <grpcpp/channel.h>

#include <memory>
#include <string>

namespace ferry {

inline constexpr int kMaxMessageBytes = 64 << 20;

// A channel with Ferry's message limit that goes nowhere but to `address`: no proxy, and no connection shared with
// another channel, whose back-off after a failure would delay this one.
std::shared_ptr<grpc::Channel> CreateFerryChannel(const std::string& address);

}  // namespace ferry
