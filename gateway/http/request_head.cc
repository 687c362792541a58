#include "gateway/http/request_head.h"

#include <algorithm>

#include "absl/strings/str_format.h"

namespace ferry {
namespace {

char Lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }
bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsAlpha(char c) { return Lower(c) >= 'a' && Lower(c) <= 'z'; }
bool IsToken(char c) {
  return IsAlpha(c) || IsDigit(c) || (c != 0 && std::string_view("!#$%&'*+-.^_`|~").find(c) != std::string_view::npos);
}
bool IsVisible(char c) { return c > ' ' && c < 0x7f; }
// Tabs and bytes beyond ASCII are allowed in values, other control characters are not.
bool IsValue(char c) { return c == '\t' || (static_cast<unsigned char>(c) >= ' ' && c != 0x7f); }

std::string_view Trimmed(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

// Whether a comma-separated list has `word`.
bool ListHas(std::string_view list, std::string_view word) {
  while (true) {
    const size_t comma = list.find(',');
    if (EqualsIgnoringCase(Trimmed(list.substr(0, comma)), word)) return true;
    if (comma == std::string_view::npos) return false;
    list.remove_prefix(comma + 1);
  }
}

class HeadParser {
 public:
  HeadParser(std::string_view head, HeadError* error) : rest_(head), error_(*error) {}

  std::optional<RequestHead> Parse() {
    std::string_view line;
    if (!NextLine(&line) || !ParseRequestLine(line)) return std::nullopt;
    while (true) {
      if (!NextLine(&line)) return std::nullopt;
      if (line.empty()) break;
      if (!ParseHeader(line)) return std::nullopt;
    }
    if (!rest_.empty()) return Refuse(400, "the head of the request goes on after its empty line");
    if (!Check()) return std::nullopt;
    return std::move(head_);
  }

 private:
  std::nullopt_t Refuse(int status, std::string message) {
    error_ = {.status = status, .message = std::move(message)};
    return std::nullopt;
  }
  bool Fail(int status, std::string message) {
    Refuse(status, std::move(message));
    return false;
  }

  bool NextLine(std::string_view* line) {
    const size_t end = rest_.find('\n');
    if (end == std::string_view::npos || end == 0 || rest_[end - 1] != '\r') {
      return Fail(400, "a line of the request's head does not end with CR LF");
    }
    *line = rest_.substr(0, end - 1);
    rest_.remove_prefix(end + 1);
    return true;
  }

  bool ParseRequestLine(std::string_view line) {
    const size_t first = line.find(' '), last = line.rfind(' ');
    if (first == std::string_view::npos || first == last) return Fail(400, "the request line is not METHOD TARGET VERSION");
    const std::string_view method = line.substr(0, first), target = line.substr(first + 1, last - first - 1);
    const std::string_view version = line.substr(last + 1);
    if (version == "HTTP/1.0") {
      head_.http_1_0 = true;
      head_.keep_alive = false;
    } else if (version != "HTTP/1.1") {
      return Fail(505, "the version of the request is not HTTP/1.1");
    }
    if (method.empty() || !std::all_of(method.begin(), method.end(), IsToken))
      return Fail(400, "the method of the request is no word");
    if (target.empty() || target.front() != '/' || !std::all_of(target.begin(), target.end(), IsVisible)) {
      return Fail(400, "the target of the request is not a path");
    }
    const size_t question = target.find('?');
    head_.request.method = std::string(method);
    head_.request.path = std::string(target.substr(0, question));
    if (question != std::string_view::npos) head_.request.query = std::string(target.substr(question + 1));
    return true;
  }

  bool ParseHeader(std::string_view line) {
    if (static_cast<int>(head_.request.headers.size()) >= kMaxRequestHeaders) {
      return Fail(431, absl::StrFormat("the request has more than %d headers", kMaxRequestHeaders));
    }
    const size_t colon = line.find(':');
    const std::string_view name = line.substr(0, colon);
    if (colon == std::string_view::npos || name.empty() || !std::all_of(name.begin(), name.end(), IsToken)) {
      return Fail(400, "a header of the request is not NAME: VALUE on one line");
    }
    const std::string_view value = Trimmed(line.substr(colon + 1));
    if (!std::all_of(value.begin(), value.end(), IsValue)) return Fail(400, "a header of the request has a control character");
    HttpHeader header = {.name = std::string(name), .value = std::string(value)};
    std::transform(header.name.begin(), header.name.end(), header.name.begin(), Lower);
    head_.request.headers.push_back(std::move(header));
    return true;
  }

  int Count(std::string_view name) const {
    return static_cast<int>(std::count_if(head_.request.headers.begin(), head_.request.headers.end(),
                                          [&](const HttpHeader& header) { return header.name == name; }));
  }

  bool Check() {
    const HttpRequest& request = head_.request;
    for (const char* name : {"host", "content-length", "transfer-encoding", "authorization", "x-api-key", "expect"}) {
      if (Count(name) > 1) return Fail(400, absl::StrFormat("the request has two %s headers", name));
    }
    if (Count("host") == 0 && !head_.http_1_0) return Fail(400, "the request has no host header");
    if (Count("transfer-encoding") == 1) {
      if (Count("content-length") == 1) return Fail(400, "the request has both content-length and transfer-encoding");
      if (head_.http_1_0) return Fail(400, "an HTTP/1.0 request has a transfer-encoding");
      if (!EqualsIgnoringCase(request.Header("transfer-encoding"), "chunked")) {
        return Fail(501, "the transfer-encoding of the request is not chunked");
      }
      head_.chunked = true;
    }
    if (Count("content-length") == 1 && !ParseLength(request.Header("content-length"))) return false;
    if (Count("content-encoding") > 0 && !EqualsIgnoringCase(request.Header("content-encoding"), "identity")) {
      return Fail(415, "the body of the request is compressed: send it as it is");
    }
    if (const std::string_view expect = request.Header("expect"); !expect.empty()) {
      if (!EqualsIgnoringCase(expect, "100-continue")) return Fail(417, "the request expects something other than 100-continue");
      head_.expects_continue = !head_.http_1_0;
    }
    for (const HttpHeader& header : request.headers) {
      if (header.name == "connection" && ListHas(header.value, "close")) head_.keep_alive = false;
    }
    return true;
  }

  bool ParseLength(std::string_view text) {
    if (text.empty() || text.size() > 18 || !std::all_of(text.begin(), text.end(), IsDigit)) {
      return Fail(400, "the content-length of the request is no number");
    }
    uint64_t length = 0;
    for (const char c : text) length = length * 10 + static_cast<uint64_t>(c - '0');
    head_.content_length = length;
    return true;
  }

  std::string_view rest_;
  HeadError& error_;
  RequestHead head_;
};

}  // namespace

bool EqualsIgnoringCase(std::string_view a, std::string_view b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](char x, char y) { return Lower(x) == Lower(y); });
}

std::optional<RequestHead> ParseRequestHead(std::string_view head, HeadError* error) { return HeadParser(head, error).Parse(); }

}  // namespace ferry
