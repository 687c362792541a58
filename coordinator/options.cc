#include "coordinator/options.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <utility>

#include "absl/strings/match.h"
#include "common/byte_size.h"
#include "common/listen_address.h"
#include "common/status.h"

namespace ferry {
namespace {

template <size_t kCount>
absl::Status CheckOneOf(const char* flag, const std::string& value, const std::array<const char*, kCount>& allowed) {
  std::string names;
  for (const char* name : allowed) {
    if (value == name) return absl::OkStatus();
    absl::StrAppendFormat(&names, "%s%s", names.empty() ? "" : ", ", name);
  }
  return InvalidArgument("%s is '%s', want one of %s", flag, value, names);
}

absl::Status CheckPositive(const char* flag, absl::Duration value) {
  if (value > absl::ZeroDuration()) return absl::OkStatus();
  return InvalidArgument("%s is %.3f s, want more than 0", flag, absl::ToDoubleSeconds(value));
}

}  // namespace

absl::StatusOr<DType> ParseKvType(const std::string& flag, const std::string& name) {
  if (absl::EqualsIgnoreCase(name, "f16")) return DType::kF16;
  if (absl::EqualsIgnoreCase(name, "q8_0")) return DType::kQ8_0;
  if (absl::EqualsIgnoreCase(name, "f32")) return DType::kF32;
  return InvalidArgument("%s is '%s', want f16, q8_0 or, for the reference kernels, f32", flag, name);
}

absl::StatusOr<int64_t> ParseCacheRam(const std::string& text) {
  if (absl::EqualsIgnoreCase(text, "auto")) return -1;
  const bool plain = !text.empty() && std::ranges::all_of(text, [](unsigned char c) { return std::isdigit(c) != 0; });
  return ParseByteSize(plain ? text + "MiB" : text);
}

absl::Status CheckOptions(const CoordinatorOptions& options) {
  if (options.model.empty()) return InvalidArgument("-m is missing: the GGUF file of the model");
  ASSIGN_OR_RETURN(const ListenAddress listen, ParseListenAddress(options.listen, 0));
  if (!listen.unix_path.empty()) return InvalidArgument("--listen is %s, want HOST or HOST:PORT", options.listen);
  if (options.tls_cert.empty() != options.tls_key.empty()) return InvalidArgument("--tls-cert and --tls-key go together");
  if (!listen.loopback && options.api_keys.empty() && !options.insecure) {
    return InvalidArgument(
        "others reach --listen %s: give --api-keys FILE (`ferry api-key` makes keys), or --insecure if everybody may use it",
        options.listen);
  }
  for (const auto& [flag, path] :
       {std::pair("--api-socket", &options.api_socket), {"--cluster-socket", &options.cluster_socket}}) {
    if (!path->empty()) RETURN_IF_ERROR(Annotate(ParseListenAddress("unix:" + *path, 0).status(), flag));
  }
  if (!options.cluster_listen.empty()) {
    const absl::StatusOr<ListenAddress> cluster = ParseListenAddress(options.cluster_listen, kClusterPort);
    RETURN_IF_ERROR(Annotate(cluster.status(), "--cluster-listen"));
    if (!cluster->unix_path.empty()) return InvalidArgument("--cluster-listen is a Unix socket, want HOST:PORT");
    if (options.cluster_certs.empty()) {
      return InvalidArgument("--cluster-listen needs --cluster-certs: workers of other hosts are known by certificates");
    }
  }
  if (options.placement.num_workers < 1) return InvalidArgument("--workers is %d, want 1 or more", options.placement.num_workers);
  if (options.threads < 0) return InvalidArgument("--threads is %d, want 0 or more", options.threads);
  RETURN_IF_ERROR(CheckOneOf<2>("--backend", options.backend, {"cpu", "reference"}));
  RETURN_IF_ERROR(CheckOneOf<3>("--divide-experts", options.divide_experts, {"auto", "even", "off"}));
  RETURN_IF_ERROR(CheckOneOf<3>("--share-links", options.share_links, {"auto", "even", "off"}));
  RETURN_IF_ERROR(CheckOneOf<4>("--expert-transport", options.expert_transport, {"auto", "shm", "tcp", "grpc"}));
  if (options.max_queued < 0) return InvalidArgument("--queue is %d, want 0 or more", options.max_queued);
  if (options.steps_in_flight < 0) return InvalidArgument("--steps-in-flight is %d, want 0 or more", options.steps_in_flight);
  RETURN_IF_ERROR(CheckPositive("--heartbeat-interval", options.heartbeat_interval));
  if (options.heartbeat_timeout < 2 * options.heartbeat_interval) {
    return InvalidArgument("--heartbeat-timeout is %.3f s, want at least twice the interval of %.3f s",
                           absl::ToDoubleSeconds(options.heartbeat_timeout), absl::ToDoubleSeconds(options.heartbeat_interval));
  }
  RETURN_IF_ERROR(CheckPositive("--step-timeout", options.step_timeout));
  RETURN_IF_ERROR(CheckPositive("--load-timeout", options.load_timeout));
  if (options.drain_timeout < absl::ZeroDuration()) return InvalidArgument("--drain-timeout is negative");
  return absl::OkStatus();
}

}  // namespace ferry
