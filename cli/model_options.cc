#include "cli/model_options.h"

#include <algorithm>
#include <cctype>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "kernels/ops.h"

namespace ferry {

void ModelOptions::AddTo(CLI::App& app, bool model_required) {
  CLI::Option* path = app.add_option("-m,--model", model, "GGUF file of the model, or any file of a split model");
  if (model_required) path->required();
  const char* const where = "What runs where";
  app.add_option("--workers", workers, "worker processes; default: one per GPU, or one on a machine without GPUs")
      ->check(CLI::Range(1, 64))
      ->group(where);
  app.add_option("--gpus", gpus, "GPUs to use, one worker each: 0,1,3")->group(where);
  app.add_option("--layers", layers, "layers of each worker: 0-9,10-23 (default: even by bytes)")->group(where);
  app.add_option("--override-tensor,--ot", overrides, "REGEX=cpu or REGEX=gpuN: where to compute the experts that match")
      ->group(where);
  app.add_option("--vram-experts", vram_experts, "memory for experts in each worker: 4GiB, auto, 0 (default: auto on GPUs)")
      ->group(where);
  app.add_flag("--ooae,!--no-ooae", ooae, "ferry only the experts that a batch activates (default), or all of a layer")
      ->group(where);
  app.add_option("--expert-transport", expert_transport, "how experts reach the workers")
      ->check(CLI::IsMember({"auto", "shm", "grpc"}))
      ->capture_default_str()
      ->group(where);
  const char* const sizes = "Sizes";
  app.add_option("-c,--ctx-size", context, "tokens in the KV cache, all requests together (default: 4096 per request)")
      ->group(sizes);
  app.add_option("-b,--batch-size", batch,
                 "tokens that go through the model in one pass; on GPUs each expert is moved once a pass\n"
                 "(default: 2048 on CPUs; on GPUs up to 16384, as their memory allows)")
      ->group(sizes);
  app.add_option("--ubatch-size,--ub", micro_batch,
                 "tokens of one attention chunk inside a pass (default: 512, on GPUs up to 4096\nas their memory "
                 "allows)")
      ->group(sizes);
  app.add_option("--parallel,--np", parallel, "requests at once")->capture_default_str()->group(sizes);
  app.add_option("--cache-type-k,--ctk", key_type, "type of the KV cache's keys: f16, q8_0")->capture_default_str()->group(sizes);
  app.add_option("--cache-type-v,--ctv", value_type, "type of the KV cache's values: f16, q8_0")
      ->capture_default_str()
      ->group(sizes);
  const char* const how = "How";
  app.add_option("-t,--threads", threads, "threads of each process (default: physical cores)")->group(how);
  app.add_option("--backend", backend, "kernels of the workers")
      ->check(CLI::IsMember({"auto", "cpu", "cuda", "reference"}))
      ->capture_default_str()
      ->group(how);
  app.add_option("--isa", isa, "instruction set of the CPU kernels")
      ->check(CLI::IsMember({"auto", "avx512", "avx2", "portable"}))
      ->capture_default_str()
      ->group(how);
  app.add_option("--step-timeout", step_timeout, "seconds that a step may take before its requests fail")->group(how);
  app.add_option("--trace", trace, "write a timeline of every step to this file, which ui.perfetto.dev opens")->group(how);
  app.add_flag("--probe", probe, "measure this machine's rates again instead of using those of an earlier start")->group(how);
  app.add_option("--log-level", log_level, "level of the logs of the processes that it starts: trace, debug, info, warn, error")
      ->capture_default_str()
      ->group(how);
}

absl::StatusOr<std::vector<std::string>> ModelOptions::Devices() const {
  std::vector<std::string> devices;
  const int num_gpus = backend == "cpu" || backend == "reference" ? 0 : NumCudaDevices();
  if (!gpus.empty()) {
    for (const absl::string_view part : absl::StrSplit(gpus, ',')) {
      int gpu = -1;
      if (!absl::SimpleAtoi(part, &gpu) || gpu < 0) return InvalidArgument("--gpus has '%s', want numbers such as 0,1", part);
      if (gpu >= num_gpus) return InvalidArgument("--gpus names GPU %d, this machine has %d", gpu, num_gpus);
      devices.push_back("cuda:" + std::to_string(gpu));
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
    int gpu = -1;
    if (!device.starts_with("cuda:") || !absl::SimpleAtoi(device.substr(5), &gpu)) return 0;  // the slowest sets the pace
    const int64_t bytes = CudaDeviceBytes(gpu);
    smallest = smallest == 0 ? bytes : std::min(smallest, bytes);
  }
  return smallest;
}

absl::StatusOr<DType> ParseKvType(const std::string& flag, const std::string& name) {
  std::string lower = name;
  std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return std::tolower(c); });
  if (lower == "f16") return DType::kF16;
  if (lower == "q8_0") return DType::kQ8_0;
  if (lower == "f32") return DType::kF32;
  return InvalidArgument("%s is '%s', want f16, q8_0 or, for the reference kernels, f32", flag, name);
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
  std::vector<std::string> arguments = {"-m",
                                        model,
                                        "--workers",
                                        std::to_string(num_workers),
                                        "--listen",
                                        listen + ":" + std::to_string(port),
                                        "--port-file",
                                        port_file,
                                        "--cluster-socket",
                                        cluster_socket,
                                        "--parallel",
                                        std::to_string(parallel),
                                        "--cache-type-k",
                                        key_type,
                                        "--cache-type-v",
                                        value_type,
                                        "--backend",
                                        backend == "reference" ? "reference" : "cpu",
                                        "--isa",
                                        isa,
                                        "--expert-transport",
                                        expert_transport,
                                        "--log-level",
                                        log_level,
                                        ooae ? "--ooae" : "--no-ooae"};
  const auto add = [&](const char* flag, const std::string& value, bool given) {
    if (given) arguments.insert(arguments.end(), {flag, value});
  };
  add("--trace", trace, !trace.empty());
  add("--tls-cert", tls_cert, !tls_cert.empty());
  add("--tls-key", tls_key, !tls_key.empty());
  add("--api-keys", api_keys, !api_keys.empty());
  if (insecure) arguments.push_back("--insecure");
  add("--cluster-listen", cluster_listen, !cluster_listen.empty());
  add("--cluster-certs", cluster_certs, !cluster_certs.empty());
  add("--layers", layers, !layers.empty());
  for (const std::string& rule : overrides) add("--override-tensor", rule, true);
  if (probe) arguments.push_back("--probe");
  add("--ctx-size", std::to_string(context), context > 0);
  add("--batch-size", std::to_string(batch), batch > 0);
  add("--gpu-memory", std::to_string(gpu_bytes), gpu_bytes > 0);
  add("--ubatch-size", std::to_string(micro_batch), micro_batch > 0);
  add("--threads", std::to_string(threads), threads > 0);
  add("--step-timeout", std::to_string(step_timeout), step_timeout > 0);
  return arguments;
}

std::vector<std::string> ModelOptions::WorkerArguments(int worker, const std::string& device,
                                                       const std::string& coordinator) const {
  std::vector<std::string> arguments = {"--coordinator",      coordinator,      "--worker-id", std::to_string(worker),
                                        "--expert-transport", expert_transport, "--isa",       isa,
                                        "--log-level",        log_level};
  const bool cuda = device.starts_with("cuda:");
  arguments.insert(arguments.end(), {"--backend", cuda ? "cuda" : device});
  if (cuda) arguments.insert(arguments.end(), {"--device", device.substr(5)});
  const std::string slots = !vram_experts.empty() ? vram_experts : (cuda ? "auto" : "0");
  arguments.insert(arguments.end(), {"--vram-experts", slots});
  if (threads > 0) arguments.insert(arguments.end(), {"--threads", std::to_string(threads)});
  return arguments;
}

}  // namespace ferry
