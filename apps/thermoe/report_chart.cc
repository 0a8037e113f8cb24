// SPDX-License-Identifier: Apache-2.0
#include "report_chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>

#include "output.h"
#include "svg.h"

namespace thermoe {
namespace {

constexpr double kTop = 66, kTall = 120, kLow = 76, kGap = 40, kWindow_s = 1;

double Most(const TimeSeries& series) {
  double most = 0;
  for (const TimeValue& value : series) {
    if (value.value > most) most = value.value;
  }
  return most;
}

// Diagrams below each other.
class Chart {
 public:
  explicit Chart(const RunLog& log) : log_(log) {
    panel_.from_s = log.begin_s(), panel_.to_s = log.end_s();
    panel_.top = kTop;
  }

  std::string Svg() {
    body_ = SvgText(panel_.left, 26, "start", RunTitle(log_), "font-size=\"16\"");
    Power();
    Temperature();
    Speed();
    Routing();
    Loss();
    Simple("paused, % of the last second", TickSeries(log_, &RunTick::pause_frac, 100), 100);
    Multipliers();
    Latency();
    Ttha();
    body_ += SvgText((panel_.left + panel_.right) / 2, panel_.top - 2, "middle", "time, s");
    return SvgOpen(panel_.right + 24, panel_.top + 12) + body_ + "</svg>\n";
  }

 private:
  // A diagram up to what `most` fits under, its lines above its grid.
  void Add(const char* title, double height, double most, const std::vector<LegendEntry>& legend,
           const std::function<std::string()>& lines) {
    panel_.height = height;
    panel_.high = NiceTop(panel_.low, most, height < 100 ? 4 : 5);
    body_ += panel_.Frame(title, true) + Legend(legend, panel_.right, panel_.top - 8) + lines();
    panel_.top += height + kGap;
    panel_.low = 0;
  }
  void Simple(const char* title, const TimeSeries& series, double most) {
    Add(title, kLow, most, {}, [&] { return panel_.Line(series, LineColour(0)); });
  }
  // The mean of the last second, and behind it, faint, every value.
  std::string WithMean(const TimeSeries& series) const {
    return panel_.Line(series, LineColour(0), 1, 0.35) +
           panel_.Line(TrailingMean(series, kWindow_s), LineColour(0), 2, 1);
  }

  void Power() {
    const TimeSeries power = PowerSeries(log_), limit = LimitSeries(log_, &RunLimits::power_w);
    const TimeSeries allowed = ZeroUnknown(TickSeries(log_, &RunTick::cap_w));
    // Heat's cap where it binds below the power limit.
    TimeSeries heat = allowed;
    for (size_t i = 0; i < heat.size(); ++i) {
      if (!(limit[i].value <= 0 || heat[i].value < limit[i].value)) heat[i].value = std::nan("");
    }
    // Single readings may lie far outside: a counter seen to move late and then on time.
    const double highest = 1.25 * Most(TrailingMean(power, kWindow_s)), shown = highest > 0 ? highest : 1.0;
    const bool has_heat = Most(heat) > 0;
    std::vector<LegendEntry> legend = {{"mean of 1 s", LineColour(0), false}};
    if (has_heat) legend.push_back({"what heat allows", LineColour(1), false});
    if (Most(limit) > 0) legend.push_back({"limit", kLimitColour, true});
    Add("power, W", kTall, std::max(shown, std::min(1.05 * Most(limit), 4 * shown)), legend,
        [&] { return (has_heat ? panel_.Line(heat, LineColour(1)) : "") + WithMean(power) + panel_.Limit(limit); });
  }

  void Temperature() {
    const TimeSeries temp = ZeroUnknown(TickSeries(log_, &RunTick::temp_c)),
                     limit = LimitSeries(log_, &RunLimits::temp_c);
    double least = Most(temp);
    for (const TimeValue& value : temp) {
      if (value.value < least) least = value.value;
    }
    const double most = std::max({Most(temp) + 0.5, Most(limit) + 0.5, least + 5});
    const double step = NiceStep(most - least, 4);
    panel_.low = least > 0 ? step * std::floor(least / step) : 0;
    panel_.height = kTall;
    std::vector<LegendEntry> legend;
    if (Most(limit) > 0) legend.push_back({"limit", kLimitColour, true});
    Add("die temperature, C", kTall, most, legend,
        [&] { return panel_.Line(temp, LineColour(1), 2, 1) + panel_.Limit(limit); });
  }

  void Speed() {
    const TimeSeries rate = RateSeries(log_);
    Add("decoded tokens per second", kTall, std::max(1.0, Most(TrailingMean(rate, kWindow_s)) * 1.1),
        {{"mean of 1 s", LineColour(0), false}}, [&] { return WithMean(rate); });
  }

  void Routing() {
    std::vector<StripSpan> spans;
    for (const RunTick& tick : log_.ticks) spans.push_back({tick.from_s, tick.to_s, tick.point});
    body_ += SvgText(panel_.left, panel_.top - 8, "start", "operating point", "font-weight=\"bold\"");
    body_ += Strip(panel_, spans, log_.point_texts, LineColour(2), panel_.top);
    panel_.top += 15 + kGap - 8;
  }

  void Loss() {
    const TimeSeries loss = TickSeries(log_, &RunTick::loss_nats);
    const double floor = log_.quality_floor_nats;
    const bool near = floor > 0 && floor <= 2 * Most(loss);
    std::vector<LegendEntry> legend;
    if (near) legend.push_back({"floor", kLimitColour, true});
    Add("loss of the point, nats per token", kLow, 1.05 * std::max({1e-3, Most(loss), near ? floor : 0.0}), legend,
        [&] {
          return panel_.Line(loss, LineColour(2), 1.6, 1) +
                 (near ? panel_.Limit({{panel_.from_s, panel_.to_s, floor}}) : "");
        });
  }

  void Multipliers() {
    const TimeSeries power = TickSeries(log_, &RunTick::lambda_power), temp = TickSeries(log_, &RunTick::lambda_temp),
                     latency = TickSeries(log_, &RunTick::lambda_latency);
    Add("multipliers: how hard a limit presses", kLow, std::max({1.0, Most(power), Most(temp), Most(latency)}),
        {{"power", LineColour(0), false}, {"temperature", LineColour(1), false}, {"latency", LineColour(3), false}},
        [&] {
          return panel_.Line(power, LineColour(0)) + panel_.Line(temp, LineColour(1)) +
                 panel_.Line(latency, LineColour(3));
        });
  }

  void Latency() {
    const TimeSeries target = LimitSeries(log_, &RunLimits::latency_ms),
                     latency = ZeroUnknown(TickSeries(log_, &RunTick::latency_ms));
    if (!(Most(target) > 0)) return;
    Add("latency of decode steps, pauses included, ms", kLow, 1.05 * std::max(Most(target), Most(latency)),
        {{"target", kLimitColour, true}}, [&] { return panel_.Line(latency, LineColour(3)) + panel_.Limit(target); });
  }

  void Ttha() {
    if (log_.ttha_names.empty()) return;
    std::vector<LegendEntry> legend;
    std::vector<TimeSeries> terms(log_.ttha_names.size());
    double most = 0;
    for (size_t i = 0; i < terms.size(); ++i) {
      for (const RunTick& tick : log_.ticks)
        terms[i].push_back({tick.from_s, tick.to_s, i < tick.ttha.size() ? tick.ttha[i] : std::nan("")});
      for (const TimeValue& term : terms[i]) {
        if (!std::isnan(term.value)) most = std::max(most, term.value), panel_.low = std::min(panel_.low, term.value);
      }
      legend.push_back({log_.ttha_names[i], LineColour(i), false});
    }
    if (panel_.low < 0) panel_.low = -NiceTop(0, -panel_.low, 4);
    // Their names need rows of their own.
    body_ += SvgText(panel_.left, panel_.top - 8, "start", "terms of the hardware adapter, weighted",
                     "font-weight=\"bold\"");
    panel_.top += 36;
    const auto half = legend.begin() + static_cast<std::ptrdiff_t>((legend.size() + 1) / 2);
    body_ += Legend({legend.begin(), half}, panel_.right, panel_.top - 26);
    legend.erase(legend.begin(), half);
    Add("", kTall, std::max(most, panel_.low + 1e-6), legend, [&] {
      std::string svg;
      for (size_t i = 0; i < terms.size(); ++i) svg += panel_.Line(terms[i], LineColour(i));
      return svg;
    });
  }

  const RunLog& log_;
  TimePanel panel_;
  std::string body_;
};

}  // namespace

std::string ReportSvg(const RunLog& log) { return Chart(log).Svg(); }

std::string ReportHtml(const RunLog& log, const RunSummary& summary) {
  std::string rows;
  for (const auto& [name, text] : SummaryRows(log, summary))
    rows += fmt::format("<tr><th>{}</th><td>{}</td></tr>\n", name, XmlText(text));
  return fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" "
      "content=\"width=device-width\">\n"
      "<title>{0}</"
      "title>\n<style>\nbody{{font-family:sans-serif;color:#333;background:#fff;max-width:940px;margin:24px "
      "auto;padding:0 16px}}\n"
      "h1{{font-size:20px}}\ntable{{border-collapse:collapse;font-size:14px}}\nth{{text-align:left;font-weight:600;"
      "padding:4px 24px 4px "
      "0;vertical-align:top}}\ntd{{padding:4px 0}}\ntr+tr{{border-top:1px solid "
      "#eee}}\nsvg{{width:100%;height:auto;margin-top:20px}}\n</style>\n"
      "</head>\n<body>\n<h1>{0}</h1>\n<table>\n{1}</table>\n{2}</body>\n</html>\n",
      XmlText(RunTitle(log)), rows, ReportSvg(log));
}

}  // namespace thermoe
