#pragma once

// A walk through the encoded bytes of a GGUF file, for gguf.cc and gguf_values.cc.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "common/checked_size.h"
#include "common/gguf/gguf.h"
#include "common/status.h"

namespace ferry::gguf {

// Encoded size of one value; 0 for strings and arrays, whose encoding has its length; nullopt for an unknown id.
std::optional<uint64_t> FixedSizeOf(GgufType type);

// Text from a file for terminals and UTF-8 messages: writes bytes that are not printable UTF-8 as \xNN, and cuts after max_bytes.
std::string Printable(std::string_view text, size_t max_bytes = 80);

template <typename T>
T Load(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

// Walks a file front to back. Every read is checked against the bytes left; errors name the item and its place.
class Cursor {
 public:
  Cursor(std::span<const std::byte> bytes, std::string_view path) : bytes_(bytes), path_(path) {}

  // Sets what later reads belong to, for error messages: "key 'general.name'".
  void set_subject(std::string subject) { subject_ = std::move(subject); }
  uint64_t offset() const { return offset_; }
  uint64_t bytes_left() const { return bytes_.size() - offset_; }

  template <typename... Args>
  absl::Status ErrorAt(uint64_t offset, const absl::FormatSpec<Args...>& format, const Args&... args) const {
    return InvalidArgument("%s: %s: %s (at byte %d)", path_, subject_, absl::StrFormat(format, args...), offset);
  }

  absl::StatusOr<std::span<const std::byte>> ReadBytes(CheckedSize size, std::string_view what) {
    if (!size.AtMost(bytes_left())) {
      return ErrorAt(offset_,
                     "%s takes %s bytes, but %d of the file's %d bytes are left: it is truncated, as by an "
                     "interrupted download, or damaged",
                     what, size.valid() ? std::to_string(size.value()) : std::string("2^63 or more"), bytes_left(),
                     bytes_.size());
    }
    const std::span<const std::byte> part = bytes_.subspan(offset_, size.value());
    offset_ += part.size();
    return part;
  }

  template <typename T>
  absl::StatusOr<T> Read(std::string_view what) {
    ASSIGN_OR_RETURN(const std::span<const std::byte> part, ReadBytes(sizeof(T), what));
    return Load<T>(part.data());
  }

  absl::StatusOr<std::string_view> ReadString(std::string_view what) {
    ASSIGN_OR_RETURN(const uint64_t size, Read<uint64_t>(what));
    ASSIGN_OR_RETURN(const std::span<const std::byte> part, ReadBytes(size, what));
    return std::string_view(reinterpret_cast<const char*>(part.data()), part.size());
  }

  // A key or a tensor name: 1 to max_bytes bytes, none of them NUL.
  absl::StatusOr<std::string_view> ReadName(std::string_view what, uint64_t max_bytes) {
    const uint64_t start = offset_;
    ASSIGN_OR_RETURN(const std::string_view name, ReadString(what));
    if (name.empty()) return ErrorAt(start, "%s is empty", what);
    if (name.size() > max_bytes) {
      return ErrorAt(start, "%s has %d bytes, at most %d are allowed", what, name.size(), max_bytes);
    }
    if (name.find('\0') != name.npos) return ErrorAt(start, "%s '%s' contains a NUL byte", what, Printable(name));
    return name;
  }

  // A metadata entry from its key on.
  absl::StatusOr<GgufEntry> ReadEntry();

 private:
  // Skips `count` values of `type`.
  absl::Status SkipValues(GgufType type, uint64_t count);

  std::span<const std::byte> bytes_;
  std::string_view path_;
  std::string subject_ = "header";
  uint64_t offset_ = 0;
};

}  // namespace ferry::gguf
