// SPDX-License-Identifier: Apache-2.0
#include "calibrate_chart.h"

#include <fmt/format.h>

#include <algorithm>

#include "output.h"

namespace thermoe {
namespace {

constexpr double kWidth = 720, kHeight = 440, kLeft = 70, kRight = 20, kTop = 50, kBottom = 60;

struct Axes {
  double least_bytes = 0.3, most_loss = 0.05;

  double X(double bytes_frac) const {
    return kLeft + (bytes_frac - least_bytes) / (1 - least_bytes) * (kWidth - kLeft - kRight);
  }
  double Y(double loss_nats) const {
    return kHeight - kBottom - std::max(0.0, loss_nats) / most_loss * (kHeight - kTop - kBottom);
  }
};

std::string Text(double x, double y, const char* anchor, const std::string& text) {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\">{}</text>\n", x, y, anchor, text);
}

std::string Grid(const Axes& axes) {
  std::string svg;
  for (int percent = 100; percent >= 100 * axes.least_bytes - 1e-9; percent -= 10) {
    const double x = axes.X(percent / 100.0);
    svg += fmt::format("<path class=\"grid\" d=\"M{0:.1f} {1}V{2}\"/>\n", x, kTop, kHeight - kBottom);
    svg += Text(x, kHeight - kBottom + 18, "middle", fmt::format("{} %", percent));
  }
  for (int i = 0; i <= 5; ++i) {
    const double loss = axes.most_loss * i / 5, y = axes.Y(loss);
    svg += fmt::format("<path class=\"grid\" d=\"M{0} {1:.1f}H{2}\"/>\n", kLeft, y, kWidth - kRight);
    svg += Text(kLeft - 8, y + 4, "end", fmt::format("{:.3f}", loss));
  }
  return svg;
}

std::string Series(const OperatingPoints& file, const Axes& axes, PointCost OperatingPoint::* batch, const char* colour,
                   double legend_y, const std::string& name) {
  std::string svg, path;
  const auto inside = [&](const PointCost& cost) {
    return cost.loss_nats <= axes.most_loss && cost.expert_bytes_frac >= axes.least_bytes && cost.expert_bytes_frac <= 1;
  };
  for (const OperatingPoint& point : file.points) {
    const PointCost& cost = point.*batch;
    if (!inside(cost)) continue;
    svg += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3.5\" fill=\"{}\" fill-opacity=\"0.4\"><title>{}: {:+.4f} nats, "
                       "{:.1f} %</title></circle>\n",
                       axes.X(cost.expert_bytes_frac), axes.Y(cost.loss_nats), colour, Describe(point), cost.loss_nats,
                       100 * cost.expert_bytes_frac);
  }
  for (const size_t i : ParetoFront(file.points, batch)) {
    const PointCost& cost = file.points[i].*batch;
    if (!inside(cost)) continue;
    path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : "L", axes.X(cost.expert_bytes_frac), axes.Y(cost.loss_nats));
  }
  svg += fmt::format("<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>\n", path, colour);
  svg += fmt::format("<path d=\"M{} {}h24\" stroke=\"{}\" stroke-width=\"2\"/>\n", kWidth - 170, legend_y - 4, colour);
  return svg + Text(kWidth - 140, legend_y, "start", name);
}

}  // namespace

std::string CalibrationChart(const OperatingPoints& file) {
  Axes axes;
  std::string svg = fmt::format("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" "
                                "font-size=\"12\" fill=\"#333\">\n<style>.grid{{stroke:#ddd;fill:none}}</style>\n"
                                "<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
                                kWidth, kHeight);
  svg += fmt::format("<text x=\"{}\" y=\"24\" font-size=\"15\">{}: loss against expert bytes read</text>\n", kLeft,
                     XmlText(file.model_name));
  svg += Grid(axes);
  svg += Series(file, axes, &OperatingPoint::batch1, "#1f6fb4", kTop + 18, "front at batch 1");
  svg += Series(file, axes, &OperatingPoint::batch16, "#d1582b", kTop + 36, "front at batch 16");
  svg += Text((kLeft + kWidth - kRight) / 2, kHeight - 16, "middle", "expert bytes read, of the plain model's at the same batch");
  svg += fmt::format("<text transform=\"translate(16 {}) rotate(-90)\" text-anchor=\"middle\">loss, nats per token</text>\n",
                     kHeight / 2);
  return svg + "</svg>\n";
}

}  // namespace thermoe
