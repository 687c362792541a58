#include "gateway/http/listener.h"

#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <future>
#include <list>
#include <thread>
#include <unordered_map>
#include <utility>

#include "absl/time/clock.h"
#include "common/deadline.h"
#include "common/listen_address.h"
#include "common/log.h"
#include "common/rpc/acceptor.h"
#include "common/thread_limit.h"
#include "gateway/http/connection.h"

namespace ferry {
namespace {

namespace asio = boost::asio;
using boost::system::error_code;

constexpr int kHandlerThreads = 2;
constexpr int kBacklog = 512;
constexpr auto kAcceptAgain = std::chrono::milliseconds(100);
constexpr absl::Duration kPoll = absl::Milliseconds(10);

class Listener final : public HttpListener, public HttpConnectionHost {
 public:
  Listener(const HttpLimits& limits, HttpService* service, std::unique_ptr<HttpTls> tls)
      : limits_(limits), service_(*service), tls_(std::move(tls)), pool_(kHandlerThreads), acceptor_(io_), accept_timer_(io_) {}

  ~Listener() override {
    OnNetworkThread([this] { CloseAll(); });
    pool_.join();
    work_.reset();  // the thread ends with the last handler
    if (thread_.joinable()) thread_.join();
  }

  absl::Status Listen(const std::string& text) {
    ASSIGN_OR_RETURN(const ListenAddress address, ParseListenAddress(text, 0));
    const bool bracketed = address.host.starts_with('[');
    const std::string host = bracketed ? address.host.substr(1, address.host.size() - 2) : address.host;
    error_code error;
    asio::ip::tcp::resolver resolver(io_);
    const auto found = resolver.resolve(host, std::to_string(address.port), asio::ip::tcp::resolver::passive, error);
    if (error || found.empty()) return Unavailable("cannot listen on %s: no such host", text);
    const asio::ip::tcp::endpoint endpoint = found.begin()->endpoint();
    acceptor_.open(endpoint.protocol(), error);
    if (!error) acceptor_.set_option(asio::socket_base::reuse_address(true), error);
    if (!error) acceptor_.bind(endpoint, error);
    if (!error) acceptor_.listen(kBacklog, error);
    if (error) return Unavailable("cannot listen on %s: %s", address.ToString(), error.message());
    port_ = acceptor_.local_endpoint().port();
    RaiseDescriptorLimit();  // a connection is a descriptor, and Debian's soft limit is 1024
    Accept();
    ASSIGN_OR_RETURN(thread_, StartThread([this] { io_.run(); }));
    return absl::OkStatus();
  }

  int port() const override { return port_; }
  int num_connections() const override { return num_connections_; }

  void Drain(Deadline deadline) override {
    OnNetworkThread([this] {
      draining_ = true;
      error_code ignored;
      acceptor_.close(ignored);
      for (const auto& connection : Connections()) connection->CloseWhenIdle();
    });
    while (num_connections_ > 0 && !deadline.Passed()) absl::SleepFor(kPoll);
    OnNetworkThread([this] { CloseAll(); });
  }

  const HttpLimits& limits() const override { return limits_; }
  HttpService& service() override { return service_; }
  asio::thread_pool& pool() override { return pool_; }
  bool draining() const override { return draining_; }
  void OnWaiting(HttpConnection* connection, bool waiting) override {
    const auto found = connections_.find(connection);
    if (found == connections_.end()) return;
    if (found->second.waiting) waiting_.erase(found->second.place);
    found->second.waiting = waiting;
    if (waiting) found->second.place = waiting_.insert(waiting_.end(), connection);
  }
  void OnClosed(HttpConnection* connection) override {
    const auto found = connections_.find(connection);
    if (found == connections_.end()) return;
    if (found->second.waiting) waiting_.erase(found->second.place);
    connections_.erase(found);
    num_connections_ = static_cast<int>(connections_.size());
  }
  bool TakeBodyBytes(size_t bytes) override {
    if (body_bytes_ + bytes > limits_.max_all_body_bytes) return false;
    body_bytes_ += bytes;
    return true;
  }
  void ReturnBodyBytes(size_t bytes) override { body_bytes_ -= bytes; }

 private:
  struct Entry {
    std::shared_ptr<HttpConnection> connection;
    bool waiting = false;
    std::list<HttpConnection*>::iterator place;  // in waiting_
  };

  template <typename Call>
  void OnNetworkThread(Call call) {
    if (!thread_.joinable()) return;
    std::promise<void> done;
    asio::post(io_, [&] {
      call();
      done.set_value();
    });
    done.get_future().wait();
  }

  void Accept() {
    acceptor_.async_accept([this](const error_code& error, asio::ip::tcp::socket socket) {
      if (!acceptor_.is_open()) return;
      if (!error) {
        Take(std::move(socket));
        return Accept();
      }
      // Out of descriptors or memory, or a client that has left already: others may leave soon, too.
      if (error != asio::error::connection_aborted) MakeRoom();
      accept_timer_.expires_after(kAcceptAgain);
      accept_timer_.async_wait([this](const error_code& ended) {
        if (!ended && acceptor_.is_open()) Accept();
      });
    });
  }

  // False when every connection has a request under way.
  bool MakeRoom() {
    if (waiting_.empty()) return false;
    connections_.at(waiting_.front()).connection->Close();
    return true;
  }

  void Take(asio::ip::tcp::socket socket) {
    const bool room = static_cast<int>(connections_.size()) < limits_.max_connections || MakeRoom();
    if (!room && static_cast<int>(connections_.size()) >= 2 * limits_.max_connections) return;  // not even a word for it
    const std::shared_ptr<HttpConnection> connection =
        HttpConnection::Create(std::move(socket), tls_ ? tls_->Current() : nullptr, this);
    connections_[connection.get()] = {.connection = connection};
    num_connections_ = static_cast<int>(connections_.size());
    if (room) {
      connection->Start();
    } else {
      connection->TurnAway();
    }
  }

  std::vector<std::shared_ptr<HttpConnection>> Connections() const {
    std::vector<std::shared_ptr<HttpConnection>> connections;
    for (const auto& [key, entry] : connections_) connections.push_back(entry.connection);
    return connections;
  }

  void CloseAll() {
    draining_ = true;
    error_code ignored;
    acceptor_.close(ignored);
    accept_timer_.cancel();
    for (const auto& connection : Connections()) connection->Close();
  }

  const HttpLimits limits_;
  HttpService& service_;
  const std::unique_ptr<HttpTls> tls_;
  asio::io_context io_{1};
  std::optional<asio::executor_work_guard<asio::io_context::executor_type>> work_{asio::make_work_guard(io_)};
  asio::thread_pool pool_;
  std::thread thread_;
  int port_ = 0;
  std::atomic<int> num_connections_{0};
  // Of the network thread.
  asio::ip::tcp::acceptor acceptor_;
  asio::steady_timer accept_timer_;
  bool draining_ = false;
  std::unordered_map<HttpConnection*, Entry> connections_;
  std::list<HttpConnection*> waiting_;  // those that wait for a request, longest first
  size_t body_bytes_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<HttpListener>> HttpListener::Start(const std::string& address, const HttpLimits& limits,
                                                                  HttpService* service, std::unique_ptr<HttpTls> tls) {
  auto listener = std::make_unique<Listener>(limits, service, std::move(tls));
  RETURN_IF_ERROR(listener->Listen(address));
  return listener;
}

}  // namespace ferry
