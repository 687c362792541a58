#include "common/access/api_keys.h"

#include <fcntl.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "common/small_file.h"
#include "common/unique_fd.h"

namespace ferry {
namespace {

constexpr std::string_view kPrefix = "fk-";
constexpr size_t kIdDigits = 8, kSecretDigits = 64, kSaltDigits = 32, kHashDigits = 64;
constexpr size_t kMaxNameBytes = 64;
constexpr size_t kMaxKeys = 10000;
constexpr int64_t kMaxFileBytes = 4 << 20;

bool IsHex(std::string_view text, size_t digits) {
  return text.size() == digits &&
         std::all_of(text.begin(), text.end(), [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

bool IsName(std::string_view text) {
  return !text.empty() && text.size() <= kMaxNameBytes && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '.' || c == '_' || c == '-';
  });
}

std::string Hex(const unsigned char* bytes, size_t size) {
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(bytes), size));
}

absl::StatusOr<std::string> RandomHex(size_t digits) {
  std::vector<unsigned char> bytes(digits / 2);
  if (RAND_bytes(bytes.data(), static_cast<int>(bytes.size())) != 1) return Internal("the system gives no random numbers");
  return Hex(bytes.data(), bytes.size());
}

std::string Sha256(std::string_view salt, std::string_view key) {
  const std::string text = std::string(salt) + std::string(key);
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  EVP_Digest(text.data(), text.size(), digest, &size, EVP_sha256(), nullptr);
  return Hex(digest, size);
}

// The id of a well-formed key; empty for anything else.
std::string_view IdOf(std::string_view key) {
  if (key.size() != kPrefix.size() + kIdDigits + 1 + kSecretDigits || !key.starts_with(kPrefix)) return {};
  const std::string_view id = key.substr(kPrefix.size(), kIdDigits);
  const std::string_view rest = key.substr(kPrefix.size() + kIdDigits);
  return IsHex(id, kIdDigits) && rest[0] == '-' && IsHex(rest.substr(1), kSecretDigits) ? id : std::string_view();
}

absl::Status SetLimit(absl::string_view word, Principal* principal) {
  if (word == "share-cache") {
    principal->shares_cache = true;
    return absl::OkStatus();
  }
  const std::pair<absl::string_view, absl::string_view> parts = absl::StrSplit(word, absl::MaxSplits('=', 1));
  int64_t* const limit = parts.first == "parallel"            ? &principal->max_parallel
                         : parts.first == "queue"             ? &principal->max_queued
                         : parts.first == "tokens-per-minute" ? &principal->tokens_per_minute
                                                              : nullptr;
  if (limit == nullptr) {
    return InvalidArgument("'%s' is unknown, want parallel=N, queue=N, tokens-per-minute=N or share-cache",
                           absl::CHexEscape(word.substr(0, 40)));
  }
  if (!absl::SimpleAtoi(parts.second, limit) || *limit < 1) return InvalidArgument("%s is no number above 0", parts.first);
  return absl::OkStatus();
}

}  // namespace

const char* NameOf(Role role) { return role == Role::kAdmin ? "admin" : "user"; }

absl::StatusOr<NewApiKey> MakeApiKey(const std::string& name, Role role) {
  if (!IsName(name)) {
    return InvalidArgument("the name of a key is '%s', want 1 to %d letters, digits, '.', '_' or '-'",
                           absl::CHexEscape(name.substr(0, kMaxNameBytes)), kMaxNameBytes);
  }
  ASSIGN_OR_RETURN(const std::string id, RandomHex(kIdDigits));
  ASSIGN_OR_RETURN(const std::string secret, RandomHex(kSecretDigits));
  ASSIGN_OR_RETURN(const std::string salt, RandomHex(kSaltDigits));
  NewApiKey made = {.key = absl::StrFormat("%s%s-%s", kPrefix, id, secret), .line = {}};
  made.line = absl::StrFormat("%s %s %s %s %s", name, NameOf(role), id, salt, Sha256(salt, made.key));
  return made;
}

std::string_view BearerToken(std::string_view authorization) {
  constexpr std::string_view kBearer = "bearer ";
  if (authorization.size() <= kBearer.size()) return {};
  for (size_t i = 0; i < kBearer.size(); ++i) {
    const char c = authorization[i];
    if ((c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c) != kBearer[i]) return {};
  }
  return authorization.substr(kBearer.size());
}

absl::StatusOr<ApiKeys::Entries> ApiKeys::Parse(std::string_view text) {
  Entries entries;
  std::set<std::string> names;
  int number = 0;
  for (absl::string_view line : absl::StrSplit(absl::string_view(text.data(), text.size()), '\n')) {
    ++number;
    const std::vector<std::string> words =
        absl::StrSplit(line.substr(0, line.find('#')), absl::ByAnyChar(" \t\r"), absl::SkipEmpty());
    if (words.empty()) continue;
    const bool fits = words.size() >= 5 && IsName(words[0]) && (words[1] == "user" || words[1] == "admin") &&
                      IsHex(words[2], kIdDigits) && IsHex(words[3], kSaltDigits) && IsHex(words[4], kHashDigits);
    if (!fits) return InvalidArgument("line %d is not NAME user|admin ID SALT SHA256, as `ferry api-key` prints it", number);
    Entry entry;
    entry.principal.name = words[0];
    entry.principal.role = words[1] == "admin" ? Role::kAdmin : Role::kUser;
    entry.salt = words[3];
    entry.hash = words[4];
    for (size_t i = 5; i < words.size(); ++i) {
      RETURN_IF_ERROR(Annotate(SetLimit(words[i], &entry.principal), absl::StrFormat("line %d", number)));
    }
    if (!names.insert(words[0]).second) return InvalidArgument("line %d has the name %s of an earlier line", number, words[0]);
    if (!entries.emplace(words[2], std::move(entry)).second) {
      return InvalidArgument("line %d has the id %s of an earlier line", number, words[2]);
    }
    if (entries.size() > kMaxKeys) return InvalidArgument("line %d is one key too many: at most %d fit", number, kMaxKeys);
  }
  return entries;
}

absl::StatusOr<ApiKeys::Version> ApiKeys::VersionOf(const std::string& path) {
  struct stat info = {};
  if (::stat(path.c_str(), &info) != 0) return absl::ErrnoToStatus(errno, path);
  if (!S_ISREG(info.st_mode)) return InvalidArgument("%s is no regular file", path);
  if ((info.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
    return absl::PermissionDeniedError(path + " may be written by others than its owner: chmod go-w");
  }
  if (info.st_size > kMaxFileBytes) return InvalidArgument("%s has %d bytes, want at most %d", path, info.st_size, kMaxFileBytes);
  return Version{.inode = info.st_ino,
                 .bytes = info.st_size,
                 .changed_ns = int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec};
}

absl::Status ApiKeys::AddLine(const std::string& path, const std::string& line) {
  std::string added = line + "\n";
  const absl::StatusOr<Version> there = VersionOf(path);
  if (there.ok()) {
    ASSIGN_OR_RETURN(const std::string before, ReadSmallFile(path, kMaxFileBytes));
    if (!before.empty() && before.back() != '\n') added.insert(0, "\n");
    RETURN_IF_ERROR(Annotate(Parse(before + added).status(), path));
  } else if (!absl::IsNotFound(there.status())) {
    return there.status();
  }
  const UniqueFd file(::open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC | (there.ok() ? 0 : O_CREAT | O_EXCL), 0600));
  if (!file.valid()) return absl::ErrnoToStatus(errno, path);
  const ssize_t written = ::write(file.get(), added.data(), added.size());
  if (written < 0) return absl::ErrnoToStatus(errno, path);
  if (written != static_cast<ssize_t>(added.size())) return ResourceExhausted("%s could not be written to its end", path);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<ApiKeys>> ApiKeys::Load(const std::string& path) {
  std::unique_ptr<ApiKeys> keys(new ApiKeys(path));
  RETURN_IF_ERROR(keys->ReloadIfChanged());
  return keys;
}

absl::Status ApiKeys::ReloadIfChanged() {
  ASSIGN_OR_RETURN(const Version version, VersionOf(path_));
  {
    const std::lock_guard lock(mutex_);
    if (std::exchange(version_, version) == version) return absl::OkStatus();
  }
  const absl::StatusOr<std::string> text = ReadSmallFile(path_, kMaxFileBytes);
  if (!text.ok()) {  // it may succeed the next time
    const std::lock_guard lock(mutex_);
    version_ = Version();
    return text.status();
  }
  absl::StatusOr<Entries> entries = Parse(*text);
  if (!entries.ok()) return Annotate(entries.status(), path_);
  const std::lock_guard lock(mutex_);
  entries_ = *std::move(entries);
  return absl::OkStatus();
}

absl::StatusOr<Principal> ApiKeys::Authenticate(std::string_view key) const {
  // A key that is unknown is hashed as well, so that the time does not tell whether its id exists.
  Entry entry = {.principal = {}, .salt = std::string(kSaltDigits, '0'), .hash = std::string(kHashDigits, '0')};
  bool known = false;
  {
    const std::lock_guard lock(mutex_);
    if (const auto found = entries_.find(IdOf(key)); found != entries_.end()) entry = found->second, known = true;
  }
  const std::string hash = Sha256(entry.salt, key.substr(0, kPrefix.size() + kIdDigits + 1 + kSecretDigits));
  const bool equal = CRYPTO_memcmp(hash.data(), entry.hash.data(), kHashDigits) == 0;
  if (!known || !equal) return absl::UnauthenticatedError("the API key is not known here");
  return entry.principal;
}

size_t ApiKeys::size() const {
  const std::lock_guard lock(mutex_);
  return entries_.size();
}

}  // namespace ferry
