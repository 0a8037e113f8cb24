// SPDX-License-Identifier: Apache-2.0
// Operating points as JSON: every field of what is read is checked before it is used.
#include <cmath>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "base/errors.h"
#include "base/replace_file.h"
#include "control/router/operating_point.h"

namespace thermoe {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kSchemaVersion = 1;
// Beyond these a file is no list of points: 1,024 layers, experts and slots bound every model that loads.
constexpr int64_t kMostCount = 1024;
constexpr double kMostLossNats = 1000;

Json CountJson(int count) { return count == kAllSlots ? Json() : Json(count); }

Json CostJson(const PointCost& cost) {
  Json json;
  json["loss_nats"] = cost.loss_nats;
  json["loss_error_nats"] = cost.loss_error_nats;
  json["text_loss_nats"] = cost.text_loss_nats;
  json["expert_bytes_frac"] = cost.expert_bytes_frac;
  return json;
}

Json PointJson(const OperatingPoint& point) {
  Json json;
  json["full_slots"] = CountJson(point.full_slots);
  json["k0"] = CountJson(point.k0);
  json["k_max"] = CountJson(point.k_max);
  json["soft_batch"] = point.soft_batch;
  json["drop_below"] = point.drop_below_frac;
  json["plane_cap"] = Json();
  if (!point.plane_cap.empty()) {
    json["plane_cap"] = Json::array();
    for (const auto& layer : point.plane_cap) json["plane_cap"].push_back(layer.empty() ? Json() : Json(layer));
  }
  json["windows"] = point.windows;
  json["batch1"] = CostJson(point.batch1);
  json["batch16"] = CostJson(point.batch16);
  return json;
}

// Reads fields of one object; the first that is wrong is kept and the rest are not read.
class Fields {
 public:
  Fields(const Json& json, std::string where, Status* status) : json_(json), where_(std::move(where)), status_(status) {
    if (!json.is_object()) Fail(where_.back() == ' ' ? "the document" : "", "an object");
  }

  const Json& At(const char* key) const {
    static const Json kNull;
    if (!status_->ok()) return kNull;
    const auto found = json_.find(key);
    return found == json_.end() ? kNull : *found;
  }
  void Number(const char* key, double low, double high, double* out) {
    const Json& value = At(key);
    if (!value.is_number() || !(value.get<double>() >= low && value.get<double>() <= high)) {
      return Fail(key, fmt::format("a number from {:g} to {:g}", low, high));
    }
    *out = value.get<double>();
  }
  void Number(const char* key, double low, double high, float* out) {
    double value = 0;
    Number(key, low, high, &value);
    if (status_->ok()) *out = static_cast<float>(value);
  }
  void Count(const char* key, int64_t low, int64_t high, int32_t* out) {
    const Json& value = At(key);
    double number = 0;
    if (value.is_number()) number = value.get<double>();
    if (!value.is_number() || !(number >= static_cast<double>(low) && number <= static_cast<double>(high)) ||
        number != std::floor(number)) {
      return Fail(key, fmt::format("a whole number from {} to {}", low, high));
    }
    *out = static_cast<int32_t>(number);
  }
  // null: as many as the model has.
  void Slots(const char* key, int64_t low, int64_t high, int* out) {
    if (!status_->ok()) return;
    if (At(key).is_null()) {
      *out = kAllSlots;
    } else {
      Count(key, low, high, out);
    }
  }
  void Text(const char* key, std::string* out) {
    const Json& value = At(key);
    if (!value.is_string()) return Fail(key, "a string");
    *out = value.get<std::string>();
  }
  void Fail(const std::string& key, const std::string& expected) {
    if (!status_->ok()) return;
    const std::string dot = where_.back() == ' ' || key.empty() ? "" : ".";
    *status_ = Corrupt("{}{}{} must be {}; measure again with thermoe calibrate", where_, dot, key, expected);
  }
  const std::string& where() const { return where_; }
  Status* status() { return status_; }

 private:
  const Json& json_;
  std::string where_;  // "FILE: " or "FILE: points[3]"
  Status* status_;
};

void ReadCost(Fields* parent, const char* key, size_t texts, PointCost* cost) {
  if (!parent->status()->ok()) return;
  Fields fields(parent->At(key), parent->where() + "." + key, parent->status());
  fields.Number("loss_nats", -kMostLossNats, kMostLossNats, &cost->loss_nats);
  fields.Number("loss_error_nats", 0, kMostLossNats, &cost->loss_error_nats);
  fields.Number("expert_bytes_frac", 0, kMostLossNats, &cost->expert_bytes_frac);
  const Json& losses = fields.At("text_loss_nats");
  if (!losses.is_array() || losses.size() != texts) return fields.Fail("text_loss_nats", "one number for each text");
  for (const Json& loss : losses) {
    if (!loss.is_number()) return fields.Fail("text_loss_nats", "one number for each text");
    cost->text_loss_nats.push_back(loss.get<double>());
  }
}

void ReadPlaneCap(Fields* fields, const OperatingPoints& file, OperatingPoint* point) {
  const Json& layers = fields->At("plane_cap");
  if (layers.is_null()) return;
  const std::string expected = fmt::format("null or {} lists (or nulls) of {} values, 1 or 2", file.layers, file.experts);
  if (!layers.is_array() || layers.size() != static_cast<size_t>(file.layers)) return fields->Fail("plane_cap", expected);
  for (const Json& layer : layers) {
    std::vector<uint8_t>& caps = point->plane_cap.emplace_back();
    if (layer.is_null()) continue;
    if (!layer.is_array() || layer.size() != static_cast<size_t>(file.experts)) return fields->Fail("plane_cap", expected);
    for (const Json& cap : layer) {
      if (cap != Json(1) && cap != Json(2)) return fields->Fail("plane_cap", expected);
      caps.push_back(cap.get<uint8_t>());
    }
  }
}

OperatingPoint ReadPoint(const Json& json, const std::string& where, const OperatingPoints& file, Status* status) {
  OperatingPoint point;
  Fields fields(json, where, status);
  fields.Slots("full_slots", 0, file.slots, &point.full_slots);
  fields.Slots("k0", 1, file.slots, &point.k0);
  fields.Slots("k_max", 1, file.slots, &point.k_max);
  fields.Number("soft_batch", 0, kMostSoftBatch, &point.soft_batch);
  fields.Number("drop_below", 0, 1, &point.drop_below_frac);
  ReadPlaneCap(&fields, file, &point);
  fields.Count("windows", 1, 1 << 24, &point.windows);
  ReadCost(&fields, "batch1", file.texts.size(), &point.batch1);
  ReadCost(&fields, "batch16", file.texts.size(), &point.batch16);
  return point;
}

}  // namespace

std::string OperatingPointsJson(const OperatingPoints& file) {
  Json json;
  json["schema_version"] = kSchemaVersion;
  json["model"] = {{"identity", file.model_identity}, {"name", file.model_name}};
  json["moe_layers"] = file.layers;
  json["experts"] = file.experts;
  json["slots"] = file.slots;
  json["window"] = file.window;
  json["texts"] = Json::array();
  for (const CalibrationText& text : file.texts) {
    json["texts"].push_back({{"name", text.name}, {"identity", text.identity}});
  }
  std::string out = json.dump(1, ' ', false, Json::error_handler_t::replace);
  out.resize(out.size() - 2);  // "\n}": the points follow, one a line
  out += ",\n \"points\": [";
  for (size_t i = 0; i < file.points.size(); ++i) out += (i == 0 ? "\n  " : ",\n  ") + PointJson(file.points[i]).dump();
  return out + "\n ]\n}\n";
}

Result<OperatingPoints> ParseOperatingPoints(std::string_view text, const std::string& source) {
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) return Corrupt("{}: is not valid JSON; measure again with thermoe calibrate", source);
  Status status;
  OperatingPoints file;
  Fields fields(json, source + ": ", &status);
  int32_t version = 0;
  fields.Count("schema_version", kSchemaVersion, kSchemaVersion, &version);
  Fields model(fields.At("model"), source + ": model", &status);
  model.Text("identity", &file.model_identity);
  model.Text("name", &file.model_name);
  fields.Count("moe_layers", 1, kMostCount, &file.layers);
  fields.Count("experts", 1, kMostCount, &file.experts);
  fields.Count("slots", 1, kMostCount, &file.slots);
  fields.Count("window", 2, 1 << 24, &file.window);
  const Json& texts = fields.At("texts");
  if (!texts.is_array()) fields.Fail("texts", "a list");
  for (size_t i = 0; status.ok() && i < texts.size(); ++i) {
    Fields one(texts[i], fmt::format("{}: texts[{}]", source, i), &status);
    CalibrationText& entry = file.texts.emplace_back();
    one.Text("name", &entry.name);
    one.Text("identity", &entry.identity);
  }
  const Json& points = fields.At("points");
  if (!points.is_array()) fields.Fail("points", "a list");
  for (size_t i = 0; status.ok() && i < points.size(); ++i) {
    file.points.push_back(ReadPoint(points[i], fmt::format("{}: points[{}]", source, i), file, &status));
  }
  if (!status.ok()) return status;
  return file;
}

Result<OperatingPoints> ReadOperatingPoints(const std::string& path, const std::string& model_identity) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) return NotFound("{}: no operating points there; measure them with thermoe calibrate", path);
  const std::string text((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  Result<OperatingPoints> file = ParseOperatingPoints(text, path);
  if (file.ok() && file->model_identity != model_identity) {
    return InvalidArgument("{}: was measured on another model ({}, identity {}) than the one loaded ({}); calibrate this model", path,
                           file->model_name, file->model_identity, model_identity);
  }
  return file;
}

Status WriteOperatingPoints(const std::string& path, const OperatingPoints& points) {
  return ReplaceFile(path, OperatingPointsJson(points));
}

}  // namespace thermoe
