#include "gateway/template/marked_string.h"

#include <algorithm>

namespace ferry::jinja {

bool MarkedString::AnyFromUser() const {
  return std::any_of(runs_.begin(), runs_.end(), [](const Run& run) { return run.from_user; });
}

void MarkedString::Append(std::string_view text, bool from_user) {
  if (text.empty()) return;
  text_ += text;
  if (!runs_.empty() && runs_.back().from_user == from_user) {
    runs_.back().end = text_.size();
  } else {
    runs_.push_back({text_.size(), from_user});
  }
}

void MarkedString::AppendSlice(const MarkedString& other, size_t begin, size_t end) {
  if (&other == this) {
    AppendSlice(MarkedString(other), begin, end);
    return;
  }
  const std::string_view text = other.text();
  auto run = std::upper_bound(other.runs_.begin(), other.runs_.end(), begin, [](size_t at, const Run& r) { return at < r.end; });
  while (begin < end) {
    const size_t run_end = std::min(run->end, end);
    Append(text.substr(begin, run_end - begin), run->from_user);
    begin = run_end;
    ++run;
  }
}

MarkedString MarkedString::Slice(size_t begin, size_t end) const {
  MarkedString slice;
  slice.AppendSlice(*this, begin, end);
  return slice;
}

std::vector<TextPiece> MarkedString::Pieces() const {
  std::vector<TextPiece> pieces;
  size_t begin = 0;
  for (const Run& run : runs_) {
    pieces.push_back({text_.substr(begin, run.end - begin), run.from_user});
    begin = run.end;
  }
  return pieces;
}

}  // namespace ferry::jinja
