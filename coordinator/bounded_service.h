#pragma once

// A gRPC service that reads its calls' messages in turns (message_reads.h), and takes them as bytes, so that they are looked at
// before they are parsed.
//
// gRPC itself begins to read the message of a unary or server-streaming call before it tells the server of the call, and gives
// each message room up to the largest size: the calls of one connection could take all the memory that gRPC may have, and gRPC
// then ends calls of others. Here each method is a bidirectional stream to gRPC, which is the same on the wire.

#include <grpcpp/impl/service_type.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <functional>

#include "coordinator/message_reads.h"

namespace ferry {

class BoundedService : public grpc::Service {
 protected:
  using UnaryMethod =
      std::function<grpc::ServerUnaryReactor*(grpc::CallbackServerContext*, const grpc::ByteBuffer*, grpc::ByteBuffer*)>;
  using StreamMethod =
      std::function<grpc::ServerWriteReactor<grpc::ByteBuffer>*(grpc::CallbackServerContext*, const grpc::ByteBuffer*)>;

  // `reads` outlives the server of this service.
  explicit BoundedService(MessageReads* reads) : reads_(*reads) {}

  // `path` is "/package.Service/Method", a literal. The method is called with a whole message.
  void AddUnary(const char* path, UnaryMethod method);
  void AddStream(const char* path, StreamMethod method);

 private:
  void Add(const char* path, std::unique_ptr<grpc::internal::MethodHandler> handler);

  MessageReads& reads_;
  int num_methods_ = 0;
};

}  // namespace ferry
