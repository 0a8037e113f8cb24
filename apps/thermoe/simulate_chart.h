// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "control/plant/device_profile.h"
#include "control/simulate/sim_routers.h"

namespace thermoe {

// An SVG over time: power against the cap, die temperature against the limit, pause share, decoded tokens a second, and the operating
// point of each router. Labelled as simulated.
std::string SimulateChart(const SimScenario& scenario, const DeviceProfile& profile, const SimResults& results);

}  // namespace thermoe
