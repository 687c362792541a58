#include "common/rpc/join_cluster.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <sys/socket.h>

#include <memory>

#include "absl/time/clock.h"
#include "common/deadline.h"
#include "common/grpc_status.h"
#include "common/listen_address.h"
#include "common/rpc/rpc_deadline.h"
#include "common/tls/cluster_ca.h"
#include "ferry/internal/v1/enrollment.grpc.pb.h"

namespace ferry {
namespace {

constexpr absl::Duration kRenewTimeout = absl::Seconds(15);

struct FreeSsl {
  void operator()(SSL_CTX* context) const { SSL_CTX_free(context); }
  void operator()(BIO* bio) const { BIO_free_all(bio); }
};

// The certificate with `fingerprint` among those that a server shows. Nothing but the fingerprint is trusted: the connection is
// closed again, and the one that follows is checked against the certificate.
absl::StatusOr<std::string> FetchCa(const ListenAddress& server, const std::string& fingerprint, Deadline deadline) {
  RETURN_IF_ERROR(CheckHostExists(server));
  const std::unique_ptr<SSL_CTX, FreeSsl> context(SSL_CTX_new(TLS_client_method()));
  const unsigned char kHttp2[] = {2, 'h', '2'};
  if (context == nullptr || SSL_CTX_set_alpn_protos(context.get(), kHttp2, sizeof(kHttp2)) != 0)
    return Internal("TLS cannot start");
  const std::unique_ptr<BIO, FreeSsl> bio(BIO_new_ssl_connect(context.get()));
  if (bio == nullptr) return Internal("TLS cannot start");
  SSL* ssl = nullptr;
  BIO_get_ssl(bio.get(), &ssl);
  BIO_set_conn_hostname(bio.get(), server.ToString().c_str());
  BIO_set_nbio(bio.get(), 1);
  while (BIO_do_connect(bio.get()) <= 0) {
    if (!BIO_should_retry(bio.get())) {
      ERR_clear_error();
      return Unavailable("no TLS server answers at %s", server.ToString());
    }
    if (deadline.Passed()) return DeadlineExceeded("%s does not answer", server.ToString());
    absl::SleepFor(absl::Milliseconds(10));
  }
  const STACK_OF(X509)* const chain = SSL_get_peer_cert_chain(ssl);
  for (int i = 0; chain != nullptr && i < sk_X509_num(chain); ++i) {
    const std::unique_ptr<BIO, FreeSsl> text(BIO_new(BIO_s_mem()));
    if (PEM_write_bio_X509(text.get(), sk_X509_value(chain, i)) != 1) continue;
    char* data = nullptr;
    const long size = BIO_get_mem_data(text.get(), &data);
    std::string pem(data, static_cast<size_t>(size));
    const absl::StatusOr<std::string> found = CertificateFingerprint(pem);
    if (found.ok() && *found == fingerprint) return pem;
  }
  return absl::PermissionDeniedError("the server at " + server.ToString() + " is not of the cluster that made the token");
}

}  // namespace

absl::Status JoinCluster(const std::string& coordinator, const std::string& token, const std::string& folder, Deadline deadline) {
  ASSIGN_OR_RETURN(const ListenAddress address, ParseListenAddress(coordinator, kClusterPort));
  if (!address.unix_path.empty()) return InvalidArgument("%s is a socket of this host, which needs no certificate", coordinator);
  ASSIGN_OR_RETURN(const JoinToken parsed, ParseJoinToken(token));
  ASSIGN_OR_RETURN(const std::string ca, FetchCa(address, parsed.ca_fingerprint, deadline));
  ASSIGN_OR_RETURN(const NodeRequest node, MakeNodeRequest());
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetSslTargetNameOverride(NodeName(NodeRole::kCoordinator));
  const auto stub = internal::v1::Enrollment::NewStub(
      grpc::CreateCustomChannel(address.ToString(), grpc::SslCredentials({.pem_root_certs = ca}), arguments));
  grpc::ClientContext context;
  context.set_deadline(RpcDeadline(deadline));
  internal::v1::EnrollRequest request;
  request.set_token_id(parsed.id);
  request.set_token_secret(parsed.secret);
  request.set_request_pem(node.request_pem);
  internal::v1::EnrollResponse response;
  RETURN_IF_ERROR(FromGrpcStatus(stub->Enroll(&context, request, &response)));
  RETURN_IF_ERROR(CertificateEnd(response.certificate_pem()).status());
  return WriteNodeFiles(folder, ca, response.certificate_pem(), node.key_pem);
}

absl::StatusOr<std::string> RenewCertificate(const std::shared_ptr<grpc::Channel>& coordinator, const std::string& request_pem) {
  grpc::ClientContext context;
  context.set_deadline(RpcDeadline(kRenewTimeout));
  internal::v1::RenewRequest request;
  request.set_request_pem(request_pem);
  internal::v1::EnrollResponse response;
  RETURN_IF_ERROR(FromGrpcStatus(internal::v1::Enrollment::NewStub(coordinator)->Renew(&context, request, &response)));
  return response.certificate_pem();
}

}  // namespace ferry
