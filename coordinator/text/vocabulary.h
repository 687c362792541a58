#pragma once

// The tokens of a model: their bytes, their kinds and the merges between them, checked once so that nothing built on a
// Vocabulary meets an id out of range, a merge of unknown tokens or a text without tokens.

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "common/status.h"

namespace ferry {

class GgufFile;

enum class TokenType : int32_t {  // tokenizer.ggml.token_type
  kUndefined = 0,
  kNormal = 1,       // bytes in the byte alphabet, reached by merges
  kUnknown = 2,      // replaces bytes that no token covers
  kControl = 3,      // literal text, found in a prompt only when special tokens are asked for
  kUserDefined = 4,  // literal text, always found in a prompt
  kUnused = 5,
  kByte = 6,  // "<0x0A>"
};

// What a GGUF file says under tokenizer.ggml.*, unchecked.
struct VocabularyData {
  std::string model;               // "gpt2": byte-level BPE
  std::optional<std::string> pre;  // name of the pre-tokenizer
  std::vector<std::string> tokens;
  std::vector<int64_t> token_types;  // empty: all normal
  std::vector<std::string> merges;   // "Ġ t", best first
  std::optional<int64_t> bos, eos, eot, eom, unknown;
  std::optional<bool> add_bos;
  std::optional<std::string> chat_template;

  // InvalidArgument names the key that is missing or of another type than the format says.
  static absl::StatusOr<VocabularyData> FromGguf(const GgufFile& file);
};

class Vocabulary {
 public:
  struct Merge {
    int32_t left, right, result;
  };

  // Unimplemented: a model other than "gpt2". InvalidArgument, naming key and index: no tokens, token types that do not
  // match them, a special id out of range, a merge that is not two tokens or names a token that is not there, no byte
  // tokens. Tokens of equal text are allowed; text becomes the lowest id among them.
  static absl::StatusOr<Vocabulary> Create(const VocabularyData& data);

  int32_t size() const { return static_cast<int32_t>(types_.size()); }
  bool Contains(int64_t id) const { return id >= 0 && id < size(); }

  // The bytes of a token: " the" for "Ġthe", and its own text for a control token. Valid while the vocabulary lives.
  std::string_view Bytes(int32_t id) const {
    return std::string_view(arena_.data() + offsets_[id], offsets_[id + 1] - offsets_[id]);
  }
  TokenType Type(int32_t id) const { return types_[id]; }
  // Shown only when special tokens are rendered: control and unknown tokens.
  bool IsSpecial(int32_t id) const { return types_[id] == TokenType::kControl || types_[id] == TokenType::kUnknown; }

  // The token that text of these bytes becomes when merged completely; normal ones first, never a control token.
  std::optional<int32_t> Find(std::string_view bytes) const;
  // The token of one byte; nullopt when there is none (many vocabularies lack the bytes that UTF-8 never uses).
  std::optional<int32_t> ByteToken(uint8_t byte) const {
    return byte_tokens_[byte] < 0 ? std::nullopt : std::optional(byte_tokens_[byte]);
  }
  // Best first: the rank of a merge is its index.
  const std::vector<Merge>& merges() const { return merges_; }

  std::optional<int32_t> bos() const { return bos_; }
  std::optional<int32_t> unknown() const { return unknown_; }
  // Whether the model wants its prompts to begin with bos(), which is then set.
  bool add_bos() const { return add_bos_; }
  // The tokens that end a generation, ascending: eos, eot and eom as the file names them, and the special tokens known
  // to end one by name (gpt-oss: <|return|>, <|call|>, <|endoftext|>; its <|end|> ends a message only).
  const std::vector<int32_t>& end_of_generation() const { return end_of_generation_; }

 private:
  Vocabulary() = default;
  absl::Status ReadTokens(const VocabularyData& data);
  absl::Status IndexTokens();
  absl::Status ReadMerges(const VocabularyData& data);
  absl::Status ReadSpecialIds(const VocabularyData& data);

  std::vector<char> arena_;        // all tokens' bytes
  std::vector<uint32_t> offsets_;  // [size() + 1] into arena_
  std::vector<TokenType> types_;
  absl::flat_hash_map<absl::string_view, int32_t> by_bytes_;  // keys point into arena_
  std::array<int32_t, 256> byte_tokens_;
  std::vector<Merge> merges_;
  std::optional<int32_t> bos_, unknown_;
  bool add_bos_ = false;
  std::vector<int32_t> end_of_generation_;
};

}  // namespace ferry
