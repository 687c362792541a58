#include "cli/model_options.h"

#include <algorithm>

#include "absl/strings/str_split.h"
#include "cli/model_flags.h"
#include "common/command_line.h"
#include "common/number.h"
#include "common/output_file.h"
#include "coordinator/options.h"
#include "kernels/ops.h"

namespace ferry {
namespace {

constexpr int kMaxGpu = 1023;

// Appends every typed flag that the process gets: `told` is the member of ModelFlag that says so.
void AppendFlags(const ModelOptions& options, bool ModelFlag::*told, std::vector<std::string>* arguments) {
  for (const ModelFlag& flag : ModelFlags()) {
    if (!(flag.*told)) continue;
    for (const std::string& value : flag.values(options)) {
      arguments->push_back(flag.told);
      if (!flag.is_switch) arguments->push_back(value);
    }
  }
}

}  // namespace

void ModelOptions::AddTo(CLI::App& app, bool model_required, bool serve) {
  for (const ModelFlag& flag : ModelFlags()) {
    if (flag.serve_only && !serve) continue;
    CLI::Option* const option = flag.add(app, *this);
    if (*flag.group != '\0') option->group(flag.group);
    if (model_required && std::string(flag.names).starts_with("-m,")) option->required();
  }
}

void ModelOptions::AddWithServer(CLI::App& app, std::string& server, const char* help) {
  CLI::Option* const option = AddText(app, "--server", server, help);
  AddTo(app, /*model_required=*/false);
  for (const ModelFlag& flag : ModelFlags()) {
    if (flag.serve_only) continue;
    const std::string names = flag.names;
    option->excludes(app.get_option(names.substr(0, names.find(','))));
  }
}

absl::StatusOr<std::vector<std::string>> ModelOptions::Devices() const {
  std::vector<std::string> devices;
  const int num_gpus = backend == "cpu" || backend == "reference" ? 0 : NumCudaDevices();
  if (!gpus.empty()) {
    for (const absl::string_view part : absl::StrSplit(gpus, ',')) {
      const absl::StatusOr<int64_t> gpu = ParseInteger({part.data(), part.size()}, 0, kMaxGpu);
      if (!gpu.ok()) return InvalidArgument("--gpus has '%s', want numbers such as 0,1", part);
      if (*gpu >= num_gpus) return InvalidArgument("--gpus names GPU %d, this machine has %d", *gpu, num_gpus);
      devices.push_back("cuda:" + std::to_string(*gpu));
    }
    if (workers != 0 && workers != static_cast<int>(devices.size())) {
      return InvalidArgument("--workers is %d, but --gpus names %d GPUs: there is one worker a GPU", workers, devices.size());
    }
    return devices;
  }
  if (backend == "cuda" && num_gpus == 0) {
    return FailedPrecondition("--backend cuda, but no GPU can be used: no driver, or Ferry was built without CUDA");
  }
  if (num_gpus > 0) {
    if (workers > num_gpus) {
      return InvalidArgument("--workers is %d, this machine has %d GPUs: one worker a GPU, or --backend cpu", workers, num_gpus);
    }
    for (int gpu = 0; gpu < (workers == 0 ? num_gpus : workers); ++gpu) devices.push_back("cuda:" + std::to_string(gpu));
    return devices;
  }
  devices.assign(std::max(workers, 1), backend == "reference" ? "reference" : "cpu");
  return devices;
}

int64_t ModelOptions::GpuBytes(const std::vector<std::string>& devices) {
  int64_t smallest = 0;
  for (const std::string& device : devices) {
    if (!device.starts_with("cuda:")) return 0;  // the slowest sets the pace
    const absl::StatusOr<int64_t> gpu = ParseInteger(device.substr(5), 0, kMaxGpu);
    if (!gpu.ok()) return 0;
    const int64_t bytes = CudaDeviceBytes(static_cast<int>(*gpu));
    smallest = smallest == 0 ? bytes : std::min(smallest, bytes);
  }
  return smallest;
}

absl::Status ModelOptions::CheckOutputs(std::vector<std::string> inputs) const {
  if (trace.empty()) return absl::OkStatus();
  inputs.insert(inputs.end(), {model, tls_cert, tls_key, api_keys, nccl_library});
  return CheckOutput(trace, {.flag = "--trace", .force = force, .inputs = std::move(inputs)});
}

absl::StatusOr<PlacementOptions> ModelOptions::Placement(int num_workers, int64_t gpu_bytes) const {
  PlacementOptions options{.num_workers = num_workers,
                           .layers = layers,
                           .tensor_overrides = overrides,
                           .context_tokens = context,
                           .parallel = parallel,
                           .batch_tokens = batch,
                           .gpu_bytes = gpu_bytes,
                           .micro_batch_tokens = micro_batch};
  ASSIGN_OR_RETURN(options.key_type, ParseKvType("-ctk", key_type));
  ASSIGN_OR_RETURN(options.value_type, ParseKvType("-ctv", value_type));
  return options;
}

std::vector<std::string> ModelOptions::CoordinatorArguments(int num_workers, int64_t gpu_bytes, const std::string& port_file,
                                                            const std::string& cluster_socket) const {
  // First the values that this process finds out, then the typed ones.
  std::vector<std::string> arguments = {"--workers",        std::to_string(num_workers),
                                        "--listen",         listen + ":" + std::to_string(port),
                                        "--port-file",      port_file,
                                        "--cluster-socket", cluster_socket,
                                        "--backend",        backend == "reference" ? "reference" : "cpu"};
  if (gpu_bytes > 0) arguments.insert(arguments.end(), {"--gpu-memory", std::to_string(gpu_bytes)});
  AppendFlags(*this, &ModelFlag::coordinator, &arguments);
  return arguments;
}

std::vector<std::string> ModelOptions::WorkerArguments(int worker, const std::string& device,
                                                       const std::string& coordinator) const {
  const bool cuda = device.starts_with("cuda:");
  std::vector<std::string> arguments = {"--coordinator",        coordinator, "--worker-id",
                                        std::to_string(worker), "--backend", cuda ? "cuda" : device};
  if (cuda) arguments.insert(arguments.end(), {"--device", device.substr(5)});
  if (vram_experts.empty()) arguments.insert(arguments.end(), {"--vram-experts", cuda ? "auto" : "0"});
  AppendFlags(*this, &ModelFlag::worker, &arguments);
  return arguments;
}

}  // namespace ferry
