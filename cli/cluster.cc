// `ferry cluster-init`, `ferry cluster-token`, `ferry join`: the certificates by which hosts of a cluster know each other.

#include <cstdio>
#include <memory>

#include "cli/commands.h"
#include "common/command_line.h"
#include "common/deadline.h"
#include "common/escaped.h"
#include "common/rpc/join_cluster.h"
#include "common/small_file.h"
#include "common/tls/cluster_ca.h"

namespace ferry {
namespace {

constexpr absl::Duration kJoinTimeout = absl::Seconds(15);

struct ClusterOptions {
  std::string folder = DefaultClusterFolder();
  std::string coordinator, token;
  double valid_minutes = 60;
};

void AddFolder(CLI::App& app, ClusterOptions* options) {
  AddText(app, "--cluster-certs", options->folder, "folder of the certificates (default: ~/.config/ferry/cluster)");
}

absl::Status Init(const ClusterOptions& options) {
  RETURN_IF_ERROR(MakeClusterCa(options.folder));
  ASSIGN_OR_RETURN(const std::string ca, ReadSmallFile(CaCertificatePath(options.folder)));
  ASSIGN_OR_RETURN(const std::string fingerprint, CertificateFingerprint(ca));
  std::printf("the cluster's certificates are in %s; its CA has the fingerprint %s\n", options.folder.c_str(),
              fingerprint.c_str());
  return absl::OkStatus();
}

absl::Status Token(const ClusterOptions& options) {
  ASSIGN_OR_RETURN(const std::string token, MakeJoinToken(options.folder, absl::Minutes(options.valid_minutes)));
  std::printf("%s\n", token.c_str());
  return absl::OkStatus();
}

absl::Status Join(const ClusterOptions& options) {
  RETURN_IF_ERROR(JoinCluster(options.coordinator, options.token, options.folder, Deadline::In(kJoinTimeout)));
  std::printf("this host's certificate is in %s; start a worker with `ferry-worker --coordinator %s`\n", options.folder.c_str(),
              Escaped(options.coordinator).c_str());
  return absl::OkStatus();
}

}  // namespace

Command AddClusterInit(CLI::App& app) {
  auto options = std::make_shared<ClusterOptions>();
  AddFolder(app, options.get());
  app.footer(Examples({"ferry cluster-init                               once, on the coordinator's host",
                       "ferry serve -m model.gguf --coordinator-only --workers 2 --cluster-listen 192.0.2.1"}));
  return [options] { return Init(*options); };
}

Command AddClusterToken(CLI::App& app) {
  auto options = std::make_shared<ClusterOptions>();
  AddFolder(app, options.get());
  AddDecimal(app, "--valid-minutes", options->valid_minutes, 0.1, 60.0 * 24 * 7,
             "how long a host may use it (default 60); it is good once");
  app.footer(Examples({"ferry cluster-token                              on the coordinator's host, for one host that joins"}));
  return [options] { return Token(*options); };
}

Command AddJoin(CLI::App& app) {
  auto options = std::make_shared<ClusterOptions>();
  AddText(app, "coordinator", options->coordinator, "HOST or HOST:PORT of its --cluster-listen (port 8091)")->required();
  AddText(app, "--token", options->token, "what `ferry cluster-token` printed")->required();
  AddFolder(app, options.get());
  app.footer(Examples({"ferry join 192.0.2.1 --token fj-...               on a host that is to have a worker"}));
  return [options] { return Join(*options); };
}

}  // namespace ferry
