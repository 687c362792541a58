#include "gateway/template/lexer.h"

#include <algorithm>
#include <array>
#include <optional>

#include "absl/strings/ascii.h"
#include "coordinator/text/utf8.h"

namespace ferry::jinja {
namespace {

constexpr std::string_view kSpaces = " \t\n\r\f\v";

bool IsNameStart(char c) { return absl::ascii_isalpha(c) || c == '_'; }
bool IsNamePart(char c) { return absl::ascii_isalnum(c) || c == '_'; }

std::string WithUnixNewlines(std::string_view source) {
  std::string text;
  text.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      text += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      text += source[i];
    }
  }
  if (text.ends_with('\n')) text.pop_back();
  return text;
}

class Lexer {
 public:
  explicit Lexer(std::string source) : source_(std::move(source)) {}

  absl::StatusOr<std::vector<Token>> Run() {
    while (at_ < source_.size()) {
      const size_t tag = NextTag();
      if (tag == std::string::npos) {
        EmitText(source_.size(), source_.size());
        break;
      }
      const char type = source_[tag + 1];
      const char sign = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
      EmitText(TextEnd(tag, type, sign), tag);
      at_ = tag + 2 + (sign == '-' || sign == '+' ? 1 : 0);
      if (type == '#') {
        RETURN_IF_ERROR(SkipComment());
      } else if (type == '%' && AtRaw()) {
        RETURN_IF_ERROR(LexRaw());
      } else {
        RETURN_IF_ERROR(LexTag(type == '{'));
      }
    }
    Emit(TokenKind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  // Where "{{", "{%" or "{#" begins.
  size_t NextTag() const {
    for (size_t i = at_; (i = source_.find('{', i)) != std::string::npos && i + 1 < source_.size(); ++i) {
      if (source_[i + 1] == '{' || source_[i + 1] == '%' || source_[i + 1] == '#') return i;
    }
    return std::string::npos;
  }

  // The end of the text before the tag at `tag`, by the sign and lstrip_blocks.
  size_t TextEnd(size_t tag, char type, char sign) const {
    const std::string_view text = std::string_view(source_).substr(at_, tag - at_);
    if (sign == '-') return at_ + text.find_last_not_of(kSpaces) + 1;
    if (sign == '+' || type == '{') return tag;
    const size_t line = text.rfind('\n') + 1;
    const bool at_line_start = line > 0 || at_ == 0 || source_[at_ - 1] == '\n';
    if (!at_line_start || text.find_first_not_of(kSpaces, line) != std::string_view::npos) return tag;
    return at_ + line;
  }

  void EmitText(size_t end, size_t next) {
    if (end > at_) Emit(TokenKind::kText, source_.substr(at_, end - at_));
    AdvanceTo(next);
  }

  void AdvanceTo(size_t next) {
    line_ += static_cast<int>(
        std::count(source_.begin() + static_cast<ptrdiff_t>(at_), source_.begin() + static_cast<ptrdiff_t>(next), '\n'));
    at_ = next;
  }

  void Emit(TokenKind kind, std::string text) { tokens_.push_back({kind, line_, std::move(text)}); }

  // Behind a tag: "-" takes all white space, trim_blocks one newline.
  void EndTag(size_t end, char sign, bool trims) {
    AdvanceTo(end);
    if (sign == '-') {
      AdvanceTo(std::min(source_.find_first_not_of(kSpaces, at_), source_.size()));
    } else if (sign != '+' && trims && at_ < source_.size() && source_[at_] == '\n') {
      AdvanceTo(at_ + 1);
    }
  }

  absl::Status SkipComment() {
    const size_t end = source_.find("#}", at_);
    if (end == std::string::npos) return InvalidArgument("line %d: the comment is not closed with '#}'", line_);
    const char before = end > at_ ? source_[end - 1] : '\0';
    EndTag(end + 2, before, /*trims=*/true);
    return absl::OkStatus();
  }

  // Reads "NAME" and the end of its tag from `at`: the position behind, and the sign before "%}".
  struct BareTag {
    size_t end;
    char sign;
  };
  std::optional<BareTag> ReadBareTag(size_t at, std::string_view name) const {
    at = source_.find_first_not_of(kSpaces, at);
    if (at == std::string::npos || source_.compare(at, name.size(), name) != 0) return std::nullopt;
    at = source_.find_first_not_of(kSpaces, at + name.size());
    if (at == std::string::npos) return std::nullopt;
    const char sign = source_[at];
    if (sign == '-' || sign == '+') ++at;
    if (source_.compare(at, 2, "%}") != 0) return std::nullopt;
    return BareTag{at + 2, sign};
  }

  bool AtRaw() const { return ReadBareTag(at_, "raw").has_value(); }

  absl::Status LexRaw() {
    const BareTag open = *ReadBareTag(at_, "raw");
    const int line = line_;
    EndTag(open.end, open.sign, /*trims=*/true);
    for (size_t tag = at_; (tag = source_.find("{%", tag)) != std::string::npos; tag += 2) {
      const char sign = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
      const std::optional<BareTag> close = ReadBareTag(tag + 2 + (sign == '-' || sign == '+' ? 1 : 0), "endraw");
      if (!close) continue;
      EmitText(TextEnd(tag, '%', sign), tag);
      EndTag(close->end, close->sign, /*trims=*/true);
      return absl::OkStatus();
    }
    return InvalidArgument("line %d: 'raw' is not closed with 'endraw'", line);
  }

  absl::Status LexTag(bool output) {
    const int line = line_;
    const std::string_view end = output ? "}}" : "%}";
    Emit(output ? TokenKind::kOutputBegin : TokenKind::kBlockBegin, "");
    brackets_.clear();
    while (true) {
      AdvanceTo(std::min(source_.find_first_not_of(kSpaces, at_), source_.size()));
      if (at_ >= source_.size()) return InvalidArgument("line %d: the tag is not closed with '%s'", line, end);
      if (brackets_.empty()) {
        const char sign = source_[at_];
        const size_t skip = sign == '-' || (sign == '+' && !output) ? 1 : 0;
        if (source_.compare(at_ + skip, 2, end) == 0) {
          Emit(output ? TokenKind::kOutputEnd : TokenKind::kBlockEnd, "");
          EndTag(at_ + skip + 2, sign, /*trims=*/!output);
          return absl::OkStatus();
        }
      }
      RETURN_IF_ERROR(LexToken());
    }
  }

  absl::Status LexToken() {
    const char c = source_[at_];
    if (c == '\'' || c == '"') return LexString(c);
    if (absl::ascii_isdigit(c)) return LexNumber();
    if (IsNameStart(c)) {
      size_t end = at_;
      while (end < source_.size() && IsNamePart(source_[end])) ++end;
      Emit(TokenKind::kName, source_.substr(at_, end - at_));
      at_ = end;
      return absl::OkStatus();
    }
    return LexOperator();
  }

  absl::Status LexOperator() {
    static constexpr std::array<std::string_view, 26> kOperators = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/",
                                                                    "*",  "%",  "~",  "[",  "]",  "(",  ")", "{", "}",
                                                                    ">",  "<",  "=",  ".",  ":",  "|",  ",", ";"};
    for (const std::string_view op : kOperators) {
      if (source_.compare(at_, op.size(), op) != 0) continue;
      RETURN_IF_ERROR(CheckBracket(op[0]));
      Emit(TokenKind::kOperator, std::string(op));
      at_ += op.size();
      return absl::OkStatus();
    }
    return InvalidArgument("line %d: no token begins with '%s'", line_,
                           source_.substr(at_, FirstOfUtf8(std::string_view(source_).substr(at_)).bytes));
  }

  absl::Status CheckBracket(char c) {
    if (c == '(') brackets_ += ')';
    if (c == '[') brackets_ += ']';
    if (c == '{') brackets_ += '}';
    if (c != ')' && c != ']' && c != '}') return absl::OkStatus();
    if (brackets_.empty() || brackets_.back() != c) return InvalidArgument("line %d: '%c' closes no bracket", line_, c);
    brackets_.pop_back();
    return absl::OkStatus();
  }

  absl::Status LexNumber() {
    const auto digits = [&](size_t at) {
      while (at < source_.size() && (absl::ascii_isdigit(source_[at]) || source_[at] == '_')) ++at;
      return at;
    };
    const auto digit_at = [&](size_t at) { return at < source_.size() && absl::ascii_isdigit(source_[at]); };
    size_t end = digits(at_);
    bool is_float = false;
    const bool attribute = at_ > 0 && source_[at_ - 1] == '.';  // "x.0.1" are two subscripts
    if (!attribute && end < source_.size() && source_[end] == '.' && digit_at(end + 1)) {
      end = digits(end + 1);
      is_float = true;
    }
    if (!attribute && end < source_.size() && (source_[end] == 'e' || source_[end] == 'E')) {
      const size_t sign = end + 1 < source_.size() && (source_[end + 1] == '+' || source_[end + 1] == '-') ? 1 : 0;
      if (digit_at(end + 1 + sign)) {
        end = digits(end + 1 + sign);
        is_float = true;
      }
    }
    std::string text = source_.substr(at_, end - at_);
    std::erase(text, '_');
    Emit(is_float ? TokenKind::kFloat : TokenKind::kInteger, std::move(text));
    at_ = end;
    return absl::OkStatus();
  }

  absl::Status LexString(char quote) {
    std::string value;
    size_t i = at_ + 1;
    while (i < source_.size() && source_[i] != quote) {
      if (source_[i] != '\\') {
        value += source_[i++];
        continue;
      }
      if (i + 1 >= source_.size()) break;
      ASSIGN_OR_RETURN(i, LexEscape(i + 1, &value));
    }
    if (i >= source_.size()) return InvalidArgument("line %d: the string is not closed with %c", line_, quote);
    Emit(TokenKind::kString, std::move(value));
    AdvanceTo(i + 1);
    return absl::OkStatus();
  }

  // Appends what the escape at `i`, behind its backslash, means; returns the position behind it.
  absl::StatusOr<size_t> LexEscape(size_t i, std::string* value) const {
    static constexpr std::string_view kFrom = "abfnrtv\\'\"", kTo = "\a\b\f\n\r\t\v\\'\"";
    const char c = source_[i];
    if (const size_t simple = kFrom.find(c); simple != std::string_view::npos) {
      *value += kTo[simple];
      return i + 1;
    }
    if (c == '\n') return i + 1;  // a line that goes on
    const size_t hex_digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    const bool octal = c >= '0' && c <= '7';
    if (hex_digits == 0 && !octal) {
      (*value += '\\') += c;
      return i + 1;
    }
    const size_t begin = octal ? i : i + 1, most = octal ? 3 : hex_digits;
    uint32_t code_point = 0;
    size_t end = begin;
    for (; end < source_.size() && end < begin + most; ++end) {
      const char digit = source_[end];
      if (octal ? digit < '0' || digit > '7' : !absl::ascii_isxdigit(digit)) break;
      const uint32_t number = absl::ascii_isdigit(digit) ? digit - '0' : absl::ascii_tolower(digit) - 'a' + 10;
      code_point = code_point * (octal ? 8 : 16) + number;
    }
    if (!octal && end != begin + most) return InvalidArgument("line %d: '\\%c' needs %d hexadecimal digits", line_, c, most);
    if (code_point > 0x10FFFF || (code_point >= 0xD800 && code_point < 0xE000)) {
      return InvalidArgument("line %d: U+%X is no character", line_, code_point);
    }
    AppendUtf8(code_point, value);
    return end;
  }

  const std::string source_;
  size_t at_ = 0;
  int line_ = 1;
  std::string brackets_;  // that would close those open in this tag
  std::vector<Token> tokens_;
};

}  // namespace

absl::StatusOr<std::vector<Token>> Lex(std::string_view source) { return Lexer(WithUnixNewlines(source)).Run(); }

}  // namespace ferry::jinja
