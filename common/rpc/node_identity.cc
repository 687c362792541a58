#include "common/rpc/node_identity.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/auth_context.h>
#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>

#include <algorithm>

#include "absl/time/clock.h"
#include "common/listen_address.h"
#include "common/small_file.h"

namespace ferry {
namespace {

class FileIdentity final : public NodeIdentity {
 public:
  FileIdentity(std::string folder, unsigned refresh_seconds) : folder_(std::move(folder)), refresh_seconds_(refresh_seconds) {}

  const std::string& folder() const override { return folder_; }

  std::shared_ptr<grpc::ServerCredentials> ForServer(bool admits_strangers) const override {
    grpc::experimental::TlsServerCredentialsOptions options(NewProvider());
    options.watch_root_certs();
    options.watch_identity_key_cert_pairs();
    options.set_cert_request_type(admits_strangers ? GRPC_SSL_REQUEST_CLIENT_CERTIFICATE_AND_VERIFY
                                                   : GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
    return grpc::experimental::TlsServerCredentials(options);
  }

  std::shared_ptr<grpc::ChannelCredentials> ForChannel() const override {
    grpc::experimental::TlsChannelCredentialsOptions options;
    options.set_certificate_provider(NewProvider());
    options.watch_root_certs();
    options.watch_identity_key_cert_pairs();
    options.set_verify_server_certs(true);
    return grpc::experimental::TlsCredentials(options);
  }

 private:
  // One for each server and each channel. gRPC 1.51 loses a watcher that comes to a provider while its last one leaves: the new
  // one gets "Unable to get latest root certificates", and no later change of the files either. Channels come and go; what
  // watches the provider of one channel is that channel alone.
  std::shared_ptr<grpc::experimental::FileWatcherCertificateProvider> NewProvider() const {
    return std::make_shared<grpc::experimental::FileWatcherCertificateProvider>(
        NodeKeyPath(folder_), NodeCertificatePath(folder_), CaCertificatePath(folder_), refresh_seconds_);
  }

  const std::string folder_;
  const unsigned refresh_seconds_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<NodeIdentity>> NodeIdentity::Open(const std::string& folder, unsigned refresh_seconds) {
  for (const std::string& path : {NodeKeyPath(folder), NodeCertificatePath(folder), CaCertificatePath(folder)}) {
    if (const absl::Status status = ReadSmallFile(path).status(); !status.ok()) {
      return FailedPrecondition(
          "no certificates of a cluster: %s; `ferry cluster-init` makes them on the coordinator's host, `ferry join` fetches "
          "them on "
          "every other",
          status.message());
    }
  }
  ASSIGN_OR_RETURN(const std::string certificate, ReadSmallFile(NodeCertificatePath(folder)));
  ASSIGN_OR_RETURN(const absl::Time end, CertificateEnd(certificate));
  if (end <= absl::Now()) {
    return FailedPrecondition("the certificate in %s ended at %s: join the cluster again", folder, absl::FormatTime(end));
  }
  return std::unique_ptr<NodeIdentity>(std::make_unique<FileIdentity>(folder, refresh_seconds));
}

std::shared_ptr<grpc::Channel> ConnectNode(const std::string& address, NodeRole role, const NodeIdentity* identity,
                                           grpc::ChannelArguments arguments) {
  const absl::StatusOr<ListenAddress> parsed = ParseListenAddress(address, 0);
  const bool local = parsed.ok() && !parsed->unix_path.empty();
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  if (local) return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
  // Hosts change their addresses: certificates name roles, not hosts.
  arguments.SetSslTargetNameOverride(NodeName(role));
  return grpc::CreateCustomChannel(address, identity == nullptr ? nullptr : identity->ForChannel(), arguments);
}

NodeCaller CallerOf(const grpc::ServerContextBase& context) {
  const std::shared_ptr<const grpc::AuthContext> caller = context.auth_context();
  const std::vector<grpc::string_ref> security = caller == nullptr
                                                     ? std::vector<grpc::string_ref>()
                                                     : caller->FindPropertyValues(GRPC_TRANSPORT_SECURITY_TYPE_PROPERTY_NAME);
  const bool tls = std::any_of(security.begin(), security.end(), [](const grpc::string_ref& type) { return type != "insecure"; });
  if (!tls) return NodeCaller::kLocal;  // without TLS there is but the Unix socket
  for (const grpc::string_ref& name : caller->FindPropertyValues(GRPC_X509_SAN_PROPERTY_NAME)) {
    const std::string text(name.data(), name.size());
    if (text == NodeName(NodeRole::kCoordinator)) return NodeCaller::kCoordinator;
    if (text == NodeName(NodeRole::kWorker)) return NodeCaller::kWorker;
  }
  return NodeCaller::kStranger;
}

}  // namespace ferry
