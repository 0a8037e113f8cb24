// SPDX-License-Identifier: Apache-2.0
#include "control/router/router_state.h"

#include <cmath>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "base/errors.h"
#include "base/replace_file.h"

namespace thermoe {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kSchemaVersion = 1;
constexpr size_t kMostBytes = 1 << 20;

// Reads numbers; the first that is wrong is kept.
struct Reader {
  const Json& json;
  const std::string& source;
  Status status;

  void Number(const char* group, const char* key, double* out) {
    if (!status.ok()) return;
    const Json* object = &json;
    if (*group != 0) {
      const auto found = json.find(group);
      object = found == json.end() ? nullptr : &*found;
    }
    const Json* value = nullptr;
    if (object != nullptr && object->is_object()) {
      const auto found = object->find(key);
      value = found == object->end() ? nullptr : &*found;
    }
    Take(value, std::string(group) + (*group != 0 ? "." : "") + key, out);
  }
  void Take(const Json* value, const std::string& name, double* out) {
    if (value == nullptr || !value->is_number() || !std::isfinite(value->get<double>())) {
      status = Corrupt("{}: {} must be a number; delete the file to learn anew", source, name);
    } else {
      *out = value->get<double>();
    }
  }
};

Json LambdaJson(const ControlState::Lambda& lambda) {
  return {{"integral", lambda.integral}, {"smoothed", lambda.smoothed}};
}

}  // namespace

std::string ControlStateJson(const ControlState& state) {
  Json json;
  json["schema_version"] = kSchemaVersion;
  json["lambda_power"] = LambdaJson(state.power);
  json["lambda_temp"] = LambdaJson(state.temp);
  json["lambda_latency"] = LambdaJson(state.latency);
  json["energy"] = {{"value", state.energy.value},
                    {"spread", state.energy.spread},
                    {"noise", state.energy.noise},
                    {"bytes_per_s", state.energy.bytes_per_s},
                    {"flops_per_s", state.energy.flops_per_s},
                    {"windows", state.energy.windows}};
  json["thermal"] = {{"fast_c_per_w", state.thermal.fast_c_per_w},
                     {"moment_cw", state.thermal.moment_cw},
                     {"moment_ww", state.thermal.moment_ww}};
  json["reference_j"] = state.reference_j;
  if (!state.ttha.empty()) json["ttha"] = Json::parse(state.ttha, nullptr, /*allow_exceptions=*/false);
  return json.dump(1) + "\n";
}

Result<ControlState> ParseControlState(std::string_view text, const std::string& source) {
  const Json json = text.size() > kMostBytes ? Json(Json::value_t::discarded)
                                             : Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded() || !json.is_object())
    return Corrupt("{}: is no state of the control loop; delete it to learn anew", source);
  ControlState state;
  Reader read{json, source, {}};
  double version = 0;
  read.Number("", "schema_version", &version);
  if (read.status.ok() && version != kSchemaVersion) {
    return Corrupt("{}: schema_version must be {}; delete the file to learn anew", source, kSchemaVersion);
  }
  const auto lambda = [&](const char* group, ControlState::Lambda* out) {
    read.Number(group, "integral", &out->integral);
    read.Number(group, "smoothed", &out->smoothed);
  };
  lambda("lambda_power", &state.power);
  lambda("lambda_temp", &state.temp);
  lambda("lambda_latency", &state.latency);
  read.Number("energy", "noise", &state.energy.noise);
  read.Number("energy", "bytes_per_s", &state.energy.bytes_per_s);
  read.Number("energy", "flops_per_s", &state.energy.flops_per_s);
  read.Number("energy", "windows", &state.energy.windows);
  read.Number("thermal", "fast_c_per_w", &state.thermal.fast_c_per_w);
  read.Number("thermal", "moment_cw", &state.thermal.moment_cw);
  read.Number("thermal", "moment_ww", &state.thermal.moment_ww);
  read.Number("", "reference_j", &state.reference_j);
  if (!read.status.ok()) return read.status;

  const Json& energy = json["energy"];
  const auto list = [&](const char* key) -> const Json* {
    const auto found = energy.find(key);
    return found != energy.end() && found->is_array() && found->size() == EnergyModel::kTerms ? &*found : nullptr;
  };
  const Json *values = list("value"), *spread = list("spread");
  for (size_t i = 0; i < EnergyModel::kTerms; ++i) {
    read.Take(values != nullptr ? &(*values)[i] : nullptr, "energy.value", &state.energy.value[i]);
    const bool row = spread != nullptr && (*spread)[i].is_array() && (*spread)[i].size() == EnergyModel::kTerms;
    for (size_t j = 0; j < EnergyModel::kTerms; ++j) {
      read.Take(row ? &(*spread)[i][j] : nullptr, "energy.spread", &state.energy.spread[i][j]);
    }
  }
  if (!read.status.ok()) return read.status;
  // Checked where it is used: TthaAdapter::FromJson.
  if (const auto ttha = json.find("ttha"); ttha != json.end()) state.ttha = ttha->dump();
  return state;
}

Result<ControlState> ReadControlState(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) return NotFound("{}: no state of the control loop there", path);
  std::string text(kMostBytes + 1, '\0');
  stream.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(stream.gcount()));
  return ParseControlState(text, path);
}

Status WriteControlState(const std::string& path, const ControlState& state) {
  return ReplaceFile(path, ControlStateJson(state));
}

}  // namespace thermoe
