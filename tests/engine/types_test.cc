// SPDX-License-Identifier: Apache-2.0
// Whole models of every type that files may have, CPU backend against the reference, with and without 8-bit activations.
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <filesystem>

#include "model/synth.h"
#include "support/fixtures.h"

namespace thermoe::testing {
namespace {

ModelConfig SmallConfig() {
  ModelConfig config = *SynthConfig("qwen3moe");
  config.layers = 2;
  config.hidden = config.expert_width = 256;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 64;
  config.attention.rope_dim = 64;
  config.experts = 8;
  config.slots = 2;
  config.vocab = 320;
  config.context = 128;
  return config;
}

std::vector<float> Logits(const std::shared_ptr<const Model>& model, const std::string& backend) {
  EngineOptions options;
  options.backend = backend;
  const auto engine = MakeEngine(model, options);
  Request request;
  for (TokenId id = 0; id < 40; ++id) request.prompt.push_back((id * 37 + 5) % 300);
  request.max_new_tokens = 0;
  request.keep_logits = KeepLogits::kAll;
  return RunRequest(engine.get(), request).logits;
}

double RelativeError(const std::vector<float>& got, const std::vector<float>& want) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    error += std::pow(static_cast<double>(got[i]) - want[i], 2);
    norm += std::pow(static_cast<double>(want[i]), 2);
  }
  return std::sqrt(error / norm);
}

TEST(Types, EveryTypeRunsAsTheReferenceDoes) {
  const std::string path = (std::filesystem::temp_directory_path() / ("thermoe-types-" + std::to_string(getpid()) + ".gguf")).string();
  for (const DType type : {DType::kQ8_0, DType::kQ4_0, DType::kQ5_0, DType::kQ5_1, DType::kQ4K, DType::kQ5K, DType::kQ6K,
                           DType::kIQ4NL, DType::kMXFP4}) {
    SCOPED_TRACE(std::string(TraitsOf(type).name));
    SynthOptions synth;
    synth.type = type;
    ASSERT_TRUE(SynthesiseConfig(SmallConfig(), synth, path).ok());
    LoadOptions plain;
    plain.interleave = false;
    const auto rows = Model::Load(path, plain);
    ASSERT_TRUE(rows.ok()) << rows.status().message();
    EXPECT_EQ((*rows)->info().expert_type, TraitsOf(type).name);
    const std::vector<float> want = Logits(*rows, "reference");
    EXPECT_LT(RelativeError(Logits(*rows, "cpu"), want), 1e-5);
    const auto interleaved = Model::Load(path, {});
    ASSERT_TRUE(interleaved.ok()) << interleaved.status().message();
    EXPECT_EQ(Logits(*interleaved, "reference"), want);  // the layout changes no value
    // 8-bit activations: 0.7 % a product (int_dot_test.cc), and now and then another expert; what is wrong is off by 1.
    EXPECT_LT(RelativeError(Logits(*interleaved, "cpu"), want), 0.2);
    std::remove(path.c_str());
  }
}

}  // namespace
}  // namespace thermoe::testing
