#include "gateway/template/string_methods.h"

#include <algorithm>

#include "absl/container/flat_hash_set.h"
#include "coordinator/text/utf8.h"
#include "gateway/template/python_text.h"

namespace ferry::jinja {
namespace {

// Every character changed by `change`, which sees the one before it as well (0 for the first).
template <typename Change>
MarkedString ChangeCharacters(const MarkedString& text, const Change& change) {
  MarkedString result;
  char32_t previous = 0;
  size_t at = 0;
  for (const MarkedString::Run& run : text.runs()) {
    std::string changed;
    while (at < run.end) {
      const Utf8Prefix c = FirstOfUtf8(text.text().substr(at));
      AppendUtf8(change(c.code_point, previous), &changed);
      previous = c.code_point;
      at += c.bytes;
    }
    result.Append(changed, run.from_user);
  }
  return result;
}

bool IsCased(char32_t c) { return ToLower(c) != c || ToUpper(c) != c; }

}  // namespace

MarkedString Strip(const MarkedString& text, const MarkedString* characters, Side side) {
  const std::vector<size_t> offsets = CharacterOffsets(text.text());
  absl::flat_hash_set<char32_t> set;
  if (characters != nullptr) {
    for (size_t at = 0; at < characters->size(); at += FirstOfUtf8(characters->text().substr(at)).bytes) {
      set.insert(CharacterAt(characters->text(), at));
    }
  }
  const auto strips = [&](size_t i) {
    const char32_t c = CharacterAt(text.text(), offsets[i]);
    return characters == nullptr ? IsSpace(c) : set.contains(c);
  };
  size_t begin = 0, end = offsets.size() - 1;
  if (side != Side::kRight) {
    while (begin < end && strips(begin)) ++begin;
  }
  if (side != Side::kLeft) {
    while (end > begin && strips(end - 1)) --end;
  }
  return text.Slice(offsets[begin], offsets[end]);
}

absl::StatusOr<MarkedString> Replace(const MarkedString& text, const MarkedString& from, const MarkedString& to, int64_t count,
                                     Budget* budget) {
  RETURN_IF_ERROR(budget->StepBytes(text.size()));
  MarkedString result;
  size_t done = 0;
  // An empty text is found before every character and at the end.
  for (size_t at = 0; count != 0; --count) {
    at = FindText(text.text(), from.text(), at);
    if (at == std::string_view::npos) break;
    RETURN_IF_ERROR(budget->Step());
    RETURN_IF_ERROR(budget->CheckString(result.size() + to.size()));
    result.AppendSlice(text, done, at);
    result.Append(to);
    done = at + from.size();
    at = done;
    if (!from.empty()) continue;
    if (at >= text.size()) break;
    at += FirstOfUtf8(text.text().substr(at)).bytes;
  }
  result.AppendSlice(text, done, text.size());
  return result;
}

absl::StatusOr<MarkedString> Join(const std::vector<Value>& items, const MarkedString& separator, Budget* budget) {
  MarkedString result;
  for (size_t i = 0; i < items.size(); ++i) {
    ASSIGN_OR_RETURN(const MarkedString text, ToText(items[i], budget));
    RETURN_IF_ERROR(budget->Step());
    RETURN_IF_ERROR(budget->StepBytes(text.size() + separator.size()));
    RETURN_IF_ERROR(budget->CheckString(result.size() + separator.size() + text.size()));
    if (i > 0) result.Append(separator);
    result.Append(text);
  }
  return result;
}

MarkedString Upper(const MarkedString& text) {
  return ChangeCharacters(text, [](char32_t c, char32_t) { return ToUpper(c); });
}

MarkedString Lower(const MarkedString& text) {
  return ChangeCharacters(text, [](char32_t c, char32_t) { return ToLower(c); });
}

MarkedString Capitalize(const MarkedString& text) {
  bool first = true;
  return ChangeCharacters(text, [&](char32_t c, char32_t) { return std::exchange(first, false) ? ToUpper(c) : ToLower(c); });
}

MarkedString Title(const MarkedString& text) {
  return ChangeCharacters(text, [](char32_t c, char32_t previous) { return IsCased(previous) ? ToLower(c) : ToUpper(c); });
}

}  // namespace ferry::jinja
