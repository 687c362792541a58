#pragma once

// The byte alphabet of byte-level BPE (GPT-2): every byte is written as one printable character, so that tokens and
// merges can be stored as text. A byte that is printable Latin-1 is written as itself; the other 68 bytes, in order, are U+0100
// to U+0143
// ("Ġ" is the space, "Ċ" the newline).

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace ferry {

char32_t AlphabetOfByte(uint8_t byte);
// "a b" -> "aĠb".
std::string AlphabetOfBytes(std::string_view bytes);
// The inverse; nullopt when `text` holds anything that is not of the alphabet, or is not UTF-8.
std::optional<std::string> BytesOfAlphabet(std::string_view text);

}  // namespace ferry
