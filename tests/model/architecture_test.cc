// SPDX-License-Identifier: Apache-2.0
// What the pages in model/architectures/ make of config.json; their GGUF side is tested with whole files.
#include "model/architecture.h"

#include "loader_test_files.h"

namespace thermoe {
namespace {

using Json = nlohmann::json;

Json Fixture(const std::string& arch) {
  return Json::parse(ReadBytes(std::string(THERMOE_FIXTURES) + "/" + arch + "/config.json"));
}

// Through text, as a file's numbers come: a literal 2 would be a signed number otherwise.
Result<ArchitectureConfig> ReadAsFile(const Json& json) {
  return ReadHfConfig("config.json", Json::parse(json.dump()));
}

ModelConfig Read(const Json& json) {
  auto read = ReadAsFile(json);
  EXPECT_TRUE(read.ok()) << read.status().message();
  return read.ok() ? read->config : ModelConfig{};
}

void ExpectRefused(const Json& json, StatusCode code, const std::vector<std::string>& parts) {
  auto read = ReadAsFile(json);
  ASSERT_FALSE(read.ok()) << json;
  ExpectSentence(read.status(), code, "config.json", parts);
}

Json With(Json json, const std::string& field, const Json& value) {
  json[field] = value;
  return json;
}

TEST(Architecture, UnknownOnesAreNamedWithTheKnown) {
  ExpectRefused({{"model_type", "gpt_neox"}}, StatusCode::kUnsupported,
                {"\"gpt_neox\"", "mixtral, olmoe, qwen2moe, qwen3moe"});
  ExpectRefused(Json::object(), StatusCode::kUnsupported, {"\"\"", "mixtral"});
}

TEST(Architecture, ClassNameStandsInForAMissingModelType) {
  Json json = Fixture("olmoe");
  json.erase("model_type");
  EXPECT_EQ(Read(json).architecture, "olmoe");
}

TEST(Architecture, FieldsOfTheWrongKindAreRefused) {
  const Json qwen3 = Fixture("qwen3moe");
  for (const Json& wrong : {Json("yarn"), Json(3), Json::array({1})}) {
    ExpectRefused(With(qwen3, "rope_scaling", wrong), StatusCode::kCorrupt, {"rope_scaling is not an object"});
    ExpectRefused(With(qwen3, "rope_parameters", wrong), StatusCode::kCorrupt, {"rope_parameters is not an object"});
  }
  for (const Json& wrong : {Json("none"), Json(0), Json::object({{"a", 1}})}) {
    ExpectRefused(With(qwen3, "mlp_only_layers", wrong), StatusCode::kCorrupt, {"mlp_only_layers is not a list"});
    ExpectRefused(With(qwen3, "layer_types", wrong), StatusCode::kCorrupt, {"layer_types is not a list"});
  }
}

TEST(Architecture, StageOptions) {
  const ModelConfig qwen3 = Read(Fixture("qwen3moe"));
  EXPECT_EQ(qwen3.attention.qk_norm, QkNorm::kPerHead);
  EXPECT_EQ(qwen3.head_dim, 32);
  EXPECT_TRUE(qwen3.tied_embeddings);
  EXPECT_TRUE(qwen3.gate.normalise);
  const ModelConfig olmoe = Read(Fixture("olmoe"));
  EXPECT_EQ(olmoe.attention.qk_norm, QkNorm::kWhole);
  EXPECT_FALSE(olmoe.gate.normalise);
  EXPECT_EQ(olmoe.attention.clip_qkv, 0.0f);
  EXPECT_EQ(Read(With(Fixture("olmoe"), "clip_qkv", 8.0)).attention.clip_qkv, 8.0f);
  const ModelConfig mixtral = Read(Fixture("mixtral"));
  EXPECT_EQ(mixtral.attention.rope, RopeKind::kHalves);
  EXPECT_EQ(mixtral.head_dim, 16);  // null in the file
  EXPECT_EQ(mixtral.attention.rope_theta, 1e6f);
  EXPECT_TRUE(mixtral.gate.normalise);
  const ModelConfig qwen2 = Read(Fixture("qwen2moe"));
  EXPECT_EQ(qwen2.shared_width, 64);
  EXPECT_TRUE(qwen2.shared_gate);
  EXPECT_TRUE(qwen2.attention.qkv_bias);
  EXPECT_FALSE(qwen2.gate.normalise);
  EXPECT_FALSE(Read(With(Fixture("qwen2moe"), "qkv_bias", false)).attention.qkv_bias);
}

TEST(Architecture, RopeBaseInEitherPlace) {
  Json json = Fixture("qwen3moe");
  json.erase("rope_parameters");
  EXPECT_EQ(Read(json).attention.rope_theta, 10000.0f);
  EXPECT_EQ(Read(With(json, "rope_theta", 5e5)).attention.rope_theta, 5e5f);
  EXPECT_EQ(
      Read(With(json, "rope_parameters", {{"rope_theta", 1000000}, {"rope_type", "default"}})).attention.rope_theta,
      1e6f);
  Json mixtral = Fixture("mixtral");
  mixtral.erase("rope_parameters");
  EXPECT_EQ(Read(mixtral).attention.rope_theta, 1e6f);
  EXPECT_EQ(Read(With(json, "partial_rotary_factor", 0.5)).attention.rope_dim, 16);
}

TEST(Architecture, UnsupportedOptionsAreRefused) {
  const Json qwen3 = Fixture("qwen3moe"), qwen2 = Fixture("qwen2moe"), mixtral = Fixture("mixtral");
  const auto refused = [](const Json& json, const std::vector<std::string>& parts) {
    ExpectRefused(json, StatusCode::kUnsupported, parts);
  };
  refused(With(qwen3, "rope_scaling", {{"type", "yarn"}, {"factor", 4}}), {"\"yarn\""});
  refused(With(qwen3, "rope_parameters", {{"rope_type", "linear"}, {"factor", 4}}), {"\"linear\""});
  refused(With(qwen3, "decoder_sparse_step", 2), {"dense"});
  refused(With(qwen3, "mlp_only_layers", {0}), {"dense"});
  refused(With(qwen3, "attention_bias", true), {"attention_bias"});
  refused(With(qwen3, "hidden_act", "gelu"), {"\"gelu\""});
  refused(With(qwen3, "quantization_config", {{"quant_method", "fp8"}}), {"quantised"});
  refused(With(qwen2, "layer_types", {"full_attention", "sliding_attention"}), {"sliding_attention"});
  refused(With(mixtral, "sliding_window", 128), {"window of 128"});
  refused(With(With(qwen2, "use_sliding_window", true), "sliding_window", 128), {"window of 128"});
  EXPECT_EQ(Read(With(mixtral, "sliding_window", 512)).context, 512);
  EXPECT_EQ(Read(With(qwen2, "sliding_window", 128)).context, 512);  // use_sliding_window is false
}

TEST(Architecture, AbsurdFieldsAreRefused) {
  const Json json = Fixture("olmoe");
  const auto refused = [&](const char* field, const Json& value, const std::string& part) {
    ExpectRefused(With(json, field, value), StatusCode::kCorrupt, {part});
  };
  refused("hidden_size", "64", "hidden_size");
  refused("hidden_size", -64, "hidden_size");
  refused("hidden_size", 64.5, "hidden_size");
  refused("hidden_size", 1e30, "hidden_size");
  refused("hidden_size", 0, "hidden_size");
  refused("hidden_size", nullptr, "lacks hidden_size");
  refused("num_hidden_layers", 18446744073709551615ull, "num_hidden_layers");
  refused("num_key_value_heads", 3, "cannot share");
  refused("num_experts_per_tok", 17, "17 experts");
  refused("num_attention_heads", 128, "do not fit");
  refused("head_dim", 15, "rope over 15");
  refused("rms_norm_eps", -1, "epsilon");
  refused("norm_topk_prob", 1, "norm_topk_prob");
}

TEST(Architecture, MutatedConfigsNeverCrash) {
  const Json values[] = {nullptr, 0, -1, 1, 1e300, "x", true, Json::array(), Json::object(), {1, "a"}, 4294967296};
  for (const char* arch : {"qwen3moe", "olmoe", "mixtral", "qwen2moe"}) {
    const Json json = Fixture(arch);
    for (const auto& [field, unused] : json.items()) {
      for (const Json& value : values) {
        const Status status = ReadAsFile(With(json, field, value)).status();
        EXPECT_TRUE(status.ok() || status.message().starts_with("config.json")) << status.message();
      }
    }
  }
}

TEST(Architecture, EachNamesEveryRoleItNeeds) {
  for (const char* arch : {"qwen3moe", "olmoe", "mixtral", "qwen2moe"}) {
    const Architecture* architecture = FindArchitecture(arch);
    ASSERT_NE(architecture, nullptr);
    const ModelConfig config = *SynthConfig(arch);
    for (const NameMap& names : {architecture->gguf_names(), architecture->hf_names()}) {
      for (const RoleSpec& role : RoleTable()) {
        const bool named = std::any_of(names.begin(), names.end(), [&](const auto& n) { return n.role == role.role; });
        EXPECT_TRUE(named || !role.present(config)) << arch << " role " << static_cast<int>(role.role);
      }
    }
  }
}

}  // namespace
}  // namespace thermoe
