#include "cli/described_hosts.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "absl/strings/str_join.h"
#include "cli/planned_machine.h"
#include "common/byte_size.h"
#include "common/small_file.h"

namespace ferry {
namespace {

using nlohmann::ordered_json;

constexpr size_t kMostHosts = 64, kMostGpus = 64;
constexpr double kMostFlops = 1e18, kMostExchangeUs = 1e6;
constexpr int64_t kMostCores = 4096;
constexpr int kDeepest = 8;

// Reads text and counts its lines. The parser has at most one character in hand.
class CountingIterator {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  CountingIterator(const char* at, int* line) : at_(at), line_(line) {}
  reference operator*() const { return *at_; }
  CountingIterator& operator++() {
    *line_ += *at_++ == '\n';
    return *this;
  }
  CountingIterator operator++(int) {
    const CountingIterator before = *this;
    ++*this;
    return before;
  }
  bool operator==(const CountingIterator& other) const { return at_ == other.at_; }
  bool operator!=(const CountingIterator& other) const { return at_ != other.at_; }

 private:
  const char* at_;
  int* line_;
};

// A value and where it stands: "/hosts/1/memory" on line 7.
struct LocatedJson {
  ordered_json root;
  std::map<std::string, int> lines;
};

absl::Status LineError(int line, const std::string& what) { return InvalidArgument("line %d: %s", line, what); }

// Gives each object and each key its line, which the parser has met in the same order.
class Locator {
 public:
  Locator(std::vector<int> objects, std::vector<int> keys, std::map<std::string, int>* lines)
      : objects_(std::move(objects)), keys_(std::move(keys)), lines_(*lines) {}
  void Walk(const ordered_json& value, const std::string& path) {
    if (value.is_object()) {
      lines_.emplace(path, objects_[next_object_++]);
      for (const auto& [key, child] : value.items()) {
        lines_.emplace(path + "/" + key, keys_[next_key_++]);
        Walk(child, path + "/" + key);
      }
    } else if (value.is_array()) {
      for (size_t i = 0; i < value.size(); ++i) Walk(value[i], path + "/" + std::to_string(i));
    }
  }

 private:
  const std::vector<int> objects_, keys_;
  std::map<std::string, int>& lines_;
  size_t next_object_ = 0, next_key_ = 0;
};

absl::StatusOr<LocatedJson> Parse(const std::string& text) {
  LocatedJson located;
  int line = 1;
  std::vector<int> objects, keys;
  std::vector<std::set<std::string>> open;  // keys of the objects around
  absl::Status status;
  const auto note = [&](int depth, ordered_json::parse_event_t event, ordered_json& parsed) {
    if (depth > kDeepest) {
      status.Update(LineError(line, "this is nested too deep"));
      return false;
    }
    if (event == ordered_json::parse_event_t::object_start) {
      objects.push_back(line);
      open.emplace_back();
    } else if (event == ordered_json::parse_event_t::object_end) {
      open.pop_back();
    } else if (event == ordered_json::parse_event_t::key) {
      keys.push_back(line);
      const auto key = parsed.get<std::string>();
      if (!open.back().insert(key).second) status.Update(LineError(line, "\"" + key + "\" is there twice"));
    }
    return true;
  };
  try {
    located.root = ordered_json::parse(CountingIterator(text.data(), &line), CountingIterator(text.data() + text.size(), &line),
                                       note, /*allow_exceptions=*/true, /*ignore_comments=*/true);
  } catch (const std::exception& error) {  // of nlohmann: it ends here
    return LineError(line, absl::StrFormat("this is no JSON: %s", error.what()));
  }
  RETURN_IF_ERROR(status);
  Locator(std::move(objects), std::move(keys), &located.lines).Walk(located.root, "");
  return located;
}

// One object of the file. Its errors name the line of the value, or its own where a value is missing.
class Section {
 public:
  Section(const LocatedJson& file, std::string path)
      : file_(file), path_(std::move(path)), json_(file.root.at(ordered_json::json_pointer(path_))) {}

  const ordered_json* Find(const std::string& key) const {
    const auto found = json_.find(key);
    return found == json_.end() ? nullptr : &*found;
  }
  absl::Status Error(const std::string& key, const std::string& what) const {
    const auto line = file_.lines.find(path_ + "/" + key);
    return LineError(line != file_.lines.end() ? line->second : file_.lines.at(path_), "\"" + key + "\" " + what);
  }
  absl::Status CheckKeys(const std::vector<std::string>& known) const {
    for (const auto& [key, value] : json_.items()) {
      if (std::find(known.begin(), known.end(), key) == known.end()) {
        return Error(key, "is not known here, want one of " + absl::StrJoin(known, ", "));
      }
    }
    return absl::OkStatus();
  }
  absl::Status Missing(const std::string& key, const std::string& example) const {
    return Error(key, "is missing, want for example \"" + key + "\": " + example);
  }

  // Each sets `target` where the key is there.
  absl::Status Text(const std::string& key, std::string* target) const {
    const ordered_json* const value = Find(key);
    if (value == nullptr) return absl::OkStatus();
    if (!value->is_string() || value->get<std::string>().empty()) return Error(key, "is " + value->dump() + ", want a text");
    *target = value->get<std::string>();
    return absl::OkStatus();
  }
  absl::Status Switch(const std::string& key, bool* target) const {
    const ordered_json* const value = Find(key);
    if (value == nullptr) return absl::OkStatus();
    if (!value->is_boolean()) return Error(key, "is " + value->dump() + ", want true or false");
    *target = value->get<bool>();
    return absl::OkStatus();
  }
  absl::Status Size(const std::string& key, const ordered_json& value, int64_t* target) const {
    const absl::StatusOr<int64_t> size =
        value.is_string() ? ParseByteSize(value.get<std::string>()) : absl::StatusOr<int64_t>(InvalidArgument("no text"));
    if (!size.ok() || *size <= 0) return Error(key, "is " + value.dump() + ", want a size such as \"24GiB\"");
    *target = *size;
    return absl::OkStatus();
  }
  absl::Status Rate(const std::string& key, double* target) const {
    const ordered_json* const value = Find(key);
    if (value == nullptr) return absl::OkStatus();
    const absl::StatusOr<double> rate =
        value->is_string() ? ParseRate(value->get<std::string>()) : absl::StatusOr<double>(InvalidArgument("no text"));
    if (!rate.ok() || !(*rate > 0)) return Error(key, "is " + value->dump() + ", want bytes a second such as \"25GB/s\"");
    *target = *rate;
    return absl::OkStatus();
  }
  absl::Status Number(const std::string& key, double most, const std::string& example, double* target) const {
    const ordered_json* const value = Find(key);
    if (value == nullptr) return absl::OkStatus();
    const double number = value->is_number() ? value->get<double>() : 0;
    if (!(number > 0 && number <= most)) {
      return Error(key, absl::StrFormat("is %s, want a number above 0, at most %g, such as %s", value->dump(), most, example));
    }
    *target = number;
    return absl::OkStatus();
  }
  absl::Status Whole(const std::string& key, int64_t most, const std::string& example, int64_t* target) const {
    const ordered_json* const value = Find(key);
    if (value == nullptr) return absl::OkStatus();
    const bool whole =
        value->is_number_unsigned() && value->get<uint64_t>() >= 1 && value->get<uint64_t>() <= static_cast<uint64_t>(most);
    if (!whole)
      return Error(key, absl::StrFormat("is %s, want a whole number from 1 to %d, such as %s", value->dump(), most, example));
    *target = value->get<int64_t>();
    return absl::OkStatus();
  }

 private:
  const LocatedJson& file_;
  const std::string path_;
  const ordered_json& json_;
};

absl::StatusOr<DescribedHost> HostOf(const Section& section, const DescribedHost& defaults) {
  DescribedHost host = defaults;
  RETURN_IF_ERROR(section.CheckKeys({"name", "address", "memory", "cores", "read", "flops", "gpus", "cpu_worker", "link",
                                     "gpu_flops", "network_rate", "exchange_us"}));
  RETURN_IF_ERROR(section.Text("name", &host.name));
  if (host.name.empty()) return section.Missing("name", "\"second\"");
  host.address = host.name;
  RETURN_IF_ERROR(section.Text("address", &host.address));
  const ordered_json* const memory = section.Find("memory");
  if (memory == nullptr) return section.Missing("memory", "\"64GiB\"");
  RETURN_IF_ERROR(section.Size("memory", *memory, &host.memory_bytes));
  double exchange_us = 1e6 * defaults.exchange_seconds;
  RETURN_IF_ERROR(section.Whole("cores", kMostCores, "16", &host.cores));
  RETURN_IF_ERROR(section.Rate("read", &host.read));
  if (host.read == 0) return section.Missing("read", "\"85GB/s\" (`ferry status` and `ferry plan` on that host say it)");
  RETURN_IF_ERROR(section.Number("flops", kMostFlops, "1.5e12", &host.flops));
  if (host.flops == 0) return section.Missing("flops", "1.5e12 (`ferry status` and `ferry plan` on that host say it)");
  RETURN_IF_ERROR(section.Rate("link", &host.link));
  RETURN_IF_ERROR(section.Number("gpu_flops", kMostFlops, "200e12", &host.gpu_flops));
  RETURN_IF_ERROR(section.Rate("network_rate", &host.network_rate));
  RETURN_IF_ERROR(section.Number("exchange_us", kMostExchangeUs, "60", &exchange_us));
  host.exchange_seconds = 1e-6 * exchange_us;
  RETURN_IF_ERROR(section.Switch("cpu_worker", &host.cpu_worker));
  const ordered_json* const gpus = section.Find("gpus");
  for (const char* key : {"link", "gpu_flops"}) {
    if (gpus == nullptr && section.Find(key) != nullptr) return section.Error(key, "is of GPUs, and this host has no \"gpus\"");
  }
  if (gpus == nullptr) return host;
  if (host.cpu_worker) return section.Error("cpu_worker", "is for a host without \"gpus\"");
  if (!gpus->is_array() || gpus->size() > kMostGpus) return section.Error("gpus", "want a list such as [\"24GiB\", \"24GiB\"]");
  for (const ordered_json& gpu : *gpus) RETURN_IF_ERROR(section.Size("gpus", gpu, &host.gpu_bytes.emplace_back()));
  return host;
}

}  // namespace

absl::StatusOr<std::vector<DescribedHost>> ParseHosts(const std::string& text) {
  ASSIGN_OR_RETURN(const LocatedJson file, Parse(text));
  if (!file.root.is_object()) return LineError(1, "want an object with \"hosts\"");
  const Section top(file, "");
  RETURN_IF_ERROR(top.CheckKeys({"hosts", "network"}));
  DescribedHost defaults;
  if (const ordered_json* const json = top.Find("network"); json != nullptr) {
    if (!json->is_object()) return top.Error("network", "want {\"rate\": \"1.2GB/s\", \"exchange_us\": 60}");
    const Section network(file, "/network");
    RETURN_IF_ERROR(network.CheckKeys({"rate", "exchange_us"}));
    double exchange_us = 0;
    RETURN_IF_ERROR(network.Rate("rate", &defaults.network_rate));
    RETURN_IF_ERROR(network.Number("exchange_us", kMostExchangeUs, "60", &exchange_us));
    defaults.exchange_seconds = 1e-6 * exchange_us;
  }
  const ordered_json* const list = top.Find("hosts");
  if (list == nullptr) return top.Missing("hosts", "[{\"name\": \"head\", ...}]");
  if (!list->is_array() || list->empty() || list->size() > kMostHosts) {
    return top.Error("hosts", absl::StrFormat("want a list of 1 to %d hosts", kMostHosts));
  }
  std::vector<DescribedHost> hosts;
  for (size_t i = 0; i < list->size(); ++i) {
    if (!(*list)[i].is_object()) return top.Error("hosts", "want a list of objects");
    const Section section(file, "/hosts/" + std::to_string(i));
    ASSIGN_OR_RETURN(DescribedHost host, HostOf(section, defaults));
    for (const DescribedHost& other : hosts) {
      if (other.name == host.name) return section.Error("name", "is that of another host, too");
    }
    if (i == 0 && host.cpu_worker) {
      return section.Error("cpu_worker", "is for other hosts: without GPUs the first one has such a worker anyway");
    }
    if (i > 0 && host.network_rate == 0) return section.Missing("network_rate", "\"1.2GB/s\", or \"rate\" in \"network\"");
    if (i > 0 && host.exchange_seconds == 0) return section.Missing("exchange_us", "60, or in \"network\"");
    hosts.push_back(std::move(host));
  }
  return hosts;
}

absl::StatusOr<std::vector<DescribedHost>> ReadHosts(const std::string& path) {
  const absl::StatusOr<std::string> text = ReadSmallFile(path);
  if (!text.ok()) return Annotate(text.status(), "--hosts");
  absl::StatusOr<std::vector<DescribedHost>> hosts = ParseHosts(*text);
  return hosts.ok() ? std::move(hosts) : Annotate(hosts.status(), path);
}

}  // namespace ferry
