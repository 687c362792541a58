#include "worker/kv_host_store.h"

#include <sys/mman.h>

#include <algorithm>

#include "absl/container/flat_hash_set.h"
#include "common/log.h"
#include "kernels/integer_division.h"
#include "kernels/kv_cache_format.h"

namespace ferry {
namespace {

constexpr int64_t kPinnedPage = 4096;  // pinned memory shares no page with other pinned memory
constexpr int64_t kPieceBytes = int64_t{64} << 20;
// Units of blocks: one for copies from block to block, then the coordinator's host blocks.
constexpr int64_t kScratch = 0, kFirstBlock = 1;

// How many of the first moves are of one kind and write different places; `place` is where one writes.
template <typename Place>
size_t LeadingMovesApart(std::span<const CacheMove> moves, const Place& place) {
  absl::flat_hash_set<int32_t> places;
  size_t count = 0;
  while (count < moves.size() && moves[count].kind == moves[0].kind && places.insert(place(moves[count])).second) ++count;
  return count;
}

}  // namespace

// Element `index` of each plane, beside each other in `host`; returns the rest of `host`.
std::span<std::byte> KvHostStore::AddCopies(std::span<const Plane> planes, int64_t index, std::span<std::byte> host,
                                            std::vector<HostCopy>* copies) {
  for (const Plane& plane : planes) {
    copies->push_back({host.first(plane.bytes), plane.data + index * plane.bytes});
    host = host.subspan(plane.bytes);
  }
  return host;
}

absl::StatusOr<std::unique_ptr<KvHostStore>> KvHostStore::Create(Ops* ops, const KvCache* cache, const ModelConfig& model,
                                                                 int64_t first_layer, int64_t end_layer,
                                                                 const KvCacheShape& shape) {
  std::unique_ptr<KvHostStore> store(new KvHostStore(ops));
  store->window_ = model.sliding_window();
  store->ring_blocks_ = store->window_ > 0 ? shape.ring_blocks : 0;
  for (int64_t i = first_layer; i < end_layer; ++i) {
    const AttentionConfig& attention = model.layers[i].attention;
    if (attention.delta()) {
      store->nets_.push_back({reinterpret_cast<std::byte*>(cache->states(i).data), DeltaStateBytes(attention)});
      continue;
    }
    const KvLayer& layer = cache->layer(i);
    std::vector<Plane>& planes = model.layers[i].slides() ? store->rings_ : store->full_;
    const int64_t rows = layer.num_kv_heads * kKvBlockTokens;
    const auto add = [&](std::byte* data, DType dtype) {
      if (dtype == DType::kQ8_0) {
        planes.push_back({data, rows * layer.head_dim});
        planes.push_back({data + KvScalesOffset(layer), rows * (layer.head_dim / kKvQuantBlock) * 2});
      } else {
        planes.push_back({data, rows * layer.head_dim * (dtype == DType::kF32 ? 4 : 2)});
      }
    };
    add(layer.keys, layer.key_type);
    if (layer.latent_values == 0) add(layer.values, layer.value_type);
  }
  const auto bytes_of = [](const std::vector<Plane>& planes) {
    int64_t bytes = 0;
    for (const Plane& plane : planes) bytes += plane.bytes;
    return bytes;
  };
  const int64_t state_blocks = std::min(store->ring_blocks_, StateBlocks(store->window_, kKvBlockTokens));
  RETURN_IF_ERROR(store->Reserve(bytes_of(store->full_), kFirstBlock + shape.num_host_blocks, &store->blocks_));
  RETURN_IF_ERROR(
      store->Reserve(bytes_of(store->rings_) * state_blocks + bytes_of(store->nets_), shape.num_host_states, &store->states_));
  return store;
}

KvHostStore::~KvHostStore() {
  for (Units* const units : {&blocks_, &states_}) {
    for (size_t piece = 0; piece < units->locked.size(); ++piece) {
      if (units->locked[piece]) ops_.UnpinHost(PieceOf(*units, static_cast<int64_t>(piece)));
    }
    units->ahead.reset();
    if (!units->memory.empty()) munmap(units->memory.data(), units->memory.size());
  }
}

absl::Status KvHostStore::Reserve(int64_t unit_bytes, int64_t count, Units* units) {
  units->unit_bytes = AlignUp(unit_bytes, kPinnedPage);
  units->count = count;
  if (unit_bytes == 0 || count == 0) return absl::OkStatus();
  units->units_a_piece = std::max<int64_t>(1, kPieceBytes / units->unit_bytes);
  const int64_t bytes = units->unit_bytes * count;
  void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    return ResourceExhausted("no %d bytes of address space for the KV cache in host memory (less with --cache-ram)", bytes);
  }
  units->memory = {static_cast<std::byte*>(memory), static_cast<size_t>(bytes)};
  madvise(memory, bytes, MADV_HUGEPAGE);  // fewer pages come and are locked faster, where the kernel has such
  units->ahead = std::make_unique<PagesAhead>(units->memory);
  units->locked.assign(CeilDiv(count, units->units_a_piece), false);
  return absl::OkStatus();
}

std::span<std::byte> KvHostStore::PieceOf(const Units& units, int64_t piece) const {
  const int64_t bytes = units.units_a_piece * units.unit_bytes, first = piece * bytes;
  return units.memory.subspan(first, std::min<int64_t>(bytes, std::ssize(units.memory) - first));
}

std::span<std::byte> KvHostStore::Unit(Units* units, int64_t index) {
  const int64_t piece = index / units->units_a_piece;
  units->ahead->Want(2 * (index + 1) * units->unit_bytes);
  if (!units->locked[piece] && may_lock_) {
    const absl::Status locked = ops_.PinHost(PieceOf(*units, piece), /*read_only=*/false);
    units->locked[piece] = locked.ok();
    may_lock_ = locked.ok();
    if (!locked.ok()) spdlog::warn("the KV cache in host memory is slower, since memory cannot be locked: {}", locked.ToString());
  }
  return units->memory.subspan(index * units->unit_bytes, units->unit_bytes);
}

// A backend may read host memory at the call.
absl::Status KvHostStore::AwaitSaved(Deadline deadline) {
  if (!saving_) return absl::OkStatus();
  ASSIGN_OR_RETURN(const Event saved, ops_.MarkCompute());
  RETURN_IF_ERROR(ops_.Wait(saved, deadline));
  saving_ = false;
  return absl::OkStatus();
}

absl::Status KvHostStore::SaveAll(std::span<const HostCopy> copies) {
  saving_ = true;
  return ops_.DownloadAllAsync(copies);
}

absl::Status KvHostStore::Move(std::span<const CacheMove> moves, Deadline deadline) {
  for (size_t first = 0; first < moves.size();) {
    const CacheMove& move = moves[first];
    size_t end = first + 1;
    switch (move.kind) {
      case CacheMove::Kind::kSaveBlock:
        end = first + LeadingMovesApart(moves.subspan(first), [](const CacheMove& save) { return save.host; });
        RETURN_IF_ERROR(SaveBlocks(moves.subspan(first, end - first)));
        break;
      case CacheMove::Kind::kLoadBlock:
        end = first + LeadingMovesApart(moves.subspan(first), [](const CacheMove& load) { return load.block; });
        RETURN_IF_ERROR(LoadBlocks(moves.subspan(first, end - first), deadline));
        break;
      case CacheMove::Kind::kCopyBlock:
        RETURN_IF_ERROR(CopyBlock(move, deadline));
        break;
      case CacheMove::Kind::kSaveState:
      case CacheMove::Kind::kLoadState:
        RETURN_IF_ERROR(MoveState(move, deadline));
        break;
    }
    first = end;
  }
  return absl::OkStatus();
}

absl::Status KvHostStore::SaveBlocks(std::span<const CacheMove> moves) {
  if (full_.empty()) return absl::OkStatus();
  std::vector<HostCopy> copies;
  for (const CacheMove& move : moves) AddCopies(full_, move.block, Unit(&blocks_, kFirstBlock + move.host), &copies);
  return SaveAll(copies);
}

absl::Status KvHostStore::LoadBlocks(std::span<const CacheMove> moves, Deadline deadline) {
  if (full_.empty()) return absl::OkStatus();
  RETURN_IF_ERROR(AwaitSaved(deadline));
  std::vector<HostCopy> copies;
  for (const CacheMove& move : moves) AddCopies(full_, move.block, Unit(&blocks_, kFirstBlock + move.host), &copies);
  return ops_.UploadAllAsync(copies);
}

absl::Status KvHostStore::CopyBlock(const CacheMove& move, Deadline deadline) {
  if (full_.empty()) return absl::OkStatus();
  std::vector<HostCopy> from, to;
  AddCopies(full_, move.from_block, Unit(&blocks_, kScratch), &from);
  AddCopies(full_, move.block, Unit(&blocks_, kScratch), &to);
  RETURN_IF_ERROR(SaveAll(from));
  RETURN_IF_ERROR(AwaitSaved(deadline));
  return ops_.UploadAllAsync(to);
}

absl::Status KvHostStore::MoveState(const CacheMove& move, Deadline deadline) {
  if (rings_.empty() && nets_.empty()) return absl::OkStatus();
  std::span<std::byte> host = Unit(&states_, move.host);
  std::vector<HostCopy> copies;
  const int64_t end = CeilDiv(move.position, kKvBlockTokens);
  const int64_t first = std::max(FirstStateBlock(move.position, window_, kKvBlockTokens), end - ring_blocks_);
  for (const Plane& ring : rings_) {
    for (int64_t block = first; block < end; ++block) {
      host = AddCopies({&ring, 1}, move.slot * ring_blocks_ + block % ring_blocks_, host, &copies);
    }
  }
  AddCopies(nets_, move.slot, host, &copies);
  if (move.kind == CacheMove::Kind::kSaveState) return SaveAll(copies);
  RETURN_IF_ERROR(AwaitSaved(deadline));
  return ops_.UploadAllAsync(copies);
}

}  // namespace ferry
