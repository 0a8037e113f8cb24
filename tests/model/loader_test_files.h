// SPDX-License-Identifier: Apache-2.0
// Small model files made by the tests of readers and loader.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/config.h"
#include "model/loaded_model.h"
#include "model/synth.h"
#include "support/temp_folder.h"

namespace thermoe {

inline std::string ReadBytes(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

inline void WriteBytes(const std::string& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

inline std::span<const std::byte> AsBytes(std::string_view text) { return std::as_bytes(std::span(text)); }

// A few kilobytes of model of one of the architectures.
inline ModelConfig TinyConfig(const std::string& arch) {
  ModelConfig c = *SynthConfig(arch);
  c.layers = 2, c.hidden = 32, c.heads = 4, c.kv_heads = arch == "olmoe" ? 4 : 2, c.vocab = 288;
  c.context = 64, c.experts = 4, c.slots = 2, c.expert_width = 32;
  // Only Qwen3 has heads that are wider together than the hidden size.
  c.head_dim = arch == "qwen3moe" ? 16 : 8;
  if (c.shared_width > 0) c.shared_width = 64;
  return c;
}

inline std::string TinyGguf(const std::string& arch, DType type = DType::kBF16) {
  const TempFolder folder;
  SynthOptions options;
  options.type = type;
  const Status status = SynthesiseConfig(TinyConfig(arch), options, folder / "tiny.gguf");
  EXPECT_TRUE(status.ok()) << status.message();
  return ReadBytes(folder / "tiny.gguf");
}

// A safetensors file taken apart.
struct RawTensor {
  std::string dtype;
  std::vector<int64_t> shape;
  std::string bytes;
};
using RawTensors = std::map<std::string, RawTensor>;

inline RawTensors TakeApart(const std::string& path) {
  const std::string file = ReadBytes(path);
  uint64_t length = 0;
  std::memcpy(&length, file.data(), 8);
  RawTensors tensors;
  const nlohmann::json table = nlohmann::json::parse(file.substr(8, length));
  for (const auto& [name, entry] : table.items()) {
    if (name == "__metadata__") continue;
    const auto begin = entry["data_offsets"][0].get<size_t>(), end = entry["data_offsets"][1].get<size_t>();
    tensors[name] = {entry["dtype"], entry["shape"], file.substr(8 + length + begin, end - begin)};
  }
  return tensors;
}

// `spaces` are added to the header, which moves the data to other addresses.
inline std::string PutTogether(const RawTensors& tensors, int spaces = 0) {
  nlohmann::json table = nlohmann::json::object();
  std::string data;
  for (const auto& [name, tensor] : tensors) {
    table[name] = {{"dtype", tensor.dtype},
                   {"shape", tensor.shape},
                   {"data_offsets", {data.size(), data.size() + tensor.bytes.size()}}};
    data += tensor.bytes;
  }
  std::string header = table.dump();
  while (header.size() % 8 != 0) header += ' ';
  header += std::string(static_cast<size_t>(spaces), ' ');
  const uint64_t length = header.size();
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, 8);
  return file + header + data;
}

inline std::vector<float> Decoded(const WeightMatrix& matrix) {
  std::vector<float> values(static_cast<size_t>(matrix.rows * matrix.cols));
  for (int64_t row = 0; row < matrix.rows; ++row) {
    DecodeRow(matrix, row, Planes::kBoth, values.data() + row * matrix.cols);
  }
  return values;
}

// Every matrix of a layer apart from the experts, by name.
inline std::map<std::string, const WeightMatrix*> LayerMatrices(const LayerWeights& layer) {
  return {{"q", &layer.q},
          {"k", &layer.k},
          {"v", &layer.v},
          {"o", &layer.o},
          {"gate", &layer.gate},
          {"shared.gate", &layer.shared.gate},
          {"shared.up", &layer.shared.up},
          {"shared.down", &layer.shared.down},
          {"shared_gate", &layer.shared_gate}};
}

inline std::map<std::string, const std::vector<float>*> LayerVectors(const LayerWeights& layer) {
  return {{"attention_norm", &layer.attention_norm},
          {"expert_norm", &layer.expert_norm},
          {"q_norm", &layer.q_norm},
          {"k_norm", &layer.k_norm},
          {"q_bias", &layer.q_bias},
          {"k_bias", &layer.k_bias},
          {"v_bias", &layer.v_bias}};
}

// Equal to the bit after decoding. `skip`: names of LayerMatrices to leave out.
inline void ExpectSameWeights(const ModelWeights& a, const ModelWeights& b, const std::vector<std::string>& skip = {}) {
  EXPECT_EQ(Decoded(a.embedding), Decoded(b.embedding));
  EXPECT_EQ(Decoded(a.output), Decoded(b.output));
  EXPECT_EQ(a.output_norm, b.output_norm);
  ASSERT_EQ(a.layers.size(), b.layers.size());
  for (size_t l = 0; l < a.layers.size(); ++l) {
    SCOPED_TRACE(l);
    const auto matrices_b = LayerMatrices(b.layers[l]);
    for (const auto& [name, matrix] : LayerMatrices(a.layers[l])) {
      if (std::find(skip.begin(), skip.end(), name) != skip.end()) continue;
      ASSERT_EQ(matrix->empty(), matrices_b.at(name)->empty()) << name;
      if (matrix->empty()) continue;
      EXPECT_EQ(Decoded(*matrix), Decoded(*matrices_b.at(name))) << name;
    }
    const auto vectors_b = LayerVectors(b.layers[l]);
    for (const auto& [name, vector] : LayerVectors(a.layers[l])) EXPECT_EQ(*vector, *vectors_b.at(name)) << name;
    ASSERT_EQ(a.layers[l].experts.size(), b.layers[l].experts.size());
    for (size_t e = 0; e < a.layers[l].experts.size(); ++e) {
      const FfnWeights &expert_a = a.layers[l].experts[e], &expert_b = b.layers[l].experts[e];
      EXPECT_EQ(Decoded(expert_a.gate), Decoded(expert_b.gate)) << e;
      EXPECT_EQ(Decoded(expert_a.up), Decoded(expert_b.up)) << e;
      EXPECT_EQ(Decoded(expert_a.down), Decoded(expert_b.down)) << e;
    }
  }
}

// One sentence: no line breaks, and it names the file.
inline void ExpectSentence(const Status& status, StatusCode code, const std::string& path,
                           const std::vector<std::string>& parts) {
  EXPECT_EQ(StatusCodeName(status.code()), std::string(StatusCodeName(code))) << status.message();
  EXPECT_THAT(status.message(), testing::StartsWith(path));
  EXPECT_THAT(status.message(), testing::Not(testing::HasSubstr("\n")));
  for (const std::string& part : parts) EXPECT_THAT(status.message(), testing::HasSubstr(part));
}

}  // namespace thermoe
