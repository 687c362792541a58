#pragma once

// The flags for a model and how to serve it, for every command that can start its own server. Names and meanings follow
// llama.cpp.

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "common/status.h"
#include "coordinator/planning/placement.h"

namespace ferry {

struct ModelOptions {
  std::string model;
  // What runs where.
  int workers = 0;  // 0: one per GPU, or one without GPUs
  std::string gpus;
  std::string layers;
  std::vector<std::string> overrides;
  std::string vram_experts;      // empty: auto on GPUs, 0 on CPUs
  std::string unified = "auto";  // auto, on, off
  bool ooae = true;
  std::string divide_experts = "auto";
  std::string share_links = "auto";
  std::string expert_transport = "auto";
  std::string transport = "auto";            // of hidden states: auto, shm, tcp, nccl, grpc
  std::string nccl_library, nccl_interface;  // empty: the worker's own defaults
  bool coordinator_only = false;
  // Sizes.
  int64_t context = 0, batch = 0, micro_batch = 0;
  int parallel = 4;
  std::string cache_ram = "auto";  // host memory for the KV cache, as the coordinator takes it
  std::string key_type = "f16", value_type = "f16";
  // How.
  int threads = 0;
  std::string backend = "auto", isa = "auto";
  std::string alias;  // the model's name in the API; empty: the one in its file
  std::string listen = "127.0.0.1";
  int port = 0;
  std::string tls_cert, tls_key, api_keys;  // of the API (coordinator/options.h)
  bool insecure = false;
  std::string cluster_listen, cluster_certs;  // for workers of other hosts; empty: there are none, or the coordinator's default
  int cluster_data_port = 0;                  // 0: any
  double step_timeout = 0;                    // 0: the coordinator's default
  double drain_seconds = 30;                  // that running requests get when the coordinator is asked to end
  std::string resume = "on";                  // on, off: whether requests go on after a worker is lost
  double resume_patience = 0;                 // seconds; 0: the coordinator's default
  std::string trace;                          // file for a timeline
  bool force = false;                         // which may replace a file
  bool probe = false, keep_rates = false;
  std::string log_level = "warn";

  // Adds the rows of ModelFlags(); those of a server that others use too where `serve` is set.
  void AddTo(CLI::App& app, bool model_required, bool serve = false);

  // For a command that uses a running server or starts one: adds --server, and the rows of ModelFlags(), which are a started
  // server's alone and so do not go with it.
  void AddWithServer(CLI::App& app, std::string& server, const char* help);

  // Devices of the workers this command starts: "cuda:0", "cpu". InvalidArgument: --gpus and --workers disagree, or name
  // what the machine does not have.
  absl::StatusOr<std::vector<std::string>> Devices() const;
  // Memory of the smallest GPU among `devices`; 0: no GPU.
  static int64_t GpuBytes(const std::vector<std::string>& devices);
  // Returns the errors of CheckOutput for the file of --trace. `inputs`: files that the command reads beside those of its server;
  // empty names count as none.
  absl::Status CheckOutputs(std::vector<std::string> inputs) const;
  // `gpu_bytes`: the result of GpuBytes; it decides the rows of a step.
  absl::StatusOr<PlacementOptions> Placement(int num_workers, int64_t gpu_bytes) const;
  std::vector<std::string> CoordinatorArguments(int num_workers, int64_t gpu_bytes, const std::string& port_file,
                                                const std::string& cluster_socket) const;
  std::vector<std::string> WorkerArguments(int worker, const std::string& device, const std::string& coordinator) const;
};

}  // namespace ferry
