#include "gateway/chat_model.h"

#include <utility>

namespace ferry {

NamedTokens::NamedTokens(const TokenBytes& tokens) {
  for (const bool special : {true, false}) {
    for (uint32_t id = 0; id < tokens.size(); ++id) {
      // Tags have angle brackets or what some families write in their place; words need not be found.
      const std::string_view text = tokens.Of(id);
      if (tokens.IsSpecial(id) != special || text.size() < 3 || (!special && (text.front() != '<' && text.front() != '[')))
        continue;
      ids_.try_emplace(std::string(text), static_cast<int32_t>(id));
    }
  }
}

std::optional<int32_t> NamedTokens::Find(std::string_view text) const {
  const auto found = ids_.find(std::string(text));
  return found == ids_.end() ? std::nullopt : std::optional(found->second);
}

void ChatModels::Get(const std::shared_ptr<Engine>& engine, std::function<void(absl::StatusOr<Loaded>)> use) {
  models_.Get(engine, [this, use = std::move(use)](const absl::StatusOr<Model>& model) {
    if (!model.ok()) return use(model.status());
    absl::StatusOr<Loaded> loaded;
    {
      const std::lock_guard lock(mutex_);
      if (!loaded_) loaded_ = Load(*model);
      loaded = *loaded_;
    }
    use(std::move(loaded));
  });
}

absl::StatusOr<ChatModels::Loaded> ChatModels::Load(const Model& model) const {
  const auto loaded = std::make_shared<LoadedChat>(model);
  absl::StatusOr<std::unique_ptr<ChatFormat>> format =
      MakeChatFormat({.architecture = model->info.architecture(),
                      .chat_template = chat_template_.empty() ? model->chat_template : chat_template_,
                      .bos_token = model->bos,
                      .eos_token = model->eos,
                      .special_tokens = &loaded->special_tokens});
  if (!format.ok()) return FailedPrecondition("this model cannot chat: %s", std::string(format.status().message()));
  loaded->format = *std::move(format);
  return Loaded(loaded);
}

}  // namespace ferry
