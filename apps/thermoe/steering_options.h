// SPDX-License-Identifier: Apache-2.0
// Flags that steer the choice of experts, and their files (docs/steering-files.md).
#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <optional>
#include <string>

#include "json_out.h"
#include "thermoe/engine.h"
#include "thermoe/model.h"
#include "thermoe/status.h"
#include "thermoe/steering.h"

namespace thermoe {

struct SteeringFlags {
  std::string experts = "native";  // or "nested"
  std::optional<int> full_slots;
  std::optional<int> k0;
  std::optional<double> soft_batch;
  std::optional<int> k_max;
  std::optional<double> drop_below;
  std::string expert_bias;  // path
  std::string plane_cap;    // path

  // --experts alone does not steer: nested storage read by both planes is the plain model.
  bool steers() const {
    return full_slots || k0 || soft_batch || k_max || drop_below || !expert_bias.empty() || !plane_cap.empty();
  }
  ExpertStorage storage() const { return experts == "nested" ? ExpertStorage::kNested : ExpertStorage::kNative; }
};

void AddSteeringFlags(CLI::App* app, SteeringFlags* flags);

// Checks the flags that can be checked without a model.
Status CheckSteering(const SteeringFlags& flags);

// nullptr when `flags` do not steer. Errors name the flag or the file, layer and index.
Result<std::shared_ptr<const Steering>> BuildSteering(const SteeringFlags& flags, const ModelInfo& info);

// BuildSteering and Engine::SetSteering.
Status ApplySteering(const SteeringFlags& flags, Engine* engine);

// The flags as they were given, for JSON output; null where not given.
Json SteeringJson(const SteeringFlags& flags);

}  // namespace thermoe
