#pragma once

// One connection of a client: reads requests one after the other and writes their answers.
//
// Everything but the Exchange handed to the service runs on the network thread.

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/thread_pool.hpp>
#include <memory>

#include "gateway/http/limits.h"
#include "gateway/http/service.h"

namespace ferry {

class HttpConnection;

// What connections of one listener share. On the network thread alone.
class HttpConnectionHost {
 public:
  virtual ~HttpConnectionHost() = default;

  virtual const HttpLimits& limits() const = 0;
  virtual HttpService& service() = 0;
  virtual boost::asio::thread_pool& pool() = 0;
  virtual bool draining() const = 0;
  // From now on a connection waits for a request or for its client to close, or no longer does: it may be closed to make room.
  virtual void OnWaiting(HttpConnection* connection, bool waiting) = 0;
  virtual void OnClosed(HttpConnection* connection) = 0;
  // Bytes of bodies that are being received: false, and nothing is counted, when there are too many.
  virtual bool TakeBodyBytes(size_t bytes) = 0;
  virtual void ReturnBodyBytes(size_t bytes) = 0;
};

class HttpConnection {
 public:
  // `host` outlives the connection. `tls`: of HTTPS; null for HTTP.
  static std::shared_ptr<HttpConnection> Create(boost::asio::ip::tcp::socket socket,
                                                std::shared_ptr<boost::asio::ssl::context> tls, HttpConnectionHost* host);
  virtual ~HttpConnection() = default;

  virtual void Start() = 0;
  // Answers 503 and closes: there are too many.
  virtual void TurnAway() = 0;
  // Closes at once when it waits for a request, else after the answer.
  virtual void CloseWhenIdle() = 0;
  virtual void Close() = 0;
};

}  // namespace ferry
