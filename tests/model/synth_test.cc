// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "loader_test_files.h"

namespace thermoe {
namespace {

constexpr const char* kArchs[] = {"olmoe", "qwen3moe", "mixtral", "qwen2moe"};
// The tiny shapes are narrower than a K block; tests/engine/types_test.cc has those.
constexpr DType kTypes[] = {DType::kF32,  DType::kF16,  DType::kBF16,  DType::kQ8_0, DType::kQ4_0,
                            DType::kQ5_0, DType::kQ5_1, DType::kIQ4NL, DType::kMXFP4};

struct Moments {
  double mean = 0, deviation = 0;
};
Moments MomentsOf(const std::vector<float>& values) {
  double sum = 0, squares = 0;
  for (float value : values) sum += value, squares += double{value} * value;
  const double mean = sum / static_cast<double>(values.size());
  return {mean, std::sqrt(squares / static_cast<double>(values.size()) - mean * mean)};
}

TEST(Synth, EveryArchitectureAndTypeLoadsWithItsConfig) {
  const TempFolder folder;
  for (const char* arch : kArchs) {
    for (DType type : kTypes) {
      SCOPED_TRACE(std::string(arch) + " " + std::string(TraitsOf(type).name));
      WriteBytes(folder / "tiny.gguf", TinyGguf(arch, type));
      auto loaded = LoadModelFiles(folder / "tiny.gguf");
      ASSERT_TRUE(loaded.ok()) << loaded.status().message();
      const LoadedModel& model = **loaded;
      const ModelConfig want = TinyConfig(arch);
      const ModelConfig& got = model.config;
      EXPECT_EQ(got.architecture, arch);
      EXPECT_EQ(std::tie(got.layers, got.hidden, got.heads, got.kv_heads, got.head_dim, got.vocab, got.context),
                std::tie(want.layers, want.hidden, want.heads, want.kv_heads, want.head_dim, want.vocab, want.context));
      EXPECT_EQ(std::tie(got.experts, got.slots, got.expert_width, got.shared_width, got.shared_gate),
                std::tie(want.experts, want.slots, want.expert_width, want.shared_width, want.shared_gate));
      EXPECT_EQ(got.attention.qk_norm, want.attention.qk_norm);
      EXPECT_EQ(got.attention.rope_theta, want.attention.rope_theta);
      EXPECT_EQ(got.attention.qkv_bias, want.attention.qkv_bias);
      EXPECT_EQ(got.gate.normalise, want.gate.normalise);
      EXPECT_EQ(got.norm_epsilon, want.norm_epsilon);
      EXPECT_FALSE(got.tied_embeddings);
      EXPECT_EQ(model.tokenizer->vocab_size(), want.vocab);
      EXPECT_EQ(model.weights.embedding.type, type);
      EXPECT_EQ(model.weights.layers[1].gate.type, DType::kF32);
      // A matrix of 288 * 32 weights: the deviation is within 5 % (4 sigma of its own error is 3 %).
      const Moments output = MomentsOf(Decoded(model.weights.output));
      EXPECT_NEAR(output.deviation * std::sqrt(32.0), 1.0, 0.05);
      EXPECT_NEAR(output.mean * std::sqrt(32.0), 0.0, 0.05);
      EXPECT_NEAR(MomentsOf(model.weights.layers[0].attention_norm).mean, 1.0, 0.1);
      EXPECT_NE(Decoded(model.weights.layers[0].experts[0].up), Decoded(model.weights.layers[0].experts[1].up));
      EXPECT_NE(Decoded(model.weights.layers[0].q), Decoded(model.weights.layers[1].q));
    }
  }
}

// The mean of every column: what rows share turns all rows of a product the same way, and a model of such weights routes to few of its experts.
TEST(Synth, RowsShareNothing) {
  const TempFolder folder;
  for (DType type : kTypes) {
    SCOPED_TRACE(std::string(TraitsOf(type).name));
    WriteBytes(folder / "tiny.gguf", TinyGguf("olmoe", type));
    auto loaded = LoadModelFiles(folder / "tiny.gguf");
    ASSERT_TRUE(loaded.ok()) << loaded.status().message();
    const WeightMatrix& output = (*loaded)->weights.output;
    const std::vector<float> values = Decoded(output);
    for (int64_t column = 0; column < output.cols; ++column) {
      double sum = 0;
      for (int64_t row = 0; row < output.rows; ++row) sum += values[static_cast<size_t>(row * output.cols + column)];
      const auto rows = static_cast<double>(output.rows), deviation = 1 / std::sqrt(static_cast<double>(output.cols));
      EXPECT_LT(std::fabs(sum / rows), 5 * deviation / std::sqrt(rows)) << "column " << column;
    }
  }
}

TEST(Synth, IsDeterministicFromTheSeed) {
  const TempFolder folder;
  const auto made = [&](uint64_t seed) {
    SynthOptions options;
    options.seed = seed;
    EXPECT_TRUE(SynthesiseConfig(TinyConfig("olmoe"), options, folder / "m.gguf").ok());
    return ReadBytes(folder / "m.gguf");
  };
  const std::string first = made(5);
  EXPECT_EQ(made(5), first);
  EXPECT_NE(made(6), first);
}

// A file of llama.cpp's "Q4_K_M": which matrices have more bits (llama-quant.cpp at 3f545becc).
TEST(Synth, MediumFilesMixTypes) {
  const TempFolder folder;
  const auto load = [&](ModelConfig config, DType type) {
    SynthOptions options;
    options.type = type, options.medium = true;
    const Status made = SynthesiseConfig(config, options, folder / "m.gguf");
    EXPECT_TRUE(made.ok()) << made.message();
    auto loaded = LoadModelFiles(folder / "m.gguf");
    EXPECT_TRUE(loaded.ok()) << loaded.status().message();
    return std::move(loaded).value();
  };
  ModelConfig config = TinyConfig("olmoe");
  config.layers = 16, config.hidden = 256, config.head_dim = 64, config.expert_width = 256;
  const std::vector<size_t> wider = {0, 1, 4, 7, 10, 13, 14, 15};
  for (const DType type : {DType::kQ4K, DType::kQ5K}) {
    SCOPED_TRACE(std::string(TraitsOf(type).name));
    const auto model = load(config, type);
    const ModelWeights& weights = model->weights;
    for (const WeightMatrix* m : {&weights.layers[2].q, &weights.layers[2].experts[0].up, &weights.output}) {  // 65,536 weights and more
      const Moments moments = MomentsOf(Decoded(*m));
      EXPECT_NEAR(moments.deviation * std::sqrt(256.0), 1.0, 0.02) << TraitsOf(m->type).name;
      EXPECT_NEAR(moments.mean * std::sqrt(256.0), 0.0, 0.02) << TraitsOf(m->type).name;
    }
    EXPECT_EQ(std::tie(weights.embedding.type, weights.output.type), std::tuple(type, DType::kQ6K));
    for (size_t layer = 0; layer < 16; ++layer) {
      const LayerWeights& w = weights.layers[layer];
      const bool more = std::find(wider.begin(), wider.end(), layer) != wider.end();
      const auto& expert = w.experts[3];
      EXPECT_EQ(std::tie(w.v.type, expert.down.type), std::tuple(more ? DType::kQ6K : type, more ? DType::kQ6K : type)) << "layer " << layer;
      EXPECT_EQ(std::tie(w.q.type, w.k.type, w.o.type, expert.gate.type, expert.up.type, w.gate.type), std::tuple(type, type, type, type, type, DType::kF32)) << "layer " << layer;
    }
  }
  // Models with 8 experts; rows of a down matrix that are no whole number of K blocks.
  config.layers = 2, config.experts = 8, config.expert_width = 288;
  const auto few = load(config, DType::kQ4K);
  const LayerWeights& first = few->weights.layers[0];
  EXPECT_EQ(std::tie(first.q.type, first.k.type, first.v.type, first.o.type), std::tuple(DType::kQ4K, DType::kQ8_0, DType::kQ8_0, DType::kQ5K));
  EXPECT_EQ(std::tie(first.experts[0].down.type, few->weights.layers[1].experts[0].down.type), std::tuple(DType::kQ5_0, DType::kQ8_0));

  const auto fives = load(config, DType::kQ5K);
  EXPECT_EQ(std::tie(fives->weights.layers[0].o.type, fives->weights.layers[0].experts[0].down.type), std::tuple(DType::kQ5K, DType::kQ5_1));
  // A shared expert's are as an expert's.
  ModelConfig shared = TinyConfig("qwen2moe");
  shared.layers = 16, shared.hidden = 256, shared.head_dim = 64, shared.expert_width = shared.shared_width = 256;
  const auto with_shared = load(shared, DType::kQ4K);
  for (const size_t layer : {size_t{1}, size_t{2}}) {
    const LayerWeights& w = with_shared->weights.layers[layer];
    EXPECT_EQ(w.shared.down.type, w.experts[0].down.type);
    EXPECT_EQ(w.shared.down.type, layer == 1 ? DType::kQ6K : DType::kQ4K);
  }

  SynthOptions plain;
  plain.medium = true;
  EXPECT_THAT(SynthesiseConfig(config, plain, folder / "n.gguf").message(), testing::HasSubstr("q8_0 has no medium mixture, q4_k and q5_k have"));
}

TEST(Synth, RealShapes) {
  const ModelConfig qwen3 = *SynthConfig("qwen3moe");
  EXPECT_EQ(qwen3.layers * int64_t{qwen3.experts} * 3 * qwen3.hidden * qwen3.expert_width,
            28'991'029'248);  // of 30.5e9
  const ModelConfig olmoe = *SynthConfig("olmoe");
  EXPECT_EQ(olmoe.layers * int64_t{olmoe.experts} * 3 * olmoe.hidden * olmoe.expert_width, 6'442'450'944);  // of 6.9e9
}

TEST(Synth, RefusesWhatItCannotWrite) {
  const TempFolder folder;
  SynthOptions options;
  options.arch = "gpt5";
  const Status unknown = Synthesise(options, folder / "m.gguf");
  EXPECT_EQ(unknown.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(unknown.message(), testing::HasSubstr("olmoe, qwen3moe, mixtral, qwen2moe"));
  options.arch = "olmoe";
  options.layers = 17;
  EXPECT_THAT(Synthesise(options, folder / "m.gguf").message(), testing::HasSubstr("16 layers"));
  ModelConfig narrow = TinyConfig("olmoe");
  narrow.expert_width = 48;
  ExpectSentence(SynthesiseConfig(narrow, SynthOptions{}, folder / "m.gguf"), StatusCode::kInvalidArgument,
                 "tensor blk.0.ffn_down_exps.weight", {"48", "q8_0", "32"});
  ModelConfig wordless = TinyConfig("olmoe");
  wordless.vocab = 100;
  EXPECT_EQ(SynthesiseConfig(wordless, SynthOptions{}, folder / "m.gguf").code(), StatusCode::kInvalidArgument);
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

}  // namespace
}  // namespace thermoe
