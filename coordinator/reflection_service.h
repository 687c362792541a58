#pragma once

// gRPC's reflection (grpc.reflection.v1alpha): what services there are and how their messages look, for tools such as grpcurl.
// gRPC's own plugin parses messages of any shape, so that one of 4 MiB takes hundreds; this one bounds them first, and reads them
// in turns (message_reads.h), so that a stream without a question ends after a while. Questions about extensions are answered
// UNIMPLEMENTED: there are none.

#include <string>
#include <utility>
#include <vector>

#include "coordinator/message_reads.h"
#include "grpc/reflection/v1alpha/reflection.grpc.pb.h"

namespace ferry {

using RawReflectionService = grpc::reflection::v1alpha::ServerReflection::WithRawCallbackMethod_ServerReflectionInfo<
    grpc::reflection::v1alpha::ServerReflection::Service>;

class ReflectionService final : public RawReflectionService {
 public:
  // `services`: the full names of those that the server has. `reads` outlives the server.
  ReflectionService(MessageReads* reads, std::vector<std::string> services) : reads_(*reads), services_(std::move(services)) {}

  // INVALID_ARGUMENT ends the stream: a message has more than 4 KiB or 16 fields.
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* ServerReflectionInfo(
      grpc::CallbackServerContext* context) override;

 private:
  MessageReads& reads_;
  const std::vector<std::string> services_;
};

}  // namespace ferry
