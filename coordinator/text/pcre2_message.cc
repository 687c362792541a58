#include "coordinator/text/pcre2_message.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "absl/strings/str_format.h"

namespace ferry {

std::string Pcre2Message(int error) {
  PCRE2_UCHAR buffer[256];
  if (pcre2_get_error_message(error, buffer, sizeof(buffer)) < 0) return absl::StrFormat("PCRE2 error %d", error);
  return reinterpret_cast<const char*>(buffer);
}

}  // namespace ferry
