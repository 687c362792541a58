#include "common/model/make_model.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>
#include <numbers>
#include <optional>
#include <utility>

#include "common/gguf/gguf.h"
#include "common/half.h"
#include "common/model/model_config.h"
#include "common/model/random_blocks.h"

namespace ferry {
namespace {

// xoshiro256++ (Blackman and Vigna, public domain algorithm), seeded by SplitMix64.
class Random {
 public:
  explicit Random(uint64_t seed) {
    for (uint64_t& word : state_) {
      seed += 0x9e3779b97f4a7c15;
      uint64_t mixed = (seed ^ seed >> 30) * 0xbf58476d1ce4e5b9;
      mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111eb;
      word = mixed ^ mixed >> 31;
    }
  }
  uint64_t Next() {
    const uint64_t result = std::rotl(state_[0] + state_[3], 23) + state_[0];
    const uint64_t shifted = state_[1] << 17;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= shifted;
    state_[3] = std::rotl(state_[3], 45);
    return result;
  }
  double Uniform() { return (static_cast<double>(Next() >> 11) + 0.5) * 0x1p-53; }  // in (0, 1)

 private:
  uint64_t state_[4];
};

// One generator a chunk, so that chunks can be made in any order.
Random RandomFor(uint64_t seed, uint64_t stream, uint64_t offset) {
  return Random(Random(Random(seed).Next() ^ stream).Next() ^ offset);
}

// Two neighbouring powers of two, drawn so that their values have the wanted root mean square.
class PowerOfTwoMix {
 public:
  explicit PowerOfTwoMix(double rms) : low_(static_cast<int>(std::floor(std::log2(rms)))) {
    const double low = std::ldexp(1, low_);
    high_share_ = static_cast<uint32_t>((rms * rms - low * low) / (3 * low * low) * 0x1p32);
  }
  int Draw(uint32_t bits) const { return low_ + (bits < high_share_); }

 private:
  int low_;              // 2^low <= rms < 2^(low + 1)
  uint32_t high_share_;  // of 2^32
};

// Root mean squares of what uniformly random bits make.
const double kFp4Rms = std::sqrt(68.5 / 8);                 // mean of the squares of the eight magnitudes
const double kInt8Rms = std::sqrt((256.0 * 256 - 1) / 12);  // -128 .. 127
const double kInt4Rms = std::sqrt((16.0 * 16 - 1) / 12 + 0.25);
const double kMantissaRms = std::sqrt(7.0 / 3);  // 1.mantissa

template <typename T>
void Store(std::byte* to, T value) {
  std::memcpy(to, &value, sizeof(T));
}

// Quantised blocks with an f16 scale and `code_bytes` of codes. The scale's sign is random: it cancels the codes' mean.
template <size_t code_bytes>
void FillScaledBlocks(double code_rms, double rms, Random& random, std::span<std::byte> out) {
  const PowerOfTwoMix mix(rms / code_rms / kMantissaRms);
  for (size_t at = 0; at < out.size(); at += 2 + code_bytes) {
    const uint64_t draw = random.Next();
    const int exponent = std::clamp(mix.Draw(static_cast<uint32_t>(draw)) + 15, 1, 30);
    Store(&out[at], static_cast<uint16_t>((draw >> 48 & 0x83ff) | static_cast<uint64_t>(exponent) << 10));
    for (size_t i = 0; i < code_bytes; i += 8) Store(&out[at + 2 + i], random.Next());
  }
}

void FillMxfp4(double rms, Random& random, std::span<std::byte> out) {
  const PowerOfTwoMix mix(rms / kFp4Rms);
  for (size_t at = 0; at < out.size(); at += 17) {
    const int exponent = std::clamp(mix.Draw(static_cast<uint32_t>(random.Next())) + 127, 1, 254);
    Store(&out[at], static_cast<uint8_t>(exponent));
    Store(&out[at + 1], random.Next());
    Store(&out[at + 9], random.Next());
  }
}

// Floating-point elements of T's size: random signs and mantissas, the exponent one of two.
template <typename T>
void FillFloats(int mantissa_bits, int exponent_bits, double rms, Random& random, std::span<std::byte> out) {
  const PowerOfTwoMix mix(rms / kMantissaRms);
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const T keep = static_cast<T>(static_cast<T>(1) << (8 * sizeof(T) - 1)) |  // sign
                 static_cast<T>((static_cast<T>(1) << mantissa_bits) - 1);
  for (size_t at = 0; at < out.size(); at += 2 * sizeof(T)) {  // a draw makes two
    const uint64_t draw = random.Next();
    const T exponent = static_cast<T>(std::clamp(mix.Draw(static_cast<uint32_t>(draw)) + bias, 1, 2 * bias)) << mantissa_bits;
    const uint64_t bits = random.Next();
    Store(&out[at], static_cast<T>((static_cast<T>(bits) & keep) | exponent));
    if (at + sizeof(T) < out.size()) {
      Store(&out[at + sizeof(T)], static_cast<T>((static_cast<T>(bits >> 32) & keep) | exponent));
    }
  }
}

// A matrix of a computable type whose elements have mean about 0 and the given root mean square.
GgufWriter::Fill RandomMatrix(DType dtype, int64_t cols, double rms, uint64_t seed, uint64_t stream) {
  return [=](uint64_t offset, std::span<std::byte> out) {
    Random random = RandomFor(seed, stream, offset);
    switch (dtype) {
      case DType::kMXFP4:
        return FillMxfp4(rms, random, out);
      case DType::kQ8_0:
        return FillScaledBlocks<32>(kInt8Rms, rms, random, out);
      case DType::kQ4_0:
        return FillScaledBlocks<16>(kInt4Rms, rms, random, out);
      case DType::kF16:
        return FillFloats<uint16_t>(10, 5, rms, random, out);
      case DType::kBF16:
        return FillFloats<uint16_t>(7, 8, rms, random, out);
      case DType::kF32:
        return FillFloats<uint32_t>(23, 8, rms, random, out);
      default:
        return FillRandomBlocks(
            dtype, cols, rms, [&] { return random.Next(); }, out);
    }
  };
}

// F32 vectors and the router: normally distributed.
GgufWriter::Fill NormalVector(double mean, double deviation, uint64_t seed, uint64_t stream) {
  return [=](uint64_t offset, std::span<std::byte> out) {
    Random random = RandomFor(seed, stream, offset);
    for (size_t at = 0; at < out.size(); at += sizeof(float)) {
      const double radius = std::sqrt(-2 * std::log(random.Uniform()));  // Box-Muller
      const double angle = 2 * std::numbers::pi * random.Uniform();
      Store(&out[at], static_cast<float>(mean + deviation * radius * std::cos(angle)));
    }
  };
}

// A code point below U+0800 in UTF-8.
std::string Utf8(uint32_t code_point) {
  if (code_point < 0x80) return std::string(1, static_cast<char>(code_point));
  return {static_cast<char>(0xc0 | code_point >> 6), static_cast<char>(0x80 | (code_point & 63))};
}

struct Vocabulary {
  std::vector<std::string> tokens;
  std::vector<int32_t> types;  // 1 normal, 3 control
  std::vector<std::string> merges;
};

constexpr std::string_view kControlTokens[] = {"<|startoftext|>", "<|endoftext|>", "<|start|>", "<|end|>", "<|message|>"};
constexpr int64_t kMinVocabulary = 256 + std::size(kControlTokens);

// Byte-level BPE as GPT-2 writes it: every byte is a printable character. Then syllables, which merges make of two
// letters, then words of three syllables after a space, which no merges reach; control tokens at the end.
Vocabulary MakeVocabulary(int64_t size) {
  Vocabulary vocabulary;
  const size_t num_normal = static_cast<size_t>(size) - std::size(kControlTokens);
  std::vector<std::string>& tokens = vocabulary.tokens;
  const auto prints_as_itself = [](uint32_t byte) {
    return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
  };
  std::string space;  // the space in the byte alphabet
  for (uint32_t byte = 0; byte < 256; ++byte) {
    if (prints_as_itself(byte)) tokens.push_back(Utf8(byte));
  }
  uint32_t stand_in = 256;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    if (prints_as_itself(byte)) continue;
    if (byte == ' ') space = Utf8(stand_in);
    tokens.push_back(Utf8(stand_in++));
  }

  constexpr std::string_view kConsonants = "bcdfghjklmnprstvwz", kVowels = "aeiou";
  std::vector<std::string> syllables;
  for (const char consonant : kConsonants) {
    for (const char vowel : kVowels) syllables.push_back({consonant, vowel});
  }
  for (const std::string& syllable : syllables) {
    if (tokens.size() == num_normal) break;
    tokens.push_back(syllable);
    vocabulary.merges.push_back({syllable[0], ' ', syllable[1]});
  }
  for (size_t word = 0; tokens.size() < num_normal; ++word) {  // written in base 90, most significant last
    std::string text = space;
    for (size_t rest = word, i = 0; i < 3 || rest > 0; ++i, rest /= syllables.size()) {
      text += syllables[rest % syllables.size()];
    }
    tokens.push_back(text);
  }
  vocabulary.types.assign(num_normal, 1);
  for (const std::string_view control : kControlTokens) {
    tokens.emplace_back(control);
    vocabulary.types.push_back(3);
  }
  return vocabulary;
}

constexpr std::string_view kChatTemplate =
    "{%- for m in messages -%}<|start|>{{ m['role'] }}<|message|>{{ m['content'] }}<|end|>{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|start|>assistant<|message|>{%- endif -%}";

// The metadata that a converter would write, of all architectures alike and then of each.
class MetadataWriter {
 public:
  MetadataWriter(const MakeModelOptions& options, GgufWriter& writer) : options_(options), writer_(writer) {}

  absl::Status Write() {
    WriteAll();
    return status_;
  }

 private:
  void WriteAll() {
    writer_.SetString("general.architecture", options_.architecture);
    writer_.SetString("general.name", options_.name);
    Count("block_count", options_.layers);
    Count("context_length", options_.context);
    Count("embedding_length", options_.n_embd);
    Count("feed_forward_length", gpt_oss() ? options_.n_ff : options_.dense_ff);
    Count("expert_feed_forward_length", options_.n_ff);
    Count("attention.head_count", options_.heads);
    latent() ? Latent() : Grouped();
    if (gpt_oss()) Count("attention.sliding_window", options_.sliding_window);
    Float("attention.layer_norm_rms_epsilon", 1e-5);
    Count("expert_count", options_.experts);
    Count("expert_used_count", options_.top_k);
    if (options_.architecture == "glm4moe" || latent()) Gate();
    if (hybrid()) Delta();
    if (options_.architecture == "qwen35moe") Sections();
    Float("rope.freq_base", options_.rope_freq_base);
    if (options_.yarn_factor == 1) return;
    writer_.SetString(Key("rope.scaling.type"), "yarn");
    Float("rope.scaling.factor", options_.yarn_factor);
    Count("rope.scaling.original_context_length", options_.yarn_original_context);
    if (latent()) Float("rope.scaling.yarn_log_multiplier", 0.1);
  }

  bool gpt_oss() const { return options_.architecture == "gpt-oss"; }
  bool latent() const { return options_.architecture == "deepseek2"; }
  bool hybrid() const { return options_.architecture == "qwen3next" || options_.architecture == "qwen35moe"; }
  int64_t rope_dims() const { return options_.rope_dims > 0 ? options_.rope_dims : options_.head_dim; }

  void Grouped() {
    Count("attention.head_count_kv", options_.kv_heads);
    Count("attention.key_length", options_.head_dim);
    Count("attention.value_length", options_.head_dim);
    Count("rope.dimension_count", rope_dims());
  }
  void Latent() {
    Count("attention.head_count_kv", 1);
    Count("attention.key_length", options_.kv_rank + rope_dims());
    Count("attention.value_length", options_.kv_rank);
    Count("attention.key_length_mla", options_.head_dim);
    Count("attention.value_length_mla", options_.value_dim);
    Count("attention.kv_lora_rank", options_.kv_rank);
    if (options_.q_rank > 0) Count("attention.q_lora_rank", options_.q_rank);
    Count("rope.dimension_count", rope_dims());
  }
  void Delta() {
    Count("full_attention_interval", options_.full_interval);
    Count("expert_shared_feed_forward_length", options_.n_ff * std::max<int64_t>(1, options_.shared_experts));
    Count("ssm.conv_kernel", 4);
    Count("ssm.state_size", options_.delta_dim);
    Count("ssm.group_count", options_.delta_key_heads);
    Count("ssm.time_step_rank", options_.delta_heads);
    Count("ssm.inner_size", options_.delta_heads * options_.delta_dim);
  }
  // Rotated pairs for time, height and width, which are one position for text; llama.cpp asks for them.
  void Sections() {
    const int32_t pairs = static_cast<int32_t>(rope_dims() / 2);
    const int32_t sections[] = {(pairs + 2) / 3, (pairs + 1) / 3, pairs / 3, 0};
    writer_.SetInt32s(Key("rope.dimension_sections"), sections);
  }
  void Gate() {
    Count("leading_dense_block_count", options_.dense_layers);
    Count("expert_shared_count", options_.shared_experts);
    Count("expert_gating_func", options_.sigmoid ? 2 : 1);
    writer_.SetBool(Key("expert_weights_norm"), options_.normalise);
    Float("expert_weights_scale", options_.weight_scale);
    if (options_.groups == 1) return;
    Count("expert_group_count", options_.groups);
    Count("expert_group_used_count", options_.groups_used);
  }

  std::string Key(std::string_view key) const { return options_.architecture + "." + std::string(key); }
  // As u32, the only type in which llama.cpp takes a count.
  void Count(std::string_view key, int64_t value) {
    constexpr int64_t kLargest = std::numeric_limits<uint32_t>::max();
    if (value < 0 || value > kLargest) status_.Update(InvalidArgument("%s is %d, want 0 to %d", Key(key), value, kLargest));
    writer_.SetUint32(Key(key), static_cast<uint32_t>(value));
  }
  void Float(std::string_view key, double value) { writer_.SetFloat32(Key(key), static_cast<float>(value)); }

  const MakeModelOptions& options_;
  GgufWriter& writer_;
  absl::Status status_;
};

void SetVocabulary(int64_t size, GgufWriter& writer) {
  const Vocabulary vocabulary = MakeVocabulary(size);
  writer.SetString("tokenizer.ggml.model", "gpt2");
  writer.SetString("tokenizer.ggml.pre", "gpt-4o");
  writer.SetStrings("tokenizer.ggml.tokens", vocabulary.tokens);
  writer.SetInt32s("tokenizer.ggml.token_type", vocabulary.types);
  writer.SetStrings("tokenizer.ggml.merges", vocabulary.merges);
  const uint32_t first_control = static_cast<uint32_t>(vocabulary.tokens.size() - std::size(kControlTokens));
  writer.SetUint32("tokenizer.ggml.bos_token_id", first_control);
  writer.SetUint32("tokenizer.ggml.eos_token_id", first_control + 1);
  writer.SetUint32("tokenizer.ggml.eot_token_id", first_control + 3);
  writer.SetUint32("tokenizer.ggml.padding_token_id", first_control + 1);
  writer.SetBool("tokenizer.ggml.add_bos_token", true);
  writer.SetString("tokenizer.chat_template", kChatTemplate);
}

// `dtype`, or what llama-quantize takes instead for rows of `cols` elements that are not whole blocks of it.
DType FittingType(DType dtype, int64_t cols) {
  const auto fits = [cols](DType type) { return cols % InfoOf(type)->block_elements == 0; };
  if (fits(dtype)) return dtype;
  DType smaller = DType::kIQ4_NL;
  if (dtype == DType::kQ4_K) smaller = DType::kQ5_0;
  if (dtype == DType::kQ5_K) smaller = DType::kQ5_1;
  if (dtype == DType::kQ6_K) smaller = DType::kQ8_0;
  return fits(smaller) ? smaller : DType::kF16;
}

// Adds tensors, each with random numbers of its own.
class TensorMaker {
 public:
  TensorMaker(const MakeModelOptions& options, GgufWriter& writer) : options_(options), writer_(writer) {}

  absl::Status Matrix(std::string_view name, DType dtype, std::vector<int64_t> dims, double rms) {
    const int64_t cols = dims[0];
    dtype = FittingType(dtype, cols);
    return writer_.AddTensor(name, dtype, std::move(dims), RandomMatrix(dtype, cols, rms, options_.seed, stream_++));
  }
  absl::Status Normal(std::string_view name, std::vector<int64_t> dims, double mean, double deviation) {
    return writer_.AddTensor(name, DType::kF32, std::move(dims), NormalVector(mean, deviation, options_.seed, stream_++));
  }

  absl::Status Dense(const DenseTensor& tensor) {
    using enum TensorRole;
    if (!tensor.is_matrix) return Plain(tensor);
    const double unit = 1 / std::sqrt(static_cast<double>(tensor.cols));  // makes unit variance of unit variance
    switch (tensor.role) {
      case kTokenEmbedding:
        return Matrix(tensor.name, options_.dense_dtype, {tensor.cols, tensor.rows}, 1);
      case kOutput:
        if (options_.tied_output) return absl::OkStatus();
        // Logits of deviation 3: the best of 200,000 is about 13, the second some tenths below.
        return Matrix(tensor.name, options_.dense_dtype, {tensor.cols, tensor.rows}, 3 * unit);
      case kLatentKeyUp:
      case kLatentValueUp:
      case kLatentKeyAndValueUp:
        return Matrix(tensor.name, options_.dense_dtype, {tensor.cols, tensor.rows / tensor.heads, tensor.heads}, unit);
      default:
        return Matrix(tensor.name, options_.dense_dtype, {tensor.cols, tensor.rows}, unit);
    }
  }

  // A tensor that stays in F32.
  absl::Status Plain(const DenseTensor& tensor) {
    using enum TensorRole;
    const double unit = 1 / std::sqrt(static_cast<double>(tensor.cols));
    switch (tensor.role) {
      case kRouterWeight:
      case kDeltaConv:
        return Normal(tensor.name, {tensor.cols, tensor.rows}, 0, unit);
      case kRouterBias:
        return Normal(tensor.name, {tensor.cols}, 0, options_.router_bias_spread);
      case kAttentionNorm:
      case kFfnNorm:
      case kQueryHeadNorm:
      case kKeyHeadNorm:
      case kLatentQueryNorm:
      case kLatentNorm:
      case kDeltaNorm:
        return Normal(tensor.name, {tensor.cols}, 1, 0.05);
      case kOutputNorm:
        // A tied output is as large as the embedding: the norm brings its logits to the same size.
        return Normal(tensor.name, {tensor.cols}, options_.tied_output ? 3 * unit : 1, 0.05 * unit);
      case kDeltaTimeBias:
        return Normal(tensor.name, {tensor.cols}, -2, 1);
      case kDeltaDecay:
        return Normal(tensor.name, {tensor.cols}, -1, 0.1);
      case kRouterSelectionBias:
        return Normal(tensor.name, {tensor.cols}, 0, 0.05 + 0.1 * options_.router_bias_spread);
      case kAttentionSinks:
        return Normal(tensor.name, {tensor.cols}, 0, 1);
      case kQueryBias:
      case kKeyBias:
      case kValueBias:
      case kAttentionOutputBias:
        return Normal(tensor.name, {tensor.cols}, 0, 0.05);
      default:
        return Internal("tensor '%s' has no distribution", tensor.name);
    }
  }

  absl::Status Experts(const ModelConfig& config, int64_t layer) {
    if (!config.layers[layer].experts) return absl::OkStatus();
    const int64_t embd = config.n_embd, ff = config.expert.n_ff, experts = config.router.num_experts;
    const auto add = [&](std::string_view kind, int64_t rows, int64_t cols) -> absl::Status {
      const std::string name = absl::StrFormat("blk.%d.ffn_%s_exps", layer, kind);
      RETURN_IF_ERROR(
          Matrix(name + ".weight", options_.expert_dtype, {cols, rows, experts}, 1 / std::sqrt(static_cast<double>(cols))));
      return config.expert.bias ? Normal(name + ".bias", {rows, experts}, 0, 0.05) : absl::OkStatus();
    };
    if (options_.merged_gate_up) {
      RETURN_IF_ERROR(add("gate_up", 2 * ff, embd));
    } else {
      RETURN_IF_ERROR(add("gate", ff, embd));
      RETURN_IF_ERROR(add("up", ff, embd));
    }
    return add("down", embd, ff);
  }

 private:
  const MakeModelOptions& options_;
  GgufWriter& writer_;
  uint64_t stream_ = 0;
};

absl::Status CheckDType(std::string_view what, DType dtype) {
  const std::optional<DTypeInfo> info = InfoOf(dtype);
  if (info && info->computable) return absl::OkStatus();
  return InvalidArgument("%s is %s, want one of %s", what, NameOf(dtype), ComputableTypes());
}

}  // namespace

absl::StatusOr<GgufWriter> MakeModelWriter(const MakeModelOptions& options) {
  RETURN_IF_ERROR(CheckDType("expert_dtype", options.expert_dtype));
  RETURN_IF_ERROR(CheckDType("dense_dtype", options.dense_dtype));
  if (options.vocab < kMinVocabulary || options.vocab > (1 << 24)) {
    return InvalidArgument("vocab is %d, want %d to %d", options.vocab, kMinVocabulary, 1 << 24);
  }
  if (!(options.router_bias_spread >= 0 && options.router_bias_spread <= 1000)) {
    return InvalidArgument("router_bias_spread is %g, want 0 to 1000", options.router_bias_spread);
  }
  GgufWriter writer;
  RETURN_IF_ERROR(MetadataWriter(options, writer).Write());
  SetVocabulary(options.vocab, writer);

  // Reads the written model back as any model: the checks of a file are the checks of the options.
  const std::vector<std::byte> metadata = writer.ToBytes();
  ASSIGN_OR_RETURN(const GgufFile file, GgufFile::Parse(metadata));
  ASSIGN_OR_RETURN(const ModelConfig config, ModelConfig::FromGguf(file));

  TensorMaker maker(options, writer);
  int64_t layer = -1;  // whose dense tensors were last added
  for (const DenseTensor& tensor : DenseTensorsOf(config, 0, config.num_layers)) {
    if (layer >= 0 && tensor.layer != layer) RETURN_IF_ERROR(maker.Experts(config, layer));
    layer = tensor.layer;
    RETURN_IF_ERROR(maker.Dense(tensor));
  }
  return writer;
}

absl::StatusOr<std::vector<std::byte>> MakeModelBytes(const MakeModelOptions& options) {
  ASSIGN_OR_RETURN(const GgufWriter writer, MakeModelWriter(options));
  return writer.ToBytes();
}

absl::Status MakeModelFile(const MakeModelOptions& options, const std::string& path,
                           const GgufWriter::FileOptions& file_options) {
  ASSIGN_OR_RETURN(const GgufWriter writer, MakeModelWriter(options));
  return writer.WriteFile(path, file_options);
}

}  // namespace ferry
