#pragma once

// What the coordinator says of its model, asked once and kept: a coordinator serves one model for its life, and the gateway's
// life ends with it.

#include <functional>
#include <memory>
#include <mutex>

#include "gateway/engine_client.h"
#include "gateway/token_bytes.h"

namespace ferry {

struct ServedModel {
  v1::GetModelInfoResponse info;
  TokenBytes tokens;
  std::string chat_template;  // as the file has it
  std::string bos, eos;       // their texts, empty without one
};
using Model = std::shared_ptr<const ServedModel>;

class ModelCache {
 public:
  // Calls `use` at once when the model is known, else when the coordinator has answered `engine`. Any thread. A known
  // model is given without asking the coordinator: the route must make another call, which checks the caller's key.
  void Get(const std::shared_ptr<Engine>& engine, std::function<void(absl::StatusOr<Model>)> use);

 private:
  std::mutex mutex_;
  Model model_;
};

}  // namespace ferry
