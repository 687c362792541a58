#include <string>
#include <string_view>

#include "absl/strings/str_join.h"
#include "coordinator/constraint/json_terms.h"

namespace ferry::constraint {
namespace {

#define FERRY_YEAR "(?:\\d{3}[1-9]|\\d{2}[1-9]\\d|\\d[1-9]\\d{2}|[1-9]\\d{3})"
#define FERRY_LEAP_YEAR "(?:\\d{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
#define FERRY_DATE \
  "(?:" FERRY_YEAR \
  "-(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1\\d|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31)|" FERRY_LEAP_YEAR "-02-29)"
#define FERRY_TIME "(?:[01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(?:\\.\\d{1,6})?(?:Z|[+-](?:[01]\\d|2[0-3]):[0-5]\\d)"
#define FERRY_LABEL "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
#define FERRY_HOST "(?:" FERRY_LABEL "\\.){0,3}" FERRY_LABEL
#define FERRY_BYTE "(?:25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)"
#define FERRY_IPV4 FERRY_BYTE "(?:\\." FERRY_BYTE "){3}"
#define FERRY_HEX4 "[0-9A-Fa-f]{1,4}"
#define FERRY_PATH_CHARACTER "(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})"
#define FERRY_QUERY "(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*"

struct Format {
  const char* name;
  const char* regex;
};

// Each is a subset of what its RFC allows: whatever matches is valid.
constexpr Format kFormats[] = {
    {"date", FERRY_DATE},
    {"time", FERRY_TIME},
    {"date-time", FERRY_DATE "T" FERRY_TIME},
    {"duration",
     "P(?:\\d{1,9}W|\\d{1,9}Y(?:\\d{1,9}M(?:\\d{1,9}D)?)?|\\d{1,9}M(?:\\d{1,9}D)?|(?:\\d{1,9}D)?T(?:\\d{1,9}H(?:\\d{1,9}M(?:"
     "\\d{1,9}S)?)?|\\d{1,9}M(?:\\d{1,9}S)?|\\d{1,9}S)|\\d{1,9}D)"},
    {"email", "[A-Za-z0-9_+-]{1,32}(?:\\.[A-Za-z0-9_+-]{1,15}){0,2}@(?:" FERRY_LABEL "\\.){1,3}[A-Za-z]{2,24}"},
    {"hostname", FERRY_HOST},
    {"ipv4", FERRY_IPV4},
    {"ipv6", "(?:" FERRY_HEX4 ":){7}" FERRY_HEX4 "|(?:" FERRY_HEX4 ":){1,6}:" FERRY_HEX4 "|::(?:" FERRY_HEX4 "(?::" FERRY_HEX4
             "){0,5})?"},
    {"uuid", "[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}"},
    {"uri", "[A-Za-z][A-Za-z0-9+.-]{0,15}://" FERRY_HOST "(?::[0-9]{1,5})?(?:/" FERRY_PATH_CHARACTER "*)*(?:\\?" FERRY_QUERY
            ")?(?:#" FERRY_QUERY ")?"},
    {"uri-reference", "(?:/" FERRY_PATH_CHARACTER "+)+/?(?:\\?" FERRY_QUERY ")?(?:#" FERRY_QUERY ")?"},
    {"json-pointer", "(?:/(?:[^~/]|~[01])*)*"},
};

}  // namespace

const char* RegexOfFormat(std::string_view format) {
  for (const Format& known : kFormats) {
    if (format == known.name) return known.regex;
  }
  return nullptr;
}

std::string NamesOfFormats() {
  return absl::StrJoin(kFormats, ", ", [](std::string* out, const Format& format) { out->append(format.name); });
}

}  // namespace ferry::constraint
