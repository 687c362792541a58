#include "gateway/model_cache.h"

#include <utility>

namespace ferry {

void ModelCache::Get(const std::shared_ptr<Engine>& engine, std::function<void(absl::StatusOr<Model>)> use) {
  Model known;
  {
    const std::lock_guard lock(mutex_);
    known = model_;
  }
  if (known != nullptr) return use(std::move(known));
  engine->GetModelInfo([this, engine, use = std::move(use)](absl::StatusOr<v1::GetModelInfoResponse> info) {
    if (!info.ok()) return use(info.status());
    engine->GetVocabulary([this, use, info = *std::move(info)](absl::StatusOr<v1::GetVocabularyResponse> vocabulary) {
      if (!vocabulary.ok()) return use(vocabulary.status());
      auto model = std::make_shared<ServedModel>();
      model->info = info;
      model->chat_template = vocabulary->chat_template();
      model->tokens = TokenBytes(*vocabulary);
      if (vocabulary->has_bos_token_id()) model->bos = model->tokens.Of(vocabulary->bos_token_id());
      if (vocabulary->eos_token_ids_size() > 0) model->eos = model->tokens.Of(vocabulary->eos_token_ids(0));
      {
        const std::lock_guard lock(mutex_);
        model_ = model;
      }
      use(Model(std::move(model)));
    });
  });
}

}  // namespace ferry
