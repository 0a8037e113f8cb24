// SPDX-License-Identifier: Apache-2.0
#include "live_view.h"

#include <fmt/format.h>
#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "terminal.h"

namespace thermoe {
namespace {

constexpr const char* kBlocks[] = {" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
constexpr const char* kAsciiHeat[] = {" ", ".", ":", "-", "=", "+", "*", "#", "@"};
// Background colours of the 256, from cold to hot.
constexpr std::array<int, 9> kHeat = {234, 17, 18, 54, 90, 126, 161, 202, 220};
constexpr const char *kGreen = "32", *kYellow = "33", *kRed = "31", *kBold = "1", *kDim = "2";
constexpr int kLabel = 9;         // columns of a row's name
constexpr int kWide = 120;        // from here on rows carry their history
constexpr int kLeastText = 4;     // rows of text that heat strips leave
constexpr double kNear_frac = 0.97;  // of a limit: yellow; above it red

// One character's bytes and columns; what is not UTF-8 is one byte of one column.
std::pair<size_t, int> NextCharacter(std::string_view text) {
  utf8proc_int32_t code = -1;
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
  const utf8proc_ssize_t got = utf8proc_iterate(bytes, static_cast<utf8proc_ssize_t>(text.size()), &code);
  if (got <= 0) return {1, 1};
  return {static_cast<size_t>(got), std::max(0, utf8proc_charwidth(code))};
}

std::string Cut(std::string_view text, int width) {
  std::string out;
  int columns = 0;
  while (!text.empty()) {
    if (text.front() == '\x1b') {
      const size_t end = std::min(text.find('m'), text.size() - 1);
      out += text.substr(0, end + 1);
      text.remove_prefix(end + 1);
      continue;
    }
    const auto [bytes, wide] = NextCharacter(text);
    if (columns + wide <= width) out += text.substr(0, bytes);
    columns += wide;
    text.remove_prefix(bytes);
  }
  return out;
}

std::string Pad(std::string text, int width) {
  text = Cut(text, width);
  text.append(static_cast<size_t>(std::max(0, width - ColumnsOf(text))), ' ');
  return text;
}

class Painter {
 public:
  Painter(const LiveFrame& frame, int width, LiveStyle style) : frame_(frame), width_(width), style_(style) {}

  std::string Paint(std::string_view text, const char* code) const {
    return style_.colour ? fmt::format("\x1b[{}m{}\x1b[0m", code, text) : std::string(text);
  }

  // "[####--|   ]": `frac` filled, a mark at `mark` (below 0: none).
  std::string Bar(double frac, double mark, int width, const char* code) const {
    const int inner = std::max(1, width - 2);
    const int filled = static_cast<int>(std::lround(std::clamp(frac, 0.0, 1.0) * inner));
    const int at = mark < 0 ? -1 : std::clamp(static_cast<int>(std::lround(mark * inner)), 0, inner - 1);
    std::string body, run;
    for (int i = 0; i < inner; ++i) {
      if (i == at) {
        body += Paint(run, code) + Paint("|", kBold);
        run.clear();
      } else if (i < filled) {
        run += style_.unicode ? "█" : "#";
      } else {
        body += Paint(run, code) + " ";
        run.clear();
      }
    }
    return "[" + body + Paint(run, code) + "]";
  }

  std::string History(const std::vector<double>& values, double top, int width) const {
    std::string out;
    const size_t count = std::min(values.size(), static_cast<size_t>(std::max(0, width)));
    for (size_t i = values.size() - count; i < values.size(); ++i) {
      const int level = top > 0 ? std::clamp(static_cast<int>(std::lround(values[i] / top * 8)), 0, 8) : 0;
      out += style_.unicode ? kBlocks[level] : kAsciiHeat[level];
    }
    return Paint(out, kDim);
  }

  // A name, a bar, what it says, and where there is room its history.
  std::string Row(const char* name, const std::string& bar, const std::string& says, const std::vector<double>& history, double top) const {
    std::string line = Pad(Paint(name, kBold), kLabel) + bar + " " + says;
    if (width_ < kWide || history.empty()) return line;
    const int left = width_ / 2 + 10;
    return Pad(line, left) + " " + History(history, top, width_ - left - 2);
  }

  int bar_width() const { return std::clamp(width_ - kLabel - 42, 10, 40); }

  std::string Heat(const std::vector<float>& experts, int width) const {
    const int count = static_cast<int>(experts.size());
    const int cells = std::min(count, width);
    std::string out;
    for (int cell = 0; cell < cells; ++cell) {
      float value = 0;  // of experts that share a cell the busiest
      for (int e = cell * count / cells; e < (cell + 1) * count / cells; ++e) value = std::max(value, experts[static_cast<size_t>(e)]);
      const int level = value <= 0 ? 0 : std::clamp(1 + static_cast<int>(value * 7.99f), 1, 8);
      if (style_.colour) {
        out += fmt::format("\x1b[48;5;{}m \x1b[0m", kHeat[static_cast<size_t>(level)]);
      } else {
        out += style_.unicode ? kBlocks[level] : kAsciiHeat[level];
      }
    }
    return out;
  }

  const char* LevelColour(double value, double limit) const {
    return limit <= 0 || value <= kNear_frac * limit ? kGreen : value <= 1.02 * limit ? kYellow : kRed;
  }

  // Everything above the heat strips.
  std::vector<std::string> Head() const {
    const ControlView& c = frame_.control;
    std::vector<std::string> lines;
    const std::string left = " thermoe  " + EscapeControls(frame_.model) + "  " + EscapeControls(frame_.telemetry.name) +
                             (frame_.telemetry.simulated ? "  SIMULATED" : frame_.telemetry.replayed ? "  REPLAYED" : "");
    const std::string right = DurationText(frame_.run_s) + " ";
    const int gap = width_ - static_cast<int>(right.size());
    lines.push_back(style_.colour ? "\x1b[7m" + Pad(left, gap) + right + "\x1b[0m" : Pad(left, gap) + right);
    double top_rate = 1;
    for (const double rate : frame_.rate_history) top_rate = std::max(top_rate, rate);
    const int bar = bar_width();
    std::string rate = fmt::format("{:.1f} tokens/s, {} in all", frame_.tokens_per_s, WithCommas(frame_.tokens));
    lines.push_back(Row("speed", Bar(frame_.tokens_per_s / top_rate, -1, bar, kGreen), rate, frame_.rate_history, top_rate));
    lines.push_back(Power(bar));
    lines.push_back(Temp(bar));
    if (c.latency_target_ms > 0) {
      lines.push_back(Row("latency", Bar(c.latency_ms / (1.25 * c.latency_target_ms), 0.8, bar, LevelColour(c.latency_ms, c.latency_target_ms)),
                          fmt::format("{:.2f} ms of {:g} ms", c.latency_ms, c.latency_target_ms), {}, 0));
    }
    if (!c.on) return lines;
    lines.push_back(Row("paused", Bar(c.pause_frac, -1, bar, kYellow), fmt::format("{:.0f} % of the last second", 100 * c.pause_frac), {}, 0));
    lines.push_back(Pad(Paint("routing", kBold), kLabel) +
                    fmt::format("{} ({} of {}): {:.0f} % of the bytes, {:+.4f} nats", c.point_text, c.point + 1, c.points, 100 * c.point_bytes_frac,
                                c.point_loss_nats));
    lines.push_back(Pad(Paint("presses", kBold), kLabel) +
                    fmt::format("power {:.3f}, temperature {:.3f}, latency {:.3f}; {}", c.lambda_power, c.lambda_temp, c.lambda_latency,
                                c.safest ? Paint("sensors fail: safest", kRed) : c.router + " router: " + c.reason));
    return lines;
  }

  std::string Power(int bar) const {
    const ControlView& c = frame_.control;
    if (c.power_w <= 0 && c.power_limit_w <= 0) return Pad(Paint("power", kBold), kLabel) + "no sensor shows it";
    const double top = std::max({c.device_power_w, 1.25 * c.power_limit_w, c.power_w, 1e-9});
    std::string says = fmt::format("{:.{}f} W", c.power_w, c.power_w < 100 ? 2 : 0);
    if (c.power_limit_w > 0) says += fmt::format(" of {:g} W", c.power_limit_w);
    if (frame_.joules_per_token > 0) says += fmt::format(", {:.3g} mJ/token", 1e3 * frame_.joules_per_token);
    const double mark = c.power_limit_w > 0 ? c.power_limit_w / top : -1;
    return Row("power", Bar(c.power_w / top, mark, bar, LevelColour(c.power_w, c.power_limit_w)), says, frame_.power_history, top);
  }

  std::string Temp(int bar) const {
    const ControlView& c = frame_.control;
    if (c.temp_c <= 0) return Pad(Paint("heat", kBold), kLabel) + "no sensor shows it";
    const double top = std::max({c.device_temp_c, c.temp_limit_c, c.temp_c, 1e-9});
    std::string says = fmt::format("{:.0f} C", c.temp_c);
    if (c.temp_limit_c > 0) says += fmt::format(" of {:g} C", c.temp_limit_c);
    const double mark = c.temp_limit_c > 0 ? c.temp_limit_c / top : -1;
    return Row("heat", Bar(c.temp_c / top, mark, bar, LevelColour(c.temp_c, c.temp_limit_c)), says, frame_.temp_history, top);
  }

  // One strip a layer, or of neighbours together where `most` rows do not suffice.
  std::vector<std::string> Strips(int most) const {
    std::vector<std::string> lines;
    const int layers = static_cast<int>(frame_.experts.size());
    const int rows = std::min(layers, most);
    for (int row = 0; row < rows; ++row) {
      const int first = row * layers / rows, end = (row + 1) * layers / rows;
      std::vector<float> joined = frame_.experts[static_cast<size_t>(first)];
      for (int layer = first + 1; layer < end; ++layer) {
        for (size_t e = 0; e < joined.size(); ++e) joined[e] = std::max(joined[e], frame_.experts[static_cast<size_t>(layer)][e]);
      }
      const std::string name = end - first > 1 ? fmt::format("L{}-{}", first, end - 1) : fmt::format("layer {}", first);
      lines.push_back(Pad(name, kLabel) + Heat(joined, width_ - kLabel - 1));
    }
    return lines;
  }

 private:
  const LiveFrame& frame_;
  int width_;
  LiveStyle style_;
};

}  // namespace

int ColumnsOf(std::string_view text) {
  int columns = 0;
  while (!text.empty()) {
    if (text.front() == '\x1b') {
      text.remove_prefix(std::min(text.find('m'), text.size() - 1) + 1);
      continue;
    }
    const auto [bytes, wide] = NextCharacter(text);
    columns += wide;
    text.remove_prefix(bytes);
  }
  return columns;
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

std::vector<std::string> RenderLive(const LiveFrame& frame, int width, int height, LiveStyle style) {
  const Painter painter(frame, width, style);
  std::vector<std::string> lines = painter.Head();
  const int left = height - static_cast<int>(lines.size());
  const int strips = std::min(static_cast<int>(frame.experts.size()), left - kLeastText - 2);
  if (strips > 0) {
    lines.push_back(painter.Paint("experts in use", kBold));
    for (std::string& line : painter.Strips(strips)) lines.push_back(std::move(line));
  }
  const int text = height - static_cast<int>(lines.size()) - 1;
  if (text > 0) {
    std::string rule;
    for (int i = 0; i < width; ++i) rule += style.unicode ? "─" : "-";
    lines.push_back(painter.Paint(rule, kDim));
    for (std::string& line : LastLines(EscapeControls(frame.text), width, text)) lines.push_back(std::move(line));
  }
  lines.resize(static_cast<size_t>(std::max(0, height)));
  for (std::string& line : lines) line = Cut(line, width);
  return lines;
}

std::string LiveLogLine(const LiveFrame& frame) {
  const ControlView& c = frame.control;
  std::string line = fmt::format("{:6.1f} s {:8.1f} tokens/s", frame.run_s, frame.tokens_per_s);
  if (c.power_w > 0) line += fmt::format("  {:.2f} W", c.power_w);
  if (c.power_limit_w > 0) line += fmt::format(" of {:g} W", c.power_limit_w);
  if (c.temp_c > 0) line += fmt::format("  {:.0f} C", c.temp_c);
  if (c.temp_limit_c > 0) line += fmt::format(" of {:g} C", c.temp_limit_c);
  if (c.latency_target_ms > 0) line += fmt::format("  {:.2f} ms of {:g} ms", c.latency_ms, c.latency_target_ms);
  if (c.on) {
    line += fmt::format("  paused {:.0f} %  routing {} ({})", 100 * c.pause_frac, c.point_text, c.safest ? "safest" : c.reason);
  }
  if (frame.telemetry.simulated) line += "  simulated";
  return line;
}

}  // namespace thermoe
