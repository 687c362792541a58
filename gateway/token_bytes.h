#pragma once

// The bytes of a model's tokens, by id.

#include <string>
#include <string_view>
#include <vector>

#include "ferry/v1/vocabulary.pb.h"

namespace ferry {

class TokenBytes {
 public:
  TokenBytes() = default;
  explicit TokenBytes(const v1::GetVocabularyResponse& vocabulary)
      : tokens_(vocabulary.tokens().begin(), vocabulary.tokens().end()), special_(tokens_.size()) {
    for (const uint32_t id : vocabulary.special_token_ids()) {
      if (id < special_.size()) special_[id] = true;
    }
  }

  // Need not be whole characters; empty for an id outside the vocabulary.
  std::string_view Of(uint32_t id) const { return id < tokens_.size() ? std::string_view(tokens_[id]) : std::string_view(); }
  // What the token adds to a text: nothing for a special one.
  std::string_view Shown(uint32_t id) const { return IsSpecial(id) ? std::string_view() : Of(id); }
  bool IsSpecial(uint32_t id) const { return id < special_.size() && special_[id]; }
  size_t size() const { return tokens_.size(); }

 private:
  std::vector<std::string> tokens_;
  std::vector<bool> special_;
};

}  // namespace ferry
