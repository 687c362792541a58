#pragma once

// Answers as bytes on the wire.

#include <string>
#include <string_view>

#include "gateway/http/message.h"

namespace ferry {

enum class Framing { kLength, kChunked, kUntilClose };

// Status line and headers, up to and including the empty line. With Framing::kLength the body's length is response.body's; the
// body itself is not part of the result. Header values lose control characters.
std::string HeadText(const HttpResponse& response, Framing framing, bool keep_alive);

// One chunk of a chunked body; of nothing: nothing, since an empty chunk would end the body.
std::string ChunkText(std::string_view piece);
inline constexpr std::string_view kLastChunk = "0\r\n\r\n";

}  // namespace ferry
