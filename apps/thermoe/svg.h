// SPDX-License-Identifier: Apache-2.0
// Pieces of charts over time as SVG: the document, text, diagrams that share a time axis.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace thermoe {

// A value over a span of time; NaN: unknown.
struct TimeValue {
  double from_s = 0, to_s = 0, value = 0;
};
using TimeSeries = std::vector<TimeValue>;  // by rising time

// Of several lines in one diagram.
const char* LineColour(size_t index);
inline constexpr const char* kLimitColour = "#222";

// Up to and with the white ground; the document ends with "</svg>\n".
std::string SvgOpen(double width, double height);
// `anchor`: start, middle or end.
std::string SvgText(double x, double y, const char* anchor, std::string_view text, std::string_view attributes = "");
// Columns that `text` takes at the font size of SvgOpen, about.
double SvgTextWidth(std::string_view text);

// A step of 1, 2 or 5 times a power of ten that divides `range` into at most `most` parts.
double NiceStep(double range, int most);
// The least `low` + n * NiceStep that `value` fits under.
double NiceTop(double low, double value, int parts);

// One diagram: its place in the document and its ranges.
struct TimePanel {
  double left = 70, right = 880, top = 0, height = 150;
  double from_s = 0, to_s = 1, low = 0, high = 1;

  double X(double time_s) const;
  double Y(double value) const;  // clamped into the diagram
  // Title, grid and values at the left; times below it where `times` asks.
  std::string Frame(std::string_view title, bool times) const;
  // Averaged by time down to what can be seen; unknown spans are gaps.
  std::string Line(const TimeSeries& series, const char* colour, double width = 1.4, double opacity = 0.85) const;
  // Exact, with steps; spans without a value above `least` are gaps.
  std::string Steps(const TimeSeries& series, std::string_view attributes, double least = 0) const;
  // A dashed line: a limit.
  std::string Limit(const TimeSeries& series) const;
};

// Names of lines from `x` on, at the height of a panel's title. `dashed`: the last one is a limit.
struct LegendEntry {
  std::string name;
  const char* colour = kLimitColour;
  bool dashed = false;
};
std::string Legend(const std::vector<LegendEntry>& entries, double right, double y);

// A row of boxes over time: which of `names` was in force.
struct StripSpan {
  double from_s = 0, to_s = 0;
  size_t name = 0;
};
std::string Strip(const TimePanel& panel, const std::vector<StripSpan>& spans, const std::vector<std::string>& names,
                  const char* colour, double y);

}  // namespace thermoe
