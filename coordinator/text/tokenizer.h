#pragma once

// Text to token ids and back, by the vocabulary of a GGUF file (byte-level BPE).
//
// A prompt is text. Bytes that are not UTF-8 are replaced by U+FFFD, one for each maximal ill-formed subpart, before
// anything else is done; every valid text comes back unchanged: Decode(Encode(text)) == text.
// No Unicode normalization is applied, as in llama.cpp (the published qwen2 tokenizer would apply NFC).

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"
#include "common/text_piece.h"
#include "coordinator/text/byte_pair_encoder.h"
#include "coordinator/text/pre_tokenizer.h"
#include "coordinator/text/special_matcher.h"
#include "coordinator/text/vocabulary.h"

namespace ferry {

inline constexpr size_t kMaxTextBytes = size_t{64} << 20;  // of one Encode; its memory is up to 50 times as much

struct EncodeOptions {
  bool add_bos = true;         // begin with bos where the file says that prompts do (tokenizer.ggml.add_bos_token)
  bool parse_special = false;  // control tokens in the text ("<|start|>") become their ids; user-defined ones always do
};

// Immutable; every method may be called from any thread.
class Tokenizer {
 public:
  // Unimplemented: a tokenizer model or pre-tokenizer that Ferry does not know; the message names it and those known.
  // InvalidArgument: the vocabulary is damaged (see Vocabulary::Create), or tokenizer.ggml.pre is missing.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Create(const VocabularyData& data);
  // The file may hold a vocabulary only.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromGguf(const GgufFile& file);

  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // InvalidArgument: more than kMaxTextBytes, or a byte of the text has no token. O(n log n).
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text, const EncodeOptions& options = {}) const;
  // The same for the texts of `pieces`, one after the other, without a BOS. A control token is found only where all of
  // it was written by pieces that are not from_user; tokens and merges otherwise go across the pieces' borders.
  absl::StatusOr<std::vector<int32_t>> Encode(std::span<const TextPiece> pieces) const;

  // The text of `ids`. Bytes that are not UTF-8 become U+FFFD, so that the text fits into a protobuf string. Special
  // tokens appear with `render_special` only. InvalidArgument names an id outside the vocabulary.
  absl::StatusOr<std::string> Decode(std::span<const int32_t> ids, bool render_special) const;

  // The bytes of one token, which need not be whole characters; empty for an id outside the vocabulary. Valid as long
  // as the tokenizer lives.
  std::string_view TokenBytes(int32_t id) const { return vocabulary_.Contains(id) ? vocabulary_.Bytes(id) : std::string_view(); }
  bool IsSpecial(int32_t id) const { return vocabulary_.Contains(id) && vocabulary_.IsSpecial(id); }
  // The special token written so, for example "<|start|>".
  std::optional<int32_t> FindSpecial(std::string_view text) const;

  int32_t vocab_size() const { return vocabulary_.size(); }
  std::optional<int32_t> bos_id() const { return vocabulary_.bos(); }
  bool adds_bos() const { return vocabulary_.add_bos(); }
  // Each of them ends a generation; ascending.
  std::span<const int32_t> eos_ids() const { return vocabulary_.end_of_generation(); }
  bool EndsGeneration(int32_t id) const;
  // tokenizer.chat_template, empty without one.
  const std::string& chat_template() const { return chat_template_; }

 private:
  Tokenizer(Vocabulary vocabulary, PreTokenizer pre_tokenizer, bool ignore_merges, std::string chat_template);
  // `text` is UTF-8; `matches` are in order.
  absl::Status EncodeAround(std::span<const SpecialMatcher::Match> matches, std::string_view text,
                            std::vector<int32_t>* ids) const;
  absl::Status EncodePlain(std::string_view text, BytePairEncoder::Scratch* scratch, std::vector<int32_t>* ids) const;

  const Vocabulary vocabulary_;
  const PreTokenizer pre_tokenizer_;
  const BytePairEncoder encoder_;
  const SpecialMatcher special_matcher_;
  const bool ignore_merges_;  // a piece that is a token becomes it without merging (llama 3)
  const std::string chat_template_;
};

}  // namespace ferry
