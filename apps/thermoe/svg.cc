// SPDX-License-Identifier: Apache-2.0
#include "svg.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "output.h"

namespace thermoe {
namespace {

constexpr const char* kColours[] = {"#1f6fb4", "#d1582b", "#3a8f3a", "#8a4fb0",
                                    "#b0892f", "#2f9ea0", "#c0407f", "#666666"};
constexpr double kLetter = 6.4;    // mean width of a letter at the font size below
constexpr double kLinePixels = 2;  // of a line's points from each other
constexpr double kStripHeight = 15;

// Mean of the known part of `series` in [from_s, to_s); NaN where nothing is known. `at` moves on with rising times.
double MeanOver(const TimeSeries& series, double from_s, double to_s, size_t* at) {
  while (*at < series.size() && series[*at].to_s <= from_s) ++*at;
  double sum = 0, known_s = 0;
  for (size_t i = *at; i < series.size() && series[i].from_s < to_s; ++i) {
    const double seconds = std::min(to_s, series[i].to_s) - std::max(from_s, series[i].from_s);
    if (!(seconds > 0) || std::isnan(series[i].value)) continue;
    sum += series[i].value * seconds;
    known_s += seconds;
  }
  return known_s > 0 ? sum / known_s : std::nan("");
}

}  // namespace

const char* LineColour(size_t index) { return kColours[index % std::size(kColours)]; }

std::string SvgOpen(double width, double height) {
  return fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0:.0f} {1:.0f}\" font-family=\"sans-serif\" "
      "font-size=\"12\" "
      "fill=\"#333\">\n<style>.grid{{stroke:#ddd;fill:none}}</style>\n<rect width=\"100%\" height=\"100%\" "
      "fill=\"#fff\"/>\n",
      width, height);
}

std::string SvgText(double x, double y, const char* anchor, std::string_view text, std::string_view attributes) {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\"{}{}>{}</text>\n", x, y, anchor,
                     attributes.empty() ? "" : " ", attributes, XmlText(text));
}

double SvgTextWidth(std::string_view text) {
  return kLetter *
         static_cast<double>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

double NiceStep(double range, int most) {
  const double rough = range / most, power = std::pow(10, std::floor(std::log10(std::max(rough, 1e-9))));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (rough <= factor * power * (1 + 1e-9)) return factor * power;
  }
  return 10 * power;
}

double NiceTop(double low, double value, int parts) {
  const double step = NiceStep(std::max(value - low, 1e-9), parts);
  return low + step * std::max(1.0, std::ceil((value - low) / step - 1e-9));
}

double TimePanel::X(double time_s) const {
  return left + (std::clamp(time_s, from_s, to_s) - from_s) / (to_s - from_s) * (right - left);
}
double TimePanel::Y(double value) const {
  return top + height - (std::clamp(value, low, high) - low) / (high - low) * height;
}

std::string TimePanel::Frame(std::string_view title, bool times) const {
  std::string svg = SvgText(left, top - 8, "start", title, "font-weight=\"bold\"");
  const double step = NiceStep(high - low, height < 100 ? 4 : 5);
  const double time_step = NiceStep(to_s - from_s, 12);
  for (double time = 0; time <= (to_s - from_s) * (1 + 1e-9); time += time_step) {
    svg += fmt::format("<path class=\"grid\" d=\"M{:.1f} {:.1f}v{:.1f}\"/>\n", X(from_s + time), top, height);
    if (times) svg += SvgText(X(from_s + time), top + height + 16, "middle", fmt::format("{:g}", time));
  }
  for (double value = std::ceil(low / step - 1e-9) * step; value <= high + 1e-9 * step; value += step) {
    const double shown = std::abs(value) < 1e-9 * step ? 0 : value;
    svg += fmt::format("<path class=\"grid\" d=\"M{:.1f} {:.1f}H{:.1f}\"/>\n", left, Y(value), right);
    svg += SvgText(left - 8, Y(value) + 4, "end", fmt::format("{:.6g}", shown));
  }
  return svg;
}

std::string TimePanel::Line(const TimeSeries& series, const char* colour, double width, double opacity) const {
  if (series.empty()) return "";
  const double bins = std::clamp(static_cast<double>(series.size()), 1.0, (right - left) / kLinePixels);
  const double begin_s = series.front().from_s, bin_s = (series.back().to_s - begin_s) / bins;
  if (!(bin_s > 0)) return "";
  std::string path;
  size_t at = 0;
  bool drawing = false;
  for (int bin = 0; bin < static_cast<int>(bins); ++bin) {
    const double value = MeanOver(series, begin_s + bin * bin_s, begin_s + (bin + 1) * bin_s, &at);
    if (!std::isnan(value))
      path += fmt::format("{}{:.1f} {:.1f}", drawing ? "L" : "M", X(begin_s + (bin + 0.5) * bin_s), Y(value));
    drawing = !std::isnan(value);
  }
  return fmt::format(
      "<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"{}\" stroke-opacity=\"{}\" "
      "stroke-linejoin=\"round\"/>\n",
      path, colour, width, opacity);
}

std::string TimePanel::Steps(const TimeSeries& series, std::string_view attributes, double least) const {
  std::string path;
  bool drawing = false;
  for (size_t i = 0; i < series.size();) {
    size_t end = i + 1;
    while (end < series.size() && series[end].value == series[i].value) ++end;
    const double value = series[i].value;
    const bool known = value > least;  // and not NaN
    if (known && drawing) path += fmt::format("V{:.1f}H{:.1f}", Y(value), X(series[end - 1].to_s));
    if (known && !drawing)
      path += fmt::format("M{:.1f} {:.1f}H{:.1f}", X(series[i].from_s), Y(value), X(series[end - 1].to_s));
    drawing = known;
    i = end;
  }
  return path.empty() ? "" : fmt::format("<path d=\"{}\" fill=\"none\" {}/>\n", path, attributes);
}

std::string TimePanel::Limit(const TimeSeries& series) const {
  return Steps(series, fmt::format("stroke=\"{}\" stroke-width=\"1.6\" stroke-dasharray=\"6 4\"", kLimitColour));
}

std::string Legend(const std::vector<LegendEntry>& entries, double right, double y) {
  std::string svg;
  double x = right;
  for (auto entry = entries.rbegin(); entry != entries.rend(); ++entry) {
    x -= SvgTextWidth(entry->name);
    svg += SvgText(x, y, "start", entry->name);
    svg += fmt::format("<path d=\"M{:.1f} {:.1f}h20\" stroke=\"{}\" stroke-width=\"2\"{}/>\n", x - 25, y - 4,
                       entry->colour, entry->dashed ? " stroke-dasharray=\"6 4\"" : "");
    x -= 45;
  }
  return svg;
}

std::string Strip(const TimePanel& panel, const std::vector<StripSpan>& spans, const std::vector<std::string>& names,
                  const char* colour, double y) {
  std::string svg;
  for (size_t i = 0; i < spans.size();) {
    // What is narrower than a pixel joins what it begins in.
    size_t end = i + 1;
    while (end < spans.size() &&
           (spans[end].name == spans[i].name || panel.X(spans[end].to_s) < panel.X(spans[i].from_s) + 1))
      ++end;
    const std::string& text = names[spans[i].name];
    const double x = panel.X(spans[i].from_s), width = panel.X(spans[end - 1].to_s) - x;
    const double shade = text == "plain" ? 0.12 : 0.3 + 0.5 * (static_cast<double>(spans[i].name % 5) / 5);
    svg += fmt::format(
        "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{}\" fill=\"{}\" fill-opacity=\"{:.2f}\"><title>{}: "
        "{:.1f} to {:.1f} s"
        "</title></rect>\n",
        x, y, width, kStripHeight, colour, shade, XmlText(text), spans[i].from_s - panel.from_s,
        spans[end - 1].to_s - panel.from_s);
    if (SvgTextWidth(text) + 6 < width) svg += SvgText(x + 3, y + kStripHeight - 4, "start", text, "font-size=\"11\"");
    i = end;
  }
  return svg;
}

}  // namespace thermoe
