#include "coordinator/constraint/code_points.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_format.h"

namespace ferry::constraint {
namespace {

ExprId ByteRange(Grammar* grammar, uint32_t first, uint32_t last) {
  ByteSet set;
  for (uint32_t byte = first; byte <= last; ++byte) set.set(byte);
  return grammar->Bytes(set);
}

// The last `count` bytes of characters whose payload in those bytes lies in [first, last]: continuation bytes of six bits.
ExprId Continuation(Grammar* grammar, uint32_t first, uint32_t last, int count);

// `lead` is what the first byte holds beside its payload.
ExprId Sequence(Grammar* grammar, uint32_t first, uint32_t last, int continuation, uint32_t lead) {
  const int shift = 6 * continuation;
  const uint32_t low = (uint32_t{1} << shift) - 1;
  if (continuation == 0) return ByteRange(grammar, lead | first, lead | last);
  std::vector<ExprId> parts;
  const auto add = [&](uint32_t from, uint32_t to) {
    parts.push_back(grammar->Concat({ByteRange(grammar, lead | (from >> shift), lead | (to >> shift)),
                                     Continuation(grammar, from & low, to & low, continuation)}));
  };
  uint32_t from = first, to = last;
  if ((from >> shift) == (to >> shift)) {
    add(from, to);
    return grammar->Alternate(std::move(parts));
  }
  if ((from & low) != 0) {
    add(from, from | low);
    from = (from | low) + 1;
  }
  if ((to & low) != low) {
    add(to & ~low, to);
    to = (to & ~low) - 1;
  }
  if (from < to) add(from, to);  // every value of the continuation bytes
  return grammar->Alternate(std::move(parts));
}

ExprId Continuation(Grammar* grammar, uint32_t first, uint32_t last, int count) {
  return Sequence(grammar, first, last, count - 1, 0x80);
}

ExprId Utf8(Grammar* grammar, const CodePointSet& set) {
  struct Length {
    uint32_t first, last;
    int continuation;
    uint32_t lead;
  };
  constexpr Length kLengths[] = {{0, 0x7F, 0, 0},
                                 {0x80, 0x7FF, 1, 0xC0},
                                 {0x800, 0xD7FF, 2, 0xE0},
                                 {0xE000, 0xFFFF, 2, 0xE0},
                                 {0x10000, kMaxCodePoint, 3, 0xF0}};
  ByteSet ascii;
  std::vector<ExprId> parts;
  for (const CodePointRange& range : set.ranges()) {
    for (const Length& length : kLengths) {
      const uint32_t first = std::max(range.first, length.first), last = std::min(range.last, length.last);
      if (first > last) continue;
      if (length.continuation == 0) {
        for (uint32_t c = first; c <= last; ++c) ascii.set(c);
      } else {
        parts.push_back(Sequence(grammar, first, last, length.continuation, length.lead));
      }
    }
  }
  if (ascii.any()) parts.push_back(grammar->Bytes(ascii));
  return grammar->Alternate(std::move(parts));
}

std::string JsonEscape(uint32_t c) {
  switch (c) {
    case '"':
      return "\\\"";
    case '\\':
      return "\\\\";
    case '\b':
      return "\\b";
    case '\f':
      return "\\f";
    case '\n':
      return "\\n";
    case '\r':
      return "\\r";
    case '\t':
      return "\\t";
    default:
      return absl::StrFormat("\\u%04x", c);
  }
}

}  // namespace

CodePointSet::CodePointSet(std::vector<CodePointRange> ranges) : ranges_(std::move(ranges)) { Normalise(); }

void CodePointSet::Normalise() {
  std::sort(ranges_.begin(), ranges_.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<CodePointRange> merged;
  for (const CodePointRange& range : ranges_) {
    if (!merged.empty() && range.first <= merged.back().last + 1) {
      merged.back().last = std::max(merged.back().last, range.last);
    } else {
      merged.push_back(range);
    }
  }
  ranges_ = std::move(merged);
}

CodePointSet CodePointSet::Complement() const {
  CodePointSet result;
  uint32_t next = 0;
  for (const CodePointRange& range : ranges_) {
    if (range.first > next) result.ranges_.push_back({next, range.first - 1});
    next = range.last + 1;
  }
  if (next <= kMaxCodePoint) result.ranges_.push_back({next, kMaxCodePoint});
  return result;
}

CodePointSet CodePointSet::Intersect(const CodePointSet& other) const {
  CodePointSet result;
  for (const CodePointRange& a : ranges_) {
    for (const CodePointRange& b : other.ranges_) {
      const uint32_t first = std::max(a.first, b.first), last = std::min(a.last, b.last);
      if (first <= last) result.ranges_.push_back({first, last});
    }
  }
  result.Normalise();
  return result;
}

bool CodePointSet::Contains(uint32_t code_point) const {
  return std::any_of(ranges_.begin(), ranges_.end(),
                     [&](const CodePointRange& range) { return range.first <= code_point && code_point <= range.last; });
}

ExprId OneOf(Grammar* grammar, const CodePointSet& set, TextForm form) {
  if (form == TextForm::kPlain) return Utf8(grammar, set);
  static const CodePointSet kEscaped = {{0, 0x1F}, {'"', '"'}, {'\\', '\\'}};
  std::vector<ExprId> parts;
  const CodePointSet plain = set.Intersect(kEscaped.Complement());
  if (!plain.ranges().empty()) parts.push_back(Utf8(grammar, plain));
  const CodePointSet escaped = set.Intersect(kEscaped);
  for (const CodePointRange& range : escaped.ranges()) {
    for (uint32_t c = range.first; c <= range.last; ++c) parts.push_back(grammar->Literal(JsonEscape(c)));
  }
  return grammar->Alternate(std::move(parts));
}

}  // namespace ferry::constraint
