#pragma once

// One HTTP request to a server that speaks OpenAI's API, Ferry's gateway or another one.

#include <memory>
#include <string>

#include "absl/time/time.h"
#include "common/status.h"

namespace ferry {

struct HttpServer {
  bool encrypted = false;
  std::string host;  // without brackets
  int port = 0;
  std::string path;  // in front of each request's: "/prefix", or empty

  std::string Url() const;  // for people
};
// "http://host:8000/prefix", "https://host", "host:8080", "host" (port 8080). "/v1" at its end is left out. InvalidArgument: none
// of these.
absl::StatusOr<HttpServer> ParseHttpServer(const std::string& text);

class HttpCall {
 public:
  // `patience`: for how long the server may say nothing.
  static std::unique_ptr<HttpCall> To(const HttpServer& server, absl::Duration patience = absl::Minutes(10));
  virtual ~HttpCall() = default;

  // Sends the request and reads the head of the answer; once. `body` empty: GET, else POST of JSON. FERRY_API_KEY is sent as a
  // bearer key. HTTPS trusts the CA of FERRY_TLS_CA, or those of the system. InvalidArgument: the key is none. Unavailable:
  // nobody answers there, or no HTTP.
  virtual absl::Status Send(const std::string& path, const std::string& body) = 0;
  virtual int status() const = 0;  // of the answer: 200
  // The next bytes of the body; empty: it has ended. Cancelled: Cancel was called. Unavailable: the connection broke, or the
  // server said nothing for `patience`.
  virtual absl::StatusOr<std::string> Read() = 0;
  // Ends the connection, before or after Send. Callable from any thread while this lives.
  virtual void Cancel() = 0;
};

// The whole body, at most `max_bytes`.
absl::StatusOr<std::string> ReadBody(HttpCall& call, size_t max_bytes = size_t{16} << 20);

}  // namespace ferry
