// SPDX-License-Identifier: Apache-2.0
// Measured against predicted latency as an SVG picture.
#pragma once

#include <string>
#include <vector>

namespace thermoe {

struct PlotPoint {
  std::string family;
  double measured_us = 0, predicted_us = 0;
  std::string label;  // shown when the pointer rests on it
};

// Both axes logarithmic, the diagonal drawn, a colour a family.
std::string CostPlotSvg(const std::vector<PlotPoint>& points, const std::string& title);

}  // namespace thermoe
