// SPDX-License-Identifier: Apache-2.0
// The network's weights as JSON: {"schema_version", "features", "device_features", "hidden", "weights": [...]}.
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/errors.h"
#include "control/router/ttha_network.h"

namespace thermoe {
namespace {

using Json = nlohmann::ordered_json;

// Changes with the meaning of a feature, too: weights are of no use to other features.
constexpr int kSchemaVersion = 1;
constexpr const char* kRemedy = "delete it and the adapter learns anew";

Status CheckNumber(const Json& json, const char* key, int expected, const std::string& source) {
  const auto found = json.find(key);
  if (found == json.end() || !found->is_number_integer() || *found != Json(expected)) {
    return Corrupt("{}: {} must be {}; {}", source, key, expected, kRemedy);
  }
  return Status::Ok();
}

}  // namespace

std::string TthaNetwork::ToJson() const {
  Json json;
  json["schema_version"] = kSchemaVersion;
  json["features"] = kFeatures;
  json["device_features"] = kDevice;
  json["hidden"] = kHidden;
  json["weights"] = weights_;
  return json.dump() + "\n";
}

Status TthaNetwork::FromJson(std::string_view text, const std::string& source) {
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return Corrupt("{}: is not a JSON object; {}", source, kRemedy);
  THERMOE_RETURN_IF_ERROR(CheckNumber(json, "schema_version", kSchemaVersion, source));
  THERMOE_RETURN_IF_ERROR(CheckNumber(json, "features", kFeatures, source));
  THERMOE_RETURN_IF_ERROR(CheckNumber(json, "device_features", kDevice, source));
  THERMOE_RETURN_IF_ERROR(CheckNumber(json, "hidden", kHidden, source));
  const auto weights = json.find("weights");
  if (weights == json.end() || !weights->is_array() || weights->size() != kWeights) {
    return Corrupt("{}: weights must be a list of {} numbers; {}", source, kWeights, kRemedy);
  }
  std::array<float, kWeights> read = {};
  for (size_t i = 0; i < kWeights; ++i) {
    const Json& weight = (*weights)[i];
    const double value = weight.is_number() ? weight.get<double>() : NAN;
    if (!(std::fabs(value) <= static_cast<double>(kMostWeight))) {
      return Corrupt("{}: weights[{}] must be a number from {} to {}; {}", source, i, -kMostWeight, kMostWeight,
                     kRemedy);
    }
    read[i] = static_cast<float>(value);
  }
  weights_ = read;
  mean_ = square_ = gradient_ = {};
  steps_ = 0;
  return Status::Ok();
}

}  // namespace thermoe
