#include "worker/stage_weights.h"

#include "tests/worker/tiny_model.h"

namespace ferry {
namespace {

using testing::HasSubstr;

// The whole tensor, tiled in one piece.
std::vector<std::byte> Tiled(const std::string& name) {
  const TensorInfo& info = *Model().file->FindTensor(name);
  const TiledLayout layout = TiledLayout::Create(info.dtype, info.rows(), info.cols()).value();
  std::vector<std::byte> tiled(layout.bytes);
  EXPECT_OK(TileRows(layout, 0, layout.rows, info.data, tiled));
  return tiled;
}

std::vector<std::byte> BytesOf(const TiledMatrix& matrix) { return {matrix.data, matrix.data + matrix.layout.bytes}; }

TEST(StageWeights, AreTheSameBytesInWhateverChunksTheyCome) {
  const auto ops = MakeOps();
  for (const int64_t rows_at_once : {1, 7, 16, 24, 1000}) {
    FileTensorSource source(Model(), 0, 4, rows_at_once);
    ASSERT_OK_AND_ASSIGN(const auto weights, StageWeights::Load(ops.get(), Model().config, 0, 4, source));
    EXPECT_EQ(BytesOf(weights->embedding()), Tiled("token_embd.weight")) << rows_at_once;
    EXPECT_EQ(BytesOf(weights->output()), Tiled("output.weight")) << rows_at_once;
    EXPECT_EQ(BytesOf(weights->layer(3).attention_output.weight), Tiled("blk.3.attn_output.weight")) << rows_at_once;
  }
}

TEST(StageWeights, MakeOneMatrixOfQueriesKeysAndValues) {
  const auto ops = MakeOps();
  FileTensorSource source(Model(), 1, 2);
  ASSERT_OK_AND_ASSIGN(const auto weights, StageWeights::Load(ops.get(), Model().config, 1, 2, source));
  const std::vector<Projection>& qkv = weights->layer(1).qkv;
  ASSERT_EQ(qkv.size(), 1u);
  const AttentionConfig& attention = Model().config.layers[0].attention;
  const int64_t q = attention.q_size(), kv = attention.kv_size();
  EXPECT_EQ(qkv[0].weight.layout.rows, q + 2 * kv);
  int64_t row = 0;
  for (const char* const name : {"blk.1.attn_q", "blk.1.attn_k", "blk.1.attn_v"}) {
    const std::vector<std::byte> part = Tiled(std::string(name) + ".weight");
    const TensorInfo& info = *Model().file->FindTensor(std::string(name) + ".weight");
    const TiledMatrix matrix = {TiledLayout::Create(info.dtype, info.rows(), info.cols()).value(), part.data()};
    const float* const bias = reinterpret_cast<const float*>(Model().file->FindTensor(std::string(name) + ".bias")->data.data());
    for (int64_t i = 0; i < info.rows(); ++i, ++row) {
      EXPECT_EQ(TiledValue(qkv[0].weight, row, 33), TiledValue(matrix, i, 33)) << name << " row " << i;
      EXPECT_EQ(qkv[0].bias[row], bias[i]) << name << " row " << i;
    }
  }
  EXPECT_EQ(row, q + 2 * kv);
}

// The same weights with the keys decoded to F32: three matrices, and (since F32 holds Q8_0's values exactly) three products
// into one buffer.
TEST(StageWeights, KeepQueriesKeysAndValuesApartWhenTheirTypesDiffer) {
  const auto ops = MakeOps();
  FileTensorSource source(Model(), 0, 1, /*rows_at_once=*/1000);
  std::vector<float> keys;
  source.change = [&](DenseChunk& chunk) {
    if (chunk.name != "blk.0.attn_k.weight") return;
    const std::vector<std::byte> tiled = Tiled(chunk.name);
    const TiledMatrix matrix = {TiledLayout::Create(chunk.dtype, chunk.rows, chunk.cols).value(), tiled.data()};
    keys.resize(chunk.rows * chunk.cols);
    for (int64_t row = 0; row < chunk.rows; ++row) DecodeTiledRow(matrix, row, keys.data() + row * chunk.cols);
    chunk.dtype = DType::kF32;
    chunk.data = std::as_bytes(std::span(keys));
  };
  ASSERT_OK_AND_ASSIGN(const auto weights, StageWeights::Load(ops.get(), Model().config, 0, 1, source));
  const std::vector<Projection>& qkv = weights->layer(0).qkv;
  ASSERT_EQ(qkv.size(), 3u);
  EXPECT_EQ(qkv[1].weight.layout.dtype, DType::kF32);
  EXPECT_EQ(qkv[1].weight.layout.rows, Model().config.layers[0].attention.kv_size());
  EXPECT_EQ(TiledValue(qkv[1].weight, 5, 6), keys[5 * Model().config.n_embd + 6]);
}

absl::Status LoadSpoilt(const std::function<void(DenseChunk&)>& change) {
  const auto ops = MakeOps();
  FileTensorSource source(Model(), 0, 1);
  source.change = change;
  return StageWeights::Load(ops.get(), Model().config, 0, 1, source).status();
}

TEST(StageWeights, RefuseATensorThatIsNotTheNext) {
  EXPECT_THAT(LoadSpoilt([](DenseChunk& chunk) {
                if (chunk.name == "blk.0.attn_sinks.weight") chunk.name = "blk.1.attn_sinks.weight";
              }),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("'blk.0.attn_sinks.weight'")));
}

TEST(StageWeights, RefuseAnotherShape) {
  EXPECT_THAT(LoadSpoilt([](DenseChunk& chunk) {
                if (chunk.name == "token_embd.weight") ++chunk.rows;
              }),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("is 513 x 64, want 512 x 64")));
}

TEST(StageWeights, RefuseRowsThatAreMissing) {
  EXPECT_THAT(LoadSpoilt([](DenseChunk& chunk) {
                if (chunk.first_row > 0) ++chunk.first_row;
              }),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("want some from 24")));
}

TEST(StageWeights, RefuseBytesThatAreMissing) {
  EXPECT_THAT(LoadSpoilt([](DenseChunk& chunk) { chunk.data = chunk.data.first(chunk.data.size() - 1); }),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("bytes, want")));
}

TEST(StageWeights, RefuseATypeThatFerryDoesNotComputeWith) {
  EXPECT_THAT(LoadSpoilt([](DenseChunk& chunk) { chunk.dtype = DType::kTQ1_0; }),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("TQ1_0")));
  EXPECT_THAT(LoadSpoilt([](DenseChunk& chunk) {
                if (chunk.name == "blk.0.attn_norm.weight") chunk.dtype = DType::kF16;
              }),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("want F32")));
}

class EndlessSource final : public DenseTensorSource {
 public:
  absl::StatusOr<std::optional<DenseChunk>> Next() override {
    ASSIGN_OR_RETURN(std::optional<DenseChunk> chunk, source_.Next());
    if (chunk) return chunk;
    return DenseChunk{.name = "one.more", .rows = 1, .cols = 1, .num_rows = 1, .data = {}};
  }

 private:
  FileTensorSource source_{Model(), 0, 1};
};

TEST(StageWeights, RefuseATensorTooMany) {
  const auto ops = MakeOps();
  EndlessSource source;
  EXPECT_THAT(StageWeights::Load(ops.get(), Model().config, 0, 1, source),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("'one.more' is not one of this stage's")));
}

}  // namespace
}  // namespace ferry
