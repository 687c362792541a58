#include "coordinator/cluster/channels.h"

#include <grpcpp/support/channel_arguments.h>

namespace ferry {

std::shared_ptr<grpc::Channel> ConnectWorker(const std::string& address, const NodeIdentity* identity) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetMaxSendMessageSize(kMaxMessageBytes);
  return ConnectNode(address, NodeRole::kWorker, identity, std::move(arguments));
}

}  // namespace ferry
