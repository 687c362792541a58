// ferry-gateway: flags into one Options struct, then Gateway. Ends with 0 after a drain and with 2 when it cannot run as it was
// told.

#include <pthread.h>
#include <signal.h>
#include <time.h>

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "absl/time/clock.h"
#include "common/exit_codes.h"
#include "common/http_port.h"
#include "common/listen_address.h"
#include "common/log.h"
#include "common/tls/cluster_ca.h"
#include "gateway/access.h"
#include "gateway/gateway.h"

namespace ferry {
namespace {

struct Flags {
  GatewayOptions options;
  std::string port_file, key_file, template_file, log_level = "info";
  double drain_seconds = 30;
};

void AddFlags(CLI::App& app, Flags* flags) {
  app.add_option("--listen", flags->options.listen,
                 "HOST or HOST:PORT for HTTP; port 0: any free one; other than loopback must be said here")
      ->capture_default_str();
  app.add_option("--coordinator", flags->options.coordinator,
                 "HOST:PORT of the coordinator's API, or unix:PATH; with FERRY_TLS_CA, a PEM file, HOST:PORT is called over TLS")
      ->capture_default_str();
  app.add_option("--api-key-file", flags->key_file,
                 "file of the keys that requests need, one a line as common/access/api_keys.h has them; default: no keys");
  app.add_option("--cors", flags->options.origins,
                 "origin of pages that may use the routes from a browser, such as https://chat.example; * for all; may be "
                 "repeated; default: none");
  app.add_option("--tls-cert", flags->options.tls_certificate,
                 "PEM file of the certificate chain for HTTPS; a new one is in use within a minute; default: HTTP");
  app.add_option("--tls-key", flags->options.tls_key, "PEM file of its key");
  app.add_option("--chat-template-file", flags->template_file, "Jinja template of conversations, in place of the model file's");
  app.add_option("--port-file", flags->port_file, "write the port in use to this file");
  app.add_option("--drain-timeout", flags->drain_seconds, "seconds that running requests get after SIGTERM or SIGINT")
      ->capture_default_str();
  app.add_option("--log-level", flags->log_level, "trace, debug, info, warn, error, off")->capture_default_str();
}

// A reader that waits for the file sees all of it or none.
absl::Status WritePortFile(const std::string& path, int port) {
  const std::string temporary = path + ".new";
  std::ofstream(temporary) << port << '\n';
  std::error_code error;
  std::filesystem::rename(temporary, path, error);
  if (error) return FailedPrecondition("cannot write --port-file %s: %s", path, error.message());
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadTemplate(const std::string& path) {
  constexpr size_t kMaxBytes = size_t{1} << 20;
  std::ifstream file(path, std::ios::binary);
  if (!file) return NotFound("--chat-template-file %s cannot be read", path);
  std::string text(kMaxBytes + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(file.gcount()));
  if (text.empty() || text.size() > kMaxBytes) {
    return InvalidArgument("--chat-template-file %s is empty or has more than %d bytes", path, kMaxBytes);
  }
  return text;
}

int CannotRun(const absl::Status& status) {
  spdlog::error("{}", std::string(status.message()));
  return kExitCannotRun;
}

int Run(Flags flags) {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGTERM, SIGINT}) sigaddset(&signals, signal);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);  // before there are threads
  signal(SIGPIPE, SIG_IGN);

  const absl::StatusOr<ListenAddress> listen = ParseListenAddress(flags.options.listen, kHttpPort);
  if (!listen.ok()) return CannotRun(listen.status());
  flags.options.listen = listen->ToString();
  if (!flags.template_file.empty()) {
    absl::StatusOr<std::string> chat_template = ReadTemplate(flags.template_file);
    if (!chat_template.ok()) return CannotRun(chat_template.status());
    flags.options.chat_template = *std::move(chat_template);
  }
  if (flags.options.tls_certificate.empty() != flags.options.tls_key.empty()) {
    return CannotRun(InvalidArgument("--tls-cert and --tls-key go together"));
  }
  if (const char* const ca = std::getenv("FERRY_TLS_CA"); ca != nullptr && ca[0] != '\0') {
    absl::StatusOr<std::string> pem = ReadSmallFile(ca);
    if (!pem.ok()) return CannotRun(Annotate(pem.status(), "FERRY_TLS_CA"));
    flags.options.coordinator_ca = *std::move(pem);
  }
  if (!flags.key_file.empty()) {
    absl::StatusOr<std::unique_ptr<ApiKeys>> keys = ApiKeys::Load(flags.key_file);
    if (!keys.ok()) return CannotRun(Annotate(keys.status(), "--api-key-file"));
    const auto access = std::make_shared<KeyedAccess>(*std::move(keys), Clock::Real());
    flags.options.access = [access](const HttpRequest& request) { return access->Check(request); };
  }
  const absl::StatusOr<std::unique_ptr<Gateway>> gateway = Gateway::Start(flags.options);
  if (!gateway.ok()) return CannotRun(gateway.status());
  const bool encrypted = !flags.options.tls_certificate.empty();
  if (!listen->loopback && !encrypted) spdlog::warn("listening on {}: the connections are not encrypted", listen->host);
  if (!listen->loopback && flags.key_file.empty()) {
    spdlog::warn("listening on {} without --api-key-file: anybody who reaches it may use it, unless the coordinator wants keys",
                 listen->host);
  }
  if (!flags.port_file.empty()) {
    if (const absl::Status written = WritePortFile(flags.port_file, (*gateway)->port()); !written.ok()) return CannotRun(written);
  }
  spdlog::info("HTTP at {}://{}:{}/v1", encrypted ? "https" : "http", listen->any ? "127.0.0.1" : listen->host,
               (*gateway)->port());
  int got = 0;
  sigwait(&signals, &got);
  pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);  // a second one ends it at once
  (*gateway)->Drain(absl::Now() + absl::Seconds(flags.drain_seconds));
  return 0;
}

}  // namespace
}  // namespace ferry

int main(int argc, char** argv) {
  CLI::App app{
      "ferry-gateway: serves a Ferry coordinator over HTTP, as OpenAI's and llama.cpp's clients ask. Usually started by `ferry "
      "serve`."};
  ferry::Flags flags;
  ferry::AddFlags(app, &flags);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : ferry::kExitCannotRun;
  }
  ferry::InitLog("gateway", flags.log_level);
  return ferry::Run(flags);
}
