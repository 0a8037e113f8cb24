// SPDX-License-Identifier: Apache-2.0
// From the words of an option to a source.
#pragma once

#include <memory>
#include <string>

#include "control/telemetry/clock.h"
#include "control/telemetry/source.h"
#include "thermoe/status.h"

namespace thermoe {

struct SourceOptions {
  Clock clock = SteadySeconds;
  std::string nvml_path;   // "": THERMOE_NVML or the driver's
  std::string linux_root;  // before /sys and /proc
};

// "auto, nvml, nvml:N, linux, replay:FILE or plant:FILE".
std::string SourceChoices();

// auto: the first NVIDIA device if it answers, else linux. plant: a simulated device at rest, as a TOML profile describes it. Errors: kInvalidArgument (none of SourceChoices()), and
// those of the source.
Result<std::unique_ptr<TelemetrySource>> FindSource(const std::string& choice, const SourceOptions& options = {});

}  // namespace thermoe
