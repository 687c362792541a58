#include "coordinator/experts/held_experts.h"

#include <algorithm>

namespace ferry {

HeldExperts ChooseHeld(const ArenaLayout& layout, int64_t bytes, int64_t place) {
  int64_t bytes_of_each = 0;  // of one expert in every layer
  for (int64_t layer = 0; layer < layout.num_layers(); ++layer) {
    if (layout.HasExperts(layer)) bytes_of_each += layout.layer(layer).bytes;
  }
  const int64_t experts = layout.num_experts(), count = std::clamp<int64_t>(bytes / bytes_of_each, 0, experts);
  auto chosen = std::make_shared<std::vector<bool>>(experts);
  // Expert i is the first of a stretch of experts / count, on average: where i * count / experts rises.
  for (int64_t i = 0; i < experts; ++i) {
    if ((i + 1) * count / experts > i * count / experts) (*chosen)[(i + place) % experts] = true;
  }
  HeldExperts held(layout.num_layers());
  for (int64_t layer = 0; layer < layout.num_layers() && count > 0; ++layer) {
    if (layout.HasExperts(layer)) held[layer] = chosen;
  }
  return held;
}

int64_t RecordsIn(const HeldExperts& held) {
  int64_t records = 0;
  for (const auto& layer : held) {
    if (layer != nullptr) records += std::count(layer->begin(), layer->end(), true);
  }
  return records;
}

int64_t BytesOf(const ArenaLayout& layout, const HeldExperts& held) {
  int64_t bytes = 0;
  for (int64_t layer = 0; layer < layout.num_layers(); ++layer) {
    if (held[layer] != nullptr) bytes += layout.layer(layer).bytes * std::count(held[layer]->begin(), held[layer]->end(), true);
  }
  return bytes;
}

}  // namespace ferry
