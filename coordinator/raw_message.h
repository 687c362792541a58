#pragma once

// Messages of a service that takes them as bytes, so that they are looked at before they are parsed.

#include <grpcpp/impl/codegen/proto_utils.h>
#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>

#include <string_view>

#include "common/grpc_status.h"
#include "coordinator/wire_bounds.h"

namespace ferry {

// InvalidArgument: `bytes` exceed the bounds (wire_bounds.h), or are no Message.
template <typename Message>
absl::Status ParseBounded(std::string_view bytes, const WireBounds& bounds, Message* message) {
  RETURN_IF_ERROR(CheckWireBounds(bytes, *Message::descriptor(), bounds));
  if (!message->ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) return InvalidArgument("the message is malformed");
  return absl::OkStatus();
}
template <typename Message>
absl::Status ParseBounded(const grpc::ByteBuffer& bytes, const WireBounds& bounds, Message* message) {
  grpc::Slice slice;  // a short message lies in one, which need not be copied
  if (!bytes.Valid() || (!bytes.TrySingleSlice(&slice).ok() && !bytes.DumpToSingleSlice(&slice).ok())) {
    return InvalidArgument("the message is malformed");
  }
  return ParseBounded(std::string_view(reinterpret_cast<const char*>(slice.begin()), slice.size()), bounds, message);
}

// Replaces what `bytes` holds.
template <typename Message>
absl::Status Serialize(const Message& message, grpc::ByteBuffer* bytes) {
  bytes->Clear();  // gRPC ends the process when it finds something
  bool own = false;
  return FromGrpcStatus(grpc::SerializationTraits<Message>::Serialize(message, bytes, &own));
}

// Ends a call, whose answer is in its response if `status` is OK. The result is what the call's method returns.
inline grpc::ServerUnaryReactor* Finish(grpc::CallbackServerContext* context, const absl::Status& status) {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  reactor->Finish(ToGrpcStatus(status));
  return reactor;
}

}  // namespace ferry
