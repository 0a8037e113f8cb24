// SPDX-License-Identifier: Apache-2.0
#include "simulate_chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "output.h"

namespace thermoe {
namespace {

constexpr double kWidth = 900, kLeft = 70, kRight = 20, kTop = 72, kPanel = 150, kGap = 44, kStrip = 26;
constexpr size_t kMostPoints = 440;  // of a line: two pixels each
constexpr const char* kColours[] = {"#1f6fb4", "#d1582b", "#3a8f3a", "#8a4fb0", "#b0892f", "#2f9ea0", "#c0407f", "#666666"};
constexpr const char* kLimitColour = "#222";

const char* ColourOf(size_t run) { return kColours[run % std::size(kColours)]; }

std::string Label(double x, double y, const char* anchor, const std::string& text) {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\">{}</text>\n", x, y, anchor, XmlText(text));
}

// A step of 1, 2 or 5 times a power of ten that divides `range` into at most `most` parts.
double NiceStep(double range, int most) {
  const double rough = range / most, power = std::pow(10, std::floor(std::log10(std::max(rough, 1e-9))));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (rough <= factor * power) return factor * power;
  }
  return 10 * power;
}

// One diagram over time.
struct Panel {
  double top = 0, seconds = 1, low = 0, high = 1;

  double X(double time_s) const { return kLeft + time_s / seconds * (kWidth - kLeft - kRight); }
  double Y(double value) const { return top + kPanel - (std::clamp(value, low, high) - low) / (high - low) * kPanel; }

  std::string Frame(const std::string& title) const {
    std::string svg = fmt::format("<text x=\"{}\" y=\"{:.1f}\" font-weight=\"bold\">{}</text>\n", kLeft, top - 8, XmlText(title));
    const double step = NiceStep(high - low, 5);
    for (double value = std::ceil(low / step) * step; value <= high + 1e-9 * step; value += step) {
      svg += fmt::format("<path class=\"grid\" d=\"M{} {:.1f}H{}\"/>\n", kLeft, Y(value), kWidth - kRight);
      svg += Label(kLeft - 8, Y(value) + 4, "end", fmt::format("{:g}", value));
    }
    const double time_step = NiceStep(seconds, 12);
    for (double time = 0; time <= seconds + 1e-9; time += time_step) {
      svg += fmt::format("<path class=\"grid\" d=\"M{:.1f} {:.1f}v{}\"/>\n", X(time), top, kPanel);
      svg += Label(X(time), top + kPanel + 15, "middle", fmt::format("{:g}", time));
    }
    return svg;
  }

  // Samples averaged by their time down to kMostPoints.
  std::string Line(const SimRun& run, double SimSample::* value, double scale, const char* colour) const {
    std::string path;
    const size_t each = (run.samples.size() + kMostPoints - 1) / kMostPoints;
    for (size_t i = 0; i < run.samples.size(); i += each) {
      double sum = 0, length = 0;
      const double begin_s = i > 0 ? run.samples[i - 1].time_s : 0;
      double from_s = begin_s;
      for (size_t j = i; j < std::min(i + each, run.samples.size()); ++j) {
        sum += run.samples[j].*value * (run.samples[j].time_s - from_s);
        length += run.samples[j].time_s - from_s;
        from_s = run.samples[j].time_s;
      }
      if (!(length > 0)) continue;
      path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : "L", X(begin_s + length / 2), Y(scale * sum / length));
    }
    return fmt::format("<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.4\" stroke-opacity=\"0.85\"/>\n", path, colour);
  }

  std::string Limit(const Schedule& limit) const {
    std::string path;
    for (double from_s = 0; from_s < seconds;) {
      const double to_s = std::min(limit.NextEdge(from_s), seconds), value = limit.At(from_s);
      if (value > 0) path += fmt::format("M{:.1f} {:.1f}H{:.1f}", X(from_s), Y(value), X(to_s));
      from_s = to_s;
    }
    return path.empty() ? "" : fmt::format("<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\" stroke-dasharray=\"6 4\"/>\n", path, kLimitColour);
  }
};

double Most(const SimResults& results, double SimSample::* value) {
  double most = 0;
  for (const SimRun& run : results.runs) {
    for (const SimSample& sample : run.samples) most = std::max(most, sample.*value);
  }
  return most;
}

std::string Lines(const Panel& panel, const SimResults& results, double SimSample::* value, double scale) {
  std::string svg;
  for (size_t r = 0; r < results.runs.size(); ++r) svg += panel.Line(results.runs[r], value, scale, ColourOf(r));
  return svg;
}

// Which settings ran when: a strip a router; what is frugal is darker.
std::string Strip(const Panel& panel, const SimRun& run, size_t index, double y) {
  std::string svg = Label(kLeft, y - 3, "start", run.router);
  for (size_t i = 0; i < run.samples.size();) {
    const int32_t setting = run.samples[i].setting;
    const double from_s = i > 0 ? run.samples[i - 1].time_s : 0;
    size_t end = i;
    while (end < run.samples.size() && run.samples[end].setting == setting) ++end;
    const std::string& text = run.settings[static_cast<size_t>(setting)];
    const double x = panel.X(from_s), width = panel.X(run.samples[end - 1].time_s) - x;
    const double shade = text == "plain" ? 0.12 : 0.3 + 0.5 * ((setting % 5) / 5.0);
    svg += fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"13\" fill=\"{}\" fill-opacity=\"{:.2f}\"><title>{}: {:.1f} to "
                       "{:.1f} s</title></rect>\n",
                       x, y, width, ColourOf(index), shade, XmlText(text), from_s, run.samples[end - 1].time_s);
    constexpr double kLetter = 6.2;
    if (static_cast<double>(text.size()) * kLetter < width) svg += Label(x + 3, y + 11, "start", text);
    i = end;
  }
  return svg;
}

std::string Legend(const SimResults& results) {
  std::string svg;
  double x = kLeft;
  for (size_t r = 0; r < results.runs.size(); ++r) {
    svg += fmt::format("<path d=\"M{:.1f} 44h20\" stroke=\"{}\" stroke-width=\"2.5\"/>\n", x, ColourOf(r));
    svg += Label(x + 25, 48, "start", results.runs[r].router);
    x += 50 + 7.0 * static_cast<double>(results.runs[r].router.size());
  }
  svg += fmt::format("<path d=\"M{:.1f} 44h20\" stroke=\"{}\" stroke-width=\"2\" stroke-dasharray=\"6 4\"/>\n", x, kLimitColour);
  return svg + Label(x + 25, 48, "start", "limit");
}

}  // namespace

std::string SimulateChart(const SimScenario& scenario, const DeviceProfile& profile, const SimResults& results) {
  const double strips = kTop + 4 * (kPanel + kGap), height = strips + (kStrip + 6) * static_cast<double>(results.runs.size()) + 20;
  std::string svg = fmt::format("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" font-size=\"12\" "
                                "fill=\"#333\">\n<style>.grid{{stroke:#ddd;fill:none}}</style>\n"
                                "<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
                                kWidth, height);
  svg += fmt::format("<text x=\"{}\" y=\"24\" font-size=\"15\">{} on {} (simulated)</text>\n", kLeft, XmlText(scenario.name), XmlText(profile.name));
  svg += Legend(results);
  Panel panel;
  panel.seconds = scenario.duration_s;
  panel.top = kTop + 12;
  panel.high = std::max({1.0, 1.05 * Most(results, &SimSample::power_w), 1.05 * Most(results, &SimSample::cap_w)});
  svg += panel.Frame("power, W (means of 0.1 s or more)") + Lines(panel, results, &SimSample::power_w, 1) + panel.Limit(scenario.power_w);
  panel.top += kPanel + kGap;
  panel.low = 20;
  panel.high = std::max({40.0, Most(results, &SimSample::temp_c) + 2, scenario.temp_c + 2});
  svg += panel.Frame("die temperature, C") + Lines(panel, results, &SimSample::temp_c, 1) + panel.Limit(Schedule(scenario.temp_c));
  panel.top += kPanel + kGap;
  panel.low = 0;
  panel.high = std::max(1.0, 1.1 * Most(results, &SimSample::tokens_per_s));
  svg += panel.Frame("decoded tokens per second") + Lines(panel, results, &SimSample::tokens_per_s, 1);
  panel.top += kPanel + kGap;
  panel.high = 100;
  svg += panel.Frame("paused, % of the time; below: operating points over time, s") + Lines(panel, results, &SimSample::pause_frac, 100);
  for (size_t r = 0; r < results.runs.size(); ++r) {
    svg += Strip(panel, results.runs[r], r, panel.top + kPanel + 40 + (kStrip + 6) * static_cast<double>(r));
  }
  return svg + "</svg>\n";
}

}  // namespace thermoe
