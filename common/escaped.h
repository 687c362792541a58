#pragma once

// Text from peers and files, before it reaches a terminal or a log.

#include <string>
#include <string_view>

namespace ferry {

// `text` with everything that could steer a terminal or that is no UTF-8 replaced: control characters (C0, DEL, C1) and those
// that turn the writing direction become \xNN or \uNNNN, bytes that are no UTF-8 become \xNN. At most `max_bytes` of the text are
// taken; "..." says that there was more.
std::string Escaped(std::string_view text, size_t max_bytes = 512);

}  // namespace ferry
