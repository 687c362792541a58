#pragma once

// The head of a request, checked more strictly than HTTP demands: two servers that read the same bytes differently are how
// requests are smuggled past the first of them, so every shape that is read in two ways somewhere is refused.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "gateway/http/message.h"

namespace ferry {

struct RequestHead {
  HttpRequest request;  // without a body
  bool keep_alive = true;
  bool http_1_0 = false;
  bool chunked = false;
  bool expects_continue = false;
  std::optional<uint64_t> content_length;
};

// Why a head is refused: the status that says so and a sentence for people.
struct HeadError {
  int status = 400;
  std::string message;
};

inline constexpr int kMaxRequestHeaders = 100;

// `head` is what came up to and including the empty line. Sets `error` and returns nothing when it is refused: a line that does
// not end with CR LF, a control character, a header that continues on a second line or has a space before its colon, two Host,
// Content-Length or Transfer-Encoding headers, both of the latter, a transfer coding other than chunked, a target that is no
// path, a version other than HTTP/1.0 and 1.1, more than kMaxRequestHeaders headers.
std::optional<RequestHead> ParseRequestHead(std::string_view head, HeadError* error);

// "openai" == "OpenAI": ASCII alone.
bool EqualsIgnoringCase(std::string_view a, std::string_view b);

}  // namespace ferry
