#pragma once

// A request and its answer as routes see them: no sockets, no framing.

#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ferry {

struct HttpHeader {
  std::string name, value;
};

struct HttpRequest {
  std::string method;               // as sent: methods have a case
  std::string path;                 // as sent, up to the '?'; nothing is decoded, so a route matches the path as written
  std::string query;                // behind the '?'
  std::vector<HttpHeader> headers;  // names in lower case
  std::string body;
  std::string id;  // names it in logs: the client's x-request-id, or else one that the server made; every answer repeats it

  // The value of the first header of that lower-case name, empty without one.
  std::string_view Header(std::string_view name) const;
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::vector<HttpHeader> headers;
  std::string body;
};

// The server's half of one request. Every method may be called from any thread, in an order that the comments name; what comes
// too late, because the client is gone or the answer complete, has no effect.
class Exchange {
 public:
  // Destroying an exchange that was not answered answers 500.
  virtual ~Exchange() = default;

  // The whole answer. Once, and not after the first Send.
  virtual void Respond(HttpResponse response) = 0;
  // From here on the answer is a stream of `head.content_type`, whose pieces Send adds. The head is sent with the first piece or
  // the first heartbeat, whichever comes first; until then Respond may still answer with an error.
  virtual void BeginStream(HttpResponse head) = 0;
  virtual void Send(std::string piece) = 0;
  // Ends the stream.
  virtual void End() = 0;
  // `response` while nothing has been sent; else `last_piece`, and the end of the stream.
  virtual void Fail(HttpResponse response, std::string last_piece) = 0;
  // `gone` is called once when the client leaves before the answer is complete, also when it has already left; on any thread.
  // One at a time: a second call replaces the first.
  virtual void OnGone(std::function<void()> gone) = 0;
};

}  // namespace ferry
