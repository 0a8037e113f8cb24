// SPDX-License-Identifier: Apache-2.0
#include "live_paint.h"

#include <fmt/format.h>
#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cmath>

namespace thermoe {
namespace {

constexpr int kEighths = 8, kHottest = 8;
constexpr const char* kRising[] = {" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
constexpr const char* kGrowing[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉", "█"};
constexpr const char* kAsciiHeat[] = {" ", ".", ":", "-", "=", "+", "*", "#", "@"};
// Background colours of the 256, from cold to hot.
constexpr std::array<int, kHottest + 1> kHeat = {235, 17, 18, 54, 90, 126, 161, 202, 220};
constexpr int kAxis = 7;  // columns of a graph's numbers

// One character's bytes and columns; what is not UTF-8 is one byte of one column.
std::pair<size_t, int> NextCharacter(std::string_view text) {
  utf8proc_int32_t code = -1;
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
  const utf8proc_ssize_t got = utf8proc_iterate(bytes, static_cast<utf8proc_ssize_t>(text.size()), &code);
  if (got <= 0) return {1, 1};
  return {static_cast<size_t>(got), std::max(0, utf8proc_charwidth(code))};
}

// Bytes of the escape sequence that `text` begins with; 0: it begins with a character.
size_t EscapeLength(std::string_view text) {
  return text.front() == '\x1b' ? std::min(text.find('m'), text.size() - 1) + 1 : 0;
}

int Level(double frac, int levels) {
  return std::isnan(frac) ? 0 : static_cast<int>(std::lround(std::clamp(frac, 0.0, 1.0) * levels));
}

}  // namespace

int ColumnsOf(std::string_view text) {
  int columns = 0;
  while (!text.empty()) {
    if (const size_t escape = EscapeLength(text); escape > 0) {
      text.remove_prefix(escape);
      continue;
    }
    const auto [bytes, wide] = NextCharacter(text);
    columns += wide;
    text.remove_prefix(bytes);
  }
  return columns;
}

std::string Cut(std::string_view text, int width) {
  std::string out;
  int columns = 0;
  while (!text.empty()) {
    if (const size_t escape = EscapeLength(text); escape > 0) {
      out += text.substr(0, escape);
      text.remove_prefix(escape);
      continue;
    }
    const auto [bytes, wide] = NextCharacter(text);
    columns += wide;
    if (columns <= width) out += text.substr(0, bytes);
    text.remove_prefix(bytes);
  }
  return out;
}

std::string Pad(std::string_view text, int width) {
  std::string out = Cut(text, width);
  out.append(static_cast<size_t>(std::max(0, width - ColumnsOf(out))), ' ');
  return out;
}

std::vector<std::string> LastLines(std::string_view text, int width, int count) {
  std::vector<std::string> lines(1);
  int columns = 0;
  size_t word = 0;  // where the last word of the line begins
  while (!text.empty()) {
    const auto [bytes, wide] = NextCharacter(text);
    const std::string_view character = text.substr(0, bytes);
    text.remove_prefix(bytes);
    if (character == "\n") {
      lines.emplace_back();
      columns = 0;
      word = 0;
      continue;
    }
    if (columns + wide > width) {
      std::string moved = word > 0 && character != " " ? lines.back().substr(word) : "";
      lines.back().resize(lines.back().size() - moved.size());
      lines.push_back(std::move(moved));
      columns = ColumnsOf(lines.back());
      word = 0;
      if (character == " ") continue;
    }
    lines.back() += character == "\t" ? " " : character;
    columns += character == "\t" ? 1 : wide;
    if (character == " " || character == "\t") word = lines.back().size();
  }
  if (static_cast<int>(lines.size()) > count) lines.erase(lines.begin(), lines.end() - std::max(0, count));
  return lines;
}

std::string Painter::Paint(std::string_view text, const char* code) const {
  return style_.colour && !text.empty() ? fmt::format("\x1b[{}m{}\x1b[0m", code, text) : std::string(text);
}

std::string Painter::Reverse(const std::string& text) const {
  return style_.colour ? "\x1b[7m" + text + "\x1b[0m" : text;
}

std::string Painter::Rule(int width) const {
  std::string rule;
  for (int i = 0; i < width; ++i) rule += style_.unicode ? "─" : "-";
  return Paint(rule, kDim);
}

std::string Painter::Bar(double frac, double mark, int width, const char* code) const {
  const int inner = width - 2;
  if (inner < 1) return "";
  const int eighths = style_.unicode ? kEighths : 1;
  const int filled = Level(frac, inner * eighths);
  const int at =
      mark < 0 || std::isnan(mark) ? -1 : std::clamp(static_cast<int>(std::lround(mark * inner)), 0, inner - 1);
  std::string body, run;
  const auto flush = [&] { body += Paint(run, code), run.clear(); };
  for (int i = 0; i < inner; ++i) {
    const int part = std::clamp(filled - i * eighths, 0, eighths);
    if (i == at) {
      flush();
      body += Paint(style_.unicode ? "│" : "|", kBold);
    } else if (part > 0) {
      run += style_.unicode ? kGrowing[part] : "#";
    } else {
      flush();
      body += " ";
    }
  }
  flush();
  return Paint("[", kDim) + body + Paint("]", kDim);
}

std::string Painter::Sparkline(const std::vector<double>& values, double top, int width, const char* code) const {
  if (width <= 0) return "";
  const size_t count = std::min(values.size(), static_cast<size_t>(width));
  std::string out;
  for (size_t i = values.size() - count; i < values.size(); ++i) {
    const int level = top > 0 ? Level(values[i] / top, kEighths) : 0;
    out += style_.unicode ? kRising[level] : kAsciiHeat[level];
  }
  return std::string(static_cast<size_t>(width) - count, ' ') + Paint(out, code);
}

std::vector<std::string> Painter::Graph(const std::vector<double>& values, double low, double top, double limit,
                                        int width, int rows, const char* code) const {
  const int columns = width - kAxis - 1;
  std::vector<std::string> lines;
  if (columns < 1 || rows < 2 || !(top > low)) return lines;
  const int limit_row =
      limit > low && limit <= top ? Level((limit - low) / (top - low), rows * kEighths - 1) / kEighths : -1;
  const size_t count = std::min(values.size(), static_cast<size_t>(columns));
  const size_t empty = static_cast<size_t>(columns) - count;
  for (int row = rows - 1; row >= 0; --row) {
    const bool labelled = row == rows - 1 || row == 0 || row == limit_row;
    const double number = row == rows - 1 ? top : row == 0 ? low : limit;
    std::string line = Paint(fmt::format("{:>{}} ", labelled ? fmt::format("{:.4g}", number) : "", kAxis - 1), kDim) +
                       Paint(style_.unicode ? "│" : "|", kDim);
    const std::string over = row == limit_row ? (style_.unicode ? "╌" : "-") : " ";
    for (size_t column = 0; column < static_cast<size_t>(columns); ++column) {
      const double value = column < empty ? low : values[values.size() - count + (column - empty)];
      const int part = std::clamp(Level((value - low) / (top - low), rows * kEighths) - row * kEighths, 0, kEighths);
      const bool shown = style_.unicode ? part > 0 : 2 * part >= kEighths;
      line += shown ? Paint(style_.unicode ? kRising[part] : "#", code) : over;
    }
    lines.push_back(std::move(line));
  }
  return lines;
}

std::string Painter::HeatCell(int level, int width) const {
  if (style_.colour)
    return fmt::format("\x1b[48;5;{}m{}\x1b[0m", kHeat[static_cast<size_t>(level)],
                       std::string(static_cast<size_t>(width), ' '));
  std::string out;
  for (int i = 0; i < width; ++i) out += style_.unicode ? kRising[level] : kAsciiHeat[level];
  return out;
}

std::string Painter::Heat(const std::vector<float>& experts, int width) const {
  const int count = static_cast<int>(experts.size());
  if (count == 0 || width < 1) return "";
  const int wide = std::max(1, width / count), cells = std::min(count, width);
  std::string out;
  for (int cell = 0; cell < cells; ++cell) {
    float value = 0;  // of experts that share a cell the busiest
    for (int e = cell * count / cells; e < (cell + 1) * count / cells; ++e)
      value = std::max(value, experts[static_cast<size_t>(e)]);
    out += HeatCell(value > 0 ? std::clamp(1 + static_cast<int>(value * 7.99f), 1, kHottest) : 0, wide);
  }
  return out;
}

std::string Painter::HeatScale() const {
  std::string out;
  for (int level = 0; level <= kHottest; ++level) out += HeatCell(level, 1);
  return out;
}

}  // namespace thermoe
