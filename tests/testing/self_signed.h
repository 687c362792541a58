#pragma once

// A certificate of this machine's loopback address, signed by itself, and its key.

#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <cstdio>
#include <memory>
#include <string>

#include "gtest/gtest.h"

namespace ferry {

struct SelfSigned {
  std::string certificate, key;  // paths; a client trusts the certificate as its own CA

  // Writes NAME.crt and NAME.key into `folder`.
  static SelfSigned Write(const std::string& folder, const std::string& name) {
    const SelfSigned files = {.certificate = folder + "/" + name + ".crt", .key = folder + "/" + name + ".key"};
    const std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> key(EVP_EC_gen("P-256"), EVP_PKEY_free);
    const std::unique_ptr<X509, decltype(&X509_free)> certificate(X509_new(), X509_free);
    X509_set_version(certificate.get(), 2);
    ASN1_INTEGER_set(X509_get_serialNumber(certificate.get()), 1);
    X509_gmtime_adj(X509_getm_notBefore(certificate.get()), -3600);
    X509_gmtime_adj(X509_getm_notAfter(certificate.get()), 86400);
    X509_set_pubkey(certificate.get(), key.get());
    X509_NAME* const subject = X509_get_subject_name(certificate.get());
    X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC, reinterpret_cast<const unsigned char*>("localhost"), -1, -1, 0);
    X509_set_issuer_name(certificate.get(), subject);
    for (const auto& [id, value] :
         {std::pair(NID_subject_alt_name, "IP:127.0.0.1,DNS:localhost"), std::pair(NID_basic_constraints, "critical,CA:TRUE")}) {
      X509_EXTENSION* const extension = X509V3_EXT_conf_nid(nullptr, nullptr, id, value);
      X509_add_ext(certificate.get(), extension, -1);
      X509_EXTENSION_free(extension);
    }
    EXPECT_GT(X509_sign(certificate.get(), key.get(), EVP_sha256()), 0);
    WriteFile(files.certificate, [&](std::FILE* file) { return PEM_write_X509(file, certificate.get()); });
    WriteFile(files.key,
              [&](std::FILE* file) { return PEM_write_PrivateKey(file, key.get(), nullptr, nullptr, 0, nullptr, nullptr); });
    return files;
  }

 private:
  template <typename WriteTo>
  static void WriteFile(const std::string& path, const WriteTo& write) {
    std::FILE* const file = std::fopen(path.c_str(), "w");
    ASSERT_NE(file, nullptr);
    EXPECT_EQ(write(file), 1);
    std::fclose(file);
  }
};

}  // namespace ferry
