#include "gateway/http/response_text.h"

#include "absl/strings/str_format.h"

namespace ferry {
namespace {

const char* ReasonOf(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 204:
      return "No Content";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 411:
      return "Length Required";
    case 413:
      return "Content Too Large";
    case 415:
      return "Unsupported Media Type";
    case 417:
      return "Expectation Failed";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 500:
      return "Internal Server Error";
    case 501:
      return "Not Implemented";
    case 503:
      return "Service Unavailable";
    case 504:
      return "Gateway Timeout";
    case 505:
      return "HTTP Version Not Supported";
    case 529:
      return "Overloaded";
    default:
      return "Status";
  }
}

std::string WithoutControls(std::string_view text) {
  std::string clean;
  for (const char c : text) {
    if (static_cast<unsigned char>(c) >= ' ' && c != 0x7f) clean.push_back(c);
  }
  return clean;
}

}  // namespace

std::string HeadText(const HttpResponse& response, Framing framing, bool keep_alive) {
  std::string text = absl::StrFormat("HTTP/1.1 %d %s\r\n", response.status, ReasonOf(response.status));
  if (!response.content_type.empty() && response.status != 204) {
    absl::StrAppendFormat(&text, "Content-Type: %s\r\n", WithoutControls(response.content_type));
  }
  for (const HttpHeader& header : response.headers) {
    absl::StrAppendFormat(&text, "%s: %s\r\n", WithoutControls(header.name), WithoutControls(header.value));
  }
  if (framing == Framing::kLength && response.status != 204) {
    absl::StrAppendFormat(&text, "Content-Length: %d\r\n", response.body.size());
  } else if (framing == Framing::kChunked) {
    text += "Transfer-Encoding: chunked\r\n";
  }
  text += keep_alive ? "Connection: keep-alive\r\n\r\n" : "Connection: close\r\n\r\n";
  return text;
}

std::string ChunkText(std::string_view piece) {
  if (piece.empty()) return {};
  return absl::StrFormat("%x\r\n%s\r\n", piece.size(), piece);
}

}  // namespace ferry
