#include "gateway/template/python_text.h"

#include <algorithm>
#include <charconv>
#include <clocale>
#include <cmath>
#include <cstring>
#include <cwctype>

#include "absl/strings/str_cat.h"
#include "coordinator/text/utf8.h"

namespace ferry::jinja {
namespace {

constexpr int kMaxShownDepth = 200;

locale_t Utf8Locale() {
  static const locale_t locale = newlocale(LC_CTYPE_MASK, "C.UTF-8", nullptr);
  return locale;
}

// The invisible characters of Unicode's category Cf that texts have.
bool IsFormatControl(char32_t c) {
  return c == 0xAD || (c >= 0x200B && c <= 0x200F) || (c >= 0x202A && c <= 0x202E) || (c >= 0x2060 && c <= 0x206F) || c == 0xFEFF;
}

// Writes values into one string, and counts it.
class Writer {
 public:
  Writer(const JsonFormat* json, Budget* budget) : json_(json), budget_(*budget) {}

  absl::Status Write(const Value& value) {
    const DepthGuard guard(&depth_);
    if (depth_ > kMaxShownDepth) return InvalidArgument("values lie more than %d levels within one another", kMaxShownDepth);
    RETURN_IF_ERROR(budget_.Step());
    if (checked_ + 65536 < out_.size()) {
      RETURN_IF_ERROR(budget_.CheckString(out_.size()));
      checked_ = out_.size();
    }
    if (const MarkedString* string = value.string()) {
      RETURN_IF_ERROR(budget_.Step(static_cast<int64_t>(string->size() / 16)));
      json_ ? WriteJsonString(*string) : WriteReprString(*string);
      return absl::OkStatus();
    }
    if (value.list() != nullptr) return WriteList(*value.list());
    if (value.dict() != nullptr) return WriteDict(*value.dict());
    return WriteScalar(value);
  }

  MarkedString Take() { return std::move(out_); }

 private:
  void Put(std::string_view text) { out_.Append(text, false); }

  absl::Status WriteScalar(const Value& value) {
    if (value.IsNone()) {
      Put(json_ ? "null" : "None");
    } else if (value.Is<bool>()) {
      const bool truth = value.As<bool>();
      Put(json_ ? (truth ? "true" : "false") : (truth ? "True" : "False"));
    } else if (value.Is<int64_t>()) {
      Put(absl::StrCat(value.As<int64_t>()));
    } else if (value.Is<double>()) {
      Put(json_ ? JsonFloat(value.As<double>()) : FloatText(value.As<double>()));
    } else if (json_) {
      return InvalidArgument("%s has no form in JSON", value.TypeName());
    } else if (value.IsUndefined()) {
      Put("Undefined");
    } else {
      Put(absl::StrFormat("<%s>", value.TypeName()));
    }
    return absl::OkStatus();
  }

  static std::string JsonFloat(double number) {
    if (std::isnan(number)) return "NaN";
    if (std::isinf(number)) return number > 0 ? "Infinity" : "-Infinity";
    return FloatText(number);
  }

  void Break(int levels) {
    if (json_ == nullptr || !json_->indent) return;
    Put("\n");
    for (int i = 0; i < levels; ++i) Put(*json_->indent);
  }

  absl::Status WriteList(const List& list) {
    const bool round = list.is_tuple && json_ == nullptr;
    Put(round ? "(" : "[");
    ++levels_;
    for (size_t i = 0; i < list.items.size(); ++i) {
      if (i > 0) Put(ItemSeparator());
      Break(levels_);
      RETURN_IF_ERROR(Write(list.items[i]));
    }
    --levels_;
    if (!list.items.empty()) Break(levels_);
    if (round && list.items.size() == 1) Put(",");
    Put(round ? ")" : "]");
    return absl::OkStatus();
  }

  absl::Status WriteDict(const Dict& dict) {
    if (dict.is_namespace()) {
      if (json_) return InvalidArgument("a namespace has no form in JSON");
      Put("<Namespace ");
    }
    std::vector<const Dict::Entry*> entries;
    for (const Dict::Entry& entry : dict.entries()) entries.push_back(&entry);
    if (json_ && json_->sort_keys) {
      for (const Dict::Entry* entry : entries) {
        if (!entry->key.IsString()) return InvalidArgument("keys that are no strings cannot be sorted");
      }
      std::stable_sort(entries.begin(), entries.end(), [](auto* a, auto* b) { return a->key.text() < b->key.text(); });
    }
    Put("{");
    ++levels_;
    for (size_t i = 0; i < entries.size(); ++i) {
      if (i > 0) Put(ItemSeparator());
      Break(levels_);
      RETURN_IF_ERROR(WriteKey(entries[i]->key));
      Put(json_ ? std::string_view(json_->key_separator) : ": ");
      RETURN_IF_ERROR(Write(entries[i]->value));
    }
    --levels_;
    if (!entries.empty()) Break(levels_);
    Put("}");
    if (dict.is_namespace()) Put(">");
    return absl::OkStatus();
  }

  // JSON's keys are strings: of other keys what JSON writes for them.
  absl::Status WriteKey(const Value& key) {
    if (json_ == nullptr || key.IsString()) return Write(key);
    Put("\"");
    RETURN_IF_ERROR(WriteScalar(key));
    Put("\"");
    return absl::OkStatus();
  }

  std::string_view ItemSeparator() const { return json_ ? std::string_view(json_->item_separator) : ", "; }

  // Calls `write` with every character and whether a user wrote it.
  template <typename Write>
  static void ForEachCharacter(const MarkedString& string, const Write& write) {
    size_t at = 0;
    for (const MarkedString::Run& run : string.runs()) {
      while (at < run.end) {
        const size_t bytes = FirstOfUtf8(string.text().substr(at)).bytes;
        write(string.text().substr(at, bytes), run.from_user);
        at += bytes;
      }
    }
  }

  void WriteJsonString(const MarkedString& string) {
    Put("\"");
    ForEachCharacter(string, [&](std::string_view c, bool from_user) { out_.Append(JsonCharacter(c), from_user); });
    Put("\"");
  }

  std::string JsonCharacter(std::string_view c) const {
    static constexpr std::string_view kEscaped = "\"\\\n\r\t\b\f", kLetters = "\"\\nrtbf";
    if (const size_t at = kEscaped.find(c[0]); at != std::string_view::npos) return {'\\', kLetters[at]};
    const char32_t code_point = CharacterAt(c, 0);
    if (code_point >= 0x20 && (code_point < 0x7F || !json_->ensure_ascii)) return std::string(c);
    if (code_point < 0x10000) return absl::StrFormat("\\u%04x", static_cast<uint32_t>(code_point));
    const uint32_t rest = code_point - 0x10000;
    return absl::StrFormat("\\u%04x\\u%04x", 0xD800 + (rest >> 10), 0xDC00 + (rest & 0x3FF));
  }

  void WriteReprString(const MarkedString& string) {
    const bool double_quotes =
        string.text().find('\'') != std::string_view::npos && string.text().find('"') == std::string_view::npos;
    const char quote = double_quotes ? '"' : '\'';
    Put(std::string_view(&quote, 1));
    ForEachCharacter(string, [&](std::string_view c, bool from_user) { out_.Append(ReprCharacter(c, quote), from_user); });
    Put(std::string_view(&quote, 1));
  }

  static std::string ReprCharacter(std::string_view c, char quote) {
    if (c[0] == quote || c[0] == '\\') return {'\\', c[0]};
    if (c == "\n") return "\\n";
    if (c == "\r") return "\\r";
    if (c == "\t") return "\\t";
    const uint32_t code_point = CharacterAt(c, 0);
    const bool printable =
        code_point == ' ' || (!IsSpace(code_point) && iswprint_l(static_cast<wint_t>(code_point), Utf8Locale()) != 0);
    if (printable && !IsFormatControl(code_point)) return std::string(c);
    if (code_point < 0x100) return absl::StrFormat("\\x%02x", code_point);
    return code_point < 0x10000 ? absl::StrFormat("\\u%04x", code_point) : absl::StrFormat("\\U%08x", code_point);
  }

  const JsonFormat* const json_;  // null: repr
  Budget& budget_;
  MarkedString out_;
  size_t checked_ = 0;
  int depth_ = 0, levels_ = 0;
};

}  // namespace

absl::StatusOr<MarkedString> ToText(const Value& value, Budget* budget) {
  if (const MarkedString* string = value.string()) return *string;
  if (value.IsUndefined()) return MarkedString();
  Writer writer(nullptr, budget);
  RETURN_IF_ERROR(writer.Write(value));
  return writer.Take();
}

absl::StatusOr<MarkedString> ToJson(const Value& value, const JsonFormat& format, Budget* budget) {
  Writer writer(&format, budget);
  RETURN_IF_ERROR(writer.Write(value));
  return writer.Take();
}

std::string FloatText(double number) {
  if (std::isnan(number)) return "nan";
  if (std::isinf(number)) return number > 0 ? "inf" : "-inf";
  char digits[64];
  const auto end = std::to_chars(digits, digits + sizeof(digits), number, std::chars_format::scientific).ptr;
  const std::string_view text(digits, static_cast<size_t>(end - digits));
  const int exponent = std::atoi(digits + text.find('e') + 1);
  if (exponent < -4 || exponent >= 16) return std::string(text);
  const auto fixed_end = std::to_chars(digits, digits + sizeof(digits), number, std::chars_format::fixed).ptr;
  std::string fixed(digits, fixed_end);
  if (fixed.find('.') == std::string::npos) fixed += ".0";
  return fixed;
}

std::vector<size_t> CharacterOffsets(std::string_view text) {
  std::vector<size_t> offsets;
  for (size_t i = 0; i < text.size(); ++i) {
    if ((text[i] & 0xC0) != 0x80) offsets.push_back(i);
  }
  offsets.push_back(text.size());
  return offsets;
}

size_t CountCharacters(std::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

char32_t CharacterAt(std::string_view text, size_t byte) { return FirstOfUtf8(text.substr(byte)).code_point; }

size_t FindText(std::string_view text, std::string_view part, size_t at) {
  if (at > text.size()) return std::string_view::npos;
  if (part.empty()) return at;
  const void* found = memmem(text.data() + at, text.size() - at, part.data(), part.size());
  return found == nullptr ? std::string_view::npos : static_cast<size_t>(static_cast<const char*>(found) - text.data());
}

bool IsSpace(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

char32_t ToUpper(char32_t c) { return static_cast<char32_t>(towupper_l(static_cast<wint_t>(c), Utf8Locale())); }
char32_t ToLower(char32_t c) { return static_cast<char32_t>(towlower_l(static_cast<wint_t>(c), Utf8Locale())); }

}  // namespace ferry::jinja
