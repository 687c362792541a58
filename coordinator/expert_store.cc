#include "coordinator/expert_store.h"

#include <array>
#include <atomic>
#include <cstring>
#include <mutex>

#include "absl/time/clock.h"
#include "common/model_tensors.h"

namespace ferry {
namespace {

// One region of a record and the part of the file it comes from.
struct MatrixSource {
  const ExpertPart* part;
  const TiledLayout* layout;
  int64_t offset;
};
struct BiasSource {
  const ExpertPart* part;
  int64_t offset;
};

absl::StatusOr<ExpertLayout> LayoutOf(const ExpertTensors& tensors, const ModelConfig& config) {
  return ExpertLayout::Create(tensors.gate.dtype(), tensors.up.dtype(), tensors.down.dtype(), config.n_embd, config.n_ff,
                              tensors.gate_bias.tensor != nullptr);
}

absl::Status FillRecord(const ExpertTensors& tensors, const ExpertLayout& layout, int64_t expert,
                        std::span<std::byte> record) {
  const std::array<MatrixSource, 3> matrices = {{{&tensors.gate, &layout.gate, layout.gate_offset},
                                                 {&tensors.up, &layout.up, layout.up_offset},
                                                 {&tensors.down, &layout.down, layout.down_offset}}};
  for (const MatrixSource& matrix : matrices) {
    RETURN_IF_ERROR(TileRows(*matrix.layout, 0, matrix.layout->rows, matrix.part->Of(expert),
                             record.subspan(matrix.offset, matrix.layout->bytes)));
  }
  if (!layout.has_bias) return absl::OkStatus();
  const std::array<BiasSource, 3> biases = {{{&tensors.gate_bias, layout.gate_bias_offset},
                                             {&tensors.up_bias, layout.up_bias_offset},
                                             {&tensors.down_bias, layout.down_bias_offset}}};
  for (const BiasSource& bias : biases) {  // the padding behind them is zero, as the whole arena was
    const std::span<const std::byte> values = bias.part->Of(expert);
    std::memcpy(record.subspan(bias.offset, values.size()).data(), values.data(), values.size());
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ArenaLayout> ArenaLayoutOf(const GgufFile& file, const ModelConfig& config) {
  std::vector<ExpertLayout> layers;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    ASSIGN_OR_RETURN(const ExpertTensors tensors, ExpertTensorsOf(config, file, layer));
    ASSIGN_OR_RETURN(const ExpertLayout layout, LayoutOf(tensors, config));
    layers.push_back(layout);
  }
  return ArenaLayout::Create(std::move(layers), config.num_experts);
}

absl::StatusOr<std::unique_ptr<ExpertStore>> ExpertStore::Load(
    const GgufFile& file, const ModelConfig& config, ThreadPool& pool,
    const std::function<void(const LoadProgress&)>& progress) {
  const absl::Time start = absl::Now();
  std::unique_ptr<ExpertStore> store(new ExpertStore);
  ASSIGN_OR_RETURN(store->layout_, ArenaLayoutOf(file, config));
  ASSIGN_OR_RETURN(store->arena_, ShmArena::Create("ferry-experts", store->layout_.bytes()));
  const std::span<std::byte> arena = store->arena_.writable();

  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    ASSIGN_OR_RETURN(const ExpertTensors tensors, ExpertTensorsOf(config, file, layer));
    const ExpertLayout& layout = store->layout_.layer(layer);
    ASSIGN_OR_RETURN(const int64_t first_offset, store->layout_.OffsetOf(layer, 0));
    std::mutex mutex;
    absl::Status failed;
    pool.ParallelFor(config.num_experts, [&](int64_t expert, int) {
      absl::Status status =
          FillRecord(tensors, layout, expert, arena.subspan(first_offset + expert * layout.bytes, layout.bytes));
      for (const ExpertPart* part : {&tensors.gate, &tensors.up, &tensors.down}) file.Release(part->Of(expert));
      if (!status.ok()) {
        const std::lock_guard lock(mutex);
        failed.Update(status);
      }
    });
    RETURN_IF_ERROR(failed);
    progress({.bytes_done = first_offset + config.num_experts * layout.bytes, .bytes_total = store->layout_.bytes()});
  }
  RETURN_IF_ERROR(store->arena_.Seal());
  store->load_seconds_ = absl::ToDoubleSeconds(absl::Now() - start);
  return store;
}

}  // namespace ferry
