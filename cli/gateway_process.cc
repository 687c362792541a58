#include "cli/gateway_process.h"

#include "common/listen_address.h"

namespace ferry {

absl::StatusOr<std::optional<GatewayProcess>> GatewayOf(const HttpOptions& http, const ModelOptions& model) {
  if (http.port == 0) return std::nullopt;
  ASSIGN_OR_RETURN(const ListenAddress listen, ParseListenAddress(http.listen, http.port));
  GatewayProcess gateway = {.arguments = {"--listen", listen.ToString(), "--drain-timeout", std::to_string(model.drain_seconds),
                                          "--log-level", model.log_level},
                            .required = http.given};
  if (!model.api_keys.empty()) gateway.arguments.insert(gateway.arguments.end(), {"--api-key-file", model.api_keys});
  if (!model.tls_cert.empty()) {
    gateway.arguments.insert(gateway.arguments.end(), {"--tls-cert", model.tls_cert, "--tls-key", model.tls_key});
  }
  for (const std::string& origin : http.origins) gateway.arguments.insert(gateway.arguments.end(), {"--cors", origin});
  if (!http.chat_template_file.empty()) {
    gateway.arguments.insert(gateway.arguments.end(), {"--chat-template-file", http.chat_template_file});
  }
  return gateway;
}

}  // namespace ferry
