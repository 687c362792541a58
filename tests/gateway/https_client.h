#pragma once

// One request over HTTPS.

#include <openssl/ssl.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <memory>
#include <string>

namespace ferry {

// The whole answer of 127.0.0.1:`port`, which has to show a certificate of `ca_file`, to `request`, which has to end the
// connection; empty: it did not come.
inline std::string AskHttps(int port, const std::string& ca_file, const std::string& request) {
  const std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> context(SSL_CTX_new(TLS_client_method()), SSL_CTX_free);
  SSL_CTX_load_verify_locations(context.get(), ca_file.c_str(), nullptr);
  SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER, nullptr);
  const std::unique_ptr<BIO, decltype(&BIO_free_all)> connection(BIO_new_ssl_connect(context.get()), BIO_free_all);
  SSL* ssl = nullptr;
  BIO_get_ssl(connection.get(), &ssl);
  X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl), "127.0.0.1");
  BIO_set_conn_hostname(connection.get(), ("127.0.0.1:" + std::to_string(port)).c_str());
  if (BIO_do_connect(connection.get()) <= 0) return "";
  const timeval patience = {.tv_sec = 30, .tv_usec = 0};
  setsockopt(static_cast<int>(BIO_get_fd(connection.get(), nullptr)), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
  if (BIO_write(connection.get(), request.data(), static_cast<int>(request.size())) <= 0) return "";
  std::string answer;
  char bytes[16384];
  for (int got; (got = BIO_read(connection.get(), bytes, sizeof(bytes))) > 0;) answer.append(bytes, static_cast<size_t>(got));
  return answer;
}

}  // namespace ferry
