// SPDX-License-Identifier: Apache-2.0
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/errors.h"
#include "model/architecture.h"
#include "model/bind_weights.h"
#include "model/gguf_reader.h"
#include "model/identity.h"
#include "model/loading.h"
#include "model/tokenizer_factory.h"

namespace thermoe {
namespace {

// "-00002-of-00003.gguf", as every tool names the parts of a split model.
constexpr size_t kPartDigits = 5;
constexpr size_t kPartSuffixBytes = std::string_view("-00002-of-00003.gguf").size();

// The path of part `number` (from 1) of the split model that `path` is a part of; empty if its name is not one.
std::string PartPath(const std::string& path, int32_t number, int32_t count) {
  const std::string count_text = fmt::format("-of-{:05}.gguf", count);
  if (path.size() < kPartSuffixBytes || !path.ends_with(count_text)) return "";
  const std::string stem = path.substr(0, path.size() - kPartSuffixBytes);
  if (path[stem.size()] != '-') return "";
  for (size_t i = 1; i <= kPartDigits; ++i) {
    if (path[stem.size() + i] < '0' || path[stem.size() + i] > '9') return "";
  }
  return fmt::format("{}-{:05}{}", stem, number, count_text);
}

Result<GgufFile> OpenPart(const std::string& path, LoadedModel* model) {
  auto mapped = MappedFile::Open(path);
  if (!mapped.ok()) return mapped.status();
  model->files.push_back(std::move(*mapped));
  return GgufFile::Parse(path, model->files.back().bytes());
}

// All parts in order; the first carries the metadata. A file that is not split is its own only part.
Result<std::vector<GgufFile>> OpenParts(const std::string& path, LoadedModel* model) {
  auto given = OpenPart(path, model);
  if (!given.ok()) return given.status();
  GgufFields split(*given, "split");
  const int32_t count = split.IntOr("count", 1);
  THERMOE_RETURN_IF_ERROR(split.status());
  std::vector<GgufFile> parts;
  if (count <= 1) {
    parts.push_back(std::move(*given));
    return parts;
  }
  if (PartPath(path, 1, count).empty()) {
    return InvalidArgument(
        "{}: is a part of a model in {} files; keep their names (...-00001-of-{:05}.gguf) so that the others are found",
        path, count, count);
  }
  model->files.clear();
  for (int32_t number = 1; number <= count; ++number) {
    const std::string part_path = PartPath(path, number, count);
    auto part = OpenPart(part_path, model);
    if (!part.ok()) return part.status();
    GgufFields fields(*part, "split");
    if (fields.IntOr("no", -1) != number - 1 || fields.IntOr("count", 0) != count) {
      return Corrupt("{}: is not part {} of {} by its own metadata; download the model again", part_path, number,
                     count);
    }
    parts.push_back(std::move(*part));
  }
  return parts;
}

std::optional<bool> BoolIfThere(GgufFields& fields, std::string_view key) {
  if (!fields.Has(key)) return std::nullopt;
  return fields.BoolOr(key, false);
}

Result<GgufTokenizerSpec> ReadTokenizer(const GgufFile& file) {
  GgufFields fields(file, "tokenizer.ggml");
  GgufTokenizerSpec spec;
  spec.source = file.path();
  spec.model = fields.TextOr("model", "");
  spec.pre = fields.TextOr("pre", "");
  spec.tokens = fields.Texts("tokens");
  spec.scores = fields.Floats("scores");
  spec.types = fields.Ints("token_type");
  spec.merges = fields.Texts("merges");
  spec.bos = fields.IntOr("bos_token_id", -1);
  spec.eos = fields.IntOr("eos_token_id", -1);
  spec.eot = fields.IntOr("eot_token_id", -1);
  spec.unknown = fields.IntOr("unknown_token_id", -1);
  spec.padding = fields.IntOr("padding_token_id", -1);
  if (const auto stated = BoolIfThere(fields, "add_bos_token")) spec.add_bos = *stated;
  if (const auto stated = BoolIfThere(fields, "add_space_prefix")) spec.add_space_prefix = *stated;
  THERMOE_RETURN_IF_ERROR(fields.status());
  if (spec.model.empty() || spec.tokens.empty()) {
    return Corrupt("{}: has no tokenizer (tokenizer.ggml.model and .tokens); convert the model again", file.path());
  }
  for (const size_t count : {spec.scores.size(), spec.types.size()}) {
    if (count != 0 && count != spec.tokens.size()) {
      return Corrupt("{}: its tokenizer has {} tokens but {} scores or types; convert the model again", file.path(),
                     spec.tokens.size(), count);
    }
  }
  return spec;
}

}  // namespace

Status LoadGguf(const std::string& path, LoadedModel* model) {
  auto parts = OpenParts(path, model);
  if (!parts.ok()) return parts.status();
  TensorSource source;
  IdentityHash identity;
  for (size_t i = 0; i < parts->size(); ++i) {
    const GgufFile& part = (*parts)[i];
    THERMOE_RETURN_IF_ERROR(source.Add(part.path(), part.tensors()));
    identity.Add(part.header());
    identity.AddSampled(model->files[i].bytes());
  }
  const GgufFile& first = parts->front();
  auto read = ReadGgufConfig(first, source);
  if (!read.ok()) return read.status();
  THERMOE_RETURN_IF_ERROR(
      BindWeights(source, read->config, read->architecture->gguf_names(), &model->weights, &model->owned));

  auto spec = ReadTokenizer(first);
  if (!spec.ok()) return spec.status();
  auto tokenizer = MakeGgufTokenizer(std::move(*spec));
  if (!tokenizer.ok()) return tokenizer.status();
  GgufFields chat(first, "tokenizer");
  model->chat_template = chat.TextOr("chat_template", "");
  THERMOE_RETURN_IF_ERROR(chat.status());

  model->format = fmt::format("gguf v{}", first.version());
  model->identity = identity.Hex();
  model->config = std::move(read->config);
  model->tokenizer = std::move(*tokenizer);
  ListTensors(source, model);
  return Status::Ok();
}

}  // namespace thermoe
