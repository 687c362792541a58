#include "gateway/http/tls.h"

#include <openssl/ssl.h>

#include <boost/asio/buffer.hpp>
#include <boost/system/error_code.hpp>
#include <string_view>

#include "common/log.h"
#include "common/small_file.h"

namespace ferry {
namespace {

namespace ssl = boost::asio::ssl;
constexpr std::chrono::seconds kLook{30};
constexpr size_t kMaxPemBytes = size_t{1} << 20;

// The server speaks HTTP/1.1; a client that offers other protocols alone goes on without ALPN.
int ChooseProtocol(SSL*, const unsigned char** chosen, unsigned char* chosen_bytes, const unsigned char* offered,
                   unsigned int offered_bytes, void*) {
  constexpr std::string_view kHttp = "http/1.1";
  for (unsigned int at = 0; at < offered_bytes; at += 1 + offered[at]) {
    const std::string_view name(reinterpret_cast<const char*>(offered) + at + 1, offered[at]);
    if (name != kHttp) continue;
    *chosen = offered + at + 1;
    *chosen_bytes = offered[at];
    return SSL_TLSEXT_ERR_OK;
  }
  return SSL_TLSEXT_ERR_NOACK;
}

}  // namespace

absl::StatusOr<std::unique_ptr<HttpTls>> HttpTls::Load(const std::string& certificate, const std::string& key) {
  std::unique_ptr<HttpTls> tls(new HttpTls(certificate, key));
  RETURN_IF_ERROR(tls->Read());
  return tls;
}

std::shared_ptr<ssl::context> HttpTls::Current() {
  const auto now = std::chrono::steady_clock::now();
  if (now < next_look_) return context_;
  next_look_ = now + kLook;
  if (Changed() == changed_) return context_;
  const absl::Status read = Read();
  if (read.ok()) {
    spdlog::info("HTTPS has a new certificate");
  } else {
    spdlog::warn("HTTPS keeps its certificate: {}", std::string(read.message()));
  }
  return context_;
}

absl::Status HttpTls::Read() {
  const Times changed = Changed();
  const absl::StatusOr<std::string> certificate = ReadSmallFile(certificate_, kMaxPemBytes);
  if (!certificate.ok()) return InvalidArgument("--tls-cert cannot be used: %s", certificate.status().message());
  const absl::StatusOr<std::string> key = ReadSmallFile(key_, kMaxPemBytes);
  if (!key.ok()) return InvalidArgument("--tls-key cannot be used: %s", key.status().message());
  auto context = std::make_shared<ssl::context>(ssl::context::tls_server);
  context->set_options(ssl::context::default_workarounds | ssl::context::no_tlsv1 | ssl::context::no_tlsv1_1 |
                       ssl::context::no_compression);
  boost::system::error_code error;
  context->use_certificate_chain(boost::asio::buffer(*certificate), error);
  if (error) return InvalidArgument("--tls-cert %s cannot be used: %s", certificate_, error.message());
  // An encrypted key is refused; without this OpenSSL would ask the terminal for its password.
  context->set_password_callback([](size_t, ssl::context::password_purpose) { return std::string(); }, error);
  if (!error) context->use_private_key(boost::asio::buffer(*key), ssl::context::pem, error);
  if (error) return InvalidArgument("--tls-key %s cannot be used: %s", key_, error.message());
  if (SSL_CTX_check_private_key(context->native_handle()) != 1) {
    return InvalidArgument("--tls-key %s is not the key of --tls-cert %s", key_, certificate_);
  }
  SSL_CTX_set_alpn_select_cb(context->native_handle(), ChooseProtocol, nullptr);
  context_ = std::move(context);
  changed_ = changed;
  return absl::OkStatus();
}

HttpTls::Times HttpTls::Changed() const {
  std::error_code error;
  return {std::filesystem::last_write_time(certificate_, error), std::filesystem::last_write_time(key_, error)};
}

}  // namespace ferry
