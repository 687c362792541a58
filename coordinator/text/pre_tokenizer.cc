#include "coordinator/text/pre_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "coordinator/text/pcre2_message.h"

namespace ferry {
namespace {

// The patterns are those of the models' published tokenizers, with one change throughout: \s and \S are compiled as the
// Unicode property White_Space, which is what the regex engines of those tokenizers mean by \s. PCRE2's own \s has
// U+180E besides.
constexpr const char* kContractions = R"('s|'t|'re|'ve|'m|'ll|'d)";
constexpr const char* kGpt2Rest = R"(| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
// Words with one leading character that is no letter, digit or newline; digits between; punctuation with its newlines.
constexpr const char* kCl100kWords = R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|)";
constexpr const char* kCl100kRest = R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
// Words end where a lower-case letter is followed by an upper-case one.
constexpr const char* kO200k =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"(\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
// qwen2's with combining marks as letters.
constexpr const char* kQwen35 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|)"
    R"(\s+(?!\S)|\s+)";
// Runs of Chinese characters; then o200k's words without them.
constexpr const char* kKimiK2 =
    R"(\p{Han}+|)"
    R"([^\r\n\p{L}\p{N}]?(?:(?!\p{Han})[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}])*(?:(?!\p{Han})[\p{Ll}\p{Lm}\p{Lo}\p{M}])+)"
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"([^\r\n\p{L}\p{N}]?(?:(?!\p{Han})[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}])+(?:(?!\p{Han})[\p{Ll}\p{Lm}\p{Lo}\p{M}])*)"
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"(\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
// The letters of scripts with upper and lower case.
constexpr const char* kDeepseekLetters =
    R"(\s?[A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293})"
    R"(\x{295}-\x{2AF}\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C})"
    R"(\x{38E}-\x{3A1}\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5})"
    R"(\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B})"
    R"(\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45})"
    R"(\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4})"
    R"(\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB})"
    R"(\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115})"
    R"(\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F})"
    R"(\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2})"
    R"(\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E})"
    R"(\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A})"
    R"(\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2})"
    R"(\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}]+)";
// ASCII, full-width and CJK punctuation, curved quotes.
constexpr const char* kDeepseekPunctuation =
    R"(\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+)";
constexpr const char* kDeepseekCjk = R"([\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}]+)";
// Published as \s+$. A run of white space in the middle of a text would be tried from each of its characters, in
// quadratic time; that a match begins where its run begins says the same.
constexpr const char* kTrailingSpace = R"((?<!\s)\s++\z)";
constexpr const char* kDeepseek3Words =
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";

struct Known {
  std::string_view name;
  std::vector<std::string> patterns;
};

const std::vector<Known>& KnownPreTokenizers() {
  static const auto& known = *new std::vector<Known>{
      {"deepseek-coder", {R"([\r\n])", R"(\s?\p{L}+)", R"(\s?\p{P}+)", kDeepseekCjk, R"(\p{N})"}},
      {"deepseek-llm", {R"([\r\n])", kDeepseekLetters, kDeepseekPunctuation, kTrailingSpace, kDeepseekCjk, R"(\p{N}+)"}},
      {"deepseek-v3", {R"(\p{N}{1,3})", R"([\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+)", kDeepseek3Words}},
      {"falcon", {R"([\p{P}\$\+<=>\^~\|`]+)", std::string(kContractions) + kGpt2Rest, R"([0-9][0-9][0-9])"}},
      {"glm4", {std::string(kCl100kWords) + R"(\p{N}{1,3})" + kCl100kRest}},
      {"gpt-2", {std::string(kContractions) + kGpt2Rest}},
      {"gpt-4o", {kO200k}},
      {"llama-bpe", {std::string(kCl100kWords) + R"(\p{N}{1,3})" + kCl100kRest}},
      {"llama3", {std::string(kCl100kWords) + R"(\p{N}{1,3})" + kCl100kRest}},
      {"kimi-k2", {kKimiK2}},
      {"qwen2", {std::string(kCl100kWords) + R"(\p{N})" + kCl100kRest}},
      {"qwen35", {kQwen35}},
      {"starcoder", {R"(\p{N})", std::string(kContractions) + kGpt2Rest}},
  };
  return known;
}

// Outside and inside brackets alike.
std::string WithUnicodeSpace(std::string_view pattern) {
  std::string result;
  for (size_t i = 0; i < pattern.size(); ++i) {
    result.push_back(pattern[i]);
    if (pattern[i] != '\\' || i + 1 == pattern.size()) continue;
    const char escaped = pattern[++i];
    if (escaped == 's') {
      result += "p{White_Space}";
    } else if (escaped == 'S') {
      result += "P{White_Space}";
    } else {
      result.push_back(escaped);
    }
  }
  return result;
}

constexpr size_t kJitStackStartBytes = 32 << 10;
constexpr size_t kJitStackMaxBytes = 1 << 20;
constexpr uint32_t kHeapLimitKibibytes = 256 << 10;
// Of PCRE2's steps in one match. A greedy run costs at most a few steps a character in every pattern above; the rest is
// room for short texts.
uint32_t MatchLimit(size_t text_bytes) {
  return static_cast<uint32_t>(std::min<uint64_t>(uint64_t{100'000} + 64 * uint64_t{text_bytes}, UINT32_MAX));
}

// What one thread needs for matching.
class Matcher {
 public:
  explicit Matcher(size_t text_bytes)
      : data_(pcre2_match_data_create(1, nullptr)),
        context_(pcre2_match_context_create(nullptr)),
        stack_(pcre2_jit_stack_create(kJitStackStartBytes, kJitStackMaxBytes, nullptr)) {
    if (context_ == nullptr) return;
    pcre2_set_match_limit(context_, MatchLimit(text_bytes));
    pcre2_set_heap_limit(context_, kHeapLimitKibibytes);
    if (stack_ != nullptr) pcre2_jit_stack_assign(context_, nullptr, stack_);
  }
  ~Matcher() {
    pcre2_match_data_free(data_);
    pcre2_match_context_free(context_);
    pcre2_jit_stack_free(stack_);
  }
  Matcher(const Matcher&) = delete;
  Matcher& operator=(const Matcher&) = delete;

  bool ok() const { return data_ != nullptr && context_ != nullptr; }

  // Appends the matches of `code` in `text` and what lies between them.
  absl::Status Split(const pcre2_code* code, std::string_view text, std::vector<std::string_view>* pieces) {
    size_t done = 0;
    while (done < text.size()) {
      const int result = pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), done,
                                     PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY, data_, context_);
      if (result == PCRE2_ERROR_NOMATCH) break;
      if (result < 0) return Internal("PCRE2 gave up on a text of %d bytes: %s", text.size(), Pcre2Message(result));
      const size_t* const match = pcre2_get_ovector_pointer(data_);
      if (match[0] > done) pieces->push_back(text.substr(done, match[0] - done));
      pieces->push_back(text.substr(match[0], match[1] - match[0]));
      done = match[1];
    }
    if (done < text.size()) pieces->push_back(text.substr(done));
    return absl::OkStatus();
  }

 private:
  pcre2_match_data* const data_;
  pcre2_match_context* const context_;
  pcre2_jit_stack* const stack_;
};

}  // namespace

void PreTokenizer::CodeDeleter::operator()(void* code) const { pcre2_code_free(static_cast<pcre2_code*>(code)); }

std::string PreTokenizer::KnownNames() {
  std::string names;
  for (const Known& known : KnownPreTokenizers()) {
    if (!names.empty()) names += ", ";
    names += known.name;
  }
  return names;
}

absl::StatusOr<PreTokenizer> PreTokenizer::Create(std::string_view name) {
  const std::vector<Known>& all = KnownPreTokenizers();
  const auto known = std::find_if(all.begin(), all.end(), [&](const Known& one) { return one.name == name; });
  if (known == all.end()) {
    return Unimplemented("tokenizer.ggml.pre is \"%s\"; the pre-tokenizers Ferry knows are %s", name.substr(0, 60), KnownNames());
  }
  PreTokenizer pre_tokenizer;
  for (const std::string& pattern : known->patterns) {
    const std::string source = WithUnicodeSpace(pattern);
    int error;
    size_t offset;
    pcre2_code* const code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(source.data()), source.size(), PCRE2_UTF | PCRE2_UCP,
                                           &error, &offset, nullptr);
    if (code == nullptr) {
      return Internal("pattern of pre-tokenizer \"%s\", at %d: %s", name, offset, Pcre2Message(error));
    }
    pre_tokenizer.patterns_.emplace_back(code);
    // Without a JIT (other processors, or memory that may not be executable) PCRE2 interprets: slower, the same result.
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
  }
  return pre_tokenizer;
}

absl::StatusOr<std::vector<std::string_view>> PreTokenizer::Split(std::string_view text) const {
  std::vector<std::string_view> pieces;
  if (text.empty()) return pieces;
  Matcher matcher(text.size());
  if (!matcher.ok()) return ResourceExhausted("no memory for PCRE2's match data");
  pieces.push_back(text);
  std::vector<std::string_view> finer;
  for (const auto& pattern : patterns_) {
    finer.clear();
    for (const std::string_view piece : pieces) {
      RETURN_IF_ERROR(matcher.Split(static_cast<const pcre2_code*>(pattern.get()), piece, &finer));
    }
    pieces.swap(finer);
  }
  return pieces;
}

}  // namespace ferry
