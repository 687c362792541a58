#pragma once

// The argument checks of every backend. Each returns InvalidArgument that names the argument and the right value:
// "experts is [4, 8], want [5, 8]".

#include <cstdint>
#include <span>
#include <string_view>

#include "common/status.h"
#include "kernels/ops.h"

namespace ferry {

// ------------------------------------------------------------------------------------------------------- parts of a check

absl::Status CheckShape(std::string_view name, const Tensor& tensor, int64_t rows, int64_t cols);
absl::Status CheckInRange(std::string_view name, int64_t value, int64_t first, int64_t last);
// `tensor` is usable: no negative size, stride >= cols, data not null unless it is empty.
absl::Status CheckTensor(std::string_view name, const Tensor& tensor);
absl::Status CheckDType(std::string_view name, DType dtype, std::initializer_list<DType> allowed);
absl::Status CheckNotNull(std::string_view name, const void* pointer);

// ------------------------------------------------------------------------------------ whole calls, by the contracts of ops.h

// `act` is the backend's activation_dtype().
absl::Status CheckEmbed(const Batch& batch, int64_t first_row, const TiledMatrix& table, const Tensor& x);
absl::Status CheckRmsNorm(const Tensor& x, const float* weight, double epsilon, const Tensor& out, DType act);
absl::Status CheckMatMul(const Tensor& in, const TiledMatrix& weight, const Tensor& out, bool accumulate, DType act);
// `kv_dtypes`: the types that the backend stores. CheckKvShape checks all of a cache but its planes.
absl::Status CheckKvShape(const KvLayer& cache, std::initializer_list<DType> kv_dtypes);
absl::Status CheckRopeAndStore(const Batch& batch, int64_t first_row, const RopeConfig& rope, const HeadNorms& norms,
                               const Tensor& qkv, const KvLayer& cache, const Tensor& q_out, DType act,
                               std::initializer_list<DType> kv_dtypes);
absl::Status CheckAttention(const Batch& batch, int64_t first_row, const Tensor& q, const KvLayer& cache,
                            const AttentionParams& params, const Tensor& out, DType act, std::initializer_list<DType> kv_dtypes);
absl::Status CheckStoreLatent(const Batch& batch, int64_t first_row, const RopeConfig& rope, const LatentNorm& norm,
                              const Tensor& latent, const KvLayer& cache, const Tensor& q, const Tensor& q_out, DType act,
                              std::initializer_list<DType> kv_dtypes);
absl::Status CheckMatMulPerHead(const Tensor& in, const HeadMatrices& weight, const Tensor& out, DType act);
absl::Status CheckGatedDelta(const Batch& batch, int64_t first_row, const AttentionConfig& net, const DeltaInputs& inputs,
                             const DeltaWeights& weights, const DeltaStates& states, const Tensor& out, DType act);
absl::Status CheckMultiplyBySigmoid(const Tensor& gate, const Tensor& x, DType act);
absl::Status CheckGlu(const Tensor& gate, const Tensor& up, const Tensor& out, DType act);
absl::Status CheckRoute(const Tensor& in, const RouterWeights& router, const RouterConfig& config, const int32_t* experts,
                        const float* weights, DType act);
absl::Status CheckGroupByExpert(const int32_t* experts, int64_t rows, int64_t top_k, int64_t num_experts, const int32_t* offsets,
                                const int32_t* entry_rows, const int32_t* entry_outs);
// Checks shapes only: the groups are in device memory.
absl::Status CheckExpertMlp(const ExpertLayout& layout, std::span<const ExpertUse> uses, const ExpertGroups& groups,
                            const Tensor& in, const Tensor& contributions, DType act, DType contribution);
absl::Status CheckScatterContributions(std::span<const float> host_rows, std::span<const int32_t> outs,
                                       const Tensor& contributions, DType contribution);
absl::Status CheckCombine(const Tensor& contributions, const float* weights, int64_t top_k, const Tensor& x, DType contribution);
absl::Status CheckGatherRows(const Tensor& in, std::span<const int32_t> host_rows, const Tensor& out);
absl::Status CheckDownloadRows(const Tensor& in, std::span<const int32_t> host_rows, std::span<const float> host_out);
absl::Status CheckReadLogits(const Tensor& logits, std::span<const LogitsRequest> requests);

// Sequences and rows fit together, tables are long enough where they are given, nothing is negative.
absl::Status CheckBatch(const Batch& batch);

}  // namespace ferry
