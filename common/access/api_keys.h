#pragma once

// Who may use the public API, and as what: named keys in a file that has only their salted hashes. Used by every door of the
// API (gRPC, HTTP); no RPC here.
//
// A key is "fk-" ID "-" SECRET: ID has 8 hexadecimal digits and finds the entry, SECRET has 256 random bits in 64 such digits.
// The file has one key a line, `#` begins a comment:
//
//   NAME ROLE ID SALT SHA256 [parallel=N] [queue=N] [tokens-per-minute=N] [share-cache]
//
// ROLE is user or admin; SHA256 is of SALT (32 hexadecimal digits, as text) followed by the key. A secret with so many random
// bits cannot be found by trying, so a plain hash protects it as well as a slow one would.

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "absl/time/time.h"
#include "common/status.h"

namespace ferry {

enum class Role { kUser, kAdmin };
const char* NameOf(Role role);  // "user", "admin"

// Who made a request.
struct Principal {
  std::string name;  // of the key; for logs, and what everything a key is given is counted by
  Role role = Role::kUser;
  int64_t max_parallel = 0;       // requests of this key that run or wait at once; 0: no limit but the server's
  int64_t max_queued = 0;         // of them waiting; 0: no limit but the server's
  int64_t tokens_per_minute = 0;  // prompt and output; 0: no limit
  bool shares_cache = false;      // its prompts may reuse prefixes of other keys that share, and theirs its own
};

struct NewApiKey {
  std::string key;   // for its holder, kept nowhere
  std::string line;  // for the file
};
// A new key from the system's random numbers. InvalidArgument: `name` is not 1 to 64 letters, digits, '.', '_' or '-'.
absl::StatusOr<NewApiKey> MakeApiKey(const std::string& name, Role role);

// "KEY" of "Bearer KEY", as the `authorization` header has it; empty when it is of another form.
std::string_view BearerToken(std::string_view authorization);

// The keys of one file. Thread-safe.
class ApiKeys {
 public:
  // Reads the file. Not more than 10,000 keys; names and ids are unique. InvalidArgument names the line; NotFound: no such file;
  // PermissionDenied: others than its owner may write it.
  static absl::StatusOr<std::unique_ptr<ApiKeys>> Load(const std::string& path);

  // Adds a line of MakeApiKey to the file, which is made when it is not there. Load's errors: what is there is no file of keys,
  // or the name is taken; then nothing is written.
  static absl::Status AddLine(const std::string& path, const std::string& line);

  // Unauthenticated: no such key. The comparison takes as long for a wrong secret as for the right one.
  absl::StatusOr<Principal> Authenticate(std::string_view key) const;
  // Reads the file again when it has changed since, so that keys are added and revoked without a restart. An error leaves the
  // keys as they were. To be called now and then.
  absl::Status ReloadIfChanged();
  size_t size() const;

 private:
  struct Entry {
    Principal principal;
    std::string salt, hash;  // hexadecimal
  };
  using Entries = std::map<std::string, Entry, std::less<>>;  // by id
  // What tells one content of the file from the next.
  struct Version {
    uint64_t inode = 0;
    int64_t bytes = 0, changed_ns = 0;
    bool operator==(const Version&) const = default;
  };
  explicit ApiKeys(std::string path) : path_(std::move(path)) {}
  static absl::StatusOr<Entries> Parse(std::string_view text);
  static absl::StatusOr<Version> VersionOf(const std::string& path);

  const std::string path_;
  mutable std::mutex mutex_;
  Entries entries_;  // guarded by mutex_, as version_
  Version version_;
};

}  // namespace ferry
