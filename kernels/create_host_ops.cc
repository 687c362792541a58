#include "kernels/cpu/cpu_ops.h"
#include "kernels/ops.h"
#include "kernels/reference/reference_ops.h"

namespace ferry {

absl::StatusOr<std::unique_ptr<Ops>> CreateHostOps(const BackendOptions& options) {
  if (options.isa != "auto" && options.isa != "avx512" && options.isa != "avx2" && options.isa != "portable") {
    return InvalidArgument("isa is '%s', want auto, avx512, avx2 or portable", options.isa);
  }
  if (options.kind == "reference") return std::unique_ptr<Ops>(std::make_unique<ReferenceOps>());
  if (options.kind == "cpu") return CreateCpuOps(options);
  return InvalidArgument("backend is '%s', want cpu or reference", options.kind);
}

}  // namespace ferry
