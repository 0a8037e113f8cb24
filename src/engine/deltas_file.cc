// SPDX-License-Identifier: Apache-2.0
// A session's deltas on disk: a safetensors file. Metadata: "format" "thermoe-deltas", "schema_version", "model" (its identity),
// "tier", "rank", "steps" and "tokens" (of the optimiser), "optimizer", "scales" (JSON: what delta_scale.h
// keeps of each part), "groups" (JSON: name -> learning rate, last layers), "checksum" (FNV-1a,
// 64 bits in hex, over the whole file with the checksum's own digits as zeros). Tensors, all F32: "GROUP.LAYER.whole|a|b" [rows, cols],
// and the optimiser's moments under "m." and "v." before that name.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>

#include "base/errors.h"
#include "base/mapped_file.h"
#include "base/replace_file.h"
#include "engine/adaptation.h"
#include "model/safetensors_reader.h"

namespace thermoe {
namespace {

using nlohmann::json;
constexpr int kSchemaVersion = 1;
constexpr std::string_view kFormat = "thermoe-deltas";
constexpr std::string_view kNoChecksum = "0000000000000000";

std::string NameOf(const DeltaTensor& tensor) {
  const std::string_view part = tensor.part == DeltaPart::kWhole ? "whole" : tensor.part == DeltaPart::kA ? "a" : "b";
  return fmt::format("{}.{}.{}", DeltaGroupName(tensor.group), tensor.layer, part);
}

json GroupsJson(const TttOptions& options) {
  json groups = json::object();
  for (const DeltaGroupOptions& group : options.groups) {
    groups[std::string(DeltaGroupName(group.group))] = {{"learning_rate", group.learning_rate}, {"last_layers", group.last_layers}};
  }
  return groups;
}

json ScalesJson(const DeltaScale& scale) {
  json parts = json::array();
  for (const DeltaScale::Part& part : scale.parts()) parts.push_back({part.log_scale, part.squares, part.sum});
  return parts;
}

// Any single changed byte changes it: each step is a bijection of the state.
uint64_t Fnv1a(std::string_view bytes, uint64_t state) {
  for (const char byte : bytes) state = (state ^ static_cast<unsigned char>(byte)) * 0x100000001b3;
  return state;
}

std::string ChecksumOf(std::string_view before, std::string_view after) {
  return fmt::format("{:016x}", Fnv1a(after, Fnv1a(kNoChecksum, Fnv1a(before, 0xcbf29ce484222325))));
}

// Where the checksum's digits stand in the file, or npos.
size_t ChecksumAt(std::string_view bytes, size_t header_bytes) {
  constexpr std::string_view kKey = "\"checksum\":\"";
  const size_t found = bytes.substr(0, header_bytes).find(kKey);
  return found == std::string_view::npos || found + kKey.size() + kNoChecksum.size() > header_bytes ? std::string_view::npos
                                                                                                  : found + kKey.size();
}

// Header with offsets, then the tensors one after the other.
std::string FileBytes(const std::string& model_identity, const Adaptation& adaptation) {
  const TttOptions& options = adaptation.options();
  const DeltaOptimizer& optimizer = adaptation.optimizer();
  json header;
  header["__metadata__"] = {{"format", kFormat},
                            {"schema_version", std::to_string(kSchemaVersion)},
                            {"model", model_identity},
                            {"tier", options.tier},
                            {"rank", std::to_string(options.rank)},
                            {"steps", std::to_string(optimizer.steps())},
                            {"tokens", std::to_string(optimizer.tokens())},
                            {"optimizer", std::string(TttOptimizerName(options.optimizer))},
                            {"scales", ScalesJson(adaptation.scale).dump()},
                            {"checksum", kNoChecksum},
                            {"groups", GroupsJson(options).dump()}};
  std::string data;
  const auto add = [&](std::string_view prefix, std::span<const float> values) {
    if (values.empty()) return;
    for (const DeltaTensor& tensor : adaptation.layout().tensors()) {
      const size_t begin = data.size(), bytes = static_cast<size_t>(tensor.size()) * sizeof(float);
      data.append(reinterpret_cast<const char*>(values.data() + tensor.offset), bytes);
      header[std::string(prefix) + NameOf(tensor)] = {
          {"dtype", "F32"}, {"shape", {tensor.rows, tensor.cols}}, {"data_offsets", {begin, begin + bytes}}};
    }
  };
  add("", adaptation.deltas()->values);
  add("m.", optimizer.first_moment());
  add("v.", optimizer.second_moment());
  std::string text = header.dump(-1, ' ', false, json::error_handler_t::replace);
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t length = text.size();
  std::string bytes(reinterpret_cast<const char*>(&length), sizeof(length));
  const size_t header_bytes = bytes.size() + text.size();
  bytes += text + data;
  const size_t at = ChecksumAt(bytes, header_bytes);
  const std::string_view whole = bytes;
  const std::string checksum = ChecksumOf(whole.substr(0, at), whole.substr(at + kNoChecksum.size()));
  return bytes.replace(at, checksum.size(), checksum);
}

struct DeltasFile {
  SafetensorsFile tensors;
  std::map<std::string, std::string> metadata;
};

Result<std::map<std::string, std::string>> MetadataOf(const std::string& path, std::span<const std::byte> header) {
  const auto* text = reinterpret_cast<const char*>(header.data()) + sizeof(uint64_t);
  const json parsed = json::parse(text, text + header.size() - sizeof(uint64_t), nullptr, false);
  std::map<std::string, std::string> metadata;
  if (parsed.is_object() && parsed.contains("__metadata__") && parsed["__metadata__"].is_object()) {
    for (const auto& [key, value] : parsed["__metadata__"].items()) {
      if (value.is_string()) metadata[key] = value.get<std::string>();
    }
  }
  if (metadata["format"] != kFormat) return Corrupt("{}: holds no deltas of thermoe; give a file that --ttt-save wrote", path);
  if (metadata["schema_version"] != std::to_string(kSchemaVersion)) {
    return Unsupported("{}: has schema version {} but this build reads {}; save the deltas again with it", path, metadata["schema_version"],
                       kSchemaVersion);
  }
  return metadata;
}

Result<DeltasFile> OpenDeltas(const std::string& path, std::span<const std::byte> bytes) {
  DeltasFile opened;
  Result<SafetensorsFile> tensors = ParseSafetensors(path, bytes);
  if (!tensors.ok()) return Corrupt("{}: holds no deltas of thermoe, or was cut; give a whole file that --ttt-save wrote", path);
  opened.tensors = std::move(tensors).value();
  Result<std::map<std::string, std::string>> metadata = MetadataOf(path, opened.tensors.header);
  if (!metadata.ok()) return metadata.status();
  opened.metadata = std::move(metadata).value();
  return opened;
}

// Values of every tensor of the layout under `prefix`.
Result<std::vector<float>> ReadAll(const std::string& path, const DeltasFile& file, std::string_view prefix, const DeltaLayout& layout) {
  std::vector<float> values(static_cast<size_t>(layout.size()));
  for (const DeltaTensor& tensor : layout.tensors()) {
    const std::string name = std::string(prefix) + NameOf(tensor);
    const auto found = std::find_if(file.tensors.tensors.begin(), file.tensors.tensors.end(),
                                    [&](const FileTensor& candidate) { return candidate.name == name; });
    if (found == file.tensors.tensors.end()) {
      return InvalidArgument("{}: has no {}; the tier adapts groups or layers that the file was not saved with", path, name);
    }
    if (found->type != DType::kF32 || found->shape != std::vector<int64_t>{tensor.rows, tensor.cols}) {
      return InvalidArgument("{}: {} is not F32 [{}, {}]; the tier has another rank than the file", path, name, tensor.rows, tensor.cols);
    }
    std::memcpy(values.data() + tensor.offset, found->data.data(), static_cast<size_t>(tensor.size()) * sizeof(float));
  }
  if (!std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); })) {
    return Corrupt("{}: holds values that are not finite numbers; save the deltas again", path);
  }
  return values;
}

Result<int64_t> NumberOf(const std::string& path, const DeltasFile& file, const std::string& key, int64_t most) {
  const auto found = file.metadata.find(key);
  int64_t number = -1;
  if (found != file.metadata.end() && !found->second.empty() && found->second.size() < 18 &&
      std::all_of(found->second.begin(), found->second.end(), [](char c) { return c >= '0' && c <= '9'; })) {
    number = std::stoll(found->second);
  }
  if (number < 0 || number > most) return Corrupt("{}: metadata field {} is no number from 0 to {}; save the deltas again", path, key, most);
  return number;
}

// A file from before deltas had scales has none: they begin at 1.
Result<std::array<DeltaScale::Part, DeltaScale::kParts>> ScalesOf(const std::string& path, const DeltasFile& file) {
  std::array<DeltaScale::Part, DeltaScale::kParts> parts;
  const auto found = file.metadata.find("scales");
  if (found == file.metadata.end()) return parts;
  const json read = json::parse(found->second, nullptr, false);
  bool ok = read.is_array() && read.size() == parts.size();
  for (size_t i = 0; ok && i < parts.size(); ++i) {
    ok = read[i].is_array() && read[i].size() == 3 && std::ranges::all_of(read[i], [](const json& each) { return each.is_number(); });
    if (!ok) break;
    parts[i] = {read[i][0].get<double>(), read[i][1].get<double>(), read[i][2].get<double>()};
    ok = parts[i].log_scale >= std::log(DeltaScale::kLeast) && parts[i].log_scale <= std::log(DeltaScale::kMost) &&
         parts[i].squares >= 0 && std::isfinite(parts[i].squares) && std::isfinite(parts[i].sum);
  }
  if (!ok) return Corrupt("{}: metadata field scales is not a scale and two sums for each of {} parts; save the deltas again", path, parts.size());
  return parts;
}

Status CheckChecksum(const std::string& path, std::span<const std::byte> bytes, size_t header_bytes) {
  const std::string_view whole(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const size_t at = ChecksumAt(whole, header_bytes), width = kNoChecksum.size();
  if (at == std::string_view::npos || whole.substr(at, width) != ChecksumOf(whole.substr(0, at), whole.substr(at + width))) {
    return Corrupt("{}: its checksum does not fit its bytes; the file is damaged, save the deltas again", path);
  }
  return Status::Ok();
}

}  // namespace

Status WriteDeltas(const std::string& path, const std::string& model_identity, const Adaptation& adaptation) {
  return ReplaceFile(path, FileBytes(model_identity, adaptation));
}

Status ReadDeltas(const std::string& path, const std::string& model_identity, Adaptation* adaptation) {
  const Result<MappedFile> file = MappedFile::Open(path);
  if (!file.ok()) return file.status();
  return ParseDeltas(path, file->bytes(), model_identity, adaptation);
}

Status ParseDeltas(const std::string& path, std::span<const std::byte> bytes, const std::string& model_identity, Adaptation* adaptation) {
  const Result<DeltasFile> file = OpenDeltas(path, bytes);
  if (!file.ok()) return file.status();
  const auto identity = file->metadata.find("model");
  if (identity == file->metadata.end() || identity->second != model_identity) {
    return InvalidArgument("{}: was learnt on model {} but this one is {}; use the model it came from", path,
                           identity == file->metadata.end() ? "(unknown)" : identity->second, model_identity);
  }
  Result<std::vector<float>> values = ReadAll(path, *file, "", adaptation->layout());
  if (!values.ok()) return values.status();
  const DeltaOptimizer& optimizer = adaptation->optimizer();
  const auto kind = file->metadata.find("optimizer");
  if (kind == file->metadata.end() || kind->second != TttOptimizerName(adaptation->options().optimizer)) {
    return InvalidArgument("{}: was learnt with another optimiser than {}; name the same in the tier", path,
                           TttOptimizerName(adaptation->options().optimizer));
  }
  const Result<int64_t> steps = NumberOf(path, *file, "steps", int64_t{1} << 40);
  if (!steps.ok()) return steps.status();
  const Result<int64_t> tokens = NumberOf(path, *file, "tokens", int64_t{1} << 50);
  if (!tokens.ok()) return tokens.status();
  Result<std::vector<float>> first = ReadAll(path, *file, "m.", adaptation->layout());
  if (!first.ok()) return first.status();
  std::vector<float> second;
  if (!optimizer.second_moment().empty()) {
    Result<std::vector<float>> read = ReadAll(path, *file, "v.", adaptation->layout());
    if (!read.ok()) return read.status();
    second = std::move(read).value();
  }
  const size_t sets = second.empty() ? 2 : 3;  // of values for each tensor
  if (file->tensors.tensors.size() != sets * adaptation->layout().tensors().size()) {
    return InvalidArgument("{}: holds more tensors than the tier adapts; name the groups and layers it was saved with", path);
  }
  const Result<std::array<DeltaScale::Part, DeltaScale::kParts>> scales = ScalesOf(path, *file);
  if (!scales.ok()) return scales.status();
  THERMOE_RETURN_IF_ERROR(CheckChecksum(path, bytes, file->tensors.header.size()));
  adaptation->optimizer().Restore(*steps, *tokens, *first, second);
  adaptation->scale.Restore(*scales);
  adaptation->mutable_deltas().values = std::move(values).value();
  return Status::Ok();
}

}  // namespace thermoe
