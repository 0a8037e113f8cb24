// SPDX-License-Identifier: Apache-2.0
// Flags of the control loop (docs/control-loop.md), the same from a TOML file, and what the loop did as JSON.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>

#include "json_out.h"
#include "steering_options.h"
#include "thermoe/engine.h"
#include "thermoe/model.h"
#include "thermoe/status.h"

namespace thermoe {

struct ControlFlags {
  std::optional<double> power_limit_w, temp_limit_c, latency_target_ms, quality_floor_nats, quality_budget_nats;
  std::optional<std::string> router, prefer, gather, ttha, points, decision_log;
  std::optional<std::string> file;  // --control: what is not given as a flag
  CLI::App* app = nullptr;

  // A limit or any other of these asks for the loop.
  bool on() const {
    return power_limit_w || temp_limit_c || latency_target_ms || quality_floor_nats || quality_budget_nats || router || prefer ||
           gather || ttha || points || decision_log;
  }
};

void AddControlFlags(CLI::App* app, ControlFlags* flags);

// Reads --control, --telemetry in it too, checks what can be checked without a model, and chooses nested experts for the adaptive router
// where --experts says nothing: its points use both planes.
Status ResolveControl(ControlFlags* flags, SteeringFlags* steering, std::string* telemetry);

// `keeps_state`: what the loop learns on this machine stays in the state folder. kNotFound for points that were asked for.
Result<ControlOptions> ControlOptionsFrom(const ControlFlags& flags, const SteeringFlags& steering, const ModelInfo& model,
                                          const std::string& telemetry, bool keeps_state);

// What calibrate measured on this machine, else what is shipped with the bundled model; "" where there is neither.
std::string FindPoints(const ModelInfo& model);

// Null without a loop.
Json ControlJson(const ControlView& view);
// "adaptive router: power 2.0 W of 2 W, point full 0, k0 4 of 35, 12 % paused"; "" without a loop.
std::string ControlText(const ControlView& view);

}  // namespace thermoe
