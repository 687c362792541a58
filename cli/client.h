#pragma once

// A connection to a coordinator, which may still be loading.

#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cli/gateway_process.h"
#include "cli/model_options.h"
#include "cli/supervisor.h"
#include "ferry/v1/generate.grpc.pb.h"

namespace ferry {

namespace proto = ::ferry::v1;

class Client {
 public:
  // `server` empty: starts an own server for `options`. Waits until the model is served, with progress on standard error
  // when it is a terminal. Errors: the server's, or Unavailable when no server answers at `server`.
  static absl::StatusOr<std::unique_ptr<Client>> Connect(const std::string& server, const ModelOptions& options);
  // The same for an own server that speaks HTTP, too.
  static absl::StatusOr<std::unique_ptr<Client>> StartWithHttp(const ModelOptions& options, const GatewayProcess& gateway);
  // Ends an own server; an error: it did not complete what it was asked to write. The destructor does the same without a word.
  absl::Status Close();
  // Connects to a running server in any state, without waiting for it to serve.
  static absl::StatusOr<std::unique_ptr<Client>> Attach(const std::string& server);
  ~Client();

  // Calls `on_message` for each message; false from it cancels the call. Returns the last message's Finish.
  absl::StatusOr<proto::Finish> Generate(const proto::GenerateRequest& request,
                                         const std::function<bool(const proto::GenerateResponse&)>& on_message);
  absl::StatusOr<std::vector<uint32_t>> Tokenize(const proto::TokenizeRequest& request);
  absl::StatusOr<proto::GetModelInfoResponse> ModelInfo();
  // Of an own server: why it has ended; OK while it runs.
  absl::Status Health() { return supervisor_ == nullptr ? absl::OkStatus() : supervisor_->Health(); }
  absl::StatusOr<proto::GetServerInfoResponse> ServerInfo(absl::Duration timeout = absl::Seconds(10));
  // Of the coordinator: "127.0.0.1:8090".
  const std::string& address() const { return address_; }
  // Makes a running Generate return Cancelled; callable from a signal-handling thread.
  void Cancel();

 private:
  Client() = default;
  static absl::StatusOr<std::unique_ptr<Client>> Of(std::unique_ptr<Supervisor> supervisor, const std::string& address);
  absl::Status WaitUntilServed();
  void AddKey(grpc::ClientContext* context) const;

  std::unique_ptr<Supervisor> supervisor_;  // of an own server
  std::string address_;
  std::string key_;  // with which every call is made; empty: none
  std::unique_ptr<proto::Ferry::Stub> stub_;
  std::mutex mutex_;
  grpc::ClientContext* running_ = nullptr;  // guarded by mutex_
};

// "1.5 GiB", "12.4 GB/s": sizes in powers of 1024, rates in powers of 1000.
std::string HumanBytes(double bytes);
std::string HumanRate(double bytes_per_second);
// One line: experts resident, shipped, on the host, bytes and waits.
std::string DescribeExperts(const proto::ExpertCounters& experts);

}  // namespace ferry
