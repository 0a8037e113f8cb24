// SPDX-License-Identifier: Apache-2.0
#include "cost_plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

namespace thermoe {
namespace {

constexpr double kSide = 560, kLeft = 70, kTop = 50;  // the square of the axes, in pixels

struct Axis {
  int low = 0, high = 1;  // powers of ten
  double At(double us) const { return (std::log10(us) - low) / (high - low) * kSide; }
};

Axis AxisOf(const std::vector<PlotPoint>& points) {
  double least = 1e300, most = 0;
  for (const PlotPoint& point : points) {
    least = std::min({least, point.measured_us, point.predicted_us});
    most = std::max({most, point.measured_us, point.predicted_us});
  }
  if (most <= 0) return {0, 1};
  const int low = static_cast<int>(std::floor(std::log10(least)));
  return {low, std::max(low + 1, static_cast<int>(std::ceil(std::log10(most))))};
}

// Hues a golden angle apart: neighbours in the legend differ.
std::string Colour(size_t index) { return fmt::format("hsl({:.0f},65%,42%)", std::fmod(static_cast<double>(index) * 137.5, 360.0)); }

}  // namespace

std::string CostPlotSvg(const std::vector<PlotPoint>& points, const std::string& title) {
  const Axis axis = AxisOf(points);
  const double bottom = kTop + kSide, right = kLeft + kSide;
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {:.0f} {:.0f}\" font-family=\"sans-serif\" font-size=\"12\">\n"
      "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
      "<text x=\"{}\" y=\"28\" font-size=\"15\">{}</text>\n",
      right + 190, bottom + 60, kLeft, title);
  for (int power = axis.low; power <= axis.high; ++power) {
    const double at = axis.At(std::pow(10.0, power));
    svg += fmt::format(
        "<path d=\"M{0:.1f} {1}V{2}M{3} {4:.1f}H{5}\" stroke=\"#ddd\"/>\n"
        "<text x=\"{0:.1f}\" y=\"{6}\" text-anchor=\"middle\">{7:g}</text><text x=\"{8}\" y=\"{9:.1f}\" text-anchor=\"end\">{7:g}</text>\n",
        kLeft + at, kTop, bottom, kLeft, bottom - at, right, bottom + 18, std::pow(10.0, power), kLeft - 6, bottom - at + 4);
  }
  svg += fmt::format(
      "<path d=\"M{} {}L{} {}\" stroke=\"#888\" stroke-dasharray=\"4\"/>\n"
      "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">measured, us</text>\n"
      "<text transform=\"translate(18 {}) rotate(-90)\" text-anchor=\"middle\">predicted, us</text>\n",
      kLeft, bottom, right, kTop, kLeft + kSide / 2, bottom + 42, kTop + kSide / 2);
  std::map<std::string, size_t> families;
  for (const PlotPoint& point : points) families.emplace(point.family, families.size());
  for (const PlotPoint& point : points) {
    svg += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\" fill=\"{}\" fill-opacity=\"0.7\"><title>{}: measured {:.2f} us, predicted {:.2f} us</title></circle>\n",
                       kLeft + axis.At(point.measured_us), bottom - axis.At(point.predicted_us), Colour(families[point.family]),
                       point.label, point.measured_us, point.predicted_us);
  }
  double y = kTop + 10;
  for (const auto& [family, index] : families) {
    svg += fmt::format("<circle cx=\"{}\" cy=\"{}\" r=\"4\" fill=\"{}\"/><text x=\"{}\" y=\"{}\">{}</text>\n", right + 16, y,
                       Colour(index), right + 26, y + 4, family);
    y += 18;
  }
  return svg + "</svg>\n";
}

}  // namespace thermoe
