// SPDX-License-Identifier: Apache-2.0
#include "live_view.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "terminal.h"

namespace thermoe {
namespace {

constexpr int kLabel = 10;  // columns of a row's name
constexpr int kSays = 20;   // of a row's numbers
constexpr int kLeastBar = 8, kMostBar = 60, kLeastHistory = 8;
constexpr int kDistinct = 8;                     // " 31 / 64" after a heat strip
constexpr int kLeastText = 5;                    // rows of text that heat strips and graphs leave
constexpr int kLeastGraph = 5, kMostGraph = 12;  // rows of a graph, its title among them
constexpr int kLeastGraphWidth = 30;
constexpr int kPressBar = 10;
constexpr double kKept_frac = 1.01, kOver_frac = 1.03;  // of a limit: green up to here, yellow up to there

const char* LevelColour(double value, double limit) {
  return limit <= 0 || value <= kKept_frac * limit ? kGreen : value <= kOver_frac * limit ? kYellow : kRed;
}

// "  1.59 W of 1.6 W": the value ends in the same column of every row.
std::string Reading(double value, int decimals, const char* unit, double limit) {
  const std::string of = limit > 0 ? fmt::format(" of {:g} {}", limit, unit) : "";
  return fmt::format("{:>7} {}{}", fmt::format("{:.{}f}", value, decimals), unit, of);
}

double Highest(const std::vector<double>& values) {
  return values.empty() ? 0 : *std::max_element(values.begin(), values.end());
}

// A step of 1, 2 or 5 times a power of ten above `value`: scales that seldom move.
double RoundUp(double value) {
  if (!(value > 0)) return 1;
  const double power = std::pow(10, std::floor(std::log10(value)));
  for (const double factor : {1.0, 1.5, 2.0, 3.0, 5.0, 7.0}) {
    if (value <= factor * power) return factor * power;
  }
  return 10 * power;
}

class View {
 public:
  View(const LiveFrame& frame, int width, LiveStyle style) : frame_(frame), width_(width), paint_(style) {}

  std::vector<std::string> Render(int height) {
    // Graphs hold the histories where there is room for them.
    history_ = true;
    std::vector<std::string> lines = Head();
    const int layers = static_cast<int>(frame_.experts.size());
    const int spare = height - static_cast<int>(lines.size()) - (layers > 0 ? layers + 1 : 0) - kLeastText - 1;
    std::vector<std::string> graphs;
    if (spare >= kLeastGraph) graphs = Graphs(std::min(kMostGraph, spare));
    if (!graphs.empty()) {
      history_ = false;
      lines = Head();
    }
    for (std::string& line : graphs) lines.push_back(std::move(line));
    const int strips = std::min(layers, height - static_cast<int>(lines.size()) - kLeastText - 2);
    if (strips > 0) {
      lines.push_back(paint_.Paint("experts in use", kBold) + "  idle " + paint_.HeatScale() + " busy");
      for (std::string& line : Strips(strips)) lines.push_back(std::move(line));
    }
    const int text = height - static_cast<int>(lines.size()) - 1;
    if (text > 0) {
      lines.push_back(paint_.Rule(width_));
      for (std::string& line : LastLines(EscapeControls(frame_.text), width_, text)) lines.push_back(std::move(line));
    }
    lines.resize(static_cast<size_t>(std::max(0, height)));
    for (std::string& line : lines) line = Cut(line, width_);
    return lines;
  }

 private:
  bool narrow() const { return width_ < 70; }
  std::string Label(const char* name) const { return Pad(paint_.Paint(name, kBold), kLabel); }

  // A name, what it says, a bar, and where there is room its history.
  std::string Row(const char* name, const std::string& says, double frac, double mark, const char* code,
                  const std::vector<double>& history, double top) const {
    const int room = width_ - kLabel - kSays - 2;
    const std::string head = Label(name) + Pad(says, kSays) + " ";
    if (room < kLeastBar) return Label(name) + says;
    const bool has_history = history_ && room >= kLeastBar + kLeastHistory + 1;
    const int bar = has_history ? std::min(kMostBar, room / 2) : history_ ? room : std::min(2 * kMostBar, room);
    std::string line = head + paint_.Bar(frac, mark, bar, code);
    if (has_history && !history.empty()) line += " " + paint_.Sparkline(history, top, room - bar - 1, kCyan);
    return line;
  }

  std::string Title() const {
    const TelemetryInfo& telemetry = frame_.telemetry;
    std::string left = " thermoe";
    if (telemetry.simulated || telemetry.replayed) left += telemetry.simulated ? "  SIMULATED" : "  REPLAYED";
    if (telemetry.name != "none") left += "  " + EscapeControls(telemetry.name);
    left += "  " + EscapeControls(frame_.model);
    const std::string right =
        fmt::format(" {}{} ", frame_.keys && !narrow() ? "q stops  " : "", DurationText(frame_.run_s));
    const int gap = std::max(0, width_ - ColumnsOf(right));
    return paint_.Reverse(Pad(left, gap) + right);
  }

  // Everything above the graphs.
  std::vector<std::string> Head() const {
    const ControlView& c = frame_.control;
    std::vector<std::string> lines = {Title()};
    if (!frame_.title.empty()) lines.push_back(" " + paint_.Paint(EscapeControls(frame_.title), kBold));
    const double top_rate = RoundUp(std::max(Highest(frame_.rate_history), frame_.tokens_per_s));
    lines.push_back(Row("speed", Reading(frame_.tokens_per_s, 1, "tokens/s", 0), frame_.tokens_per_s / top_rate, -1,
                        kGreen, frame_.rate_history, top_rate));
    lines.push_back(Power());
    lines.push_back(Heat());
    if (c.latency_target_ms > 0) {
      lines.push_back(Row("latency", Reading(c.latency_ms, 2, "ms", c.latency_target_ms),
                          c.latency_ms / (1.25 * c.latency_target_ms), 0.8,
                          LevelColour(c.latency_ms, c.latency_target_ms), {}, 0));
    }
    if (c.on)
      lines.push_back(Row("paused", Reading(100 * c.pause_frac, 0, "% of time", 0), c.pause_frac, -1, kYellow, {}, 0));
    lines.push_back(Label("tokens") + Tokens());
    if (c.adapt.on) lines.push_back(Label("adapting") + Adapting());
    if (!c.on) return lines;
    lines.push_back(Label("routing") + Routing());
    const std::string loss = fmt::format("{:+.4f} nats", c.point_loss_nats),
                      bytes = fmt::format("{:.0f} %", 100 * c.point_bytes_frac);
    lines.push_back(Label("costs") + (narrow() ? loss + "; " + bytes + " of bytes"
                                               : loss + " per token; reads " + bytes + " of the plain expert bytes"));
    lines.push_back(Label("pressure") + Pressure());
    return lines;
  }

  std::string Tokens() const {
    const double per_token = frame_.tokens > 0 ? frame_.joules / static_cast<double>(frame_.tokens) : 0;
    if (!(per_token > 0)) return WithCommas(frame_.tokens);
    if (narrow()) return fmt::format("{}; {:.3g} mJ each", WithCommas(frame_.tokens), 1e3 * per_token);
    return fmt::format("{}; {:.3g} mJ each, {:.4g} J in all", WithCommas(frame_.tokens), 1e3 * per_token,
                       frame_.joules);
  }

  std::string Adapting() const {
    const AdaptView& a = frame_.control.adapt;
    std::string says = paint_.Paint(a.choice, kBold) + fmt::format("  ({}; {} of {} segments", a.reason, a.learnt, a.segments);
    if (a.waiting > 0) says += fmt::format(", {} put off", a.waiting);
    if (a.reverted > 0) says += fmt::format(", {} reverted", a.reverted);
    return says + fmt::format("; gains {:.3f} nats, {:.3g} J)", a.gain_nats, a.joules);
  }

  std::string Routing() const {
    const ControlView& c = frame_.control;
    const std::string why = c.safest ? paint_.Paint("sensors fail: safest point", kRed) : c.router + ": " + c.reason;
    return paint_.Paint(c.point_text, kBold) + fmt::format("  (point {} of {}; {})", c.point + 1, c.points, why);
  }

  // The multipliers of the limits that are set.
  std::string Pressure() const {
    const ControlView& c = frame_.control;
    const struct {
      const char* name;
      double limit, lambda;
    } limits[] = {{"power", c.power_limit_w, c.lambda_power},
                  {"heat", c.temp_limit_c, c.lambda_temp},
                  {"latency", c.latency_target_ms, c.lambda_latency}};
    std::string text;
    for (const auto& limit : limits) {
      if (limit.limit <= 0) continue;
      const char* code = limit.lambda < 0.3 ? kGreen : limit.lambda < 0.8 ? kYellow : kRed;
      const std::string bar = width_ >= 80 ? " " + paint_.Bar(limit.lambda, -1, kPressBar, code) : "";
      text += fmt::format("{}{}{} {:.2f}", text.empty() ? "" : "  ", limit.name, bar, limit.lambda);
    }
    return text.empty() ? "no limit is set" : text;
  }

  double TopPower() const {
    const ControlView& c = frame_.control;
    const double most = std::max({1.25 * c.power_limit_w, frame_.power_w, Highest(frame_.power_history), 1e-9});
    return c.device_power_w > 0 && c.device_power_w >= most && c.device_power_w < 2 * most ? c.device_power_w
                                                                                           : RoundUp(most);
  }
  std::string Power() const {
    const ControlView& c = frame_.control;
    if (frame_.power_w <= 0 && c.power_limit_w <= 0) return Label("power") + "no sensor shows it";
    const double top = TopPower(), mark = c.power_limit_w > 0 ? c.power_limit_w / top : -1;
    return Row("power", Reading(frame_.power_w, frame_.power_w < 100 ? 2 : 0, "W", c.power_limit_w),
               frame_.power_w / top, mark, LevelColour(frame_.power_w, c.power_limit_w), frame_.power_history, top);
  }

  double TopTemp() const {
    const ControlView& c = frame_.control;
    return std::max({c.device_temp_c, c.temp_limit_c, c.temp_c, 1e-9});
  }
  std::string Heat() const {
    const ControlView& c = frame_.control;
    if (c.temp_c <= 0) return Label("heat") + "no sensor shows it";
    const double top = TopTemp(), mark = c.temp_limit_c > 0 ? c.temp_limit_c / top : -1;
    return Row("heat", Reading(c.temp_c, 0, "C", c.temp_limit_c), c.temp_c / top, mark,
               LevelColour(c.temp_c, c.temp_limit_c), frame_.temp_history, top);
  }

  // Speed, power and heat over time beside each other, `rows` high.
  std::vector<std::string> Graphs(int rows) const {
    const ControlView& c = frame_.control;
    struct One {
      std::string title;
      const std::vector<double>& values;
      double top, limit;
      const char* code;
    };
    std::vector<One> shown = {
        {"speed, tokens/s", frame_.rate_history, RoundUp(std::max(Highest(frame_.rate_history), 1.0)), 0, kGreen}};
    if (Highest(frame_.power_history) > 0)
      shown.push_back({"power, W", frame_.power_history, TopPower(), c.power_limit_w, kYellow});
    if (Highest(frame_.temp_history) > 0)
      shown.push_back({"heat, C", frame_.temp_history, TopTemp(), c.temp_limit_c, kMagenta});
    const int count = std::min(static_cast<int>(shown.size()), width_ / kLeastGraphWidth);
    if (count < 1) return {};
    const int each = width_ / count;
    std::vector<std::string> lines(static_cast<size_t>(rows));
    for (int i = 0; i < count; ++i) {
      const One& one = shown[static_cast<size_t>(i)];
      const std::vector<std::string> graph =
          paint_.Graph(one.values, 0, one.top, one.limit, each - 2, rows - 1, one.code);
      lines[0] += Pad(std::string(8, ' ') + paint_.Paint(one.title, kBold), each);
      for (size_t row = 0; row < graph.size(); ++row) lines[row + 1] += Pad(graph[row], each);
    }
    return lines;
  }

  // One strip a layer, or of neighbours together where `most` rows do not suffice.
  std::vector<std::string> Strips(int most) const {
    std::vector<std::string> lines;
    const int layers = static_cast<int>(frame_.experts.size());
    const int rows = std::min(layers, most);
    for (int row = 0; row < rows; ++row) {
      const int first = row * layers / rows, end = (row + 1) * layers / rows;
      std::vector<float> joined = frame_.experts[static_cast<size_t>(first)];
      int used = 0;
      for (int layer = first; layer < end; ++layer) {
        const std::vector<float>& of_layer = frame_.experts[static_cast<size_t>(layer)];
        for (size_t e = 0; e < std::min(joined.size(), of_layer.size()); ++e)
          joined[e] = std::max(joined[e], of_layer[e]);
        if (static_cast<size_t>(layer) < frame_.distinct.size())
          used = std::max(used, frame_.distinct[static_cast<size_t>(layer)]);
      }
      const std::string name = end - first > 1 ? fmt::format("L{}-{}", first, end - 1) : fmt::format("layer {}", first);
      const bool counted = width_ >= kLabel + kDistinct + 16;
      const std::string count = counted ? fmt::format("{:>4} of {}", used, joined.size()) : "";
      lines.push_back(Pad(name, kLabel - 2) +
                      paint_.Heat(joined, std::max(1, width_ - (kLabel - 2) - ColumnsOf(count))) + count);
    }
    return lines;
  }

  const LiveFrame& frame_;
  int width_;
  Painter paint_;
  bool history_ = true;  // in the rows
};

}  // namespace

std::vector<std::string> RenderLive(const LiveFrame& frame, int width, int height, LiveStyle style) {
  return View(frame, std::max(1, width), style).Render(height);
}

std::string LiveLogLine(const LiveFrame& frame) {
  const ControlView& c = frame.control;
  std::string line = fmt::format("{:6.1f} s {:8.1f} tokens/s", frame.run_s, frame.tokens_per_s);
  if (frame.power_w > 0) line += fmt::format("  {:.2f} W", frame.power_w);
  if (c.power_limit_w > 0) line += fmt::format(" of {:g} W", c.power_limit_w);
  if (c.temp_c > 0) line += fmt::format("  {:.0f} C", c.temp_c);
  if (c.temp_limit_c > 0) line += fmt::format(" of {:g} C", c.temp_limit_c);
  if (c.latency_target_ms > 0) line += fmt::format("  {:.2f} ms of {:g} ms", c.latency_ms, c.latency_target_ms);
  if (c.on) {
    line += fmt::format("  paused {:.0f} %  routing {} ({})", 100 * c.pause_frac, c.point_text,
                        c.safest ? "safest" : c.reason);
  }
  if (c.adapt.on) line += fmt::format("  adapting {} (gain {:.3f} nats, {} put off, {} reverted)", c.adapt.choice, c.adapt.gain_nats, c.adapt.waiting, c.adapt.reverted);
  if (frame.telemetry.simulated) line += "  simulated";
  return line;
}

}  // namespace thermoe
