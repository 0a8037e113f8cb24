// SPDX-License-Identifier: Apache-2.0
#include "model/synth.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <memory>
#include <numbers>
#include <utility>
#include <vector>

#include "base/errors.h"
#include "base/float16.h"
#include "base/random.h"
#include "model/architecture.h"
#include "model/byte_level.h"
#include "model/gguf_writer.h"
#include "model/quant_blocks.h"
#include "model/roles.h"

namespace thermoe {
namespace {

// From the models' config.json.
ModelConfig Olmoe1B7B() {
  ModelConfig c;
  c.architecture = "olmoe", c.name = "OLMoE-1B-7B synthetic";
  c.layers = 16, c.hidden = 2048, c.heads = 16, c.kv_heads = 16, c.head_dim = 128, c.vocab = 50304, c.context = 4096;
  c.experts = 64, c.slots = 8, c.expert_width = 1024, c.norm_epsilon = 1e-5f;
  c.attention.qk_norm = QkNorm::kWhole;
  c.gate.normalise = false;
  return c;
}

ModelConfig Qwen3_30BA3B() {
  ModelConfig c;
  c.architecture = "qwen3moe", c.name = "Qwen3-30B-A3B synthetic";
  c.layers = 48, c.hidden = 2048, c.heads = 32, c.kv_heads = 4, c.head_dim = 128, c.vocab = 151936, c.context = 40960;
  c.experts = 128, c.slots = 8, c.expert_width = 768, c.norm_epsilon = 1e-6f;
  c.attention.qk_norm = QkNorm::kPerHead;
  c.attention.rope_theta = 1e6f;
  return c;
}

ModelConfig Mixtral8x7B() {
  ModelConfig c;
  c.architecture = "mixtral", c.name = "Mixtral-8x7B synthetic";
  c.layers = 32, c.hidden = 4096, c.heads = 32, c.kv_heads = 8, c.head_dim = 128, c.vocab = 32000, c.context = 32768;
  c.experts = 8, c.slots = 2, c.expert_width = 14336, c.norm_epsilon = 1e-5f;
  c.attention.rope_theta = 1e6f;
  return c;
}

ModelConfig Qwen15MoeA27B() {
  ModelConfig c;
  c.architecture = "qwen2moe", c.name = "Qwen1.5-MoE-A2.7B synthetic";
  c.layers = 24, c.hidden = 2048, c.heads = 16, c.kv_heads = 16, c.head_dim = 128, c.vocab = 151936, c.context = 8192;
  c.experts = 60, c.slots = 4, c.expert_width = 1408, c.shared_width = 5632, c.shared_gate = true;
  c.norm_epsilon = 1e-6f;
  c.attention.rope_theta = 1e6f, c.attention.qkv_bias = true;
  c.gate.normalise = false;
  return c;
}

// Draws from a table of a normal distribution's 4096 equally likely values: a lookup a weight instead of two
// transcendental functions, and 16 KiB that stay in the first-level cache.
class NormalTable {
 public:
  static constexpr int kBits = 12;
  static constexpr size_t kSize = size_t{1} << kBits;

  NormalTable() {
    // Quantiles at the middle of each share, by bisection of the distribution function.
    double squares = 0;
    for (size_t i = 0; i < kSize; ++i) {
      const double share = (static_cast<double>(i) + 0.5) / static_cast<double>(kSize);
      double low = -6, high = 6;
      for (int step = 0; step < 40; ++step) {
        const double middle = (low + high) / 2;
        (0.5 * std::erfc(-middle / std::numbers::sqrt2) < share ? low : high) = middle;
      }
      values_[i] = static_cast<float>(low);
      squares += low * low;
    }
    const auto scale = static_cast<float>(1 / std::sqrt(squares / static_cast<double>(kSize)));
    for (float& value : values_) value *= scale;
  }

  const std::array<float, kSize>& values() const { return values_; }

 private:
  std::array<float, kSize> values_;
};

// Five 12-bit draws from each random word.
template <typename T>
void FillFromTable(const std::array<T, NormalTable::kSize>& table, Random& random, int64_t count, T* out) {
  constexpr int kDraws = 64 / NormalTable::kBits;
  for (int64_t i = 0; i < count; i += kDraws) {
    uint64_t word = random.Next();
    const int64_t end = std::min<int64_t>(i + kDraws, count);
    for (int64_t j = i; j < end; ++j, word >>= NormalTable::kBits) out[j] = table[word & (NormalTable::kSize - 1)];
  }
}

// `size`: a multiple of a word's.
void FillWords(Random& random, size_t size, void* out) {
  for (size_t at = 0; at < size; at += sizeof(uint64_t)) {
    const uint64_t word = random.Next();
    std::memcpy(static_cast<std::byte*>(out) + at, &word, sizeof(word));
  }
}

// Uniform codes with one scale a tensor: the distribution of the weights hardly matters for speed, their standard
// deviation does for the activations.
void FillQ8(float deviation, Random& random, int64_t blocks, std::byte* out) {
  const float code_deviation = std::sqrt((255.0f * 255.0f - 1.0f) / 12.0f);
  BlockQ8_0 block{FloatToHalf(deviation / code_deviation), {}};
  for (int64_t b = 0; b < blocks; ++b) {
    FillWords(random, sizeof(block.codes), block.codes);
    for (int8_t& code : block.codes) code = std::max<int8_t>(code, -127);  // as a quantiser would leave them
    std::memcpy(out + b * static_cast<int64_t>(sizeof(block)), &block, sizeof(block));
  }
}

void FillQ4(float deviation, Random& random, int64_t blocks, std::byte* out) {
  const float code_deviation = std::sqrt((16.0f * 16.0f - 1.0f) / 12.0f + 0.25f);
  const uint16_t scale = FloatToHalf(deviation / code_deviation);
  BlockQ4_0 block{};
  uint64_t signs = 0;
  for (int64_t b = 0; b < blocks; ++b, signs >>= 1) {
    if (b % 64 == 0) signs = random.Next();
    FillWords(random, sizeof(block.nibbles), block.nibbles);
    // Codes -8..7 have a mean of -1/2; scales of either sign, as real ones have, make the weights' mean 0. The sign has
    // bits of its own: one that a code uses too would give that code's column a mean that all rows share.
    block.d = static_cast<uint16_t>(scale | (signs & 1) << 15);
    std::memcpy(out + b * static_cast<int64_t>(sizeof(block)), &block, sizeof(block));
  }
}

// Likewise of K blocks (BlockQ4K, BlockQ5K): all scales the same, and the minimums so that the weights' mean is 0.
template <typename Block>
void FillKBlocks(int bits, float deviation, Random& random, int64_t blocks, std::byte* out) {
  constexpr int kScale = 32, kMin = 40;  // below 64
  const float codes = static_cast<float>(1 << bits), code_deviation = std::sqrt((codes * codes - 1.0f) / 12.0f), d = deviation / (code_deviation * kScale);
  Block block{};
  block.d = FloatToHalf(d);
  block.dmin = FloatToHalf(HalfToFloat(block.d) * kScale * (codes - 1.0f) / 2 / kMin);
  // UnpackKScale's order: four scales and four minimums with the others' upper two bits above, then the others' lower four of either.
  const auto with_upper = [](int value) { return static_cast<uint8_t>(value | (value >> 4) << 6); };
  std::fill_n(block.scales, 4, with_upper(kScale)), std::fill_n(block.scales + 4, 4, with_upper(kMin));
  std::fill_n(block.scales + 8, 4, static_cast<uint8_t>((kScale & 15) | (kMin & 15) << 4));
  constexpr size_t kHead = offsetof(Block, scales) + sizeof(block.scales);
  for (int64_t b = 0; b < blocks; ++b) {
    FillWords(random, sizeof(block) - kHead, reinterpret_cast<std::byte*>(&block) + kHead);
    std::memcpy(out + b * static_cast<int64_t>(sizeof(block)), &block, sizeof(block));
  }
}

// Codes -32..31 have a mean of -1/2: scales of either sign, as FillQ4 has them.
void FillQ6K(float deviation, Random& random, int64_t blocks, std::byte* out) {
  constexpr int kScale = 64;
  const float code_deviation = std::sqrt((64.0f * 64.0f - 1.0f) / 12.0f + 0.25f);
  BlockQ6K block{};
  block.d = FloatToHalf(deviation / (code_deviation * kScale));
  for (int64_t b = 0; b < blocks; ++b) {
    uint64_t signs = random.Next();
    FillWords(random, sizeof(block.low), block.low), FillWords(random, sizeof(block.high), block.high);
    for (int8_t& scale : block.scales) scale = static_cast<int8_t>((signs & 1) != 0 ? kScale : -kScale), signs >>= 1;
    std::memcpy(out + b * static_cast<int64_t>(sizeof(block)), &block, sizeof(block));
  }
}

// Rows of a random matrix or vector, the same whichever pieces are asked for.
class RandomRows {
 public:
  // f32: values mean + deviation * normal; other types have mean 0.
  RandomRows(DType type, int64_t cols, float mean, float deviation, uint64_t seed)
      : type_(type), cols_(cols), deviation_(deviation), seed_(seed) {
    static const NormalTable kNormal;
    for (size_t i = 0; i < NormalTable::kSize; ++i) {
      floats_[i] = mean + deviation * kNormal.values()[i];
      halves_[i] = type == DType::kF16 ? FloatToHalf(floats_[i]) : FloatToBf16(floats_[i]);
    }
  }

  void Fill(int64_t first_row, int64_t rows, std::byte* out) const {
    for (int64_t row = first_row; row < first_row + rows; ++row, out += RowBytes(type_, cols_)) {
      Random random(seed_ + static_cast<uint64_t>(row) * 0x2545f4914f6cdd1dull);
      switch (type_) {
        case DType::kF32: FillFromTable(floats_, random, cols_, reinterpret_cast<float*>(out)); break;
        case DType::kF16:
        case DType::kBF16: FillFromTable(halves_, random, cols_, reinterpret_cast<uint16_t*>(out)); break;
        case DType::kQ4_0: FillQ4(deviation_, random, cols_ / kQuantBlock, out); break;
        case DType::kQ8_0: FillQ8(deviation_, random, cols_ / kQuantBlock, out); break;
        case DType::kQ4K: FillKBlocks<BlockQ4K>(4, deviation_, random, cols_ / TraitsOf(type_).block_elements, out); break;
        case DType::kQ5K: FillKBlocks<BlockQ5K>(5, deviation_, random, cols_ / TraitsOf(type_).block_elements, out); break;
        case DType::kQ6K: FillQ6K(deviation_, random, cols_ / TraitsOf(type_).block_elements, out); break;
        default: {
          std::vector<float> values(static_cast<size_t>(cols_));
          FillFromTable(floats_, random, cols_, values.data());
          EncodeRow(type_, values.data(), cols_, out);
          break;
        }
      }
    }
  }

 private:
  DType type_;
  int64_t cols_;
  float deviation_;
  uint64_t seed_;
  std::array<float, NormalTable::kSize> floats_;
  std::array<uint16_t, NormalTable::kSize> halves_;
};

// One end token, the bytes, a few merges so that merging is exercised, then fillers up to the vocabulary.
Status WriteTokenizer(const ModelConfig& config, GgufWriter* writer) {
  constexpr int32_t kNormalToken = 1, kControlToken = 3;  // as tokenizer.ggml.token_type numbers them
  constexpr std::pair<const char*, const char*> kMerges[] = {
      {"h", "e"}, {"i", "n"}, {"e", "r"}, {" ", "t"}, {" t", "he"}};
  std::vector<std::string> tokens = {"<|endoftext|>"};
  for (int byte = 0; byte < 256; ++byte) tokens.push_back(ToByteLevel(std::string(1, static_cast<char>(byte))));
  std::vector<std::string> merges;
  for (const auto& [left, right] : kMerges) {
    tokens.push_back(ToByteLevel(left) + ToByteLevel(right));
    merges.push_back(ToByteLevel(left) + " " + ToByteLevel(right));
  }
  if (tokens.size() > static_cast<size_t>(config.vocab)) {
    return InvalidArgument("a vocabulary of {} is too small, the tokenizer alone needs {}", config.vocab,
                           tokens.size());
  }
  for (size_t i = tokens.size(); i < static_cast<size_t>(config.vocab); ++i) {
    tokens.push_back(fmt::format("<|filler_{}|>", i));
  }
  std::vector<int32_t> types(tokens.size(), kNormalToken);
  types[0] = kControlToken;
  writer->SetText("tokenizer.ggml.model", "gpt2");
  writer->SetText("tokenizer.ggml.pre", config.architecture == "olmoe" ? "olmo" : "qwen2");
  writer->SetTexts("tokenizer.ggml.tokens", tokens);
  writer->SetInts("tokenizer.ggml.token_type", types);
  writer->SetTexts("tokenizer.ggml.merges", merges);
  writer->SetInt("tokenizer.ggml.bos_token_id", 0);
  writer->SetInt("tokenizer.ggml.eos_token_id", 0);
  writer->SetBool("tokenizer.ggml.add_bos_token", false);
  return Status::Ok();
}

// llama.cpp's number for "mostly this type".
uint32_t FileType(DType type) {
  switch (type) {
    case DType::kF32: return 0;
    case DType::kF16: return 1;
    case DType::kQ4_0: return 2;
    case DType::kBF16: return 32;
    case DType::kQ5_0: return 8;
    case DType::kQ5_1: return 9;
    case DType::kQ4K: return 15;
    case DType::kQ5K: return 17;
    case DType::kQ6K: return 18;
    case DType::kIQ4NL: return 25;
    case DType::kMXFP4: return 38;
    default: return 7;  // q8_0
  }
}

void WriteMetadata(const ModelConfig& config, const Architecture& architecture, DType type, GgufWriter* writer) {
  const std::string prefix = std::string(architecture.gguf_name) + ".";
  const auto set = [&](const char* key, int32_t value) { writer->SetInt(prefix + key, static_cast<uint32_t>(value)); };
  writer->SetText("general.architecture", architecture.gguf_name);
  writer->SetText("general.type", "model");
  writer->SetText("general.name", config.name);
  writer->SetInt("general.file_type", FileType(type));
  writer->SetInt("general.quantization_version", 2);
  set("block_count", config.layers);
  set("context_length", config.context);
  set("embedding_length", config.hidden);
  // Where the architecture keeps an expert's width apart, the feed-forward length is that of a token's experts
  // together.
  const bool own_width = config.architecture == "qwen3moe" || config.architecture == "qwen2moe";
  set("feed_forward_length", own_width ? config.slots * config.expert_width : config.expert_width);
  if (own_width) set("expert_feed_forward_length", config.expert_width);
  if (config.shared_width > 0) set("expert_shared_feed_forward_length", config.shared_width);
  set("expert_count", config.experts);
  set("expert_used_count", config.slots);
  set("attention.head_count", config.heads);
  set("attention.head_count_kv", config.kv_heads);
  set("attention.key_length", config.head_dim);
  set("attention.value_length", config.head_dim);
  set("rope.dimension_count", config.head_dim);
  set("vocab_size", config.vocab);
  writer->SetFloat(prefix + "attention.layer_norm_rms_epsilon", config.norm_epsilon);
  writer->SetFloat(prefix + "rope.freq_base", config.attention.rope_theta);
}

bool IsBias(Role role) { return role == Role::kQBias || role == Role::kKBias || role == Role::kVBias; }

// Mean and deviation that keep activations at their scale: a matrix of `in` columns sums `in` products.
std::pair<float, float> Distribution(const RoleSpec& role, const MatrixShape& shape) {
  if (IsBias(role.role)) return {0.0f, 0.1f};
  if (role.vector != nullptr) return {1.0f, 0.1f};  // norm gains
  if (role.role == Role::kEmbedding) return {0.0f, 1.0f};
  return {0.0f, 1.0f / std::sqrt(static_cast<float>(shape.cols))};
}

// The quantiser's types of the "medium" files of K blocks: more bits for v and down in half of the layers and for the output, 8 bits for k and v of models with 8
// experts, and types of 32 weights where a row is no whole number of K blocks. Source: llama.cpp, src/llama-quant.cpp (llama_tensor_get_type).
DType MediumType(const ModelConfig& config, DType type, Role role, int32_t layer, int64_t cols) {
  const int32_t eighth = config.layers / 8;
  const bool more = layer < eighth || layer >= 7 * config.layers / 8 || (layer - eighth) % 3 == 2;
  const bool down = role == Role::kExpertDown || role == Role::kSharedDown, few = config.experts == 8;
  if (few && (role == Role::kK || role == Role::kV)) return DType::kQ8_0;
  if (few && role == Role::kO) type = DType::kQ5K;
  if (role == Role::kOutput || (more && (down || role == Role::kV))) type = DType::kQ6K;
  if (cols % TraitsOf(type).block_elements == 0) return type;
  return type == DType::kQ4K ? DType::kQ5_0 : type == DType::kQ5K ? DType::kQ5_1 : DType::kQ8_0;
}

Status AddTensors(const ModelConfig& config, const Architecture& architecture, const SynthOptions& options,
                  GgufWriter* writer) {
  const NameMap names = architecture.gguf_names();
  Random seeds(options.seed);
  for (const RoleSpec& role : RoleTable()) {
    if (!role.present(config)) continue;
    const auto name =
        std::find_if(names.begin(), names.end(), [&](const TensorName& n) { return n.role == role.role; });
    const MatrixShape shape = role.shape(config);
    const bool keeps_f32 = role.vector != nullptr || role.role == Role::kGate || role.role == Role::kSharedGate;
    const auto [mean, deviation] = Distribution(role, shape);
    std::vector<int64_t> dimensions = {shape.rows, shape.cols};
    if (role.scope == Scope::kExpert) dimensions.insert(dimensions.begin(), config.experts);
    if (role.vector != nullptr || role.role == Role::kSharedGate) dimensions = {shape.cols};
    for (int32_t layer = 0; layer < (role.scope == Scope::kModel ? 1 : config.layers); ++layer) {
      const DType type = keeps_f32 ? DType::kF32 : options.medium ? MediumType(config, options.type, role.role, layer, shape.cols) : options.type;
      auto rows = std::make_shared<RandomRows>(type, shape.cols, mean, deviation, seeds.Next());
      THERMOE_RETURN_IF_ERROR(
          writer->AddTensor(TensorNameOf(*name, layer, 0), type, dimensions,
                            [rows](int64_t first, int64_t count, std::byte* out) { rows->Fill(first, count, out); }));
    }
  }
  return Status::Ok();
}

}  // namespace

Result<ModelConfig> SynthConfig(std::string_view arch) {
  std::vector<std::string> known;
  for (ModelConfig (*make)() : {Olmoe1B7B, Qwen3_30BA3B, Mixtral8x7B, Qwen15MoeA27B}) {
    ModelConfig config = make();
    if (config.architecture == arch) return config;
    known.push_back(config.architecture);
  }
  return InvalidArgument("there is no synthetic model for \"{}\"; known are {}", arch, fmt::join(known, ", "));
}

Status Synthesise(const SynthOptions& options, const std::string& out_path) {
  auto config = SynthConfig(options.arch);
  if (!config.ok()) return config.status();
  if (options.layers < 0 || options.layers > config->layers) {
    return InvalidArgument("{} has {} layers, {} cannot be written; give 1 to {}, or 0 for all", options.arch,
                           config->layers, options.layers, config->layers);
  }
  if (options.layers > 0) config->layers = options.layers;
  return SynthesiseConfig(*config, options, out_path);
}

Status SynthesiseConfig(const ModelConfig& config, const SynthOptions& options, const std::string& out_path) {
  const Architecture* architecture = FindArchitecture(config.architecture);
  if (architecture == nullptr) {
    return InvalidArgument("architecture \"{}\" is not known; known are {}", config.architecture, ArchitectureNames());
  }
  if (options.type == DType::kNested8) {
    return InvalidArgument("nested8 is a layout in memory, no file has it; choose another type");
  }
  if (options.medium && options.type != DType::kQ4K && options.type != DType::kQ5K) {
    return InvalidArgument("{} has no medium mixture, q4_k and q5_k have", TraitsOf(options.type).name);
  }
  GgufWriter writer;
  WriteMetadata(config, *architecture, options.type, &writer);
  THERMOE_RETURN_IF_ERROR(WriteTokenizer(config, &writer));
  THERMOE_RETURN_IF_ERROR(AddTensors(config, *architecture, options, &writer));
  return writer.Write(out_path, options.progress);
}

}  // namespace thermoe
