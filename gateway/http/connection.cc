#include "gateway/http/connection.h"

#include <algorithm>
#include <array>
#include <boost/asio/post.hpp>
#include <boost/asio/ssl/error.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <mutex>
#include <optional>
#include <random>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/log.h"
#include "gateway/http/request_head.h"
#include "gateway/http/response_text.h"
#include "gateway/http/short_way.h"

namespace ferry {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using boost::system::error_code;

constexpr size_t kReadBytes = size_t{16} << 10;
constexpr size_t kMaxLingerBytes = size_t{1} << 20;
constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";
constexpr std::string_view kHeartbeat = ": keep-alive\n\n";
constexpr size_t kMaxRequestIdBytes = 128;

// The client's own id where it can be one (generate.proto), else a random one.
std::string RequestIdOf(const HttpRequest& request) {
  const std::string_view given = request.Header("x-request-id");
  const bool plain = std::all_of(given.begin(), given.end(), [](char c) { return c > ' ' && c <= '~'; });
  if (!given.empty() && given.size() <= kMaxRequestIdBytes && plain) return std::string(given);
  thread_local std::mt19937_64 random{std::random_device{}()};
  return absl::StrFormat("req_%016x%016x", random(), random());
}

class Connection final : public HttpConnection, public std::enable_shared_from_this<Connection> {
 public:
  Connection(asio::ip::tcp::socket socket, std::shared_ptr<asio::ssl::context> tls, HttpConnectionHost* host)
      : socket_(std::move(socket)),
        tls_context_(std::move(tls)),
        timer_(socket_.get_executor()),
        write_timer_(socket_.get_executor()),
        host_(*host) {
    if (tls_context_ != nullptr) tls_.emplace(socket_, *tls_context_);
  }

  auto executor() { return socket_.get_executor(); }

  void Start() override {
    error_code ignored;
    socket_.set_option(asio::ip::tcp::no_delay(true), ignored);
    WaitForRequest(host_.limits().head_timeout);
    if (!tls_) return Read();
    tls_->async_handshake(asio::ssl::stream_base::server, [self = shared_from_this()](const error_code& error) {
      if (self->state_ == State::kClosed) return;
      if (error) return self->Close();
      self->Read();
    });
  }
  void TurnAway() override {
    if (tls_) return Close();  // there is no room for a handshake
    keep_alive_ = false;
    state_ = State::kBusy;
    Read();
    Answer(host_.service().Error(503, "the server has too many connections; try again", ""));
  }
  void CloseWhenIdle() override {
    keep_alive_ = false;
    if (state_ == State::kHead) Close();
  }
  void Close() override {
    if (std::exchange(state_, State::kClosed) == State::kClosed) return;
    SetWaiting(false);
    ReleaseBody();
    timer_.cancel();
    write_timer_.cancel();
    short_way_.Close();  // before the socket's number can be another's
    error_code ignored;
    socket_.close(ignored);
    LeaveExchange();
    host_.OnClosed(this);
  }

  // What an Exchange asks for, on the network thread. `serial`: of the request; calls for an earlier one have no effect.
  void Respond(uint64_t serial, HttpResponse response) {
    if (Current(serial) && !head_sent_) Answer(std::move(response));
  }
  void BeginStream(uint64_t serial, HttpResponse head) {
    if (!Current(serial) || head_sent_ || stream_) return;
    stream_ = std::move(head);
    short_way_.NoteSent();
    SetTimer(host_.limits().heartbeat);
  }
  void Send(uint64_t serial, std::string_view piece) {
    if (!Current(serial) || !stream_) return;
    SendPiece(piece);
  }
  // The same on any thread. The piece is written before this returns, if nothing else waits to be written.
  void SendFromAnyThread(uint64_t serial, std::string piece);
  void End(uint64_t serial) {
    if (!Current(serial) || !stream_) return;
    QueueHeadOfStream();
    Queue(framing_ == Framing::kChunked ? kLastChunk : std::string_view());
    Complete();
  }
  void Fail(uint64_t serial, HttpResponse response, std::string_view last_piece) {
    if (!head_sent_) return Respond(serial, std::move(response));
    Send(serial, last_piece);
    End(serial);
  }
  // The service has dropped the exchange.
  void Abandon(uint64_t serial, const std::string& path) {
    if (!Current(serial)) return;
    if (!head_sent_) return Answer(host_.service().Error(500, "the request was dropped without an answer", path));
    Close();  // a stream without its end is cut, so that nobody takes it for whole
  }

 private:
  class Exchange;
  enum class State { kHead, kBody, kBusy, kLinger, kClosed };

  static std::chrono::steady_clock::time_point Now() { return std::chrono::steady_clock::now(); }
  bool Current(uint64_t serial) const { return state_ == State::kBusy && serial == serial_ && !complete_; }
  void SetTimer(absl::Duration after);
  void OnTimer();
  void SetWaiting(bool waiting) {
    if (std::exchange(waiting_, waiting) != waiting) host_.OnWaiting(this, waiting);
  }

  // Reading: one read is always under way, and its bytes go where the state says.
  template <typename Handler>
  void ReadSome(Handler handler) {
    if (tls_) return tls_->async_read_some(asio::buffer(read_), std::move(handler));
    socket_.async_read_some(asio::buffer(read_), std::move(handler));
  }
  void Read();
  void OnRead(const error_code& error, size_t bytes);
  void OnBytes(std::string_view bytes);
  void WaitForRequest(absl::Duration timeout);
  void TryHead();
  void OnHead(RequestHead head, size_t head_bytes);
  void OnBodyBytes(std::string_view bytes);
  void OnRequest();
  void ReleaseBody() { host_.ReturnBodyBytes(std::exchange(body_bytes_, 0)); }
  void RefuseRequest(int status, const std::string& message) {
    keep_alive_ = false;
    ReleaseBody();
    Answer(host_.service().Error(status, message, request_.path));
  }

  // Writing.
  // Puts `bytes` behind those that wait. Write writes them all.
  void Queue(std::string_view bytes) {
    unsent_ += short_way_.Close();
    unsent_ += bytes;
  }
  void OpenShortWay();
  void Answer(HttpResponse response);
  void AddHeaders(HttpResponse* response) const {
    response->headers.insert(response->headers.end(), answer_headers_.begin(), answer_headers_.end());
  }
  void QueueHeadOfStream();
  void SendPiece(std::string_view piece);
  void Complete();
  template <typename Handler>
  void WriteSome(std::string_view bytes, Handler handler) {
    if (tls_) return tls_->async_write_some(asio::buffer(bytes.data(), bytes.size()), std::move(handler));
    socket_.async_write_some(asio::buffer(bytes.data(), bytes.size()), std::move(handler));
  }
  void Write();  // unless a write is under way
  void WatchWrites(std::chrono::nanoseconds after);
  void OnWritten(const error_code& error, size_t bytes);
  void OnAllWritten();
  void Linger();
  void LeaveExchange();

  asio::ip::tcp::socket socket_;
  const std::shared_ptr<asio::ssl::context> tls_context_;         // null: HTTP
  std::optional<asio::ssl::stream<asio::ip::tcp::socket&>> tls_;  // around socket_
  asio::steady_timer timer_, write_timer_;
  HttpConnectionHost& host_;
  State state_ = State::kHead;
  bool waiting_ = false;
  std::array<char, kReadBytes> read_;

  std::string input_;  // what has come of a head that has not ended, or of a body and is not decoded
  HttpRequest request_;
  std::vector<HttpHeader> answer_headers_;  // of its answer, whatever it is
  std::optional<http::request_parser<http::string_body>> parser_;
  size_t body_bytes_ = 0;  // counted with the host
  bool keep_alive_ = true;
  bool client_ended_ = false;            // its side of the connection
  Framing framing_ = Framing::kChunked;  // of a stream

  uint64_t serial_ = 0;  // of the request that is handled
  std::weak_ptr<Exchange> exchange_;
  std::optional<HttpResponse> stream_;  // its head
  bool head_sent_ = false, complete_ = false;
  std::string unsent_, writing_;
  size_t written_ = 0;  // of writing_
  bool write_running_ = false, write_watched_ = false;
  std::chrono::steady_clock::time_point write_started_;
  size_t lingered_bytes_ = 0;

  ShortWay short_way_;
};

// Hands every call to the network thread; knows whether the client has gone.
class Connection::Exchange final : public ferry::Exchange {
 public:
  Exchange(std::shared_ptr<Connection> connection, uint64_t serial, std::string path)
      : connection_(std::move(connection)), serial_(serial), path_(std::move(path)) {}
  ~Exchange() override {
    Post([serial = serial_, path = path_](Connection& connection) { connection.Abandon(serial, path); });
  }

  void Respond(HttpResponse response) override {
    Post([serial = serial_, response = std::move(response)](Connection& connection) mutable {
      connection.Respond(serial, std::move(response));
    });
  }
  void BeginStream(HttpResponse head) override {
    Post([serial = serial_, head = std::move(head)](Connection& connection) mutable {
      connection.BeginStream(serial, std::move(head));
    });
  }
  void Send(std::string piece) override { connection_->SendFromAnyThread(serial_, std::move(piece)); }
  void End() override {
    Post([serial = serial_](Connection& connection) { connection.End(serial); });
  }
  void Fail(HttpResponse response, std::string last_piece) override {
    Post([serial = serial_, response = std::move(response), piece = std::move(last_piece)](Connection& connection) mutable {
      connection.Fail(serial, std::move(response), piece);
    });
  }
  void OnGone(std::function<void()> gone) override {
    {
      const std::lock_guard lock(mutex_);
      if (!left_) {
        gone_ = std::move(gone);
        return;
      }
      if (!was_gone_) return;
    }
    gone();
  }

  // The connection has no further interest: the answer is complete, or the client gone.
  void Leave(bool gone) {
    std::function<void()> call;
    {
      const std::lock_guard lock(mutex_);
      if (std::exchange(left_, true)) return;
      was_gone_ = gone;
      call = std::move(gone_);
      gone_ = nullptr;
    }
    if (gone && call) call();
  }

 private:
  template <typename Call>
  void Post(Call call) {
    asio::post(connection_->executor(), [connection = connection_, call = std::move(call)]() mutable { call(*connection); });
  }

  const std::shared_ptr<Connection> connection_;
  const uint64_t serial_;
  const std::string path_;
  std::mutex mutex_;
  std::function<void()> gone_;
  bool left_ = false, was_gone_ = false;
};

void Connection::SetTimer(absl::Duration after) {
  timer_.expires_after(absl::ToChronoNanoseconds(after));
  timer_.async_wait([self = shared_from_this()](const error_code& error) {
    // A timer that was set again since has an expiry in the future.
    if (!error && self->timer_.expiry() <= std::chrono::steady_clock::now()) self->OnTimer();
  });
}

void Connection::OnTimer() {
  switch (state_) {
    case State::kHead:
      if (input_.empty()) return Close();
      return RefuseRequest(408, "the head of the request did not arrive in time");
    case State::kBody:
      return RefuseRequest(408, "the body of the request did not arrive in time");
    case State::kBusy: {
      if (!stream_ || complete_) return;
      const auto left = absl::ToChronoNanoseconds(host_.limits().heartbeat) - short_way_.SinceSent();
      if (left.count() <= 0) return SendPiece(kHeartbeat);
      return SetTimer(absl::FromChrono(left));
    }
    case State::kLinger:
      return Close();
    case State::kClosed:
      return;
  }
}

void Connection::Read() {
  ReadSome([self = shared_from_this()](const error_code& error, size_t bytes) { self->OnRead(error, bytes); });
}

void Connection::OnRead(const error_code& error, size_t bytes) {
  if (state_ == State::kClosed) return;
  const bool ended = error == asio::error::eof || error == asio::ssl::error::stream_truncated;
  if (ended && state_ == State::kBusy && complete_) {
    keep_alive_ = false;  // it has asked its last and still reads the answer
    client_ended_ = true;
    return;
  }
  if (error) return Close();  // a client that ends its side before the answer waits for none
  OnBytes({read_.data(), bytes});
  if (state_ != State::kClosed) Read();
}

void Connection::OnBytes(std::string_view bytes) {
  switch (state_) {
    case State::kHead:
      if (input_.empty() && serial_ > 0) SetTimer(host_.limits().head_timeout);
      input_ += bytes;
      return TryHead();
    case State::kBody:
      return OnBodyBytes(bytes);
    case State::kBusy:
      if (!complete_) {
        // A second request before the first was answered. What it says is dropped, and the connection ends behind the answer.
        keep_alive_ = false;
      } else if (!keep_alive_) {
        lingered_bytes_ += bytes.size();  // of a body that was refused; the answer is on its way
        if (lingered_bytes_ > kMaxLingerBytes) Close();
      } else if (input_.size() + bytes.size() <= host_.limits().max_head_bytes) {
        input_ += bytes;  // the client was quicker than our own news that everything is written
      } else {
        Close();
      }
      return;
    case State::kLinger:
      lingered_bytes_ += bytes.size();
      if (lingered_bytes_ > kMaxLingerBytes) Close();
      return;
    case State::kClosed:
      return;
  }
}

void Connection::WaitForRequest(absl::Duration timeout) {
  state_ = State::kHead;
  request_ = {};
  answer_headers_.clear();
  parser_.reset();
  SetWaiting(true);
  SetTimer(timeout);
}

void Connection::TryHead() {
  const size_t end = input_.find("\r\n\r\n");
  const size_t head_bytes = end == std::string::npos ? input_.size() : end + 4;
  if (head_bytes > host_.limits().max_head_bytes) {
    return RefuseRequest(431, absl::StrFormat("the head of the request has more than %d bytes", host_.limits().max_head_bytes));
  }
  if (end == std::string::npos) {
    // No empty line will come behind bytes that are no request.
    if (input_.find('\0') != std::string::npos) RefuseRequest(400, "the head of the request has a control character");
    return;
  }
  HeadError error;
  std::optional<RequestHead> head = ParseRequestHead(std::string_view(input_).substr(0, head_bytes), &error);
  if (!head) return RefuseRequest(error.status, error.message);
  OnHead(*std::move(head), head_bytes);
}

void Connection::OnHead(RequestHead head, size_t head_bytes) {
  const HttpLimits& limits = host_.limits();
  request_ = std::move(head.request);
  request_.id = RequestIdOf(request_);
  answer_headers_ = host_.service().AnswerHeaders(request_);
  answer_headers_.push_back({"x-request-id", request_.id});
  keep_alive_ = head.keep_alive && !host_.draining();
  framing_ = head.http_1_0 ? Framing::kUntilClose : Framing::kChunked;
  if (std::optional<HttpResponse> refused = host_.service().Refuse(request_)) {
    keep_alive_ = keep_alive_ && !head.chunked && head.content_length.value_or(0) == 0 && input_.size() == head_bytes;
    input_.clear();
    return Answer(*std::move(refused));
  }
  if (head.content_length.value_or(0) > limits.max_body_bytes) {
    return RefuseRequest(413, absl::StrFormat("the body of the request has %d bytes, at most %d are allowed",
                                              *head.content_length, limits.max_body_bytes));
  }
  const std::string bytes = std::exchange(input_, {});
  parser_.emplace();
  parser_->header_limit(static_cast<uint32_t>(limits.max_head_bytes));
  parser_->body_limit(limits.max_body_bytes);
  parser_->eager(true);
  error_code error;
  parser_->put(asio::buffer(bytes.data(), head_bytes), error);
  if (error && error != http::error::need_more) return RefuseRequest(400, "the head of the request cannot be read");
  state_ = State::kBody;
  SetTimer(limits.body_timeout);
  if (head.expects_continue && bytes.size() == head_bytes) {
    Queue(kContinue);
    Write();
  }
  OnBodyBytes(std::string_view(bytes).substr(head_bytes));
}

void Connection::OnBodyBytes(std::string_view bytes) {
  if (!host_.TakeBodyBytes(bytes.size())) return RefuseRequest(503, "the server receives too many large requests; try again");
  body_bytes_ += bytes.size();
  input_ += bytes;
  std::string_view rest = input_;
  while (!rest.empty() && !parser_->is_done()) {
    error_code error;
    rest.remove_prefix(parser_->put(asio::buffer(rest.data(), rest.size()), error));
    if (error == http::error::need_more) break;  // the rest of a chunk's line
    if (error == http::error::body_limit) {
      return RefuseRequest(413, absl::StrFormat("the body of the request has more than %d bytes", host_.limits().max_body_bytes));
    }
    if (error) return RefuseRequest(400, "the body of the request cannot be read: " + error.message());
  }
  input_.erase(0, input_.size() - rest.size());
  if (!parser_->is_done()) {
    if (input_.size() > kReadBytes) RefuseRequest(400, "a line of the request's body has no end");
    return;
  }
  if (!input_.empty()) {
    return RefuseRequest(400, "a second request came before the first was answered: pipelining is not supported");
  }
  OnRequest();
}

void Connection::OnRequest() {
  SetWaiting(false);  // until here it makes room for others when there are too many
  request_.body = std::move(parser_->get().body());
  parser_.reset();
  timer_.cancel();
  state_ = State::kBusy;
  ++serial_;
  stream_.reset();
  head_sent_ = complete_ = false;
  short_way_.Begin(serial_);
  auto exchange = std::make_shared<Exchange>(shared_from_this(), serial_, request_.path);
  exchange_ = exchange;
  HttpRequest request = std::move(request_);
  request_.path = request.path;  // for errors
  asio::post(host_.pool(), [self = shared_from_this(), request = std::move(request), exchange = std::move(exchange),
                            body_bytes = std::exchange(body_bytes_, 0)]() mutable {
    self->host_.service().Handle(std::move(request), std::move(exchange));
    asio::post(self->executor(), [self, body_bytes] { self->host_.ReturnBodyBytes(body_bytes); });
  });
}

void Connection::Answer(HttpResponse response) {
  if (state_ == State::kClosed || state_ == State::kLinger) return;
  SetWaiting(false);
  state_ = State::kBusy;
  timer_.cancel();
  if (host_.draining()) keep_alive_ = false;
  head_sent_ = true;
  AddHeaders(&response);
  Queue(HeadText(response, Framing::kLength, keep_alive_));
  Queue(response.body);
  Complete();
}

void Connection::QueueHeadOfStream() {
  if (std::exchange(head_sent_, true)) return;
  if (framing_ == Framing::kUntilClose || host_.draining()) keep_alive_ = false;
  AddHeaders(&*stream_);
  Queue(HeadText(*stream_, framing_, keep_alive_));
}

void Connection::SendFromAnyThread(uint64_t serial, std::string piece) {
  switch (short_way_.Send(serial, piece)) {
    case ShortWay::Went::kWhole:
      return;
    case ShortWay::Went::kPart:
      return asio::post(executor(), [self = shared_from_this()] {
        if (self->state_ == State::kClosed) return;
        self->Queue({});
        self->Write();
      });
    case ShortWay::Went::kNot:
      return asio::post(executor(), [self = shared_from_this(), serial, piece = std::move(piece)] {
        self->short_way_.Arrived(serial);
        self->Send(serial, piece);
      });
  }
}

void Connection::OpenShortWay() {
  if (tls_ || state_ != State::kBusy || !stream_ || !head_sent_ || complete_) return;
  short_way_.Open(socket_.native_handle(), framing_);
}

void Connection::SendPiece(std::string_view piece) {
  QueueHeadOfStream();
  Queue(FramedPiece(piece, framing_));
  if (unsent_.size() > host_.limits().max_unsent_bytes) {
    spdlog::warn("a client reads its stream too slowly: it is cut off with {} bytes unsent", unsent_.size());
    return Close();
  }
  const bool heartbeat = short_way_.SinceSent() >= absl::ToChronoNanoseconds(host_.limits().heartbeat);
  short_way_.NoteSent();
  if (heartbeat) SetTimer(host_.limits().heartbeat);
  Write();
}

void Connection::Complete() {
  complete_ = true;
  timer_.cancel();
  if (const std::shared_ptr<Exchange> exchange = exchange_.lock()) exchange->Leave(/*gone=*/false);
  Write();
  if (!write_running_ && state_ == State::kBusy) OnAllWritten();
}

void Connection::Write() {
  if (write_running_) return;
  if (written_ == writing_.size()) {
    writing_.clear();
    std::swap(writing_, unsent_);
    written_ = 0;
  }
  if (writing_.empty()) return;
  write_running_ = true;
  write_started_ = Now();
  if (!write_watched_) WatchWrites(absl::ToChronoNanoseconds(host_.limits().write_timeout));
  WriteSome(std::string_view(writing_).substr(written_),
            [self = shared_from_this()](const error_code& error, size_t bytes) { self->OnWritten(error, bytes); });
}

// One timer for many writes: a token's write takes less time than the setting of a timer.
void Connection::WatchWrites(std::chrono::nanoseconds after) {
  write_watched_ = true;
  write_timer_.expires_after(after);
  write_timer_.async_wait([self = shared_from_this()](const error_code& error) {
    self->write_watched_ = false;
    if (error || self->state_ == State::kClosed || !self->write_running_) return;
    const auto left = self->write_started_ + absl::ToChronoNanoseconds(self->host_.limits().write_timeout) - Now();
    if (left.count() <= 0) return self->Close();
    self->WatchWrites(left);
  });
}

void Connection::OnWritten(const error_code& error, size_t bytes) {
  write_running_ = false;
  if (state_ == State::kClosed) return;
  if (error) return Close();
  written_ += bytes;
  if (written_ < writing_.size() || !unsent_.empty()) return Write();
  if (state_ == State::kBusy && complete_) return OnAllWritten();
  OpenShortWay();
}

void Connection::OnAllWritten() {
  if (!keep_alive_ || host_.draining()) return Linger();
  complete_ = head_sent_ = false;
  stream_.reset();
  ++serial_;  // the exchange that was answered is over
  WaitForRequest(host_.limits().idle_timeout);
  if (!input_.empty()) {
    SetTimer(host_.limits().head_timeout);
    TryHead();
  }
}

void Connection::Linger() {
  if (client_ended_) return Close();
  // A close with bytes unread would be a reset, which may overtake the answer.
  state_ = State::kLinger;
  SetWaiting(true);  // it makes room for others as well
  SetTimer(host_.limits().linger);
  if (tls_) {
    // Says that the answer ends here; the client's own word may never come, which the timer ends.
    tls_->async_shutdown([self = shared_from_this()](const error_code&) { self->Close(); });
    return;
  }
  error_code ignored;
  socket_.shutdown(asio::ip::tcp::socket::shutdown_send, ignored);
}

void Connection::LeaveExchange() {
  if (const std::shared_ptr<Exchange> exchange = exchange_.lock()) exchange->Leave(/*gone=*/!complete_);
}

}  // namespace

std::shared_ptr<HttpConnection> HttpConnection::Create(asio::ip::tcp::socket socket, std::shared_ptr<asio::ssl::context> tls,
                                                       HttpConnectionHost* host) {
  return std::make_shared<Connection>(std::move(socket), std::move(tls), host);
}

}  // namespace ferry
