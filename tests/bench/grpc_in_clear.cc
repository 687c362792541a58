// A library for LD_PRELOAD that makes gRPC between hosts speak in clear, so that tests/bench/costs.py can measure what mutual TLS
// costs. Ferry itself has no way to do so. It takes the place of two functions of libgrpc++.

#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/security/tls_credentials_options.h>

namespace grpc::experimental {

std::shared_ptr<ChannelCredentials> TlsCredentials(const TlsChannelCredentialsOptions& /*options*/) {
  return InsecureChannelCredentials();
}

std::shared_ptr<ServerCredentials> TlsServerCredentials(const TlsServerCredentialsOptions& /*options*/) {
  return InsecureServerCredentials();
}

}  // namespace grpc::experimental
