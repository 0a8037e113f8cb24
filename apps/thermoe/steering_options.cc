// SPDX-License-Identifier: Apache-2.0
#include "steering_options.h"

#include <functional>
#include <vector>

#include "base/errors.h"
#include "flags.h"
#include "text_input.h"

namespace thermoe {
namespace {

constexpr const char* kGroup = "Steering options";

// Reads {"schema_version": 1, "layers": [[one value per expert] or null, one per MoE layer]} and hands each
// value to `set`, which returns what it must be when it is wrong, else nullptr.
Status ReadLayers(const std::string& path, const ModelInfo& info,
                  const std::function<const char*(int layer, int expert, const Json& value)>& set) {
  Result<std::string> text = ReadTextFile(path);
  if (!text.ok()) return text.status();
  Result<Json> json = ParseJson(*text, path);
  if (!json.ok()) return json.status();
  if (!json->is_object() || !json->contains("layers") || !(*json)["layers"].is_array()) {
    return InvalidArgument("{}: must be an object with a list \"layers\" (docs/steering-files.md)", path);
  }
  if (json->value("schema_version", Json()) != Json(kJsonSchemaVersion)) {
    return InvalidArgument("{}: \"schema_version\" must be {}", path, kJsonSchemaVersion);
  }
  const Json& layers = (*json)["layers"];
  if (static_cast<int>(layers.size()) != info.moe_layers) {
    return InvalidArgument("{}: \"layers\" has {} entries but the model has {} MoE layers; use null for a plain layer",
                           path, layers.size(), info.moe_layers);
  }
  for (int layer = 0; layer < info.moe_layers; ++layer) {
    const Json& values = layers[layer];
    if (values.is_null()) continue;
    if (!values.is_array() || static_cast<int>(values.size()) != info.experts) {
      return InvalidArgument("{}: layers[{}] must be null or a list of {} values, one per expert, but {}", path, layer,
                             info.experts, values.is_array() ? fmt::format("has {}", values.size()) : "is no list");
    }
    for (int expert = 0; expert < info.experts; ++expert) {
      if (const char* expected = set(layer, expert, values[expert])) {
        return InvalidArgument("{}: layers[{}][{}] must be {} but is {}", path, layer, expert, expected,
                               JsonText(values[expert]));
      }
    }
  }
  return Status::Ok();
}

Status ReadBias(const std::string& path, const ModelInfo& info, std::vector<LayerSteering>* layers) {
  return ReadLayers(path, info, [&](int layer, int expert, const Json& value) -> const char* {
    // Selection works on scores of -100..0 (log) or 0..1; anything beyond 1e6 is a slip, not a preference.
    if (!value.is_number() || !(value.get<double>() >= -1e6 && value.get<double>() <= 1e6)) {
      return "a number from -1e6 to 1e6";
    }
    (*layers)[layer].selection_bias.resize(info.experts);
    (*layers)[layer].selection_bias[expert] = value.get<float>();
    return nullptr;
  });
}

Status ReadPlaneCap(const std::string& path, const ModelInfo& info, std::vector<LayerSteering>* layers) {
  return ReadLayers(path, info, [&](int layer, int expert, const Json& value) -> const char* {
    if (value != Json(1) && value != Json(2)) return "1 (hi plane only) or 2 (both planes)";
    (*layers)[layer].plane_cap.resize(info.experts);
    (*layers)[layer].plane_cap[expert] = value.get<uint8_t>();
    return nullptr;
  });
}

Status CheckSlots(const char* flag, const std::optional<int>& slots, const ModelInfo& info) {
  if (!slots || *slots <= info.expert_slots) return Status::Ok();
  return InvalidArgument("{} must be at most {}, the model's slots per token, but is {}", flag, info.expert_slots,
                         *slots);
}

}  // namespace

void AddSteeringFlags(CLI::App* app, SteeringFlags* flags) {
  AddChoice(app, "--experts", &flags->experts, {"native", "nested"},
            "How experts are kept: native (default), as the file has them; nested, one 8-bit copy in two planes that "
            "can be read whole or by its upper half alone.")
      ->group(kGroup);
  AddNumber(app, "--full-slots", &flags->full_slots, {0, 1024},
            "A token's N best-weighted slots read both planes, the rest the hi plane only (nested experts).")
      ->group(kGroup);
  AddNumber(app, "--k0", &flags->k0, {1, 1024},
            "Batch-aware selection: a token's N best slots are guaranteed, the rest are filled from the experts that "
            "are guaranteed to some token of the same decode step.")
      ->group(kGroup);
  AddNumber(app, "--soft-batch", &flags->soft_batch, {0, 10, false, false},
            "Soft batch-aware selection: in decode, experts that other tokens of the step hold rank higher, the more "
            "the larger X; 0.1 to 0.3 is useful.")
      ->group(kGroup);
  AddNumber(app, "--k-max", &flags->k_max, {1, 1024}, "Keep at most N slots per token.")->group(kGroup);
  AddNumber(app, "--drop-below", &flags->drop_below, {0, 1, false, false},
            "Drop slots whose weight is below X times the weight of the token's first.")
      ->group(kGroup);
  app->add_option("--expert-bias", flags->expert_bias,
                  "JSON file of values added to the gate's scores when experts are ranked, never to their weights.")
      ->type_name("FILE")
      ->group(kGroup);
  app->add_option("--plane-cap", flags->plane_cap,
                  "JSON file that limits experts to the hi plane (1) or allows both (2); nested experts.")
      ->type_name("FILE")
      ->group(kGroup);
}

Status CheckSteering(const SteeringFlags& flags) {
  if (flags.storage() == ExpertStorage::kNested) return Status::Ok();
  for (const auto& [flag, given] :
       {std::pair("--full-slots", flags.full_slots.has_value()), std::pair("--plane-cap", !flags.plane_cap.empty())}) {
    if (given) return InvalidArgument("{} chooses between the planes of nested experts; add --experts nested", flag);
  }
  return Status::Ok();
}

Result<std::shared_ptr<const Steering>> BuildSteering(const SteeringFlags& flags, const ModelInfo& info) {
  THERMOE_RETURN_IF_ERROR(CheckSteering(flags));
  THERMOE_RETURN_IF_ERROR(CheckSlots("--full-slots", flags.full_slots, info));
  THERMOE_RETURN_IF_ERROR(CheckSlots("--k0", flags.k0, info));
  THERMOE_RETURN_IF_ERROR(CheckSlots("--k-max", flags.k_max, info));
  if (!flags.steers()) return std::shared_ptr<const Steering>();
  auto steering = std::make_shared<Steering>();
  steering->version = 1;
  steering->layers.resize(info.moe_layers);
  for (LayerSteering& layer : steering->layers) {
    layer.full_slots = flags.full_slots.value_or(kAllSlots);
    layer.guaranteed_slots = flags.k0.value_or(kAllSlots);
    layer.soft_batch = static_cast<float>(flags.soft_batch.value_or(0.0));
    layer.max_slots = flags.k_max.value_or(kAllSlots);
    layer.drop_below_frac = static_cast<float>(flags.drop_below.value_or(0.0));
  }
  if (!flags.expert_bias.empty()) THERMOE_RETURN_IF_ERROR(ReadBias(flags.expert_bias, info, &steering->layers));
  if (!flags.plane_cap.empty()) THERMOE_RETURN_IF_ERROR(ReadPlaneCap(flags.plane_cap, info, &steering->layers));
  return std::shared_ptr<const Steering>(std::move(steering));
}

Status ApplySteering(const SteeringFlags& flags, Engine* engine) {
  Result<std::shared_ptr<const Steering>> steering = BuildSteering(flags, engine->model().info());
  if (!steering.ok()) return steering.status();
  return engine->SetSteering(std::move(*steering));
}

Json SteeringJson(const SteeringFlags& flags) {
  const auto number = [](const auto& value) { return value ? Json(*value) : Json(); };
  const auto path = [](const std::string& value) { return value.empty() ? Json() : Json(value); };
  Json json;
  json["experts"] = flags.experts;
  json["full_slots"] = number(flags.full_slots);
  json["k0"] = number(flags.k0);
  json["soft_batch"] = number(flags.soft_batch);
  json["k_max"] = number(flags.k_max);
  json["drop_below"] = number(flags.drop_below);
  json["expert_bias"] = path(flags.expert_bias);
  json["plane_cap"] = path(flags.plane_cap);
  return json;
}

}  // namespace thermoe
