#pragma once

// The served model as conversations see it: its description and its format.

#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "gateway/chat/chat_format.h"
#include "gateway/model_cache.h"

namespace ferry {

// The tokens that a format may look for by their text: special ones first, then all others, since files differ in which of them
// they call special ("<think>", "<tool_call>").
class NamedTokens final : public SpecialTokens {
 public:
  explicit NamedTokens(const TokenBytes& tokens);
  std::optional<int32_t> Find(std::string_view text) const override;

 private:
  absl::flat_hash_map<std::string, int32_t> ids_;
};

struct LoadedChat {
  explicit LoadedChat(Model of) : model(std::move(of)), special_tokens(model->tokens) {}

  const Model model;
  const NamedTokens special_tokens;
  std::unique_ptr<ChatFormat> format;
};

class ChatModels {
 public:
  using Loaded = std::shared_ptr<const LoadedChat>;
  // `models` outlives this. `chat_template`: in place of the file's, unless it is empty.
  ChatModels(ModelCache* models, std::string chat_template) : models_(*models), chat_template_(std::move(chat_template)) {}

  // Calls `use` at once when the model is known. FailedPrecondition: the model has no template and no format of its own, or its
  // template is not understood. `engine` as in ModelCache. Any thread.
  void Get(const std::shared_ptr<Engine>& engine, std::function<void(absl::StatusOr<Loaded>)> use);

 private:
  absl::StatusOr<Loaded> Load(const Model& model) const;

  ModelCache& models_;
  const std::string chat_template_;
  std::mutex mutex_;
  std::optional<absl::StatusOr<Loaded>> loaded_;
};

}  // namespace ferry
