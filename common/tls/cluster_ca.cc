#include "common/tls/cluster_ca.h"

#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "common/small_file.h"
#include "common/unique_fd.h"

namespace ferry {
namespace {

constexpr size_t kMaxFileBytes = 64 << 10;
constexpr size_t kIdDigits = 8, kSecretDigits = 64, kHashDigits = 64;
constexpr absl::Duration kClockSkew = absl::Minutes(10);  // between hosts: a certificate holds from a little earlier on

template <auto kFree>
struct Free {
  template <typename T>
  void operator()(T* object) const {
    kFree(object);
  }
};
using Key = std::unique_ptr<EVP_PKEY, Free<EVP_PKEY_free>>;
using Certificate = std::unique_ptr<X509, Free<X509_free>>;
using Request = std::unique_ptr<X509_REQ, Free<X509_REQ_free>>;
using Bio = std::unique_ptr<BIO, Free<BIO_free_all>>;

absl::Status Failed(const char* what) {
  char text[256] = "no reason given";
  if (const unsigned long code = ERR_get_error(); code != 0) ERR_error_string_n(code, text, sizeof(text));
  ERR_clear_error();
  return Internal("%s: %s", what, text);
}

std::string CaKeyPath(const std::string& folder) { return folder + "/ca.key"; }
std::string TokensPath(const std::string& folder) { return folder + "/tokens"; }

Bio BioOf(const std::string& text) { return Bio(BIO_new_mem_buf(text.data(), static_cast<int>(text.size()))); }

std::string TextOf(BIO* bio) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio, &data);
  return std::string(data, static_cast<size_t>(size));
}

absl::StatusOr<std::string> KeyPem(EVP_PKEY* key) {
  const Bio bio(BIO_new(BIO_s_mem()));
  if (PEM_write_bio_PKCS8PrivateKey(bio.get(), key, nullptr, nullptr, 0, nullptr, nullptr) != 1) return Failed("writing a key");
  return TextOf(bio.get());
}

absl::StatusOr<std::string> CertificatePem(X509* certificate) {
  const Bio bio(BIO_new(BIO_s_mem()));
  if (PEM_write_bio_X509(bio.get(), certificate) != 1) return Failed("writing a certificate");
  return TextOf(bio.get());
}

absl::StatusOr<Certificate> ParseCertificate(const std::string& pem) {
  Certificate certificate(PEM_read_bio_X509(BioOf(pem).get(), nullptr, nullptr, nullptr));
  ERR_clear_error();
  if (certificate == nullptr) return InvalidArgument("this is no PEM certificate");
  return certificate;
}

absl::StatusOr<Key> MakeKey() {
  Key key(EVP_EC_gen("P-256"));
  if (key == nullptr) return Failed("making a key");
  return key;
}

absl::Status AddExtension(X509* certificate, X509* issuer, int id, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  const std::unique_ptr<X509_EXTENSION, Free<X509_EXTENSION_free>> extension(
      X509V3_EXT_conf_nid(nullptr, &context, id, value.c_str()));
  if (extension == nullptr || X509_add_ext(certificate, extension.get(), -1) != 1) return Failed("making a certificate");
  return absl::OkStatus();
}

// A certificate without extensions and signature: a random serial number, a time, a name.
absl::StatusOr<Certificate> Blank(EVP_PKEY* key, const std::string& name, absl::Duration lifetime) {
  Certificate certificate(X509_new());
  unsigned char serial[16];
  if (certificate == nullptr || RAND_bytes(serial, sizeof(serial)) != 1) return Failed("making a certificate");
  serial[0] &= 0x7F;
  const std::unique_ptr<BIGNUM, Free<BN_free>> number(BN_bin2bn(serial, sizeof(serial), nullptr));
  X509_NAME* const subject = X509_get_subject_name(certificate.get());
  const bool made = number != nullptr && X509_set_version(certificate.get(), 2) == 1 &&
                    BN_to_ASN1_INTEGER(number.get(), X509_get_serialNumber(certificate.get())) != nullptr &&
                    X509_gmtime_adj(X509_getm_notBefore(certificate.get()), -absl::ToInt64Seconds(kClockSkew)) != nullptr &&
                    X509_gmtime_adj(X509_getm_notAfter(certificate.get()), absl::ToInt64Seconds(lifetime)) != nullptr &&
                    X509_set_pubkey(certificate.get(), key) == 1 &&
                    X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC, reinterpret_cast<const unsigned char*>(name.c_str()),
                                               -1, -1, 0) == 1;
  if (!made) return Failed("making a certificate");
  return certificate;
}

// A file for its owner alone, whole or not at all.
absl::Status WriteFile(const std::string& path, const std::string& text) {
  const std::string temporary = path + ".new";
  ::unlink(temporary.c_str());
  const UniqueFd file(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!file.valid()) return absl::ErrnoToStatus(errno, temporary);
  if (::write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()) || ::fsync(file.get()) != 0 ||
      ::rename(temporary.c_str(), path.c_str()) != 0) {
    return absl::ErrnoToStatus(errno, path);
  }
  return absl::OkStatus();
}

absl::Status MakeFolder(const std::string& folder) {
  std::error_code error;
  std::filesystem::create_directories(std::filesystem::path(folder).parent_path(), error);
  if (::mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST) return absl::ErrnoToStatus(errno, folder);
  struct stat info = {};
  if (::lstat(folder.c_str(), &info) != 0 || !S_ISDIR(info.st_mode)) return FailedPrecondition("%s is no folder", folder);
  if (info.st_uid != ::geteuid() || (info.st_mode & 0077) != 0) {
    return FailedPrecondition("the folder %s is not this user's alone: chmod 0700", folder);
  }
  return absl::OkStatus();
}

std::string Sha256(const std::string& text) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  EVP_Digest(text.data(), text.size(), digest, &size, EVP_sha256(), nullptr);
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(digest), size));
}

absl::StatusOr<std::string> RandomHex(size_t digits) {
  std::vector<unsigned char> bytes(digits / 2);
  if (RAND_bytes(bytes.data(), static_cast<int>(bytes.size())) != 1) return Internal("the system gives no random numbers");
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

// The list of tokens, which no other process changes meanwhile.
absl::StatusOr<UniqueFd> LockTokens(const std::string& folder) {
  UniqueFd lock(::open((TokensPath(folder) + ".lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!lock.valid() || ::flock(lock.get(), LOCK_EX) != 0) return absl::ErrnoToStatus(errno, TokensPath(folder));
  return lock;
}

// "ID HASH UNIX_SECONDS", one a line; those that are over are left out.
struct OpenToken {
  std::string id, hash;
  int64_t until = 0;
};
absl::StatusOr<std::vector<OpenToken>> ReadTokens(const std::string& folder) {
  std::vector<OpenToken> tokens;
  const absl::StatusOr<std::string> text = ReadSmallFile(TokensPath(folder));
  if (absl::IsNotFound(text.status())) return tokens;
  RETURN_IF_ERROR(text.status());
  for (const absl::string_view line : absl::StrSplit(*text, '\n', absl::SkipEmpty())) {
    const std::vector<std::string> words = absl::StrSplit(line, ' ');
    OpenToken token;
    if (words.size() != 3 || !absl::SimpleAtoi(words[2], &token.until)) continue;
    token.id = words[0], token.hash = words[1];
    if (token.until > absl::ToUnixSeconds(absl::Now())) tokens.push_back(std::move(token));
  }
  return tokens;
}
absl::Status WriteTokens(const std::string& folder, const std::vector<OpenToken>& tokens) {
  std::string text;
  for (const OpenToken& token : tokens) absl::StrAppendFormat(&text, "%s %s %d\n", token.id, token.hash, token.until);
  return WriteFile(TokensPath(folder), text);
}

bool IsHex(absl::string_view text, size_t digits) {
  return text.size() == digits && text.find_first_not_of("0123456789abcdef") == absl::string_view::npos;
}

}  // namespace

std::string NodeName(NodeRole role) {
  return role == NodeRole::kCoordinator ? "coordinator.ferry.internal" : "worker.ferry.internal";
}

std::string DefaultClusterFolder() {
  const char* const config = std::getenv("XDG_CONFIG_HOME");
  const char* const home = std::getenv("HOME");
  const std::string parent = config != nullptr && config[0] == '/' ? std::string(config)
                             : home != nullptr && home[0] == '/'   ? std::string(home) + "/.config"
                                                                   : "/etc";
  return parent + "/ferry/cluster";
}

std::string CaCertificatePath(const std::string& folder) { return folder + "/ca.crt"; }
std::string NodeCertificatePath(const std::string& folder) { return folder + "/node.crt"; }
std::string NodeKeyPath(const std::string& folder) { return folder + "/node.key"; }

absl::Status MakeClusterCa(const std::string& folder) {
  RETURN_IF_ERROR(MakeFolder(folder));
  if (std::filesystem::exists(CaKeyPath(folder)) || std::filesystem::exists(CaCertificatePath(folder))) {
    return absl::AlreadyExistsError(folder + " has the certificates of a cluster: use another folder, or remove it");
  }
  ASSIGN_OR_RETURN(const Key key, MakeKey());
  ASSIGN_OR_RETURN(const Certificate ca, Blank(key.get(), "Ferry cluster CA", kCaLifetime));
  X509_set_issuer_name(ca.get(), X509_get_subject_name(ca.get()));
  RETURN_IF_ERROR(AddExtension(ca.get(), ca.get(), NID_basic_constraints, "critical,CA:TRUE,pathlen:0"));
  RETURN_IF_ERROR(AddExtension(ca.get(), ca.get(), NID_key_usage, "critical,keyCertSign,cRLSign"));
  RETURN_IF_ERROR(AddExtension(ca.get(), ca.get(), NID_subject_key_identifier, "hash"));
  if (X509_sign(ca.get(), key.get(), EVP_sha256()) == 0) return Failed("signing a certificate");
  ASSIGN_OR_RETURN(const std::string key_pem, KeyPem(key.get()));
  ASSIGN_OR_RETURN(const std::string ca_pem, CertificatePem(ca.get()));
  RETURN_IF_ERROR(WriteFile(CaKeyPath(folder), key_pem));
  RETURN_IF_ERROR(WriteFile(CaCertificatePath(folder), ca_pem));
  ASSIGN_OR_RETURN(const NodeRequest request, MakeNodeRequest());
  ASSIGN_OR_RETURN(const std::string node, IssueNodeCertificate(folder, request.request_pem, NodeRole::kCoordinator));
  return WriteNodeFiles(folder, ca_pem, node, request.key_pem);
}

absl::StatusOr<NodeRequest> MakeNodeRequest(const std::string& key_pem) {
  Key key(key_pem.empty() ? nullptr : PEM_read_bio_PrivateKey(BioOf(key_pem).get(), nullptr, nullptr, nullptr));
  if (!key_pem.empty() && key == nullptr) return Failed("reading a key");
  if (key == nullptr) {
    ASSIGN_OR_RETURN(key, MakeKey());
  }
  const Request request(X509_REQ_new());
  if (request == nullptr || X509_REQ_set_pubkey(request.get(), key.get()) != 1 ||
      X509_REQ_sign(request.get(), key.get(), EVP_sha256()) == 0) {
    return Failed("making a request");
  }
  const Bio bio(BIO_new(BIO_s_mem()));
  if (PEM_write_bio_X509_REQ(bio.get(), request.get()) != 1) return Failed("writing a request");
  NodeRequest result;
  result.request_pem = TextOf(bio.get());
  ASSIGN_OR_RETURN(result.key_pem, KeyPem(key.get()));
  return result;
}

absl::StatusOr<std::string> IssueNodeCertificate(const std::string& folder, const std::string& request_pem, NodeRole role,
                                                 absl::Duration lifetime) {
  const absl::StatusOr<std::string> ca_key_pem = ReadSmallFile(CaKeyPath(folder));
  const absl::StatusOr<std::string> ca_pem = ReadSmallFile(CaCertificatePath(folder));
  if (!ca_key_pem.ok() || !ca_pem.ok()) {
    return FailedPrecondition("%s has no CA: make one with `ferry cluster-init`", folder);
  }
  const Key ca_key(PEM_read_bio_PrivateKey(BioOf(*ca_key_pem).get(), nullptr, nullptr, nullptr));
  if (ca_key == nullptr) return Failed("reading the CA's key");
  ASSIGN_OR_RETURN(const Certificate ca, ParseCertificate(*ca_pem));
  const Request request(
      request_pem.size() > kMaxFileBytes ? nullptr : PEM_read_bio_X509_REQ(BioOf(request_pem).get(), nullptr, nullptr, nullptr));
  EVP_PKEY* const key = request == nullptr ? nullptr : X509_REQ_get0_pubkey(request.get());
  const bool good = key != nullptr && EVP_PKEY_is_a(key, "EC") == 1 && EVP_PKEY_get_bits(key) == 256 &&
                    X509_REQ_verify(request.get(), key) == 1;
  ERR_clear_error();
  if (!good) return InvalidArgument("this is no request for a certificate, signed by a key of the curve P-256");
  ASSIGN_OR_RETURN(const Certificate node, Blank(key, NodeName(role), lifetime));
  X509_set_issuer_name(node.get(), X509_get_subject_name(ca.get()));
  RETURN_IF_ERROR(AddExtension(node.get(), ca.get(), NID_basic_constraints, "critical,CA:FALSE"));
  RETURN_IF_ERROR(AddExtension(node.get(), ca.get(), NID_key_usage, "critical,digitalSignature"));
  RETURN_IF_ERROR(AddExtension(node.get(), ca.get(), NID_ext_key_usage, "serverAuth,clientAuth"));
  RETURN_IF_ERROR(AddExtension(node.get(), ca.get(), NID_subject_alt_name, "DNS:" + NodeName(role)));
  RETURN_IF_ERROR(AddExtension(node.get(), ca.get(), NID_authority_key_identifier, "keyid:always"));
  if (X509_sign(node.get(), ca_key.get(), EVP_sha256()) == 0) return Failed("signing a certificate");
  ASSIGN_OR_RETURN(const std::string pem, CertificatePem(node.get()));
  return pem + *ca_pem;
}

absl::Status WriteNodeFiles(const std::string& folder, const std::string& ca_pem, const std::string& certificate_pem,
                            const std::string& key_pem) {
  RETURN_IF_ERROR(MakeFolder(folder));
  RETURN_IF_ERROR(WriteFile(NodeKeyPath(folder), key_pem));
  RETURN_IF_ERROR(WriteFile(NodeCertificatePath(folder), certificate_pem));
  return WriteFile(CaCertificatePath(folder), ca_pem);
}

absl::StatusOr<absl::Time> CertificateEnd(const std::string& certificate_pem) {
  ASSIGN_OR_RETURN(const Certificate certificate, ParseCertificate(certificate_pem));
  int days = 0, seconds = 0;  // from now
  if (ASN1_TIME_diff(&days, &seconds, nullptr, X509_get0_notAfter(certificate.get())) != 1) return Failed("reading a time");
  return absl::Now() + days * absl::Hours(24) + absl::Seconds(seconds);
}

absl::StatusOr<std::string> CertificateFingerprint(const std::string& certificate_pem) {
  ASSIGN_OR_RETURN(const Certificate certificate, ParseCertificate(certificate_pem));
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  if (X509_digest(certificate.get(), EVP_sha256(), digest, &size) != 1) return Failed("hashing a certificate");
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(digest), size));
}

absl::StatusOr<std::string> MakeJoinToken(const std::string& folder, absl::Duration valid_for) {
  const absl::StatusOr<std::string> ca_pem = ReadSmallFile(CaCertificatePath(folder));
  if (!ca_pem.ok() || !std::filesystem::exists(CaKeyPath(folder))) {
    return FailedPrecondition("%s has no CA: make one with `ferry cluster-init`", folder);
  }
  ASSIGN_OR_RETURN(const std::string fingerprint, CertificateFingerprint(*ca_pem));
  ASSIGN_OR_RETURN(const std::string id, RandomHex(kIdDigits));
  ASSIGN_OR_RETURN(const std::string secret, RandomHex(kSecretDigits));
  ASSIGN_OR_RETURN(const UniqueFd lock, LockTokens(folder));
  ASSIGN_OR_RETURN(std::vector<OpenToken> tokens, ReadTokens(folder));
  tokens.push_back({.id = id, .hash = Sha256(secret), .until = absl::ToUnixSeconds(absl::Now() + valid_for)});
  RETURN_IF_ERROR(WriteTokens(folder, tokens));
  return absl::StrFormat("fj-%s-%s-%s", id, secret, fingerprint);
}

absl::StatusOr<JoinToken> ParseJoinToken(const std::string& token) {
  const std::vector<std::string> parts = absl::StrSplit(token, '-');
  const bool fits = parts.size() == 4 && parts[0] == "fj" && IsHex(parts[1], kIdDigits) && IsHex(parts[2], kSecretDigits) &&
                    IsHex(parts[3], kHashDigits);
  if (!fits) return InvalidArgument("this is no token as `ferry cluster-token` prints it");
  return JoinToken{.id = parts[1], .secret = parts[2], .ca_fingerprint = parts[3]};
}

absl::Status RedeemJoinToken(const std::string& folder, const std::string& id, const std::string& secret) {
  ASSIGN_OR_RETURN(const UniqueFd lock, LockTokens(folder));
  ASSIGN_OR_RETURN(std::vector<OpenToken> tokens, ReadTokens(folder));
  const std::string hash = Sha256(secret.substr(0, kSecretDigits + 1));
  const size_t before = tokens.size();
  std::erase_if(tokens, [&](const OpenToken& token) {
    return token.id == id && token.hash.size() == hash.size() && CRYPTO_memcmp(token.hash.data(), hash.data(), hash.size()) == 0;
  });
  if (tokens.size() == before) return absl::UnauthenticatedError("the token is unknown, was used, or is over");
  return WriteTokens(folder, tokens);
}

}  // namespace ferry
