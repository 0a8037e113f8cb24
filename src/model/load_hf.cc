// SPDX-License-Identifier: Apache-2.0
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "base/errors.h"
#include "model/architecture.h"
#include "model/bind_weights.h"
#include "model/identity.h"
#include "model/loading.h"
#include "model/safetensors_reader.h"
#include "model/tokenizer_factory.h"

namespace thermoe {
namespace {

using Json = nlohmann::json;

bool Exists(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored);
}

Result<std::string> ReadText(const std::string& path) {
  auto file = MappedFile::Open(path);
  if (!file.ok()) return file.status();
  return std::string(reinterpret_cast<const char*>(file->bytes().data()), file->bytes().size());
}

// "" when there is no such file.
Result<std::string> ReadOptionalText(const std::string& path) {
  if (!Exists(path)) return std::string();
  return ReadText(path);
}

Result<Json> ParseObject(const std::string& path, const std::string& text) {
  Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return Corrupt("{}: is not a JSON object; download it again", path);
  return json;
}

// File names of the weights, sorted.
Result<std::vector<std::string>> WeightFiles(const std::string& folder) {
  if (Exists(folder + "/model.safetensors")) return std::vector<std::string>{"model.safetensors"};
  const std::string index_path = folder + "/model.safetensors.index.json";
  if (!Exists(index_path)) {
    return NotFound(
        "{}: has neither model.safetensors nor model.safetensors.index.json; download the safetensors files, or give "
        "a .gguf file",
        folder);
  }
  auto text = ReadText(index_path);
  if (!text.ok()) return text.status();
  auto index = ParseObject(index_path, *text);
  if (!index.ok()) return index.status();
  std::set<std::string> names;
  const auto map = index->find("weight_map");
  if (map != index->end() && map->is_object()) {
    for (const Json& file : *map) {
      const std::string name = file.is_string() ? file.get<std::string>() : "";
      // An index may name its neighbours, nothing elsewhere.
      if (name.empty() || name.find('/') != std::string::npos) {
        return Corrupt("{}: weight_map holds \"{}\", not a file of this folder; download it again", index_path, name);
      }
      names.insert(name);
    }
  }
  if (names.empty()) return Corrupt("{}: has no weight_map; download it again", index_path);
  for (const std::string& name : names) {
    if (!Exists(folder + "/" + name)) {
      return NotFound("{}: names {}, which is not there; download it", index_path, name);
    }
  }
  return std::vector<std::string>(names.begin(), names.end());
}

Status OpenWeights(const std::string& folder, LoadedModel* model, TensorSource* source, IdentityHash* identity) {
  auto names = WeightFiles(folder);
  if (!names.ok()) return names.status();
  for (const std::string& name : *names) {
    auto mapped = MappedFile::Open(folder + "/" + name);
    if (!mapped.ok()) return mapped.status();
    model->files.push_back(std::move(*mapped));
    const MappedFile& file = model->files.back();
    auto parsed = ParseSafetensors(file.path(), file.bytes());
    if (!parsed.ok()) return parsed.status();
    identity->Add(parsed->header);
    identity->AddSampled(file.bytes());
    THERMOE_RETURN_IF_ERROR(source->Add(file.path(), std::move(parsed->tensors)));
  }
  return Status::Ok();
}

// A file of its own comes before the field of tokenizer_config.json, which is a text or a list of named texts.
Result<std::string> ChatTemplateText(const std::string& folder, const std::string& tokenizer_config_text) {
  auto own = ReadOptionalText(folder + "/chat_template.jinja");
  if (!own.ok() || !own->empty()) return own;
  const Json config = Json::parse(tokenizer_config_text, nullptr, /*allow_exceptions=*/false);
  if (!config.is_object() || !config.contains("chat_template")) return std::string();
  const Json& field = config["chat_template"];
  if (field.is_string()) return field.get<std::string>();
  for (const Json& entry : field) {
    if (entry.is_object() && entry.contains("template") && entry["template"].is_string() &&
        entry.value("name", Json()) == "default") {
      return entry["template"].get<std::string>();
    }
  }
  return std::string();
}

Status LoadTokenizer(const std::string& folder, LoadedModel* model, IdentityHash* identity) {
  if (!Exists(folder + "/tokenizer.json")) {
    return NotFound("{}: has no tokenizer.json; download it, or give a .gguf file", folder);
  }
  auto tokenizer = ReadText(folder + "/tokenizer.json");
  if (!tokenizer.ok()) return tokenizer.status();
  auto config = ReadOptionalText(folder + "/tokenizer_config.json");
  if (!config.ok()) return config.status();
  auto generation = ReadOptionalText(folder + "/generation_config.json");
  if (!generation.ok()) return generation.status();
  identity->Add(std::as_bytes(std::span(*tokenizer)));
  auto made = MakeHuggingFaceTokenizer(folder, *tokenizer, *config, *generation);
  if (!made.ok()) return made.status();
  model->tokenizer = std::move(*made);
  auto chat = ChatTemplateText(folder, *config);
  if (!chat.ok()) return chat.status();
  model->chat_template = std::move(*chat);
  return Status::Ok();
}

}  // namespace

Status LoadHuggingFace(const std::string& folder, LoadedModel* model) {
  const std::string config_path = folder + "/config.json";
  if (!Exists(config_path)) {
    return NotFound("{}: has no config.json; give a .gguf file or a Hugging Face model folder", folder);
  }
  auto config_text = ReadText(config_path);
  if (!config_text.ok()) return config_text.status();
  auto config_json = ParseObject(config_path, *config_text);
  if (!config_json.ok()) return config_json.status();
  auto read = ReadHfConfig(config_path, *config_json);
  if (!read.ok()) return read.status();

  TensorSource source;
  IdentityHash identity;
  identity.Add(std::as_bytes(std::span(*config_text)));
  THERMOE_RETURN_IF_ERROR(OpenWeights(folder, model, &source, &identity));
  THERMOE_RETURN_IF_ERROR(
      BindWeights(source, read->config, read->architecture->hf_names(), &model->weights, &model->owned));
  THERMOE_RETURN_IF_ERROR(LoadTokenizer(folder, model, &identity));
  model->format = "safetensors";
  model->identity = identity.Hex();
  model->config = std::move(read->config);
  ListTensors(source, model);
  return Status::Ok();
}

}  // namespace thermoe
