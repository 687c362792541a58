// How near loading experts comes to copying them: both read the mapped file and write shared memory, with the same threads.
//
//   load_bench -m MODEL.gguf [--threads 0] [--repeats 5]
//
// load         ExpertStore::Load: a new mapping of the file, a new arena, tiles written
// copy, new    memcpy of the same bytes, expert by expert, from a new mapping into a new arena: the cost of the first touch of
//              pages is in it, which every filling of an arena pays
// copy, again  the same once more, with all pages of both in place: memcpy alone
// Taken in turns, medians. The file is read once before, so that it comes from the page cache; it must fit there beside two
// arenas.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "common/model/model_tensors.h"
#include "common/shm/shm_arena.h"
#include "common/thread_pool.h"
#include "coordinator/experts/expert_store.h"

namespace ferry {
namespace {

struct Options {
  std::string model;
  int threads = 0, repeats = 5;
};

template <typename Body>
double SecondsOf(const Body& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// The parts of every expert in the file, expert by expert as the loader takes them.
absl::StatusOr<std::vector<std::vector<std::span<const std::byte>>>> ExpertsOf(const GgufFile& file, const ModelConfig& model) {
  std::vector<std::vector<std::span<const std::byte>>> experts;
  for (int64_t layer = 0; layer < model.num_layers; ++layer) {
    ASSIGN_OR_RETURN(const ExpertTensors tensors, ExpertTensorsOf(model, file, layer));
    for (int64_t expert = 0; expert < model.router.num_experts; ++expert) {
      experts.push_back({tensors.gate.Of(expert), tensors.up.Of(expert), tensors.down.Of(expert)});
    }
  }
  return experts;
}

absl::Status Run(const Options& options) {
  ASSIGN_OR_RETURN(const std::unique_ptr<ThreadPool> pool, ThreadPool::Create({.num_threads = options.threads}));
  double bytes = 0;
  std::vector<double> loads, new_copies, copies;
  const char* pages = "ordinary";
  for (int repeat = 0; repeat <= options.repeats; ++repeat) {  // the first brings the file into the page cache
    {
      ASSIGN_OR_RETURN(const GgufFile file, GgufFile::Open(options.model));
      ASSIGN_OR_RETURN(const ModelConfig model, ModelConfig::FromGguf(file));
      ASSIGN_OR_RETURN(const std::unique_ptr<ExpertStore> store,
                       ExpertStore::Load(file, model, *pool, [](const LoadProgress&) {}));
      bytes = static_cast<double>(store->layout().bytes());
      if (store->huge_pages()) pages = "huge";
      if (repeat > 0) loads.push_back(store->load_seconds());
    }
    ASSIGN_OR_RETURN(const GgufFile file, GgufFile::Open(options.model));
    ASSIGN_OR_RETURN(const ModelConfig model, ModelConfig::FromGguf(file));
    ASSIGN_OR_RETURN(const auto experts, ExpertsOf(file, model));
    const int64_t stride = static_cast<int64_t>(bytes) / static_cast<int64_t>(experts.size());
    ShmArena arena;
    const auto copy = [&] {
      pool->ParallelFor(static_cast<int64_t>(experts.size()), [&](int64_t expert, int) {
        std::byte* to = arena.writable().data() + expert * stride;
        for (const std::span<const std::byte> part : experts[expert]) to = std::copy(part.begin(), part.end(), to);
      });
    };
    absl::Status created;
    const double first = SecondsOf([&] {
      absl::StatusOr<ShmArena> made = ShmArena::Create("load-bench", static_cast<int64_t>(bytes));
      created = made.status();
      if (!created.ok()) return;
      arena = *std::move(made);
      copy();
    });
    RETURN_IF_ERROR(created);
    const double second = SecondsOf(copy);
    if (repeat > 0) new_copies.push_back(first), copies.push_back(second);
  }
  const auto median = [](std::vector<double>& values) {
    std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
    return values[values.size() / 2];
  };
  const double load = median(loads), new_copy = median(new_copies), again = median(copies);
  std::printf("%.2f GB of experts, %d threads, %s pages\n", bytes / 1e9, pool->num_threads(), pages);
  std::printf(
      "copy, again  %6.2f GB/s\ncopy, new    %6.2f GB/s\nload         %6.2f GB/s, %.0f %% of a new copy, %.0f %% of one again\n",
      bytes / again / 1e9, bytes / new_copy / 1e9, bytes / load / 1e9, 100 * new_copy / load, 100 * again / load);
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("Loading of experts against copying them");
  app.add_option("-m,--model", options.model, "GGUF file")->required();
  app.add_option("--threads", options.threads, "0: one per physical core");
  app.add_option("--repeats", options.repeats, "loads to time; the medians are shown")->check(CLI::Range(1, 100));
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = Run(options);
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}

}  // namespace
}  // namespace ferry

int main(int argc, char** argv) { return ferry::Main(argc, argv); }
