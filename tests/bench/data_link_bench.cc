// Which share of a plain socket's rate hidden states reach on a data connection, between two network namespaces of this machine
// with a core each.
//
//   data_link_bench [--rows 1,64,512,4096] [--embd 2880] [--turns 21] [--mbit N]
//
// plain   send() and recv() of the same bytes, without TLS
// tls     the same on a data connection (common/tls/data_connection.h)
// link    what a stage uses on one (worker/stage_link_tcp.h): it copies the rows into the link's buffers first
// grpc    a message of a gRPC stream, without TLS: what steps and experts between hosts would take
// mtls    the same with the certificates of a cluster at both ends, as they have them
//
// Each ends with a word back. They take turns; a share is the median over the turns of the plain socket's seconds by the
// other's. Beside it, the processor time of both ends, which other programs disturb less. --mbit bounds the cable. Needs root,
// for the namespaces, and `ip` and `tc`.

#include <arpa/inet.h>
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/time/clock.h"
#include "common/deadline.h"
#include "common/rpc/node_identity.h"
#include "common/temporary_folder.h"
#include "common/tls/data_connection.h"
#include "common/unique_fd.h"
#include "tests/testing/soon.h"
#include "tests/worker/send_rows.h"
#include "worker/stage_link_tcp.h"

namespace ferry {
namespace {

struct Options {
  std::vector<int64_t> rows = {1, 64, 512, 4096};
  int64_t n_embd = 2880;
  int turns = 21;
  int mbit = 0;  // 0: no bound
};

constexpr char kFar[] = "192.0.2.2";  // the near end has .1

absl::Status System(const std::string& command) {
  return std::system(command.c_str()) == 0 ? absl::OkStatus() : Internal("this failed: %s", command);
}

// The calling thread, and those that it starts, get a network of their own and one core.
absl::Status BecomeHost(int core) {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  CPU_SET(core, &cores);
  if (::sched_setaffinity(0, sizeof(cores), &cores) != 0) return absl::ErrnoToStatus(errno, "this needs two cores");
  return ::unshare(CLONE_NEWNET) == 0 ? absl::OkStatus() : absl::ErrnoToStatus(errno, "a network namespace cannot be made");
}

// One way for messages: what either end does for one of `rows`.
struct Way {
  std::string name;
  std::function<absl::Status(std::span<const float>)> send;  // and waits for the word back
  std::function<absl::Status(std::span<float>)> take;        // and sends it
  std::vector<double> seconds = {}, processor_seconds = {};
};

absl::Status SendAll(int socket, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(socket, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent <= 0) return absl::ErrnoToStatus(errno, "send");
    bytes = bytes.subspan(sent);
  }
  return absl::OkStatus();
}
absl::Status ReceiveAll(int socket, std::span<std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t came = ::recv(socket, bytes.data(), bytes.size(), 0);
    if (came <= 0) return absl::ErrnoToStatus(errno, "recv");
    bytes = bytes.subspan(came);
  }
  return absl::OkStatus();
}

struct Sockets {
  UniqueFd listening, near, far;
};

sockaddr_in FarAddress() {
  sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(9), .sin_addr = {}, .sin_zero = {}};
  ::inet_pton(AF_INET, kFar, &address.sin_addr);
  return address;
}

// Of the far thread: runs what the near one gives it, in its own network.
class FarThread {
 public:
  FarThread() : thread_([this] { Run(); }) {}
  ~FarThread() {
    Post([this] { stop_ = true; });
    thread_.join();
  }
  std::future<absl::Status> Do(std::function<absl::Status()> job) {
    auto task = std::make_shared<std::packaged_task<absl::Status()>>(std::move(job));
    std::future<absl::Status> result = task->get_future();
    Post([task] { (*task)(); });
    return result;
  }

 private:
  void Post(std::function<void()> job) {
    const std::lock_guard lock(mutex_);
    jobs_.push_back(std::move(job));
    changed_.notify_all();
  }
  void Run() {
    while (!stop_) {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return !jobs_.empty(); });
      const std::function<void()> job = std::move(jobs_.front());
      jobs_.erase(jobs_.begin());
      lock.unlock();
      job();
    }
  }

  bool stop_ = false;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::function<void()>> jobs_;
  std::thread thread_;
};

absl::Status JoinNetworks(FarThread& far, const Options& options) {
  RETURN_IF_ERROR(BecomeHost(0));
  pid_t far_id = 0;
  RETURN_IF_ERROR(far.Do([&] {
                       far_id = ::gettid();
                       return BecomeHost(1);
                     })
                      .get());
  RETURN_IF_ERROR(System("ip link add near type veth peer name far netns " + std::to_string(far_id)));
  RETURN_IF_ERROR(far.Do([&] { return System("ip addr add 192.0.2.2/24 dev far && ip link set far up"); }).get());
  RETURN_IF_ERROR(System("ip addr add 192.0.2.1/24 dev near && ip link set near up"));
  if (options.mbit == 0) return absl::OkStatus();
  return System(absl::StrFormat("tc qdisc add dev near root tbf rate %dmbit burst 2mb latency 20ms", options.mbit));
}

absl::StatusOr<Sockets> PlainSockets(FarThread& far) {
  Sockets sockets;
  const sockaddr_in address = FarAddress();
  RETURN_IF_ERROR(far.Do([&] {
                       sockets.listening = UniqueFd(::socket(AF_INET, SOCK_STREAM, 0));
                       const bool listens =
                           ::bind(sockets.listening.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0 &&
                           ::listen(sockets.listening.get(), 1) == 0;
                       return listens ? absl::OkStatus() : absl::ErrnoToStatus(errno, "listen");
                     })
                      .get());
  sockets.near = UniqueFd(::socket(AF_INET, SOCK_STREAM, 0));
  if (::connect(sockets.near.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return absl::ErrnoToStatus(errno, "connect");
  }
  sockets.far = UniqueFd(::accept(sockets.listening.get(), nullptr, nullptr));
  const int on = 1;
  for (const UniqueFd* const end : {&sockets.near, &sockets.far}) {
    ::setsockopt(end->get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  }
  return sockets;
}

struct DataEnds {
  std::unique_ptr<DataConnection> near, far;
};

// With certificates of a cluster that is made for it.
absl::StatusOr<DataEnds> DataConnections(FarThread& far, const std::string& folder) {
  std::unique_ptr<DataListener> listener;
  DataEnds ends;
  const DataIdentity identity = {.folder = folder, .peer = NodeRole::kCoordinator};
  RETURN_IF_ERROR(far.Do([&]() -> absl::Status {
                       ASSIGN_OR_RETURN(listener, DataListener::Listen({.host = kFar, .port = 0}, identity));
                       return absl::OkStatus();
                     })
                      .get());
  std::future<absl::Status> accepted = far.Do([&]() -> absl::Status {
    ASSIGN_OR_RETURN(ends.far, listener->Accept(Soon(), absl::Seconds(10)));
    if (ends.far == nullptr) return DeadlineExceeded("nobody has connected");
    return absl::OkStatus();
  });
  ASSIGN_OR_RETURN(ends.near, DataConnection::Connect(listener->address(), identity, Soon()));
  RETURN_IF_ERROR(accepted.get());
  return ends;
}

// A stream of gRPC between the two, driven by the thread that uses its end.
class GrpcStream {
 public:
  // Without `identity` in clear.
  static absl::StatusOr<std::unique_ptr<GrpcStream>> Open(FarThread& far, const NodeIdentity* identity) {
    std::unique_ptr<GrpcStream> stream(new GrpcStream);
    std::future<absl::Status> served = far.Do([raw = stream.get(), identity] { return raw->Serve(identity); });
    RETURN_IF_ERROR(served.get());
    std::future<absl::Status> accepted = far.Do([raw = stream.get()] {
      raw->service_.RequestCall(&raw->server_context_, &raw->far_, raw->far_queue_, raw->far_queue_, nullptr);
      return raw->AwaitFar();
    });
    RETURN_IF_ERROR(stream->Call(identity));
    RETURN_IF_ERROR(accepted.get());
    return stream;
  }
  ~GrpcStream() {
    client_context_.TryCancel();
    server_->Shutdown(std::chrono::system_clock::now());
    for (grpc::CompletionQueue* const queue :
         {static_cast<grpc::CompletionQueue*>(&near_queue_), static_cast<grpc::CompletionQueue*>(far_queue_)}) {
      queue->Shutdown();
      void* tag = nullptr;
      for (bool ok = false; queue->Next(&tag, &ok);) continue;
    }
  }

  absl::Status Send(std::span<const std::byte> bytes) {  // the near end
    const grpc::Slice slice(bytes.data(), bytes.size());
    near_->Write(grpc::ByteBuffer(&slice, 1), nullptr);
    RETURN_IF_ERROR(Await(near_queue_));
    grpc::ByteBuffer word;
    near_->Read(&word, nullptr);
    return Await(near_queue_);
  }
  absl::Status Take(std::span<std::byte> bytes) {  // the far end
    grpc::ByteBuffer message;
    far_.Read(&message, nullptr);
    RETURN_IF_ERROR(AwaitFar());
    std::vector<grpc::Slice> slices;
    if (!message.Dump(&slices).ok() || message.Length() != bytes.size()) return Internal("another message came");
    for (const grpc::Slice& slice : slices) {
      std::memcpy(bytes.data(), slice.begin(), slice.size());
      bytes = bytes.subspan(slice.size());
    }
    const grpc::Slice word("w", 1);
    far_.Write(grpc::ByteBuffer(&word, 1), nullptr);
    return AwaitFar();
  }

 private:
  GrpcStream() = default;
  static absl::Status Await(grpc::CompletionQueue& queue) {
    void* tag = nullptr;
    bool ok = false;
    const auto end = std::chrono::system_clock::now() + std::chrono::seconds(60);
    if (queue.AsyncNext(&tag, &ok, end) != grpc::CompletionQueue::GOT_EVENT || !ok) return Unavailable("the gRPC stream ended");
    return absl::OkStatus();
  }
  absl::Status AwaitFar() { return Await(*far_queue_); }

  absl::Status Serve(const NodeIdentity* identity) {
    grpc::ServerBuilder builder;
    builder.SetMaxReceiveMessageSize(-1);
    builder.AddListeningPort(std::string(kFar) + ":0", identity ? identity->ForServer(false) : grpc::InsecureServerCredentials(),
                             &port_);
    builder.RegisterAsyncGenericService(&service_);
    far_queue_owner_ = builder.AddCompletionQueue();
    far_queue_ = far_queue_owner_.get();
    server_ = builder.BuildAndStart();
    return server_ && port_ != 0 ? absl::OkStatus() : Internal("gRPC does not listen");
  }
  absl::Status Call(const NodeIdentity* identity) {
    const std::string address = absl::StrCat(kFar, ":", port_);
    const std::shared_ptr<grpc::Channel> channel =
        identity ? ConnectNode(address, NodeRole::kCoordinator, identity, grpc::ChannelArguments())
                 : grpc::CreateChannel(address, grpc::InsecureChannelCredentials());
    stub_ = std::make_unique<grpc::GenericStub>(channel);
    client_context_.set_wait_for_ready(true);
    near_ = stub_->PrepareCall(&client_context_, "/bench/Rows", &near_queue_);
    near_->StartCall(nullptr);
    return Await(near_queue_);
  }

  int port_ = 0;
  grpc::AsyncGenericService service_;
  std::unique_ptr<grpc::ServerCompletionQueue> far_queue_owner_;
  grpc::ServerCompletionQueue* far_queue_ = nullptr;
  std::unique_ptr<grpc::Server> server_;
  grpc::GenericServerContext server_context_;
  grpc::GenericServerAsyncReaderWriter far_{&server_context_};
  grpc::CompletionQueue near_queue_;
  grpc::ClientContext client_context_;
  std::unique_ptr<grpc::GenericStub> stub_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> near_;
};
Way OverGrpc(const char* name, GrpcStream* stream) {
  return {.name = name,
          .send = [stream](std::span<const float> rows) { return stream->Send(std::as_bytes(rows)); },
          .take = [stream](std::span<float> rows) { return stream->Take(std::as_writable_bytes(rows)); }};
}

// Of all threads of this process, the system's work for them among it.
double ProcessorSeconds() {
  timespec used = {};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
  return static_cast<double>(used.tv_sec) + 1e-9 * static_cast<double>(used.tv_nsec);
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}
double MedianShare(const std::vector<double>& plain, const std::vector<double>& other) {
  std::vector<double> shares;
  for (size_t i = 0; i < plain.size(); ++i) shares.push_back(plain[i] / other[i]);
  return Median(shares);
}

absl::Status Measure(std::vector<Way>& ways, FarThread& far, int64_t rows, const Options& options) {
  std::vector<float> sent(rows * options.n_embd, 1.5f), came(sent.size());
  for (Way& way : ways) way.seconds = way.processor_seconds = {};
  for (int turn = -2; turn < options.turns; ++turn) {  // two warm up
    for (size_t i = 0; i < ways.size(); ++i) {
      Way& way = ways[(i + turn + 2) % ways.size()];
      std::future<absl::Status> taken = far.Do([&] { return way.take(came); });
      const Stopwatch watch;
      const double used = ProcessorSeconds();
      RETURN_IF_ERROR(way.send(sent));
      const double seconds = watch.Seconds();
      RETURN_IF_ERROR(taken.get());
      if (turn < 0) continue;
      way.seconds.push_back(seconds);
      way.processor_seconds.push_back(ProcessorSeconds() - used);
    }
    if (came != sent) return Internal("other rows came");
    std::fill(came.begin(), came.end(), 0.0f);
  }
  const double megabytes = static_cast<double>(sent.size() * sizeof(float)) / 1e6;
  std::printf("%6ld rows, %8.3f MB:", static_cast<long>(rows), megabytes);
  for (const Way& way : ways) {
    const double seconds = Median(way.seconds);
    std::printf("  %s %9.1f us, %6.0f MB/s, %3.0f %%, processors %9.1f us", way.name.c_str(), seconds * 1e6, megabytes / seconds,
                100 * MedianShare(ways[0].seconds, way.seconds), Median(way.processor_seconds) * 1e6);
  }
  std::printf("\n");
  return absl::OkStatus();
}

absl::Status Run(const Options& options) {
  FarThread far;
  RETURN_IF_ERROR(JoinNetworks(far, options));
  ASSIGN_OR_RETURN(const std::unique_ptr<TemporaryFolder> folder, TemporaryFolder::Create());
  const std::string certificates = (folder->path() / "certificates").string();
  RETURN_IF_ERROR(MakeClusterCa(certificates));

  ASSIGN_OR_RETURN(const Sockets sockets, PlainSockets(far));
  ASSIGN_OR_RETURN(const DataEnds data, DataConnections(far, certificates));
  ASSIGN_OR_RETURN(DataEnds of_link, DataConnections(far, certificates));
  const TcpLinkOptions link = {.ops = nullptr,
                               .n_embd = options.n_embd,
                               .max_rows = *std::max_element(options.rows.begin(), options.rows.end()),
                               .epoch = 1};
  ASSIGN_OR_RETURN(const std::unique_ptr<ActivationSink> sink, MakeTcpSink(std::move(of_link.near), link));
  std::unique_ptr<ActivationSource> source;
  RETURN_IF_ERROR(far.Do([&]() -> absl::Status {
                       ASSIGN_OR_RETURN(source, MakeTcpSource(std::move(of_link.far), link));
                       return absl::OkStatus();
                     })
                      .get());
  const auto word = [](std::byte& byte) { return std::span(&byte, 1); };
  std::byte near_word{}, far_word{};
  ASSIGN_OR_RETURN(const std::unique_ptr<NodeIdentity> identity, NodeIdentity::Open(certificates));
  ASSIGN_OR_RETURN(const std::unique_ptr<GrpcStream> in_clear, GrpcStream::Open(far, nullptr));
  ASSIGN_OR_RETURN(const std::unique_ptr<GrpcStream> encrypted, GrpcStream::Open(far, identity.get()));
  std::vector<Way> ways(3);
  ways[0] = {.name = "plain",
             .send = [&](std::span<const float> rows) -> absl::Status {
               RETURN_IF_ERROR(SendAll(sockets.near.get(), std::as_bytes(rows)));
               return ReceiveAll(sockets.near.get(), word(near_word));
             },
             .take = [&](std::span<float> rows) -> absl::Status {
               RETURN_IF_ERROR(ReceiveAll(sockets.far.get(), std::as_writable_bytes(rows)));
               return SendAll(sockets.far.get(), word(far_word));
             }};
  ways[1] = {.name = "tls",
             .send = [&](std::span<const float> rows) -> absl::Status {
               RETURN_IF_ERROR(data.near->Send(std::as_bytes(rows), Soon()));
               return data.near->Receive(word(near_word), Soon());
             },
             .take = [&](std::span<float> rows) -> absl::Status {
               RETURN_IF_ERROR(data.far->Receive(std::as_writable_bytes(rows), Soon()));
               return data.far->Send(word(far_word), Soon());
             }};
  ways[2] = {.name = "link",
             .send = [&](std::span<const float> rows) -> absl::Status {
               RETURN_IF_ERROR(SendRows(*sink, /*step=*/0, rows, options.n_embd, Soon()));
               return sink->AwaitDropped(Soon());
             },
             .take = [&](std::span<float> rows) -> absl::Status {
               for (size_t taken = 0; taken < rows.size();) {
                 ASSIGN_OR_RETURN(const ActivationChunk chunk,
                                  source->Next(/*step=*/0, static_cast<int64_t>(taken) / options.n_embd, Soon()));
                 std::copy(chunk.values.begin(), chunk.values.end(), rows.begin() + static_cast<std::ptrdiff_t>(taken));
                 taken += chunk.values.size();
               }
               return source->Confirm(Soon());
             }};
  ways.push_back(OverGrpc("grpc", in_clear.get()));
  ways.push_back(OverGrpc("mtls", encrypted.get()));
  for (const int64_t rows : options.rows) RETURN_IF_ERROR(Measure(ways, far, rows, options));
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  signal(SIGPIPE, SIG_IGN);
  Options options;
  CLI::App app("Hidden states on a data connection against a plain socket");
  app.add_option("--rows", options.rows, "rows of a message")->delimiter(',')->check(CLI::PositiveNumber);
  app.add_option("--embd", options.n_embd, "floats of a row")->check(CLI::PositiveNumber);
  app.add_option("--turns", options.turns, "messages of each size and way")->check(CLI::PositiveNumber);
  app.add_option("--mbit", options.mbit, "bound of the cable, Mbit/s")->check(CLI::PositiveNumber);
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = Run(options);
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}

}  // namespace
}  // namespace ferry

int main(int argc, char** argv) { return ferry::Main(argc, argv); }
