#include "common/tls/certificate_pair.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <cstdlib>
#include <memory>

#include "common/small_file.h"
#include "common/tls/cluster_ca.h"

namespace ferry {
namespace {

struct FreePart {
  void operator()(BIO* bio) const { BIO_free(bio); }
  void operator()(X509* certificate) const { X509_free(certificate); }
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
};

std::unique_ptr<BIO, FreePart> ReaderOf(const std::string& text) {
  return std::unique_ptr<BIO, FreePart>(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
}

// OpenSSL would ask the terminal.
int NoPassword(char*, int, int, void*) { return 0; }

}  // namespace

absl::Status CheckCertificatePair(const std::string& certificate_pem, const std::string& key_pem) {
  const std::unique_ptr<X509, FreePart> certificate(
      PEM_read_bio_X509(ReaderOf(certificate_pem).get(), nullptr, NoPassword, nullptr));
  const std::unique_ptr<EVP_PKEY, FreePart> key(PEM_read_bio_PrivateKey(ReaderOf(key_pem).get(), nullptr, NoPassword, nullptr));
  const bool pair = certificate != nullptr && key != nullptr && X509_check_private_key(certificate.get(), key.get()) == 1;
  ERR_clear_error();
  if (certificate == nullptr) return InvalidArgument("the file of the certificate has none in PEM");
  if (key == nullptr) return InvalidArgument("the file of the key has no private key in PEM without a password");
  return pair ? absl::OkStatus() : InvalidArgument("the key is of another certificate");
}

absl::StatusOr<std::optional<std::string>> CaFromEnvironment() {
  const char* const path = std::getenv(kTlsCaVariable);
  if (path == nullptr || path[0] == '\0') return std::nullopt;
  absl::StatusOr<std::string> pem = ReadSmallFile(path);
  if (!pem.ok()) return Annotate(pem.status(), kTlsCaVariable);
  if (!CertificateFingerprint(*pem).ok()) return InvalidArgument("%s: '%s' has no certificate in PEM", kTlsCaVariable, path);
  return *std::move(pem);
}

}  // namespace ferry
