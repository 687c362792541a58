#include "worker/stage_weights.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <initializer_list>
#include <utility>

#include "common/model/decode_rows.h"
#include "worker/dense_chunk.h"

namespace ferry {
namespace {

// Writes rows, in whatever pieces they come, into a tiled matrix on the device: each 16 rows are tiled on the host and
// uploaded, plane by plane, since each plane of a few row tiles is one straight run of the matrix.
class TiledUpload {
 public:
  TiledUpload(Ops* ops, const TiledLayout& layout, std::byte* device, int64_t row_bytes)
      : ops_(*ops), layout_(layout), device_(device), row_bytes_(row_bytes) {}

  absl::Status Append(std::span<const std::byte> rows) {
    if (!pending_.empty()) {  // complete the tile that the last piece began
      const size_t missing = kTileRows * row_bytes_ - pending_.size();
      const size_t taken = std::min(missing, rows.size());
      pending_.insert(pending_.end(), rows.begin(), rows.begin() + taken);
      rows = rows.subspan(taken);
      if (taken < missing) return absl::OkStatus();
      RETURN_IF_ERROR(Write(pending_));
      pending_.clear();
    }
    const size_t whole = rows.size() / (kTileRows * row_bytes_) * (kTileRows * row_bytes_);
    if (whole > 0) RETURN_IF_ERROR(Write(rows.first(whole)));
    pending_.assign(rows.begin() + whole, rows.end());
    return absl::OkStatus();
  }

  absl::Status Finish() {
    if (!pending_.empty()) RETURN_IF_ERROR(Write(pending_));
    pending_.clear();
    if (next_row_ == layout_.rows) return absl::OkStatus();
    return InvalidArgument("ended after %d of %d rows", next_row_, layout_.rows);
  }

 private:
  absl::Status Write(std::span<const std::byte> rows) {
    const int64_t num_rows = static_cast<int64_t>(rows.size()) / row_bytes_;
    if (next_row_ + num_rows > layout_.rows) return InvalidArgument("has more than %d rows", layout_.rows);
    ASSIGN_OR_RETURN(const TiledLayout piece, TiledLayout::Create(layout_.dtype, num_rows, layout_.cols));
    staging_.resize(piece.bytes);
    RETURN_IF_ERROR(TileRows(piece, 0, num_rows, rows, staging_));
    RETURN_IF_ERROR(CheckScales(piece, next_row_, staging_));
    const std::span<const std::byte> staged(staging_);
    const int64_t tile = next_row_ / kTileRows;
    RETURN_IF_ERROR(ops_.Upload(device_ + layout_.code_offset(tile, 0), staged.first(piece.code_offset(piece.row_tiles(), 0))));
    if (layout_.scale_bytes > 0) {
      const int64_t begin = piece.scale_offset(0, 0), end = piece.scale_offset(piece.row_tiles(), 0);
      RETURN_IF_ERROR(ops_.Upload(device_ + layout_.scale_offset(tile, 0), staged.subspan(begin, end - begin)));
    }
    if (layout_.row_bytes > 0) {
      const int64_t begin = piece.row_offset(0), end = piece.row_offset(piece.row_tiles());
      RETURN_IF_ERROR(ops_.Upload(device_ + layout_.row_offset(tile), staged.subspan(begin, end - begin)));
    }
    next_row_ += num_rows;
    return absl::OkStatus();
  }

  Ops& ops_;
  const TiledLayout layout_;
  std::byte* const device_;
  const int64_t row_bytes_;
  int64_t next_row_ = 0;
  std::vector<std::byte> pending_;  // rows of a tile that is not whole yet
  std::vector<std::byte> staging_;
};

}  // namespace

class StageWeights::Loader {
 public:
  Loader(Ops* ops, StageWeights* weights, DenseTensorSource& source) : ops_(*ops), weights_(*weights), source_(source) {}

  absl::Status Load(const ModelConfig& model, int64_t first_layer, int64_t end_layer) {
    model_ = &model;
    ASSIGN_OR_RETURN(next_, source_.Next());
    for (const DenseTensor& tensor : DenseTensorsOf(model, first_layer, end_layer)) {
      LayerWeights* const layer = tensor.layer < 0 ? nullptr : &weights_.layers_[tensor.layer - first_layer];
      // Queries, keys and values of a layer wait for each other: what follows them comes when they are complete.
      absl::Status loaded;
      if (!IsQkv(tensor.role) && !qkv_[0].data.empty()) loaded = PlaceQkv(weights_.layers_[tensor.layer - first_layer].qkv);
      loaded.Update(LoadTensor(tensor, layer));
      if (!loaded.ok()) return Annotate(loaded, absl::StrFormat("tensor '%s'", tensor.name));
    }
    if (next_) return InvalidArgument("tensor '%s' is not one of this stage's", next_->name);
    return absl::OkStatus();
  }

 private:
  // A tensor's rows on the host.
  struct HostTensor {
    DType dtype = DType::kF32;
    int64_t rows = 0, cols = 0;
    std::vector<std::byte> data;
  };

  static bool IsQkv(TensorRole role) {
    using enum TensorRole;
    return role == kQueryWeight || role == kQueryBias || role == kKeyWeight || role == kKeyBias || role == kValueWeight ||
           role == kValueBias;
  }

  absl::Status LoadLatent(const DenseTensor& tensor, LayerWeights* layer) {
    using enum TensorRole;
    LatentWeights& latent = layer->latent;
    switch (tensor.role) {
      case kLatentQueryDown:
        return LoadMatrix(tensor, latent.query_down);
      case kLatentQueryNorm:
        return LoadVector(tensor, latent.query_norm);
      case kLatentQuery:
        return LoadMatrix(tensor, latent.query);
      case kLatentDown:
        return LoadMatrix(tensor, latent.down);
      case kLatentNorm:
        return LoadVector(tensor, latent.norm);
      case kLatentKeyUp:
        return LoadHeads(tensor, latent.key_up);
      case kLatentValueUp:
        return LoadHeads(tensor, latent.value_up);
      case kLatentKeyAndValueUp:
        return LoadJoinedHeads(tensor, latent);
      default:
        return LoadDelta(tensor, layer);
    }
  }

  absl::Status LoadDelta(const DenseTensor& tensor, LayerWeights* layer) {
    using enum TensorRole;
    DeltaLayerWeights& delta = layer->delta;
    switch (tensor.role) {
      case kDeltaMixed:
        return LoadMatrix(tensor, delta.mixed);
      case kDeltaGate:
        return LoadMatrix(tensor, delta.gate);
      case kDeltaInput:
        return LoadDeltaInput(tensor, delta);
      case kDeltaBeta:
        return LoadMatrix(tensor, delta.beta);
      case kDeltaAlpha:
        return LoadMatrix(tensor, delta.alpha);
      case kDeltaBetaAndAlpha:
        return LoadBetaAndAlpha(tensor, delta);
      case kDeltaConv:
        return LoadConv(tensor, delta.conv);
      case kDeltaTimeBias:
        return LoadVector(tensor, delta.time_bias);
      case kDeltaDecay:
        return LoadVector(tensor, delta.decay);
      case kDeltaNorm:
        return LoadVector(tensor, delta.norm);
      default:
        return LoadAfterAttention(tensor, layer);
    }
  }

  absl::Status LoadTensor(const DenseTensor& tensor, LayerWeights* layer) {
    using enum TensorRole;
    switch (tensor.role) {
      case kTokenEmbedding:
        return LoadMatrix(tensor, weights_.embedding_);
      case kOutputNorm:
        return LoadVector(tensor, weights_.output_norm_);
      case kOutput:
        return LoadMatrix(tensor, weights_.output_);
      case kAttentionNorm:
        return LoadVector(tensor, layer->attention_norm);
      case kQueryWeight:
        return ReadQueries(tensor, layer->output_gate);
      case kKeyWeight:
        return ReadTensor(tensor, qkv_[1]);
      case kValueWeight:
        return ReadTensor(tensor, qkv_[2]);
      case kQueryBias:
        return ReadTensor(tensor, qkv_bias_[0]);
      case kKeyBias:
        return ReadTensor(tensor, qkv_bias_[1]);
      case kValueBias:
        return ReadTensor(tensor, qkv_bias_[2]);
      default:
        return LoadLatent(tensor, layer);
    }
  }

  absl::Status LoadAfterAttention(const DenseTensor& tensor, LayerWeights* layer) {
    using enum TensorRole;
    switch (tensor.role) {
      case kQueryHeadNorm:
        return LoadVector(tensor, layer->query_norm);
      case kKeyHeadNorm:
        return LoadVector(tensor, layer->key_norm);
      case kAttentionOutputWeight:
        return LoadMatrix(tensor, layer->attention_output.weight);
      case kAttentionOutputBias:
        return LoadVector(tensor, layer->attention_output.bias);
      case kAttentionSinks:
        return LoadVector(tensor, layer->sinks);
      case kFfnNorm:
        return LoadVector(tensor, layer->ffn_norm);
      case kMlpGate:
        return LoadMatrix(tensor, layer->mlp_gate);
      case kMlpUp:
        return LoadMatrix(tensor, layer->mlp_up);
      case kMlpDown:
        return LoadMatrix(tensor, layer->mlp_down);
      case kMlpOutputGate:
        return LoadMatrix(tensor, layer->mlp_output_gate);
      case kRouterWeight:
        return LoadVector(tensor, layer->router.weight);
      case kRouterBias:
        return LoadVector(tensor, layer->router.bias);
      case kRouterSelectionBias:
        return LoadVector(tensor, layer->router.selection_bias);
      default:
        return Internal("role %d is unknown", static_cast<int>(tensor.role));
    }
  }

  // Calls take(rows) for each chunk of `tensor`, checked against it, and moves on to the tensor after it.
  template <typename Take>
  absl::Status ForEachChunk(const DenseTensor& tensor, DType dtype, const Take& take) {
    ASSIGN_OR_RETURN(const int64_t row_bytes, DenseRowBytes(dtype, tensor.cols));
    int64_t row = 0;
    while (row < tensor.rows) {
      RETURN_IF_ERROR(CheckNext(tensor));
      RETURN_IF_ERROR(CheckChunkRows(tensor, dtype, row_bytes, row, *next_));
      RETURN_IF_ERROR(take(next_->data));
      row += next_->num_rows;
      ASSIGN_OR_RETURN(next_, source_.Next());
    }
    return absl::OkStatus();
  }

  absl::Status CheckNext(const DenseTensor& tensor) {
    if (!next_) return InvalidArgument("is missing: the stream has ended");
    return CheckChunkOf(tensor, *next_);
  }

  absl::Status ReadTensor(const DenseTensor& tensor, HostTensor& out) {
    RETURN_IF_ERROR(CheckNext(tensor));
    if (!tensor.is_matrix && next_->dtype != DType::kF32) return InvalidArgument("is of type %s, want F32", NameOf(next_->dtype));
    if (tensor.is_matrix) RETURN_IF_ERROR(ops_.CheckWeights(next_->dtype));
    out = {.dtype = next_->dtype, .rows = tensor.rows, .cols = tensor.cols, .data = {}};
    return ForEachChunk(tensor, out.dtype, [&](std::span<const std::byte> rows) {
      out.data.insert(out.data.end(), rows.begin(), rows.end());
      return absl::OkStatus();
    });
  }

  absl::Status LoadMatrix(const DenseTensor& tensor, TiledMatrix& out) {
    RETURN_IF_ERROR(CheckNext(tensor));
    const DType dtype = next_->dtype;
    ASSIGN_OR_RETURN(const int64_t row_bytes, DenseRowBytes(dtype, tensor.cols));
    RETURN_IF_ERROR(ops_.CheckWeights(dtype));
    ASSIGN_OR_RETURN(const TiledLayout layout, TiledLayout::Create(dtype, tensor.rows, tensor.cols));
    ASSIGN_OR_RETURN(std::byte* const device, Allocate(layout.bytes));
    TiledUpload upload(&ops_, layout, device, row_bytes);
    RETURN_IF_ERROR(ForEachChunk(tensor, dtype, [&](std::span<const std::byte> rows) { return upload.Append(rows); }));
    RETURN_IF_ERROR(upload.Finish());
    out = {layout, device};
    return absl::OkStatus();
  }

  absl::Status LoadVector(const DenseTensor& tensor, const float*& out) {
    HostTensor values;
    RETURN_IF_ERROR(ReadTensor(tensor, values));
    return PlaceVector({&values, 1}, out);
  }

  // The vectors one after the other in one buffer.
  absl::Status PlaceVector(std::span<const HostTensor> vectors, const float*& out) {
    int64_t bytes = 0;
    for (const HostTensor& vector : vectors) bytes += static_cast<int64_t>(vector.data.size());
    ASSIGN_OR_RETURN(std::byte* const device, Allocate(bytes));
    std::byte* place = device;
    for (const HostTensor& vector : vectors) {
      RETURN_IF_ERROR(ops_.Upload(place, vector.data));
      place += vector.data.size();
    }
    out = reinterpret_cast<const float*>(device);
    return absl::OkStatus();
  }

  // Stretches of rows, `count` at `first` and then every `step` rows `times` times, that a matrix is made of.
  struct RowStretch {
    int64_t first, count, step = 0, times = 1;
  };
  static absl::StatusOr<HostTensor> PickRows(const HostTensor& from, std::initializer_list<RowStretch> stretches) {
    ASSIGN_OR_RETURN(const int64_t row_bytes, DenseRowBytes(from.dtype, from.cols));
    HostTensor picked = {.dtype = from.dtype, .rows = 0, .cols = from.cols, .data = {}};
    for (const RowStretch& stretch : stretches) {
      for (int64_t i = 0; i < stretch.times; ++i) {
        const auto begin = from.data.begin() + (stretch.first + i * stretch.step) * row_bytes;
        picked.data.insert(picked.data.end(), begin, begin + stretch.count * row_bytes);
        picked.rows += stretch.count;
      }
    }
    return picked;
  }
  absl::Status PlacePicked(const HostTensor& from, std::initializer_list<RowStretch> stretches, TiledMatrix& out) {
    ASSIGN_OR_RETURN(const HostTensor picked, PickRows(from, stretches));
    const HostTensor no_bias;
    Projection placed;
    RETURN_IF_ERROR(PlaceProjection({&picked, 1}, {&no_bias, 1}, placed));
    out = placed.weight;
    return absl::OkStatus();
  }

  // The queries' rows wait for keys and values. The gates' rows, which lie between them, become a matrix of their own.
  absl::Status ReadQueries(const DenseTensor& tensor, TiledMatrix& gate) {
    const AttentionConfig& attention = model_->layers[tensor.layer].attention;
    if (!attention.output_gate) return ReadTensor(tensor, qkv_[0]);
    HostTensor all;
    RETURN_IF_ERROR(ReadTensor(tensor, all));
    const int64_t dim = attention.head_dim, heads = attention.num_heads;
    ASSIGN_OR_RETURN(qkv_[0], PickRows(all, {{0, dim, 2 * dim, heads}}));
    return PlacePicked(all, {{dim, dim, 2 * dim, heads}}, gate);
  }

  // Of each key head d rows of query, d of key, and d for each of its value heads of values and of gates.
  absl::Status LoadDeltaInput(const DenseTensor& tensor, DeltaLayerWeights& out) {
    HostTensor all;
    RETURN_IF_ERROR(ReadTensor(tensor, all));
    const AttentionConfig& net = model_->layers[tensor.layer].attention;
    const int64_t dim = net.head_dim, heads = net.num_kv_heads, values = net.q_size() / heads, group = 2 * (dim + values);
    RETURN_IF_ERROR(
        PlacePicked(all, {{0, dim, group, heads}, {dim, dim, group, heads}, {2 * dim, values, group, heads}}, out.mixed));
    return PlacePicked(all, {{2 * dim + values, values, group, heads}}, out.gate);
  }
  absl::Status LoadBetaAndAlpha(const DenseTensor& tensor, DeltaLayerWeights& out) {
    HostTensor all;
    RETURN_IF_ERROR(ReadTensor(tensor, all));
    const AttentionConfig& net = model_->layers[tensor.layer].attention;
    const int64_t heads = net.num_kv_heads, values = net.num_heads / heads;
    RETURN_IF_ERROR(PlacePicked(all, {{0, values, 2 * values, heads}}, out.beta));
    return PlacePicked(all, {{values, values, 2 * values, heads}}, out.alpha);
  }
  // A row a channel in the file, a row a tap here.
  absl::Status LoadConv(const DenseTensor& tensor, const float*& out) {
    HostTensor values;
    RETURN_IF_ERROR(ReadTensor(tensor, values));
    std::vector<std::byte> turned(values.data.size());
    for (int64_t channel = 0; channel < tensor.rows; ++channel) {
      for (int64_t tap = 0; tap < tensor.cols; ++tap) {
        std::memcpy(&turned[(tap * tensor.rows + channel) * sizeof(float)],
                    &values.data[(channel * tensor.cols + tap) * sizeof(float)], sizeof(float));
      }
    }
    values.data = std::move(turned);
    return PlaceVector({&values, 1}, out);
  }

  // A matrix of each head, its rows following those of the head before.
  absl::Status LoadHeads(const DenseTensor& tensor, HeadMatrices& out) {
    HostTensor all;
    RETURN_IF_ERROR(ReadTensor(tensor, all));
    const int64_t rows = tensor.rows / tensor.heads;
    ASSIGN_OR_RETURN(const int64_t row_bytes, DenseRowBytes(all.dtype, tensor.cols));
    return PlaceHeads(all.dtype, tensor.heads, rows, tensor.cols, out, [&](int64_t head) {
      return std::span<const std::byte>(all.data).subspan(head * rows * row_bytes, rows * row_bytes);
    });
  }

  // Of each head the rows that make its keys, then those that make its values. Attention wants the keys' matrix transposed, and
  // a transposed matrix is in F32: blocks of a quantised row do not turn into blocks of a column.
  absl::Status LoadJoinedHeads(const DenseTensor& tensor, LatentWeights& out) {
    HostTensor all;
    RETURN_IF_ERROR(ReadTensor(tensor, all));
    const AttentionConfig& attention = model_->layers[tensor.layer].attention;
    const int64_t nope = attention.nope_dim(), values = attention.value_dim, rank = tensor.cols;
    ASSIGN_OR_RETURN(const int64_t row_bytes, DenseRowBytes(all.dtype, rank));
    const std::span<const std::byte> data(all.data);
    const auto rows_of = [&](int64_t head, int64_t first, int64_t count) {
      return data.subspan((head * (nope + values) + first) * row_bytes, count * row_bytes);
    };
    std::vector<float> keys(nope * rank), transposed(rank * nope);
    absl::Status decoded;
    RETURN_IF_ERROR(PlaceHeads(DType::kF32, tensor.heads, rank, nope, out.key_up, [&](int64_t head) {
      decoded.Update(DecodeRows(all.dtype, rank, rows_of(head, 0, nope), keys));
      for (int64_t row = 0; row < nope; ++row) {
        for (int64_t col = 0; col < rank; ++col) transposed[col * nope + row] = keys[row * rank + col];
      }
      return std::as_bytes(std::span(transposed));
    }));
    RETURN_IF_ERROR(decoded);
    return PlaceHeads(all.dtype, tensor.heads, values, rank, out.value_up,
                      [&](int64_t head) { return rows_of(head, nope, values); });
  }

  // rows_of(head): the rows of its matrix as GGUF stores them.
  template <typename RowsOf>
  absl::Status PlaceHeads(DType dtype, int64_t num_heads, int64_t rows, int64_t cols, HeadMatrices& out, const RowsOf& rows_of) {
    ASSIGN_OR_RETURN(const TiledLayout layout, TiledLayout::Create(dtype, rows, cols));
    ASSIGN_OR_RETURN(std::byte* const device, Allocate(num_heads * layout.bytes));
    std::vector<std::byte> tiled(layout.bytes);
    for (int64_t head = 0; head < num_heads; ++head) {
      RETURN_IF_ERROR(TileRows(layout, 0, rows, rows_of(head), tiled));
      RETURN_IF_ERROR(CheckScales(layout, head * rows, tiled));
      RETURN_IF_ERROR(ops_.Upload(device + head * layout.bytes, tiled));
    }
    out = {layout, device, num_heads};
    return absl::OkStatus();
  }

  // Queries, keys and values of a layer: one matrix and one product where their types agree.
  absl::Status PlaceQkv(std::vector<Projection>& out) {
    out.clear();
    if (qkv_[0].dtype == qkv_[1].dtype && qkv_[0].dtype == qkv_[2].dtype) {
      RETURN_IF_ERROR(PlaceProjection(qkv_, qkv_bias_, out.emplace_back()));
    } else {
      for (size_t i = 0; i < qkv_.size(); ++i) {
        RETURN_IF_ERROR(PlaceProjection({&qkv_[i], 1}, {&qkv_bias_[i], 1}, out.emplace_back()));
      }
    }
    qkv_ = {}, qkv_bias_ = {};
    return absl::OkStatus();
  }

  absl::Status PlaceProjection(std::span<const HostTensor> matrices, std::span<const HostTensor> biases, Projection& out) {
    int64_t rows = 0;
    for (const HostTensor& matrix : matrices) rows += matrix.rows;
    const DType dtype = matrices[0].dtype;
    ASSIGN_OR_RETURN(const int64_t row_bytes, DenseRowBytes(dtype, matrices[0].cols));
    ASSIGN_OR_RETURN(const TiledLayout layout, TiledLayout::Create(dtype, rows, matrices[0].cols));
    ASSIGN_OR_RETURN(std::byte* const device, Allocate(layout.bytes));
    TiledUpload upload(&ops_, layout, device, row_bytes);
    for (const HostTensor& matrix : matrices) RETURN_IF_ERROR(upload.Append(matrix.data));
    RETURN_IF_ERROR(upload.Finish());
    out.weight = {layout, device};
    return biases[0].data.empty() ? absl::OkStatus() : PlaceVector(biases, out.bias);
  }

  absl::StatusOr<std::byte*> Allocate(int64_t bytes) {
    ASSIGN_OR_RETURN(DeviceBuffer buffer, ops_.Allocate(bytes));
    std::byte* const data = buffer.data();
    weights_.bytes_ += bytes;
    weights_.buffers_.push_back(std::move(buffer));
    return data;
  }

  Ops& ops_;
  StageWeights& weights_;
  DenseTensorSource& source_;
  const ModelConfig* model_ = nullptr;
  std::optional<DenseChunk> next_;
  std::array<HostTensor, 3> qkv_, qkv_bias_;  // of the layer being loaded
};

absl::StatusOr<std::unique_ptr<StageWeights>> StageWeights::Load(Ops* ops, const ModelConfig& model, int64_t first_layer,
                                                                 int64_t end_layer, DenseTensorSource& source) {
  std::unique_ptr<StageWeights> weights(new StageWeights);
  weights->first_layer_ = first_layer;
  weights->layers_.resize(end_layer - first_layer);
  RETURN_IF_ERROR(Loader(ops, weights.get(), source).Load(model, first_layer, end_layer));
  return weights;
}

}  // namespace ferry
