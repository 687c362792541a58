#include "kernels/cpu/cpu_features.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/ops.h"
#include "kernels/reference/reference_ops.h"

namespace ferry {

absl::StatusOr<std::unique_ptr<Ops>> CreateHostOps(const BackendOptions& options) {
  RETURN_IF_ERROR(CheckIsa(options.isa));
  if (options.kind == "reference") return std::unique_ptr<Ops>(std::make_unique<ReferenceOps>());
  if (options.kind == "reference-bf16") {
    return std::unique_ptr<Ops>(std::make_unique<ReferenceOps>(ReferenceOps::Rounding::kBf16));
  }
  if (options.kind == "cpu") return CreateCpuOps(options);
  return InvalidArgument("backend is '%s', want cpu or reference", options.kind);
}

}  // namespace ferry
