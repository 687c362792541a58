#include "coordinator/server_info.h"

#include <memory>

#include "absl/time/time.h"
#include "coordinator/text/utf8.h"

namespace ferry {
namespace {

v1::ExpertHostInfo InfoOf(const ExpertHost::Report& report) {
  v1::ExpertHostInfo info;
  info.set_address(WithReplacements(report.offer.address));
  info.set_engine(WithReplacements(report.offer.engine));
  info.set_state(report.state);
  info.set_load_progress(report.offer.load_progress);
  info.set_held_records(report.offer.held_records);
  info.set_held_bytes(report.offer.held_bytes);
  info.set_read_bytes_per_second(report.offer.rates.read_bytes_per_second);
  info.set_flops_per_second(report.offer.rates.flops_per_second);
  info.set_exchange_seconds(report.cost.exchange_seconds);
  if (report.cost.row_seconds > 0) info.set_row_bytes_per_second(report.row_bytes / report.cost.row_seconds);
  info.set_slowdown(report.computing.few_rows);
  info.set_slowdown_of_large_steps(report.computing.many_rows);
  info.set_exchange_slowdown(report.exchange.few_rows);
  info.set_exchange_slowdown_of_large_steps(report.exchange.many_rows);
  info.set_exchanges(report.exchanges);
  info.set_entries(report.entries);
  info.set_failures(report.failures);
  info.set_last_failure(WithReplacements(report.last_failure));
  return info;
}

}  // namespace

v1::GetModelInfoResponse ModelInfoOf(const std::string& alias, const ModelConfig& model, const ArenaLayout& arena,
                                     const CacheShape& cache) {
  v1::GetModelInfoResponse info;
  info.set_name(WithReplacements(alias.empty() ? model.name : alias));
  info.set_architecture(WithReplacements(model.architecture));
  info.set_num_layers(model.num_layers);
  info.set_n_embd(model.n_embd);
  info.set_num_experts(model.router.num_experts);
  info.set_top_k(model.router.top_k);
  info.set_vocab_size(model.vocab_size);
  info.set_model_context_length(model.context_length);
  info.set_context_length(cache.context_per_slot);
  info.set_expert_bytes(arena.bytes());
  info.set_expert_record_bytes(arena.max_record_bytes());
  return info;
}

void AddStats(const GenerationStats& stats, v1::GetServerInfoResponse& info) {
  info.set_running_requests(stats.running);
  info.set_queued_requests(stats.queued);
  info.set_kv_blocks_total(stats.kv_blocks_total);
  info.set_kv_blocks_free(stats.kv_blocks_free);
  info.set_prompt_tokens_total(stats.prompt_tokens);
  info.set_generated_tokens_total(stats.generated_tokens);
  info.set_resumed_requests_total(stats.resumed);
  info.set_suspended_requests_total(stats.suspended);
  v1::PrefixCacheInfo* const cache = info.mutable_prefix_cache();
  cache->set_blocks(stats.kv_blocks_cached);
  cache->set_prompt_tokens_total(stats.cache.prompt_tokens);
  cache->set_found_tokens_total(stats.cache.cached_tokens);
  cache->set_host_blocks_total(stats.host_blocks_total);
  cache->set_host_blocks_free(stats.host_blocks_free);
  cache->set_blocks_saved_total(stats.cache.blocks_saved);
  cache->set_blocks_loaded_total(stats.cache.blocks_loaded);
  cache->set_states_saved_total(stats.cache.states_saved);
  cache->set_states_loaded_total(stats.cache.states_loaded);
}

void AddLoad(const LoadInfo& load, v1::GetServerInfoResponse& info) {
  info.set_arena_bytes(load.arena_bytes);
  info.set_arena_huge_pages(load.huge_pages);
  info.set_host_read_bytes_per_second(load.peaks.read_bytes_per_second);
  info.set_host_flops_per_second(load.peaks.int8_ops_per_second);
  info.set_engine(load.engine);
  if (load.expert_hosts != nullptr) {
    for (const std::shared_ptr<ExpertHost>& host : load.expert_hosts->All()) *info.add_expert_hosts() = InfoOf(host->report());
  }
  info.set_load_seconds(load.seconds);
  info.set_load_bytes_per_second(load.bytes_per_second);
}

void AddRates(const MachineRates& rates, bool kept, v1::GetServerInfoResponse& info) {
  v1::HostExpertRates* const host = info.mutable_host_experts();
  host->set_read_bytes_per_second(rates.host.read_bytes_per_second);
  host->set_flops_per_second(rates.host.flops_per_second);
  host->set_read_bytes_per_second_beside_links(rates.host_beside_links.read_bytes_per_second);
  host->set_flops_per_second_beside_links(rates.host_beside_links.flops_per_second);
  if (rates.host.flops_at_rows.back() > 0) {
    host->mutable_flops_per_second_at_rows()->Add(rates.host.flops_at_rows.begin(), rates.host.flops_at_rows.end());
    host->mutable_flops_per_second_at_rows_beside_links()->Add(rates.host_beside_links.flops_at_rows.begin(),
                                                               rates.host_beside_links.flops_at_rows.end());
  }
  if (rates.measured != absl::InfinitePast()) {
    host->set_measured_unix_seconds(absl::ToDoubleSeconds(rates.measured - absl::UnixEpoch()));
  }
  host->set_kept(kept);
  for (size_t i = 0; i < rates.workers.size(); ++i) {
    v1::WorkerInfo* const worker = info.mutable_workers(static_cast<int>(i));  // places are constant
    worker->set_link_together_bytes_per_second(rates.workers[i].link.together);
    worker->set_link_beside_host_bytes_per_second(rates.workers[i].link.beside_host);
    worker->set_message_seconds(rates.workers[i].message_seconds);
  }
}

void AddCorrections(const LoadInfo& load, v1::GetServerInfoResponse& info) {
  if (load.exchange == nullptr) return;
  const StepCorrections::Factors host = load.own_engine->corrections();
  info.mutable_host_experts()->set_slowdown_of_small_steps(host.few_rows);
  info.mutable_host_experts()->set_slowdown_of_large_steps(host.many_rows);
  for (v1::WorkerInfo& worker : *info.mutable_workers()) {
    worker.set_link_slowdown(load.exchange->LinkSlowdown(WorkerId(static_cast<int32_t>(worker.worker_id()))));
  }
}

}  // namespace ferry
