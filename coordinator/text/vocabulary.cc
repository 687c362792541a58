#include "coordinator/text/vocabulary.h"

#include <algorithm>
#include <limits>

#include "common/gguf/gguf.h"
#include "coordinator/text/byte_alphabet.h"

namespace ferry {
namespace {

constexpr size_t kMaxTokens = size_t{1} << 24;      // published vocabularies stay under 2^18
constexpr size_t kMaxTokenBytes = size_t{1} << 30;  // all tokens together: offsets are 32 bits
constexpr size_t kMaxMerges = size_t{1} << 26;
constexpr size_t kShownBytes = 60;  // of a token or merge in an error

// Untrusted text for an error message: printable and short.
std::string Shown(std::string_view text) {
  std::string shown;
  for (const char c : text.substr(0, kShownBytes)) {
    const uint8_t byte = static_cast<uint8_t>(c);
    if (byte < 0x20 || byte == 0x7F) {
      shown += absl::StrFormat("\\x%02x", byte);
    } else {
      shown.push_back(c);
    }
  }
  if (text.size() > kShownBytes) shown += "...";
  return shown;
}

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

// The byte of "<0x0A>", or nullopt for anything else.
std::optional<uint8_t> ParseByteToken(std::string_view text) {
  if (text.size() != 6 || text.substr(0, 3) != "<0x" || text[5] != '>') return std::nullopt;
  const int high = HexDigit(text[3]), low = HexDigit(text[4]);
  if (high < 0 || low < 0) return std::nullopt;
  return static_cast<uint8_t>(high << 4 | low);
}

bool IsLiteral(TokenType type) {
  return type == TokenType::kControl || type == TokenType::kUserDefined || type == TokenType::kUnknown;
}

// Names by which published models end a generation, for files that do not give the ids.
constexpr std::string_view kEndNames[] = {
    "<|endoftext|>", "<|return|>", "<|call|>", "<|im_end|>",    "<|eot_id|>",
    "<|eom_id|>",    "<|EOT|>",    "<EOT>",    "<end_of_turn>", "<｜end▁of▁sentence｜>",
};
constexpr std::string_view kMessageEndName = "<|end|>";  // ends a generation only where no <|return|> exists

// The bytes that token `id` adds to a text.
absl::StatusOr<std::string> BytesOf(const std::string& text, TokenType type, size_t id) {
  if (type == TokenType::kByte) {
    const std::optional<uint8_t> byte = ParseByteToken(text);
    if (byte) return std::string(1, static_cast<char>(*byte));
    return InvalidArgument("tokenizer.ggml.tokens[%d] is \"%s\", want a byte token such as \"<0x0A>\"", id, Shown(text));
  }
  // A text outside the alphabet is kept as it is; no merge reaches it.
  return IsLiteral(type) ? text : BytesOfAlphabet(text).value_or(text);
}

}  // namespace

absl::StatusOr<VocabularyData> VocabularyData::FromGguf(const GgufFile& file) {
  VocabularyData data;
  ASSIGN_OR_RETURN(const std::string_view model, file.GetString("tokenizer.ggml.model"));
  data.model = model;
  if (file.Has("tokenizer.ggml.pre")) {
    ASSIGN_OR_RETURN(const std::string_view pre, file.GetString("tokenizer.ggml.pre"));
    data.pre = std::string(pre);
  }
  // Another kind of tokenizer has other keys: Vocabulary::Create says by its name that it is not known.
  if (data.model != "gpt2") return data;
  ASSIGN_OR_RETURN(const std::vector<std::string_view> tokens, file.GetStrings("tokenizer.ggml.tokens"));
  data.tokens.assign(tokens.begin(), tokens.end());
  if (file.Has("tokenizer.ggml.token_type")) {
    ASSIGN_OR_RETURN(data.token_types, file.GetInts("tokenizer.ggml.token_type"));
  }
  ASSIGN_OR_RETURN(const std::vector<std::string_view> merges, file.GetStrings("tokenizer.ggml.merges"));
  data.merges.assign(merges.begin(), merges.end());
  const auto read_id = [&](std::string_view key, std::optional<int64_t>* id) -> absl::Status {
    if (!file.Has(key)) return absl::OkStatus();
    ASSIGN_OR_RETURN(*id, file.GetInt(key));
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(read_id("tokenizer.ggml.bos_token_id", &data.bos));
  RETURN_IF_ERROR(read_id("tokenizer.ggml.eos_token_id", &data.eos));
  RETURN_IF_ERROR(read_id("tokenizer.ggml.eot_token_id", &data.eot));
  RETURN_IF_ERROR(read_id("tokenizer.ggml.eom_token_id", &data.eom));
  RETURN_IF_ERROR(read_id("tokenizer.ggml.unknown_token_id", &data.unknown));
  if (file.Has("tokenizer.ggml.add_bos_token")) {
    ASSIGN_OR_RETURN(data.add_bos, file.GetBool("tokenizer.ggml.add_bos_token"));
  }
  if (file.Has("tokenizer.chat_template")) {
    ASSIGN_OR_RETURN(const std::string_view chat_template, file.GetString("tokenizer.chat_template"));
    data.chat_template = std::string(chat_template);
  }
  return data;
}

absl::StatusOr<Vocabulary> Vocabulary::Create(const VocabularyData& data) {
  if (data.model != "gpt2") {
    return Unimplemented("tokenizer.ggml.model is \"%s\"; Ferry knows \"gpt2\" (byte-level BPE)", Shown(data.model));
  }
  Vocabulary vocabulary;
  RETURN_IF_ERROR(vocabulary.ReadTokens(data));
  RETURN_IF_ERROR(vocabulary.ReadMerges(data));
  RETURN_IF_ERROR(vocabulary.ReadSpecialIds(data));
  return vocabulary;
}

absl::Status Vocabulary::ReadTokens(const VocabularyData& data) {
  const size_t num_tokens = data.tokens.size();
  if (num_tokens == 0) return InvalidArgument("tokenizer.ggml.tokens is empty");
  if (num_tokens > kMaxTokens) {
    return InvalidArgument("tokenizer.ggml.tokens has %d entries, at most %d are allowed", num_tokens, kMaxTokens);
  }
  if (!data.token_types.empty() && data.token_types.size() != num_tokens) {
    return InvalidArgument("tokenizer.ggml.token_type has %d entries, want %d as tokenizer.ggml.tokens", data.token_types.size(),
                           num_tokens);
  }
  types_.assign(num_tokens, TokenType::kNormal);
  offsets_.assign(1, 0);
  for (size_t id = 0; id < num_tokens; ++id) {
    if (!data.token_types.empty()) {
      const int64_t type = data.token_types[id];
      if (type < 0 || type > static_cast<int32_t>(TokenType::kByte)) {
        return InvalidArgument("tokenizer.ggml.token_type[%d] is %d, want a value in [0, 6]", id, type);
      }
      types_[id] = static_cast<TokenType>(type);
    }
    ASSIGN_OR_RETURN(const std::string bytes, BytesOf(data.tokens[id], types_[id], id));
    if (arena_.size() + bytes.size() > kMaxTokenBytes) {
      return InvalidArgument("tokenizer.ggml.tokens holds more than %d bytes", kMaxTokenBytes);
    }
    arena_.insert(arena_.end(), bytes.begin(), bytes.end());
    offsets_.push_back(static_cast<uint32_t>(arena_.size()));
  }

  return IndexTokens();
}

absl::Status Vocabulary::IndexTokens() {
  by_bytes_.reserve(size());
  const auto add_all = [&](auto&& wanted) {
    for (int32_t id = 0; id < size(); ++id) {
      const std::string_view bytes = Bytes(id);
      if (!bytes.empty() && wanted(types_[id])) by_bytes_.emplace(absl::string_view(bytes.data(), bytes.size()), id);
    }
  };
  add_all([](TokenType type) { return type == TokenType::kNormal; });
  add_all([](TokenType type) { return !IsLiteral(type); });
  add_all([](TokenType type) { return type == TokenType::kUserDefined; });

  byte_tokens_.fill(-1);
  bool any = false;
  for (int byte = 0; byte < 256; ++byte) {
    const char c = static_cast<char>(byte);
    if (const std::optional<int32_t> id = Find(std::string_view(&c, 1)); id && types_[*id] != TokenType::kUserDefined) {
      byte_tokens_[byte] = *id;
      any = true;
    }
  }
  if (!any) {
    return InvalidArgument(
        "tokenizer.ggml.tokens has none of the 256 byte tokens that byte-level BPE begins with (\"!\", \"a\", \"Ġ\")");
  }
  return absl::OkStatus();
}

absl::Status Vocabulary::ReadMerges(const VocabularyData& data) {
  if (data.merges.size() > kMaxMerges) {
    return InvalidArgument("tokenizer.ggml.merges has %d entries, at most %d are allowed", data.merges.size(), kMaxMerges);
  }
  merges_.reserve(data.merges.size());
  for (size_t i = 0; i < data.merges.size(); ++i) {
    const std::string_view merge = data.merges[i];
    const size_t space = merge.find(' ');
    if (space == std::string_view::npos || space == 0 || space + 1 == merge.size() ||
        merge.find(' ', space + 1) != std::string_view::npos) {
      return InvalidArgument("tokenizer.ggml.merges[%d] is \"%s\", want two tokens with one space between them", i, Shown(merge));
    }
    const std::optional<std::string> left = BytesOfAlphabet(merge.substr(0, space));
    const std::optional<std::string> right = BytesOfAlphabet(merge.substr(space + 1));
    if (!left || !right) {
      return InvalidArgument("tokenizer.ggml.merges[%d] is \"%s\", with characters outside the byte alphabet", i, Shown(merge));
    }
    const std::optional<int32_t> left_id = Find(*left), right_id = Find(*right), result = Find(*left + *right);
    if (!left_id || !right_id || !result) {
      const std::string missing = AlphabetOfBytes(!left_id ? *left : !right_id ? *right : *left + *right);
      return InvalidArgument("tokenizer.ggml.merges[%d] is \"%s\", but \"%s\" is not in tokenizer.ggml.tokens", i, Shown(merge),
                             Shown(missing));
    }
    merges_.push_back({*left_id, *right_id, *result});
  }
  return absl::OkStatus();
}

absl::Status Vocabulary::ReadSpecialIds(const VocabularyData& data) {
  const auto check = [&](std::string_view key, std::optional<int64_t> id) -> absl::Status {
    if (!id || Contains(*id)) return absl::OkStatus();
    return InvalidArgument("%s is %d, want an id in [0, %d)", key, *id, size());
  };
  RETURN_IF_ERROR(check("tokenizer.ggml.bos_token_id", data.bos));
  RETURN_IF_ERROR(check("tokenizer.ggml.eos_token_id", data.eos));
  RETURN_IF_ERROR(check("tokenizer.ggml.eot_token_id", data.eot));
  RETURN_IF_ERROR(check("tokenizer.ggml.eom_token_id", data.eom));
  RETURN_IF_ERROR(check("tokenizer.ggml.unknown_token_id", data.unknown));
  if (data.bos) bos_ = static_cast<int32_t>(*data.bos);
  if (data.unknown) unknown_ = static_cast<int32_t>(*data.unknown);
  // Without the key only llama 3 begins with BOS.
  add_bos_ = data.add_bos.value_or(data.bos && data.pre && (*data.pre == "llama-bpe" || *data.pre == "llama3"));
  if (add_bos_ && !bos_) {
    return InvalidArgument("tokenizer.ggml.add_bos_token is true, but there is no tokenizer.ggml.bos_token_id");
  }

  for (const std::optional<int64_t>& id : {data.eos, data.eot, data.eom}) {
    if (id) end_of_generation_.push_back(static_cast<int32_t>(*id));
  }
  std::vector<int32_t> message_ends;
  bool has_return = false;
  for (int32_t id = 0; id < size(); ++id) {
    if (types_[id] != TokenType::kControl && types_[id] != TokenType::kUserDefined) continue;
    const std::string_view text = Bytes(id);
    if (std::find(std::begin(kEndNames), std::end(kEndNames), text) != std::end(kEndNames)) {
      end_of_generation_.push_back(id);
    }
    if (text == kMessageEndName) message_ends.push_back(id);
    has_return |= text == "<|return|>";
  }
  if (!has_return) end_of_generation_.insert(end_of_generation_.end(), message_ends.begin(), message_ends.end());
  std::sort(end_of_generation_.begin(), end_of_generation_.end());
  end_of_generation_.erase(std::unique(end_of_generation_.begin(), end_of_generation_.end()), end_of_generation_.end());
  return absl::OkStatus();
}

std::optional<int32_t> Vocabulary::Find(std::string_view bytes) const {
  const auto it = by_bytes_.find(absl::string_view(bytes.data(), bytes.size()));
  return it == by_bytes_.end() ? std::nullopt : std::optional(it->second);
}

}  // namespace ferry
