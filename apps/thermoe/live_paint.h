// SPDX-License-Identifier: Apache-2.0
// What the live view's picture is made of: text in columns, bars, histories, heat. Escape sequences of colour take no
// columns.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace thermoe {

struct LiveStyle {
  bool colour = false;
  bool unicode = false;  // blocks and lines; else ASCII
};

// Columns that `text` (UTF-8) takes on a terminal.
int ColumnsOf(std::string_view text);
// The first `width` columns; escape sequences after them too, so that colours end.
std::string Cut(std::string_view text, int width);
// Exactly `width` columns: cut, or spaces after it.
std::string Pad(std::string_view text, int width);
// The last `count` lines of `text` wrapped at `width` columns.
std::vector<std::string> LastLines(std::string_view text, int width, int count);

inline constexpr const char *kGreen = "32", *kYellow = "33", *kRed = "31", *kMagenta = "35", *kCyan = "36",
                            *kBold = "1", *kDim = "2";

class Painter {
 public:
  explicit Painter(LiveStyle style) : style_(style) {}
  const LiveStyle& style() const { return style_; }

  std::string Paint(std::string_view text, const char* code) const;
  // The whole of a line in reverse.
  std::string Reverse(const std::string& text) const;
  std::string Rule(int width) const;
  // `frac` of `width` columns filled, brackets around it; a mark at `mark` (below 0: none). "" below 3 columns.
  std::string Bar(double frac, double mark, int width, const char* code) const;
  // The newest values, a column each, newest at the right.
  std::string Sparkline(const std::vector<double>& values, double top, int width, const char* code) const;
  // The same, `rows` high, with numbers at the left and a line at `limit` (0: none).
  std::vector<std::string> Graph(const std::vector<double>& values, double low, double top, double limit, int width,
                                 int rows, const char* code) const;
  // Cells of one width in at most `width` columns, one an expert, or of several the busiest; 0 to 1.
  std::string Heat(const std::vector<float>& experts, int width) const;
  // Cold to hot, as Heat paints them.
  std::string HeatScale() const;

 private:
  std::string HeatCell(int level, int width) const;

  LiveStyle style_;
};

}  // namespace thermoe
