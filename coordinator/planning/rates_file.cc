#include "coordinator/planning/rates_file.h"

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <system_error>

#include "common/output_file.h"
#include "xxhash.h"

namespace ferry {
namespace {

constexpr int kVersion = 4;

// The value of the first line of a file such as /proc/cpuinfo that begins with `name`; of any file, its first line.
std::string LineOf(const char* path, const std::string& name = "") {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(name)) return name.empty() ? line : line.substr(std::min(line.size(), line.find(':') + 1));
  }
  return "";
}

nlohmann::json ToJson(const ExpertRates& rates) {
  return {{"read_bytes_per_second", rates.read_bytes_per_second},
          {"flops_per_second", rates.flops_per_second},
          {"flops_at_rows", rates.flops_at_rows}};
}

// Throws what nlohmann throws; a rate that is none is caught here.
double RateOf(const nlohmann::json& json, const char* name) {
  const double rate = json.get<double>();
  if (!(rate >= 0 && rate < 1e18)) throw std::out_of_range(name);
  return rate;
}
double RateIn(const nlohmann::json& json, const char* name) { return RateOf(json.at(name), name); }
ExpertRates ExpertRatesIn(const nlohmann::json& json) {
  ExpertRates rates = {.read_bytes_per_second = RateIn(json, "read_bytes_per_second"),
                       .flops_per_second = RateIn(json, "flops_per_second")};
  const nlohmann::json& curve = json.at("flops_at_rows");
  if (curve.size() != kCurveRows.size()) throw std::out_of_range("flops_at_rows");
  for (size_t i = 0; i < kCurveRows.size(); ++i) rates.flops_at_rows[i] = RateOf(curve.at(i), "flops_at_rows");
  return rates;
}

}  // namespace

std::string RatesDirectory() {
  if (const char* const cache = std::getenv("XDG_CACHE_HOME"); cache != nullptr && *cache != '\0') {
    return std::string(cache) + "/ferry";
  }
  const char* const home = std::getenv("HOME");
  return home == nullptr || *home == '\0' ? "" : std::string(home) + "/.cache/ferry";
}

std::string RatesKey(const std::string& engine, const ArenaLayout& arena, std::span<const RatedWorker> workers) {
  const ExpertLayout& record = arena.layer(arena.FirstWithExperts());
  std::string key = absl::StrFormat("%s %s|%s|%s|%d x %d, %d bytes", LineOf("/etc/machine-id"),
                                    LineOf("/proc/sys/kernel/hostname"), LineOf("/proc/cpuinfo", "model name"), engine,
                                    record.gate.rows, record.gate.cols, arena.max_record_bytes());
  for (const RatedWorker& worker : workers) {
    key += absl::StrFormat("|%s %s%s", worker.device, worker.transport,
                           worker.in_place    ? " in place"
                           : worker.has_slots ? ""
                                              : " without slots");
  }
  return key;
}

std::string RatesPath(const std::string& directory, const std::string& key) {
  return absl::StrFormat("%s/rates-%016x.json", directory, XXH3_64bits(key.data(), key.size()));
}

absl::StatusOr<MachineRates> ReadRates(const std::string& directory, const std::string& key, absl::Time now) {
  const std::string path = RatesPath(directory, key);
  std::ifstream file(path);
  if (directory.empty() || !file) return NotFound("no rates are kept in %s", path);
  MachineRates rates;
  try {
    const nlohmann::json json = nlohmann::json::parse(file);
    if (json.at("version").get<int64_t>() != kVersion) return NotFound("%s is of another version of ferry", path);
    if (json.at("key") != key) return DataLoss("%s holds the rates of something else", path);
    rates.measured = absl::FromUnixSeconds(json.at("measured_unix_seconds").get<int64_t>());
    rates.host = ExpertRatesIn(json.at("host"));
    rates.host_beside_links = ExpertRatesIn(json.at("host_beside_links"));
    for (const nlohmann::json& worker : json.at("workers")) {
      rates.workers.push_back({.link = {.alone = RateIn(worker, "link_alone"),
                                        .together = RateIn(worker, "link_together"),
                                        .beside_host = RateIn(worker, "link_beside_host")},
                               .experts = ExpertRatesIn(worker.at("experts")),
                               .operation_seconds = RateIn(worker, "operation_seconds"),
                               .message_seconds = RateIn(worker, "message_seconds")});
    }
  } catch (const std::exception& error) {  // of nlohmann and RateIn: they end here
    return DataLoss("%s is damaged: %s", path, error.what());
  }
  if (rates.measured > now || now - rates.measured > kRatesLast) return NotFound("the rates in %s are too old", path);
  return rates;
}

bool RemoveRates(const std::string& directory, const std::string& key) {
  std::error_code error;
  return !directory.empty() && std::filesystem::remove(RatesPath(directory, key), error);
}

absl::Status WriteRates(const std::string& directory, const std::string& key, const MachineRates& rates) {
  if (directory.empty()) return FailedPrecondition("there is no place to keep rates: neither XDG_CACHE_HOME nor HOME is set");
  nlohmann::json workers = nlohmann::json::array();
  for (const WorkerRates& worker : rates.workers) {
    workers.push_back({{"link_alone", worker.link.alone},
                       {"link_together", worker.link.together},
                       {"link_beside_host", worker.link.beside_host},
                       {"experts", ToJson(worker.experts)},
                       {"operation_seconds", worker.operation_seconds},
                       {"message_seconds", worker.message_seconds}});
  }
  const nlohmann::json json = {{"version", kVersion},
                               {"key", key},
                               {"measured_unix_seconds", absl::ToUnixSeconds(rates.measured)},
                               {"host", ToJson(rates.host)},
                               {"host_beside_links", ToJson(rates.host_beside_links)},
                               {"workers", workers}};
  const std::string path = RatesPath(directory, key);
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  ASSIGN_OR_RETURN(const std::unique_ptr<OutputFile> file, OutputFile::Create(path, {.force = true}));
  // Other encodings than UTF-8 in a device's or a host's name are replaced: the key then never matches, which is no error.
  RETURN_IF_ERROR(file->Append(json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n"));
  return file->Commit();
}

}  // namespace ferry
