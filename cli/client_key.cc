#include "cli/client_key.h"

#include <cstdlib>

#include "absl/strings/ascii.h"

namespace ferry {

absl::StatusOr<std::string> KeyFromEnvironment() {
  const char* const value = std::getenv("FERRY_API_KEY");
  const std::string key = value == nullptr ? "" : value;
  for (const char c : key) {
    if (!absl::ascii_isgraph(static_cast<unsigned char>(c))) {
      return InvalidArgument(
          "FERRY_API_KEY has a space, or another character than printable ASCII: want a key as it was printed");
    }
  }
  return key;
}

}  // namespace ferry
