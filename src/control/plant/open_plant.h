// SPDX-License-Identifier: Apache-2.0
// From "plant:FILE" to a device in virtual time, and a source for programs that run no work on it.
#pragma once

#include <memory>
#include <string>

#include "control/plant/plant.h"
#include "control/telemetry/clock.h"
#include "control/telemetry/source.h"
#include "thermoe/status.h"

namespace thermoe {

// The device of a profile (data/profiles/*.toml) in a room of the profile's ambient temperature, always with the same
// noise. Errors: LoadDeviceProfile's.
Result<std::unique_ptr<Plant>> OpenPlant(const std::string& profile_path);

// The same device, idle, at the speed of `clock`.
Result<std::unique_ptr<TelemetrySource>> OpenIdlePlant(const std::string& profile_path, const Clock& clock);

}  // namespace thermoe
