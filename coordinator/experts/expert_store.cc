#include "coordinator/experts/expert_store.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <mutex>

#include "common/deadline.h"

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

// Where memory is in small pieces a huge page is refused, or made room for by moving others. Ordinary pages of that size cost
// about a millisecond, so after a few that fail or take longer than this, the rest are ordinary.
constexpr absl::Duration kHugePagePatience = absl::Milliseconds(20);
constexpr int kHugePageFailures = 16;
constexpr int64_t kTouchBytes = 64 << 20;  // at once by one thread

// Gives the arena's pages [first, end) their memory, with all threads, in huge pages as far as the kernel has them; the others
// come as they are written. Adds to `failures`. With ordinary pages half of a load's time went into page faults, and readers
// of huge pages miss the TLB less.
void MakeHugePages(ShmArena& arena, int64_t first, int64_t end, ThreadPool& pool, std::atomic<int>& failures) {
  pool.ParallelFor(std::max<int64_t>(0, end - first), [&](int64_t i, int) {
    if (failures.load(std::memory_order_relaxed) >= kHugePageFailures) return;
    const Stopwatch making;
    const bool made = arena.MakeHugePage(first + i);
    if (!made || making.Elapsed() > kHugePagePatience) failures.fetch_add(1, std::memory_order_relaxed);
  });
}

}  // namespace

bool ExpertStore::Holds(int64_t layer, int64_t expert) const {
  if (layer < 0 || layer >= layout_.num_layers() || !layout_.HasExperts(layer) || expert < 0 || expert >= layout_.num_experts()) {
    return false;
  }
  return !held_ || ((*held_)[layer] != nullptr && (*(*held_)[layer])[expert]);
}

absl::StatusOr<std::span<const std::byte>> ExpertStore::Record(int64_t layer, int64_t expert) const {
  ASSIGN_OR_RETURN(const std::span<const std::byte> record, layout_.RecordIn(arena_.bytes(), layer, expert));
  if (!Holds(layer, expert)) return NotFound("expert %d of layer %d is not held here", expert, layer);
  return record;
}

absl::Status FillExpertRecord(const ExpertTensors& tensors, const ExpertLayout& layout, int64_t expert,
                              std::span<std::byte> record) {
  const std::array<MatrixSource, 3> matrices = {{{&tensors.gate, &layout.gate, layout.gate_offset},
                                                 {&tensors.up, &layout.up, layout.up_offset},
                                                 {&tensors.down, &layout.down, layout.down_offset}}};
  for (const MatrixSource& matrix : matrices) {
    const std::span<std::byte> tiles = record.subspan(matrix.offset, matrix.layout->bytes);
    RETURN_IF_ERROR(TileRows(*matrix.layout, 0, matrix.layout->rows, matrix.part->Of(expert), tiles));
    if (const absl::Status finite = CheckScales(*matrix.layout, matrix.part->first_row, tiles); !finite.ok()) {
      return Annotate(finite, absl::StrFormat("tensor '%s', expert %d", matrix.part->tensor->name, expert));
    }
  }
  if (!layout.has_bias) return absl::OkStatus();
  const std::array<BiasSource, 3> biases = {{{&tensors.gate_bias, layout.gate_bias_offset},
                                             {&tensors.up_bias, layout.up_bias_offset},
                                             {&tensors.down_bias, layout.down_bias_offset}}};
  for (const BiasSource& bias : biases) {  // the padding behind them stays zero
    const std::span<const std::byte> values = bias.part->Of(expert);
    std::memcpy(record.subspan(bias.offset, values.size()).data(), values.data(), values.size());
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<ExpertStore>> ExpertStore::Load(const GgufFile& file, const ModelConfig& config, ThreadPool& pool,
                                                               const std::function<void(const LoadProgress&)>& progress) {
  const Stopwatch loading;
  std::unique_ptr<ExpertStore> store(new ExpertStore);
  ASSIGN_OR_RETURN(store->layout_, ArenaLayoutOf(file, config));
  ASSIGN_OR_RETURN(store->arena_, ShmArena::Create("ferry-experts", store->layout_.bytes()));
  const std::span<std::byte> arena = store->arena_.writable();
  int64_t asked_pages = 0;  // of huge ones
  std::atomic<int> failures = 0;

  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    if (!config.layers[layer].experts) continue;
    ASSIGN_OR_RETURN(const ExpertTensors tensors, ExpertTensorsOf(config, file, layer));
    const ExpertLayout& layout = store->layout_.layer(layer);
    ASSIGN_OR_RETURN(const int64_t last_offset, store->layout_.OffsetOf(layer, config.router.num_experts - 1));
    const int64_t end_offset = last_offset + layout.bytes;
    const int64_t next_page = end_offset / ShmArena::kHugePage;  // the one that two layers share goes with the later
    MakeHugePages(store->arena_, asked_pages, next_page, pool, failures);
    asked_pages = next_page;
    std::mutex mutex;
    absl::Status failed;
    pool.ParallelFor(config.router.num_experts, [&](int64_t expert, int) {
      const absl::StatusOr<int64_t> offset = store->layout_.OffsetOf(layer, expert);
      absl::Status status = offset.status();
      if (status.ok()) status = FillExpertRecord(tensors, layout, expert, arena.subspan(*offset, layout.bytes));
      for (const ExpertPart* part : {&tensors.gate, &tensors.up, &tensors.down}) file.Release(part->Of(expert));
      if (!status.ok()) {
        const std::lock_guard lock(mutex);
        failed.Update(status);
      }
    });
    RETURN_IF_ERROR(failed);
    progress({.bytes_done = end_offset, .bytes_total = store->layout_.bytes()});
  }
  RETURN_IF_ERROR(file.CheckUnchanged());
  store->huge_pages_ = failures < kHugePageFailures;
  RETURN_IF_ERROR(store->arena_.Seal());
  pool.ParallelFor((store->layout_.bytes() + kTouchBytes - 1) / kTouchBytes,
                   [&](int64_t i, int) { store->arena_.Touch(i * kTouchBytes, kTouchBytes); });
  store->load_seconds_ = loading.Seconds();
  return store;
}

absl::StatusOr<std::unique_ptr<ExpertStore>> ExpertStore::LoadHeld(const ArenaLayout& layout, HeldExperts held, ThreadPool& pool,
                                                                   const FillRecords& fill,
                                                                   const std::function<void(const LoadProgress&)>& progress) {
  const Stopwatch loading;
  std::unique_ptr<ExpertStore> store(new ExpertStore);
  store->layout_ = layout;
  store->held_ = std::move(held);
  const int64_t bytes = BytesOf(layout, *store->held_);
  ASSIGN_OR_RETURN(store->arena_, ShmArena::CreateSparse("ferry-experts", layout.bytes(), bytes));
  const std::span<std::byte> arena = store->arena_.writable();
  int64_t done = 0;
  std::atomic<int> failures = 0;
  std::vector<std::pair<int64_t, int64_t>> ranges;  // offset and bytes of each record
  for (int64_t layer = 0; layer < layout.num_layers(); ++layer) {
    std::vector<RecordToFill> records;
    for (int64_t expert = 0; expert < layout.num_experts(); ++expert) {
      if (!store->Holds(layer, expert)) continue;
      ASSIGN_OR_RETURN(const int64_t offset, layout.OffsetOf(layer, expert));
      const int64_t end = offset + layout.layer(layer).bytes;
      // Those that lie in the record alone: memory that is not needed is not taken.
      MakeHugePages(store->arena_, (offset + ShmArena::kHugePage - 1) / ShmArena::kHugePage, end / ShmArena::kHugePage, pool,
                    failures);
      records.push_back({.expert = expert, .record = arena.subspan(offset, end - offset)});
      ranges.emplace_back(offset, end - offset);
      done += end - offset;
    }
    if (records.empty()) continue;
    RETURN_IF_ERROR(fill(layer, records));
    progress({.bytes_done = done, .bytes_total = bytes});
  }
  store->huge_pages_ = failures < kHugePageFailures;
  RETURN_IF_ERROR(store->arena_.Seal());
  pool.ParallelFor(static_cast<int64_t>(ranges.size()),
                   [&](int64_t i, int) { store->arena_.Touch(ranges[i].first, ranges[i].second); });
  store->load_seconds_ = loading.Seconds();
  return store;
}

}  // namespace ferry
