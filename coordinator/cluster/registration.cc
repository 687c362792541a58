#include "coordinator/cluster/registration.h"

#include <algorithm>
#include <limits>

#include "common/escaped.h"
#include "common/listen_address.h"
#include "coordinator/text/utf8.h"

namespace ferry {
namespace {

// Control characters would let a worker write over the terminal on which `ferry status` shows it.
absl::Status CheckText(const char* field, const std::string& text) {
  if (text.size() > kMaxReportText)
    return InvalidArgument("%s has %d bytes, want at most %d", field, text.size(), kMaxReportText);
  if (!IsValidUtf8(text)) return InvalidArgument("%s is not UTF-8", field);
  if (const std::string escaped = Escaped(text, kMaxReportText); escaped != text) {
    return InvalidArgument("%s is no printable text: '%s'", field, escaped);
  }
  return absl::OkStatus();
}

absl::Status CheckRate(const char* field, double value, double most) {
  if (value >= 0 && value <= most) return absl::OkStatus();  // NaN fails
  return InvalidArgument("%s is %g, want 0 to %g", field, value, most);
}

constexpr double kMaxLinkRate = 1e15;  // a petabyte a second: far above any link, and no sum of such overflows

constexpr double kMaxWorkerRate = 1e18;  // likewise, of operations
constexpr double kMaxOperationSeconds = 60;
constexpr int kMaxHiddenStatesTimes = 16;

absl::Status CheckHiddenStates(const v1::HiddenStatesLink& link) {
  RETURN_IF_ERROR(CheckText("hidden_states.way", link.way()));
  RETURN_IF_ERROR(CheckText("hidden_states.why", link.why()));
  if (link.times_size() > kMaxHiddenStatesTimes) {
    return InvalidArgument("hidden_states.times has %d sizes, want at most %d", link.times_size(), kMaxHiddenStatesTimes);
  }
  for (const v1::HiddenStatesTime& time : link.times()) {
    RETURN_IF_ERROR(CheckRate("hidden_states.times.shm_seconds", time.shm_seconds(), kMaxOperationSeconds));
    RETURN_IF_ERROR(CheckRate("hidden_states.times.nccl_seconds", time.nccl_seconds(), kMaxOperationSeconds));
  }
  return absl::OkStatus();
}

bool IsExpertTransport(const std::string& name) { return name == "shm" || name == "tcp" || name == "grpc"; }

}  // namespace

absl::StatusOr<Registration> CheckRegistration(const internal::v1::RegisterRequest& request, const RegistrationRules& rules) {
  if (request.model_fingerprint() != 0 && request.model_fingerprint() != rules.model_fingerprint) {
    return InvalidArgument("the worker holds another model (fingerprint %016x) than this cluster serves (%016x)",
                           request.model_fingerprint(), rules.model_fingerprint);
  }
  RETURN_IF_ERROR(CheckText("machine", request.machine()));
  RETURN_IF_ERROR(CheckText("address", request.address()));
  RETURN_IF_ERROR(CheckText("device", request.device()));
  RETURN_IF_ERROR(CheckRate("link_bytes_per_second", request.link_bytes_per_second(), kMaxLinkRate));
  if (request.address().empty()) return InvalidArgument("address is empty: where the worker listens");
  const absl::StatusOr<ListenAddress> address = ParseListenAddress(request.address(), 0);
  if (!address.ok()) return Annotate(address.status(), "address");
  if (address->unix_path.empty() && address->port == 0)
    return InvalidArgument("address is '%s', want HOST:PORT", request.address());
  if (address->any) {
    return InvalidArgument("address is %s, on which one can listen, but which leads nowhere: say one of the worker's own",
                           request.address());
  }
  const bool same_machine = request.machine() == rules.machine;
  if (!same_machine && address->loopback) {
    return InvalidArgument("address is %s, which only the worker's own host can reach: start it with --listen ADDRESS",
                           request.address());
  }
  std::string transport = request.expert_transport();
  if (transport.empty() || transport == "auto") transport = rules.expert_transport;
  if (transport == "auto") transport = same_machine ? "shm" : "tcp";
  if (!IsExpertTransport(transport)) {
    return InvalidArgument("expert_transport is '%s', want auto, shm, tcp or grpc", transport.substr(0, kMaxReportText));
  }
  if (transport == "shm" && !same_machine) {
    return InvalidArgument("expert_transport is shm, but the worker runs on another host than the coordinator");
  }
  Registration registration = {.info = {.incarnation = Incarnation(request.incarnation()),
                                        .machine = request.machine(),
                                        .address = request.address(),
                                        .loopback = address->loopback,
                                        .device = request.device(),
                                        .pid = request.pid()},
                               .wanted = std::nullopt,
                               .expert_transport = transport,
                               .link_bytes_per_second = request.link_bytes_per_second()};
  if (request.has_wanted_worker_id()) {
    // Beyond int32 becomes negative, which is no place either.
    registration.wanted = WorkerId(static_cast<int32_t>(request.wanted_worker_id()));
  }
  return registration;
}

absl::Status CheckHeartbeat(const internal::v1::HeartbeatRequest& request) {
  if (request.state() != "loading" && request.state() != "ready") {
    return InvalidArgument("state is '%s', want loading or ready", request.state().substr(0, kMaxReportText));
  }
  if (request.expert_slots() > static_cast<uint32_t>(std::numeric_limits<int32_t>::max())) {
    return InvalidArgument("expert_slots is %d, want at most %d", request.expert_slots(), std::numeric_limits<int32_t>::max());
  }
  RETURN_IF_ERROR(CheckRate("link_bytes_per_second", request.link_bytes_per_second(), kMaxLinkRate));
  RETURN_IF_ERROR(CheckRate("expert_flops_per_second", request.expert_flops_per_second(), kMaxWorkerRate));
  RETURN_IF_ERROR(CheckRate("expert_read_bytes_per_second", request.expert_read_bytes_per_second(), kMaxWorkerRate));
  RETURN_IF_ERROR(CheckRate("operation_seconds", request.operation_seconds(), kMaxOperationSeconds));
  RETURN_IF_ERROR(CheckRate("exchange_seconds", request.exchange_seconds(), kMaxOperationSeconds));
  RETURN_IF_ERROR(CheckRate("row_seconds", request.row_seconds(), kMaxOperationSeconds));
  RETURN_IF_ERROR(CheckHiddenStates(request.hidden_states()));
  if (!request.expert_transport().empty() && !IsExpertTransport(request.expert_transport())) {
    return InvalidArgument("expert_transport is '%s', want shm, tcp or grpc",
                           request.expert_transport().substr(0, kMaxReportText));
  }
  return CheckRate("load_progress", request.load_progress(), 1);
}

}  // namespace ferry
