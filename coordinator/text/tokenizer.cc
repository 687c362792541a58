#include "coordinator/text/tokenizer.h"

#include <algorithm>
#include <utility>

#include "coordinator/text/detokenizer.h"
#include "coordinator/text/utf8.h"

namespace ferry {
namespace {

std::vector<SpecialMatcher::Pattern> SpecialPatterns(const Vocabulary& vocabulary) {
  std::vector<SpecialMatcher::Pattern> patterns;
  for (int32_t id = 0; id < vocabulary.size(); ++id) {
    const bool always = vocabulary.Type(id) == TokenType::kUserDefined;
    if (always || vocabulary.IsSpecial(id)) patterns.push_back({vocabulary.Bytes(id), id, always});
  }
  return patterns;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Create(const VocabularyData& data) {
  ASSIGN_OR_RETURN(Vocabulary vocabulary, Vocabulary::Create(data));
  if (!data.pre) {
    return InvalidArgument(
        "tokenizer.ggml.pre is missing, so how text is cut before merging is unknown and a guess would give wrong "
        "tokens; convert the model again with a current converter, or set the key to one of %s",
        PreTokenizer::KnownNames());
  }
  ASSIGN_OR_RETURN(PreTokenizer pre_tokenizer, PreTokenizer::Create(*data.pre));
  const bool ignore_merges = *data.pre == "llama-bpe" || *data.pre == "llama3";
  return std::unique_ptr<Tokenizer>(
      new Tokenizer(std::move(vocabulary), std::move(pre_tokenizer), ignore_merges, data.chat_template.value_or("")));
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromGguf(const GgufFile& file) {
  ASSIGN_OR_RETURN(const VocabularyData data, VocabularyData::FromGguf(file));
  return Create(data);
}

Tokenizer::Tokenizer(Vocabulary vocabulary, PreTokenizer pre_tokenizer, bool ignore_merges, std::string chat_template)
    : vocabulary_(std::move(vocabulary)),
      pre_tokenizer_(std::move(pre_tokenizer)),
      encoder_(&vocabulary_),
      special_matcher_(SpecialPatterns(vocabulary_)),
      ignore_merges_(ignore_merges),
      chat_template_(std::move(chat_template)) {}

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(std::string_view text, const EncodeOptions& options) const {
  if (text.size() > kMaxTextBytes) {
    return InvalidArgument("the text has %d bytes, at most %d are allowed", text.size(), kMaxTextBytes);
  }
  std::string replaced;
  if (!IsValidUtf8(text)) {
    AppendWithReplacements(text, &replaced);
    text = replaced;
  }
  std::vector<int32_t> ids;
  if (options.add_bos && vocabulary_.add_bos()) ids.push_back(*vocabulary_.bos());
  RETURN_IF_ERROR(EncodeAround(special_matcher_.FindAll(text, options.parse_special), text, &ids));
  return ids;
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(std::span<const TextPiece> pieces) const {
  std::string text;
  std::vector<SpecialMatcher::Match> matches;
  size_t given_bytes = 0;
  // Neighbours of one author are searched together, for a token may go across their border.
  for (size_t i = 0; i < pieces.size();) {
    const size_t begin = text.size();
    const bool from_user = pieces[i].from_user;
    for (; i < pieces.size() && pieces[i].from_user == from_user; ++i) {
      if (pieces[i].text.size() > kMaxTextBytes - given_bytes) {
        return InvalidArgument("the text has more than %d bytes", kMaxTextBytes);
      }
      given_bytes += pieces[i].text.size();
      AppendWithReplacements(pieces[i].text, &text);
    }
    for (SpecialMatcher::Match match : special_matcher_.FindAll(std::string_view(text).substr(begin), !from_user)) {
      match.begin += begin;
      matches.push_back(match);
    }
  }
  std::vector<int32_t> ids;
  RETURN_IF_ERROR(EncodeAround(matches, text, &ids));
  return ids;
}

absl::Status Tokenizer::EncodeAround(std::span<const SpecialMatcher::Match> matches, std::string_view text,
                                     std::vector<int32_t>* ids) const {
  BytePairEncoder::Scratch scratch;
  size_t done = 0;
  for (const SpecialMatcher::Match& match : matches) {
    RETURN_IF_ERROR(EncodePlain(text.substr(done, match.begin - done), &scratch, ids));
    ids->push_back(match.id);
    done = match.begin + match.bytes;
  }
  return EncodePlain(text.substr(done), &scratch, ids);
}

absl::Status Tokenizer::EncodePlain(std::string_view text, BytePairEncoder::Scratch* scratch, std::vector<int32_t>* ids) const {
  ASSIGN_OR_RETURN(const std::vector<std::string_view> pieces, pre_tokenizer_.Split(text));
  for (const std::string_view piece : pieces) {
    if (ignore_merges_) {
      if (const std::optional<int32_t> id = vocabulary_.Find(piece)) {
        ids->push_back(*id);
        continue;
      }
    }
    RETURN_IF_ERROR(encoder_.Encode(piece, scratch, ids));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> Tokenizer::Decode(std::span<const int32_t> ids, bool render_special) const {
  Detokenizer detokenizer(this, render_special);
  std::string text;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (!vocabulary_.Contains(ids[i])) {
      return InvalidArgument("ids[%d] is %d, want an id in [0, %d)", i, ids[i], vocab_size());
    }
    text += detokenizer.Push(ids[i]);
  }
  text += detokenizer.Flush();
  return text;
}

std::optional<int32_t> Tokenizer::FindSpecial(std::string_view text) const {
  const std::vector<SpecialMatcher::Match> matches = special_matcher_.FindAll(text, /*parse_special=*/true);
  if (matches.size() != 1 || matches[0].bytes != text.size()) return std::nullopt;
  return matches[0].id;
}

bool Tokenizer::EndsGeneration(int32_t id) const { return std::binary_search(eos_ids().begin(), eos_ids().end(), id); }

}  // namespace ferry
