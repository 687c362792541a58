#include "worker/host_chunks.h"

#include <algorithm>
#include <utility>

namespace ferry {
namespace {

// A chunk that grows. Rows are numbered as they come and put in order at the end.
class ChunkBuilder {
 public:
  ChunkBuilder(int64_t num_rows, int64_t max_rows, int64_t max_entries)
      : max_rows_(max_rows), max_entries_(max_entries), index_of_row_(num_rows, -1) {}

  bool empty() const { return chunk_.uses.empty(); }

  // How many of the first entries fit: each takes an entry, and a row if it is not here yet.
  int64_t Fits(std::span<const int32_t> rows) const {
    int64_t new_rows = 0, count = 0;
    for (const int32_t row : rows) {
      new_rows += index_of_row_[row] < 0;
      if (static_cast<int64_t>(chunk_.rows.size()) + new_rows > max_rows_ ||
          static_cast<int64_t>(chunk_.outs.size()) + count + 1 > max_entries_) {
        break;
      }
      ++count;
    }
    return count;
  }

  void Add(int32_t expert, std::span<const int32_t> rows, std::span<const int32_t> outs) {
    chunk_.uses.push_back({.expert = expert, .tokens = static_cast<int32_t>(rows.size())});
    for (const int32_t row : rows) {
      if (index_of_row_[row] < 0) {
        index_of_row_[row] = static_cast<int32_t>(chunk_.rows.size());
        chunk_.rows.push_back(row);
      }
      chunk_.entry_rows.push_back(row);
    }
    chunk_.outs.insert(chunk_.outs.end(), outs.begin(), outs.end());
  }

  HostChunk Take() {
    std::sort(chunk_.rows.begin(), chunk_.rows.end());
    for (size_t i = 0; i < chunk_.rows.size(); ++i) index_of_row_[chunk_.rows[i]] = static_cast<int32_t>(i);
    for (int32_t& row : chunk_.entry_rows) row = index_of_row_[row];
    for (const int32_t row : chunk_.rows) index_of_row_[row] = -1;
    return std::exchange(chunk_, {});
  }

 private:
  const int64_t max_rows_, max_entries_;
  std::vector<int32_t> index_of_row_;  // -1: not in this chunk
  HostChunk chunk_;
};

}  // namespace

std::vector<HostChunk> CutIntoChunks(std::span<const int32_t> experts, const HostGroups& groups, int64_t max_rows,
                                     int64_t max_entries) {
  const int32_t num_rows = groups.rows.empty() ? 0 : *std::max_element(groups.rows.begin(), groups.rows.end()) + 1;
  std::vector<HostChunk> chunks;
  ChunkBuilder builder(num_rows, max_rows, max_entries);
  for (const int32_t expert : experts) {
    std::span<const int32_t> rows =
        groups.rows.subspan(groups.offsets[expert], groups.offsets[expert + 1] - groups.offsets[expert]);
    std::span<const int32_t> outs = groups.outs.subspan(groups.offsets[expert], rows.size());
    while (!rows.empty()) {
      int64_t fits = builder.Fits(rows);
      if (fits < static_cast<int64_t>(rows.size()) && !builder.empty()) {
        chunks.push_back(builder.Take());
        fits = builder.Fits(rows);
      }
      builder.Add(expert, rows.first(fits), outs.first(fits));
      rows = rows.subspan(fits);
      outs = outs.subspan(fits);
    }
  }
  if (!builder.empty()) chunks.push_back(builder.Take());
  return chunks;
}

}  // namespace ferry
