#pragma once

// What the HTTP side grants its clients. Every wait for a client has an end, and every buffer a size.

#include <cstddef>

#include "absl/time/time.h"

namespace ferry {

struct HttpLimits {
  size_t max_head_bytes = size_t{32} << 10;       // more: 431
  size_t max_body_bytes = size_t{10} << 20;       // more: 413
  size_t max_all_body_bytes = size_t{256} << 20;  // bodies that are being received, together; more: 503
  size_t max_unsent_bytes = size_t{4} << 20;      // of a stream whose client reads too slowly; more: it is cut off
  int max_connections = 1000;  // more: the connection that has waited longest for a request makes room, or else 503
  absl::Duration head_timeout = absl::Seconds(10);   // from the connection or the first byte to the end of the head
  absl::Duration body_timeout = absl::Seconds(60);   // of the whole body
  absl::Duration idle_timeout = absl::Seconds(75);   // between two requests of a connection
  absl::Duration write_timeout = absl::Seconds(30);  // without a byte that the client takes
  absl::Duration linger = absl::Seconds(2);          // for bytes that a client still sends when its last answer is written
  absl::Duration heartbeat = absl::Seconds(10);      // of a stream that says nothing
};

}  // namespace ferry
