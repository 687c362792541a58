// ferry-gateway: flags into one Options struct, then Gateway. Ends with 0 after a drain and with 2 when it cannot run as it was
// told.

#include <pthread.h>
#include <signal.h>

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <optional>
#include <string>

#include "common/command_line.h"
#include "common/deadline.h"
#include "common/exit_codes.h"
#include "common/http_port.h"
#include "common/listen_address.h"
#include "common/log.h"
#include "common/output_file.h"
#include "common/program.h"
#include "common/small_file.h"
#include "common/thread_limit.h"
#include "common/tls/certificate_pair.h"
#include "gateway/access.h"
#include "gateway/gateway.h"

namespace ferry {
namespace {

struct Flags {
  GatewayOptions options;
  std::string port_file, key_file, template_file, log_level = "info";
  double drain_seconds = 30;
  bool force = false;
};

void AddFlags(CLI::App& app, Flags& flags) {
  constexpr double kLongestDrain = 86400;
  AddText(app, "--listen", flags.options.listen,
          "HOST or HOST:PORT for HTTP; port 0: any free one; other than loopback must be said here (default 127.0.0.1:8080)");
  AddText(
      app, "--coordinator", flags.options.coordinator,
      "HOST:PORT of the coordinator's API, or unix:PATH; with FERRY_TLS_CA, a PEM file, HOST:PORT is called over TLS (default "
      "127.0.0.1:8090)");
  AddText(app, "--api-key-file", flags.key_file,
          "file of the keys that requests need, one a line as `ferry api-key` writes them; default: no keys");
  AddTexts(
      app, "--cors", flags.options.origins,
      "origin of pages that may use the routes from a browser, such as https://chat.example; * for all; may be given several "
      "times; default: none");
  AddText(app, "--tls-cert", flags.options.tls_certificate,
          "PEM file of the certificate chain for HTTPS; a new one is in use within a minute; default: HTTP");
  AddText(app, "--tls-key", flags.options.tls_key, "PEM file of its key");
  AddText(app, "--chat-template-file", flags.template_file, "Jinja template of conversations, in place of the model file's");
  AddText(app, "--port-file", flags.port_file, "write the port in use to this file");
  AddSwitch(app, "--force", flags.force, "replace a --port-file that is there");
  AddDecimal(app, "--drain-timeout", flags.drain_seconds, 0, kLongestDrain,
             "seconds that running requests get after SIGTERM, SIGINT or SIGHUP (default 30)");
  AddChoice(app, "--log-level", flags.log_level, {"trace", "debug", "info", "warn", "error", "off"},
            "trace, debug, info, warn, error or off (default info)");
}

absl::StatusOr<std::string> ReadTemplate(const std::string& path) {
  constexpr size_t kMaxBytes = size_t{1} << 20;
  absl::StatusOr<std::string> text = ReadSmallFile(path, kMaxBytes);
  if (!text.ok()) return Annotate(text.status(), "--chat-template-file");
  if (text->empty()) return InvalidArgument("--chat-template-file: '%s' is empty", path);
  return text;
}

int CannotRun(const absl::Status& status) {
  spdlog::error("{}", std::string(status.message()));
  return kExitCannotRun;
}

// Reads what the flags name: a template, a certificate authority and keys.
absl::Status ReadFiles(Flags* flags) {
  GatewayOptions& options = flags->options;
  if (!flags->template_file.empty()) {
    ASSIGN_OR_RETURN(options.chat_template, ReadTemplate(flags->template_file));
  }
  if (options.tls_certificate.empty() != options.tls_key.empty()) {
    return InvalidArgument("--tls-cert and --tls-key go together");
  }
  ASSIGN_OR_RETURN(std::optional<std::string> ca, CaFromEnvironment());
  if (ca.has_value()) options.coordinator_ca = *std::move(ca);
  if (flags->key_file.empty()) return absl::OkStatus();
  absl::StatusOr<std::unique_ptr<ApiKeys>> keys = ApiKeys::Load(flags->key_file);
  if (!keys.ok()) return Annotate(keys.status(), "--api-key-file");
  const auto access = std::make_shared<KeyedAccess>(*std::move(keys), Clock::Real());
  options.access = [access](const HttpRequest& request) { return access->Check(request); };
  return absl::OkStatus();
}

int Run(Flags flags) {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&signals, signal);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);  // before there are threads

  const absl::StatusOr<ListenAddress> listen = ParseListenAddress(flags.options.listen, kHttpPort);
  if (!listen.ok()) return CannotRun(listen.status());
  flags.options.listen = listen->ToString();
  if (const absl::Status read = ReadFiles(&flags); !read.ok()) return CannotRun(read);
  for (const absl::Status& status : {CheckDescriptorsAllowed(), CheckThreadsCanStart(GatewayThreads())}) {
    if (!status.ok()) return CannotRun(status);
  }
  if (const absl::StatusOr<ListenAddress> coordinator = ParseListenAddress(flags.options.coordinator, kCoordinatorPort);
      coordinator.ok()) {
    const absl::Status exists = CheckHostExists(*coordinator);
    if (!exists.ok()) spdlog::warn("--coordinator: {}; requests fail until there is one", std::string(exists.message()));
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
    const OutputFileOptions how = {
        .flag = "--port-file",
        .force = flags.force,
        .inputs = {flags.key_file, flags.template_file, flags.options.tls_certificate, flags.options.tls_key}};
    const absl::Status written = WriteOutputFile(flags.port_file, how, std::to_string((*gateway)->port()) + "\n");
    if (!written.ok()) return CannotRun(written);
  }
  spdlog::info("HTTP at {}://{}:{}/v1", encrypted ? "https" : "http", listen->any ? "127.0.0.1" : listen->host,
               (*gateway)->port());
  int got = 0;
  sigwait(&signals, &got);
  pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);  // a second one ends it at once
  (*gateway)->Drain(Deadline::In(absl::Seconds(flags.drain_seconds)));
  return 0;
}

int Main(int argc, char** argv) {
  CLI::App app("Serves a Ferry coordinator over HTTP, as OpenAI's and llama.cpp's clients ask. Usually started by `ferry serve`.",
               "ferry-gateway");
  Flags flags;
  AddFlags(app, flags);
  if (const std::optional<int> code = ParseCommandLine(app, argc, argv)) return *code;
  InitLog("gateway", flags.log_level);
  return Run(std::move(flags));
}

}  // namespace
}  // namespace ferry

int main(int argc, char** argv) {
  return ferry::RunProgram("ferry-gateway", [&] { return ferry::Main(argc, argv); });
}
