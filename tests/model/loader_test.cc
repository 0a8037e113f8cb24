// SPDX-License-Identifier: Apache-2.0
// LoadModelFiles on whole models: the fixtures, and variants made from them.
#include "base/random.h"
#include "loader_test_files.h"
#include "model/architecture.h"
#include "model/bind_weights.h"
#include "model/safetensors_reader.h"

namespace thermoe {
namespace {

std::string FixturePath(const std::string& name) { return std::string(THERMOE_FIXTURES) + "/" + name; }

std::unique_ptr<LoadedModel> MustLoad(const std::string& path) {
  auto loaded = LoadModelFiles(path);
  EXPECT_TRUE(loaded.ok()) << loaded.status().message();
  return loaded.ok() ? std::move(*loaded) : nullptr;
}

// A Hugging Face folder with the fixture's small files and other weights.
void CopyFolder(const std::string& fixture, const TempFolder& folder) {
  for (const char* file : {"config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"}) {
    WriteBytes(folder / file, ReadBytes(FixturePath(fixture) + "/" + file));
  }
}

TEST(Loader, EveryFixtureFolder) {
  for (const char* arch : {"qwen3moe", "olmoe", "mixtral", "qwen2moe"}) {
    SCOPED_TRACE(arch);
    auto model = MustLoad(FixturePath(arch));
    ASSERT_NE(model, nullptr);
    EXPECT_EQ(model->format, "safetensors");
    EXPECT_EQ(model->config.architecture, arch);
    EXPECT_EQ(model->config.layers, 2);
    EXPECT_EQ(model->config.hidden, 64);
    EXPECT_EQ(model->config.vocab, 8192);
    EXPECT_EQ(model->identity.size(), 32u);
    EXPECT_EQ(model->tokenizer->vocab_size(), 8192);
    EXPECT_EQ(model->weights.layers[1].experts.size(), static_cast<size_t>(model->config.experts));
    EXPECT_EQ(model->weights.embedding.type, DType::kBF16);
    EXPECT_TRUE(model->owned.empty());
    int64_t bytes = 0;
    for (const TensorInfo& tensor : model->tensors) bytes += tensor.bytes;
    EXPECT_GT(bytes, model->file_bytes * 9 / 10);
  }
}

TEST(Loader, GgufAndHuggingFaceAgree) {
  auto hf = MustLoad(FixturePath("qwen3moe"));
  auto gguf = MustLoad(FixturePath("qwen3moe/model-bf16.gguf"));
  ASSERT_TRUE(hf != nullptr && gguf != nullptr);
  EXPECT_EQ(gguf->format, "gguf v3");
  EXPECT_EQ(gguf->config.attention.rope, hf->config.attention.rope);
  EXPECT_TRUE(gguf->config.tied_embeddings);
  EXPECT_EQ(gguf->weights.output.data, gguf->weights.embedding.data);
  ExpectSameWeights(gguf->weights, hf->weights);
}

TEST(Loader, MixtralsRowsOfQAndKArePermutedInGguf) {
  auto hf = MustLoad(FixturePath("mixtral"));
  auto gguf = MustLoad(FixturePath("mixtral/model-bf16.gguf"));
  ASSERT_TRUE(hf != nullptr && gguf != nullptr);
  EXPECT_EQ(gguf->config.architecture, "mixtral");
  EXPECT_EQ(gguf->config.attention.rope, RopeKind::kInterleaved);
  EXPECT_EQ(hf->config.attention.rope, RopeKind::kHalves);
  ExpectSameWeights(gguf->weights, hf->weights, {"q", "k"});
  const int64_t half = hf->config.head_dim / 2;
  for (const WeightMatrix LayerWeights::*member : {&LayerWeights::q, &LayerWeights::k}) {
    const WeightMatrix& halves = hf->weights.layers[1].*member;
    const WeightMatrix& pairs = gguf->weights.layers[1].*member;
    ASSERT_EQ(halves.rows, pairs.rows);
    std::vector<float> a(static_cast<size_t>(halves.cols)), b(a.size());
    for (int64_t row = 0; row < halves.rows; ++row) {
      const int64_t head = row / (2 * half), i = row % half, side = row % (2 * half) / half;
      DecodeRow(halves, row, Planes::kBoth, a.data());
      DecodeRow(pairs, head * 2 * half + 2 * i + side, Planes::kBoth, b.data());
      ASSERT_EQ(a, b) << row;
    }
  }
}

TEST(Loader, TheBundledModel) {
  auto model = MustLoad(std::string(THERMOE_MODELS_DIR) + "/ember-22m-q8_0.gguf");
  ASSERT_NE(model, nullptr);
  EXPECT_EQ(model->config.architecture, "qwen3moe");
  EXPECT_EQ(model->config.experts, 64);
  EXPECT_EQ(model->config.slots, 8);
  EXPECT_EQ(model->config.expert_width, 64);
  EXPECT_EQ(model->weights.layers.back().experts.back().down.type, DType::kQ8_0);
  EXPECT_EQ(model->weights.layers.back().gate.type, DType::kF32);
}

TEST(Loader, ShardsAreOneModel) {
  const TempFolder folder;
  CopyFolder("olmoe", folder);
  RawTensors shards[2];
  nlohmann::json index;
  for (auto& [name, tensor] : TakeApart(FixturePath("olmoe/model.safetensors"))) {
    const size_t shard = name.find("layers.1") != std::string::npos;
    index["weight_map"][name] = shard == 0 ? "part-1.safetensors" : "part-2.safetensors";
    shards[shard].emplace(name, tensor);
  }
  WriteBytes(folder / "model.safetensors.index.json", index.dump());
  WriteBytes(folder / "part-1.safetensors", PutTogether(shards[0]));
  auto missing = LoadModelFiles(folder.path());
  ASSERT_FALSE(missing.ok());
  ExpectSentence(missing.status(), StatusCode::kNotFound, folder.path(), {"part-2.safetensors", "download it"});
  WriteBytes(folder / "part-2.safetensors", PutTogether(shards[1]));
  auto model = MustLoad(folder.path() + "/");
  auto whole = MustLoad(FixturePath("olmoe"));
  ASSERT_TRUE(model != nullptr && whole != nullptr);
  EXPECT_EQ(model->files.size(), 2u);
  ExpectSameWeights(model->weights, whole->weights);

  index["weight_map"]["x"] = "../elsewhere.safetensors";
  WriteBytes(folder / "model.safetensors.index.json", index.dump());
  ExpectSentence(LoadModelFiles(folder.path()).status(), StatusCode::kCorrupt, folder.path(), {"../elsewhere"});
}

TEST(Loader, MisalignedTensorsAreCopied) {
  const TempFolder folder;
  CopyFolder("qwen2moe", folder);
  WriteBytes(folder / "model.safetensors", PutTogether(TakeApart(FixturePath("qwen2moe/model.safetensors")), 1));
  auto model = MustLoad(folder.path());
  auto whole = MustLoad(FixturePath("qwen2moe"));
  ASSERT_TRUE(model != nullptr && whole != nullptr);
  EXPECT_FALSE(model->owned.empty());
  EXPECT_EQ(reinterpret_cast<uintptr_t>(model->weights.layers[0].q.data) % 2, 0u);
  ExpectSameWeights(model->weights, whole->weights);
}

TEST(Loader, FusedExpertsAreTakenApart) {
  const TempFolder folder;
  CopyFolder("qwen3moe", folder);
  RawTensors tensors = TakeApart(FixturePath("qwen3moe/model.safetensors"));
  for (const std::string layer : {"0", "1"}) {
    const std::string prefix = "model.layers." + layer + ".mlp.experts.";
    RawTensor gate_up{"BF16", {8, 64, 64}, ""}, down{"BF16", {8, 64, 32}, ""};
    for (int e = 0; e < 8; ++e) {
      const std::string expert = prefix + std::to_string(e) + ".";
      for (const char* part : {"gate_proj.weight", "up_proj.weight"}) gate_up.bytes += tensors.at(expert + part).bytes;
      down.bytes += tensors.at(expert + "down_proj.weight").bytes;
      for (const char* part : {"gate_proj.weight", "up_proj.weight", "down_proj.weight"}) tensors.erase(expert + part);
    }
    tensors[prefix + "gate_up_proj"] = gate_up;
    tensors[prefix + "down_proj"] = down;
  }
  WriteBytes(folder / "model.safetensors", PutTogether(tensors));
  auto fused = MustLoad(folder.path());
  auto whole = MustLoad(FixturePath("qwen3moe"));
  ASSERT_TRUE(fused != nullptr && whole != nullptr);
  ExpectSameWeights(fused->weights, whole->weights);
}

TEST(Loader, WrongTensorsAreNamed) {
  const TempFolder folder;
  CopyFolder("qwen3moe", folder);
  const RawTensors good = TakeApart(FixturePath("qwen3moe/model.safetensors"));
  const std::string weights = folder / "model.safetensors";
  const auto refused = [&](const RawTensors& tensors, StatusCode code, const std::vector<std::string>& parts) {
    WriteBytes(weights, PutTogether(tensors));
    auto loaded = LoadModelFiles(folder.path());
    ASSERT_FALSE(loaded.ok());
    ExpectSentence(loaded.status(), code, weights, parts);
  };
  RawTensors changed = good;
  changed["model.layers.1.self_attn.q_proj.weight"].shape = {64, 128};
  refused(changed, StatusCode::kCorrupt, {"model.layers.1.self_attn.q_proj.weight", "[64, 128]", "[128, 64]"});
  changed = good;
  changed.erase("model.layers.1.mlp.experts.5.up_proj.weight");
  refused(changed, StatusCode::kCorrupt, {"no tensor model.layers.1.mlp.experts.5.up_proj.weight", "qwen3moe"});
  changed = good;
  changed["model.norm.weight"] = {"F8_E4M3", {64}, std::string(64, 'x')};
  refused(changed, StatusCode::kUnsupported, {"model.norm.weight", "f8_e4m3", "bf16"});
  changed = good;
  changed["model.layers.0.self_attn.sinks"] = changed["model.norm.weight"];
  refused(changed, StatusCode::kUnsupported, {"model.layers.0.self_attn.sinks", "no place in architecture qwen3moe"});
}

TEST(Loader, HarmlessExtraTensorsAreLeftOut) {
  const TempFolder folder;
  CopyFolder("qwen3moe", folder);
  RawTensors tensors = TakeApart(FixturePath("qwen3moe/model.safetensors"));
  tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"];  // of a tied model
  tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = {"F32", {16}, std::string(64, '\0')};
  WriteBytes(folder / "model.safetensors", PutTogether(tensors));
  EXPECT_NE(MustLoad(folder.path()), nullptr);
}

TEST(Loader, MissingFilesAreNamed) {
  const TempFolder folder;
  const auto refused = [&](const std::vector<std::string>& parts) {
    ExpectSentence(LoadModelFiles(folder.path()).status(), StatusCode::kNotFound, folder.path(), parts);
  };
  ExpectSentence(LoadModelFiles(folder / "absent.gguf").status(), StatusCode::kNotFound, folder / "absent.gguf",
                 {"no such file"});
  refused({"config.json"});
  WriteBytes(folder / "config.json", ReadBytes(FixturePath("olmoe/config.json")));
  refused({"model.safetensors", ".gguf"});
  WriteBytes(folder / "model.safetensors", ReadBytes(FixturePath("olmoe/model.safetensors")));
  refused({"tokenizer.json"});
}

TEST(Loader, ChatTemplates) {
  const TempFolder folder;
  CopyFolder("olmoe", folder);
  WriteBytes(folder / "model.safetensors", ReadBytes(FixturePath("olmoe/model.safetensors")));
  const auto config = nlohmann::json::parse(ReadBytes(folder / "tokenizer_config.json"));
  const auto with = [&](const nlohmann::json& chat_template) {
    auto changed = config;
    changed["chat_template"] = chat_template;
    WriteBytes(folder / "tokenizer_config.json", changed.dump());
    auto model = MustLoad(folder.path());
    return model == nullptr ? "" : model->chat_template;
  };
  EXPECT_EQ(with(nullptr), "");
  EXPECT_EQ(with("{{ x }}"), "{{ x }}");
  EXPECT_EQ(with({{{"name", "tool_use"}, {"template", "t"}}, {{"name", "default"}, {"template", "d"}}}), "d");
  WriteBytes(folder / "chat_template.jinja", "own file");
  EXPECT_EQ(with("{{ x }}"), "own file");
}

TEST(Loader, IdentityFollowsContentNotPlace) {
  const TempFolder folder;
  std::string bytes = ReadBytes(FixturePath("qwen3moe/model-bf16.gguf"));
  const std::string before = MustLoad(FixturePath("qwen3moe/model-bf16.gguf"))->identity;
  WriteBytes(folder / "renamed.gguf", bytes);
  EXPECT_EQ(MustLoad(folder / "renamed.gguf")->identity, before);
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  WriteBytes(folder / "changed.gguf", bytes);
  EXPECT_NE(MustLoad(folder / "changed.gguf")->identity, before);
}

TEST(Loader, TruncatedGgufNamesTheFile) {
  const TempFolder folder;
  const std::string bytes = ReadBytes(FixturePath("qwen3moe/model-bf16.gguf"));
  for (size_t i = 0; i < 60; ++i) {
    const size_t length = bytes.size() * i / 60;
    WriteBytes(folder / "cut.gguf", bytes.substr(0, length));
    auto loaded = LoadModelFiles(folder / "cut.gguf");
    ASSERT_FALSE(loaded.ok()) << length;
    ExpectSentence(loaded.status(), StatusCode::kCorrupt, folder / "cut.gguf", {"download it again"});
  }
}

// Changes bytes of a file in place: much faster than writing it anew for each round.
class Flipper {
 public:
  Flipper(const std::string& path, std::string good) : good_(std::move(good)) {
    WriteBytes(path, good_);
    file_.open(path, std::ios::in | std::ios::out | std::ios::binary);
  }
  void Flip(size_t at, char value) {
    Put(at, value);
    changed_.push_back(at);
  }
  void Restore() {
    for (size_t at : changed_) Put(at, good_[at]);
    changed_.clear();
  }

 private:
  void Put(size_t at, char value) {
    file_.seekp(static_cast<std::streamoff>(at));
    file_.put(value).flush();
  }
  std::string good_;
  std::fstream file_;
  std::vector<size_t> changed_;
};

TEST(Loader, FlippedBytesOfAGgufHeaderNeverCrash) {
  const TempFolder folder;
  const std::string path = folder / "flipped.gguf";
  Random random(99);
  int refused = 0;
  for (const char* arch : {"qwen3moe", "olmoe", "mixtral", "qwen2moe"}) {
    const std::string good = TinyGguf(arch);
    const size_t header_bytes = good.find("ffn_gate_inp") + 2000;
    Flipper flipper(path, good);
    for (int round = 0; round < 1000; ++round, flipper.Restore()) {
      for (uint64_t i = 0, flips = 1 + random.Below(3); i < flips; ++i) {
        // Half of the flips hit the 800 bytes of numbers before the tokenizer's long lists.
        flipper.Flip(random.Below(random.Below(2) == 0 ? 800 : header_bytes), static_cast<char>(random.Next()));
      }
      auto loaded = LoadModelFiles(path);
      refused += !loaded.ok();
      if (!loaded.ok()) {
        EXPECT_THAT(loaded.status().message(), testing::StartsWith(path));
        continue;
      }
      for (const LayerWeights& layer : (*loaded)->weights.layers) Decoded(layer.experts.back().down);
    }
  }
  EXPECT_GT(refused, 1000);
}

TEST(Loader, FlippedBytesOfASafetensorsHeaderNeverCrash) {
  const std::string good = ReadBytes(FixturePath("qwen2moe/model.safetensors"));
  auto read = ReadHfConfig("config.json", nlohmann::json::parse(ReadBytes(FixturePath("qwen2moe/config.json"))));
  ASSERT_TRUE(read.ok());
  Random random(100);
  std::string bytes = good;
  int refused = 0;
  for (int round = 0; round < 1500; ++round) {
    const size_t at = random.Below(8700);
    bytes[at] = static_cast<char>(random.Next());
    auto file = ParseSafetensors("m.safetensors", AsBytes(bytes));
    if (file.ok()) {
      TensorSource source;
      ModelWeights weights;
      std::vector<std::unique_ptr<std::byte[]>> owned;
      ASSERT_TRUE(source.Add("m.safetensors", file->tensors).ok());
      const Status status = BindWeights(source, read->config, read->architecture->hf_names(), &weights, &owned);
      refused += !status.ok();
    } else {
      ++refused;
    }
    bytes[at] = good[at];
  }
  EXPECT_GT(refused, 500);
}

TEST(Loader, GgufRefusals) {
  const TempFolder folder;
  const std::string path = folder / "m.gguf";
  const std::string good = TinyGguf("qwen3moe");
  // Replaces a text of the header by another of the same length.
  const auto refused = [&](const std::string& from, const std::string& to, StatusCode code,
                           const std::vector<std::string>& parts) {
    std::string bytes = good;
    const size_t at = bytes.find(from);
    ASSERT_NE(at, std::string::npos);
    bytes.replace(at, to.size(), to);
    WriteBytes(path, bytes);
    auto loaded = LoadModelFiles(path);
    ASSERT_FALSE(loaded.ok());
    ExpectSentence(loaded.status(), code, path, parts);
  };
  refused("qwen3moe", "deepseek", StatusCode::kUnsupported, {"\"deepseek\"", "mixtral, olmoe, qwen2moe, qwen3moe"});
  refused("qwen3moe.block_count", "qwen3moe.block_c0unt", StatusCode::kCorrupt, {"lacks", "qwen3moe.block_count"});
  refused("qwen3moe.expert_count", "qwen3moe.expert_c0unt", StatusCode::kUnsupported, {"no experts", "dense"});
  refused("blk.1.ffn_up_exps", "blk.1.ffn_uq_exps", StatusCode::kCorrupt, {"no tensor blk.1.ffn_up_exps.weight"});
  std::string bytes = good;
  const std::string name = "blk.1.ffn_up_exps.weight";
  const uint32_t q3_k = 11;
  std::memcpy(bytes.data() + bytes.find(name) + name.size() + 4 + 24, &q3_k, 4);
  WriteBytes(path, bytes);
  ExpectSentence(LoadModelFiles(path).status(), StatusCode::kUnsupported, path, {name, "q3_k", "q8_0"});
}

// ---- GGUF in parts ----

template <typename T>
void Append(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(value));
}
void AppendText(std::string& out, const std::string& text) {
  Append(out, static_cast<uint64_t>(text.size()));
  out += text;
}

// Part `number` of 2: even tensors and the metadata in the first, odd tensors in the second.
std::string PartOf(const std::string& whole, uint16_t number) {
  auto file = GgufFile::Parse("whole", AsBytes(whole));
  EXPECT_TRUE(file.ok());
  uint64_t metadata_count = 0;
  std::memcpy(&metadata_count, whole.data() + 16, 8);
  const size_t metadata_end = whole.find(file->tensors()[0].name) - 8;
  std::string table, data;
  uint64_t count = 0;
  for (size_t i = number; i < file->tensors().size(); i += 2, ++count) {
    const FileTensor& tensor = file->tensors()[i];
    AppendText(table, tensor.name);
    Append(table, static_cast<uint32_t>(tensor.shape.size()));
    for (auto extent = tensor.shape.rbegin(); extent != tensor.shape.rend(); ++extent) Append(table, *extent);
    Append(table, GgmlOfDType(*tensor.type));
    Append(table, static_cast<uint64_t>(data.size()));
    data.append(reinterpret_cast<const char*>(tensor.data.data()), tensor.data.size());
    data.resize((data.size() + 31) / 32 * 32);
  }
  std::string out;
  Append(out, kGgufMagic);
  Append(out, kGgufVersion);
  Append(out, count);
  Append(out, (number == 0 ? metadata_count : 0) + 2);
  if (number == 0) out += whole.substr(24, metadata_end - 24);
  for (const auto& [key, value] : {std::pair<std::string, uint16_t>{"split.no", number}, {"split.count", 2}}) {
    AppendText(out, key);
    Append(out, static_cast<uint32_t>(GgufType::kU16));
    Append(out, value);
  }
  out += table;
  out.resize((out.size() + 31) / 32 * 32);
  return out + data;
}

TEST(Loader, SplitGgufOpensItsSiblings) {
  const TempFolder folder;
  const std::string whole = TinyGguf("qwen2moe");
  WriteBytes(folder / "whole.gguf", whole);
  WriteBytes(folder / "m-00001-of-00002.gguf", PartOf(whole, 0));
  ExpectSentence(LoadModelFiles(folder / "m-00001-of-00002.gguf").status(), StatusCode::kNotFound,
                 folder / "m-00002-of-00002.gguf", {"no such file"});
  WriteBytes(folder / "m-00002-of-00002.gguf", PartOf(whole, 1));
  auto expected = MustLoad(folder / "whole.gguf");
  for (const char* name : {"m-00001-of-00002.gguf", "m-00002-of-00002.gguf"}) {
    auto model = MustLoad(folder / name);
    ASSERT_NE(model, nullptr);
    ExpectSameWeights(model->weights, expected->weights);
  }
  WriteBytes(folder / "renamed.gguf", PartOf(whole, 1));
  ExpectSentence(LoadModelFiles(folder / "renamed.gguf").status(), StatusCode::kInvalidArgument,
                 folder / "renamed.gguf", {"2 files", "-of-00002.gguf"});
  WriteBytes(folder / "m-00001-of-00002.gguf", PartOf(whole, 1));
  ExpectSentence(LoadModelFiles(folder / "m-00001-of-00002.gguf").status(), StatusCode::kCorrupt,
                 folder / "m-00001-of-00002.gguf", {"not part 1 of 2"});
}

TEST(Loader, OldMixtralFilesHaveATensorForEachExpert) {
  // The merged tensors' entries become entries for each expert over the same data.
  const TempFolder folder;
  const std::string whole = TinyGguf("mixtral");
  auto file = GgufFile::Parse("whole", AsBytes(whole));
  ASSERT_TRUE(file.ok());
  const size_t metadata_end = whole.find(file->tensors()[0].name) - 8;
  std::string table, data;
  uint64_t count = 0;
  for (const FileTensor& tensor : file->tensors()) {
    const size_t merged = tensor.name.find("_exps");
    const bool split = merged != std::string::npos;
    const size_t parts = split ? 4 : 1;
    for (size_t part = 0; part < parts; ++part, ++count) {
      std::string name = tensor.name;
      if (split) name.replace(merged, 5, "." + std::to_string(part));
      AppendText(table, name);
      Append(table, static_cast<uint32_t>(tensor.shape.size() - split));
      for (size_t i = tensor.shape.size(); i-- > split;) Append(table, tensor.shape[i]);
      Append(table, GgmlOfDType(*tensor.type));
      Append(table, static_cast<uint64_t>(data.size()));
      const auto bytes = tensor.data.subspan(part * tensor.data.size() / parts, tensor.data.size() / parts);
      data.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
      data.resize((data.size() + 31) / 32 * 32);
    }
  }
  std::string old = whole.substr(0, metadata_end);
  std::memcpy(old.data() + 8, &count, 8);
  old += table;
  old.resize((old.size() + 31) / 32 * 32);
  WriteBytes(folder / "whole.gguf", whole);
  WriteBytes(folder / "old.gguf", old + data);
  auto expected = MustLoad(folder / "whole.gguf");
  auto model = MustLoad(folder / "old.gguf");
  ASSERT_TRUE(model != nullptr && expected != nullptr);
  ExpectSameWeights(model->weights, expected->weights);
}

}  // namespace
}  // namespace thermoe
