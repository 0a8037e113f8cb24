// SPDX-License-Identifier: Apache-2.0
#include "simulate_chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "svg.h"

namespace thermoe {
namespace {

constexpr double kTop = 72, kPanel = 150, kGap = 44, kStrip = 32;

double Most(const SimResults& results, double SimSample::*value) {
  double most = 0;
  for (const SimRun& run : results.runs) {
    for (const SimSample& sample : run.samples) most = std::max(most, sample.*value);
  }
  return most;
}

TimeSeries SeriesOf(const SimRun& run, double SimSample::*value, double scale) {
  TimeSeries series;
  double from_s = 0;
  for (const SimSample& sample : run.samples) {
    series.push_back({from_s, sample.time_s, scale * (sample.*value)});
    from_s = sample.time_s;
  }
  return series;
}

TimeSeries SeriesOf(const Schedule& limit, double seconds) {
  TimeSeries series;
  for (double from_s = 0; from_s < seconds;) {
    const double to_s = std::min(limit.NextEdge(from_s), seconds);
    series.push_back({from_s, to_s, limit.At(from_s)});
    from_s = to_s;
  }
  return series;
}

std::string Lines(const TimePanel& panel, const SimResults& results, double SimSample::*value, double scale = 1) {
  std::string svg;
  for (size_t r = 0; r < results.runs.size(); ++r)
    svg += panel.Line(SeriesOf(results.runs[r], value, scale), LineColour(r));
  return svg;
}

// Which settings ran when: a strip a router; what is frugal is darker.
std::string RouterStrip(const TimePanel& panel, const SimRun& run, size_t index, double y) {
  std::vector<StripSpan> spans;
  double from_s = 0;
  for (const SimSample& sample : run.samples) {
    spans.push_back({from_s, sample.time_s, static_cast<size_t>(sample.setting)});
    from_s = sample.time_s;
  }
  return SvgText(panel.left, y - 3, "start", run.router) + Strip(panel, spans, run.settings, LineColour(index), y);
}

}  // namespace

std::string SimulateChart(const SimScenario& scenario, const DeviceProfile& profile, const SimResults& results) {
  const double strips = kTop + 4 * (kPanel + kGap),
               height = strips + kStrip * static_cast<double>(results.runs.size()) + 20;
  TimePanel panel;
  panel.to_s = scenario.duration_s;
  panel.height = kPanel;
  std::string svg = SvgOpen(panel.right + 20, height);
  svg += SvgText(panel.left, 24, "start", fmt::format("{} on {} (simulated)", scenario.name, profile.name),
                 "font-size=\"15\"");
  std::vector<LegendEntry> legend;
  for (size_t r = 0; r < results.runs.size(); ++r) legend.push_back({results.runs[r].router, LineColour(r), false});
  legend.push_back({"limit", kLimitColour, true});
  svg += Legend(legend, panel.right, 48);
  panel.top = kTop + 12;
  panel.high = std::max({1.0, 1.05 * Most(results, &SimSample::power_w), 1.05 * Most(results, &SimSample::cap_w)});
  svg += panel.Frame("power, W (means of 0.1 s or more)", true) + Lines(panel, results, &SimSample::power_w) +
         panel.Limit(SeriesOf(scenario.power_w, scenario.duration_s));
  panel.top += kPanel + kGap;
  panel.low = 20;
  panel.high = std::max({40.0, Most(results, &SimSample::temp_c) + 2, scenario.temp_c + 2});
  svg += panel.Frame("die temperature, C", true) + Lines(panel, results, &SimSample::temp_c) +
         panel.Limit({{0, scenario.duration_s, scenario.temp_c}});
  panel.top += kPanel + kGap;
  panel.low = 0;
  panel.high = std::max(1.0, 1.1 * Most(results, &SimSample::tokens_per_s));
  svg += panel.Frame("decoded tokens per second", true) + Lines(panel, results, &SimSample::tokens_per_s);
  panel.top += kPanel + kGap;
  panel.high = 100;
  svg += panel.Frame("paused, % of the time; below: operating points over time, s", true) +
         Lines(panel, results, &SimSample::pause_frac, 100);
  for (size_t r = 0; r < results.runs.size(); ++r) {
    svg += RouterStrip(panel, results.runs[r], r, panel.top + kPanel + 40 + kStrip * static_cast<double>(r));
  }
  return svg + "</svg>\n";
}

}  // namespace thermoe
