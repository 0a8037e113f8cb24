// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "control/router/operating_point.h"

namespace thermoe {

// An SVG of all points, expert bytes against loss, with the Pareto fronts at batch 1 and 16 as lines.
std::string CalibrationChart(const OperatingPoints& file);

}  // namespace thermoe
