// SPDX-License-Identifier: Apache-2.0
// --telemetry, and joules as text and JSON, labelled by how they are known (docs/energy.md).
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "json_out.h"
#include "thermoe/engine.h"
#include "thermoe/status.h"

namespace thermoe {

// For commands that run a model; `by_default`: what *telemetry holds.
void AddTelemetryFlag(CLI::App* app, std::string* telemetry, const std::string& by_default = "auto");

// The choice with a shipped profile's bare name after plant: made into its path. kNotFound names the places.
Result<std::string> ResolveTelemetry(const std::string& choice);

// Of commands that only read sensors: those of the GPU that --device names, or what --telemetry says; not both, but for "auto". Errors: of SensorsOf
// (engine/gpus.h) and of the above.
Result<std::string> ChooseSensors(const std::string& telemetry, const std::string& device);

// How long a command waits for a counter to move past its last step: three of NVML's changes.
inline constexpr double kSettle_s = 0.3;

// "4.21 J", "305 mJ", "12.3 uJ".
std::string JoulesText(double joules);

// "0.51 and 2.1 mJ/token": what a token of the prompt and a generated one cost; "about ... (estimate)", "(simulated)",
// "(replayed: of other work)" and what part of it was predicted. "" when nothing is accounted.
std::string EnergyText(const RequestEnergy& energy, const RequestTimings& timings);
// {"energy_source", "prefill_j", ...}; null when nothing is accounted.
Json EnergyJson(const RequestEnergy& energy, const RequestTimings& timings);
// "estimate", "simulated", "replayed", else "".
std::string EnergyLabel(EnergySource source);

// How well the cost model knew the steps; "" where it saw none.
std::string CostText(const CostView& view);
// Null where it saw none.
Json CostJson(const CostView& view);

// {"name", "simulated", "replayed"}.
Json TelemetryJson(const TelemetryInfo& info);

}  // namespace thermoe
