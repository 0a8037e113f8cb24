// SPDX-License-Identifier: Apache-2.0
#include "report_measure.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "terminal.h"

namespace thermoe {
namespace {

constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();
constexpr double kWindow_s = 1;       // over which caps are kept
constexpr double kSettle_s = 1;       // after a new cap
constexpr double kLeastPart = 0.005;  // of the time: rarer points are not listed

// Highest 1 s mean over the cap in force, of windows that lie in one cap's time.
double WorstOverCap(const RunLog& log, const TimeSeries& mean) {
  double worst = kUnknown, cap_w = 0, set_s = 0;
  size_t tick = 0;
  for (const TimeValue& value : mean) {
    while (tick < log.ticks.size() && log.ticks[tick].from_s < value.to_s) {
      if (log.ticks[tick].limits.power_w != cap_w)
        cap_w = log.ticks[tick].limits.power_w, set_s = log.ticks[tick].from_s;
      ++tick;
    }
    if (!(cap_w > 0) || std::isnan(value.value) || value.to_s < set_s + kSettle_s + kWindow_s) continue;
    const double over = value.value / cap_w - 1;
    if (std::isnan(worst) || over > worst) worst = over;
  }
  return worst;
}

Json Known(double value) { return std::isnan(value) ? Json() : Json(value); }

}  // namespace

TimeSeries PowerSeries(const RunLog& log) {
  TimeSeries series;
  if (!log.energy.empty()) {
    for (const EnergySpan& span : log.energy) {
      if (!series.empty() && span.from_s > series.back().to_s)
        series.push_back({series.back().to_s, span.from_s, kUnknown});
      series.push_back({span.from_s, span.to_s, span.joules / (span.to_s - span.from_s)});
    }
    return series;
  }
  return ZeroUnknown(TickSeries(log, &RunTick::power_w));
}

TimeSeries TickSeries(const RunLog& log, double RunTick::*value, double scale) {
  TimeSeries series;
  for (const RunTick& tick : log.ticks) series.push_back({tick.from_s, tick.to_s, scale * (tick.*value)});
  return series;
}

TimeSeries RateSeries(const RunLog& log) {
  TimeSeries series;
  for (const RunTick& tick : log.ticks) {
    series.push_back({tick.from_s, tick.to_s, static_cast<double>(tick.decoded) / (tick.to_s - tick.from_s)});
  }
  return series;
}

TimeSeries LimitSeries(const RunLog& log, double RunLimits::*limit) {
  TimeSeries series;
  for (const RunTick& tick : log.ticks) series.push_back({tick.from_s, tick.to_s, tick.limits.*limit});
  return series;
}

TimeSeries TrailingMean(const TimeSeries& series, double window_s) {
  TimeSeries means;
  size_t first = 0;
  double sum = 0, known_s = 0;  // of whole spans from `first` on
  const auto add = [&](const TimeValue& span, double sign) {
    if (std::isnan(span.value)) return;
    sum += sign * span.value * (span.to_s - span.from_s);
    known_s += sign * (span.to_s - span.from_s);
  };
  for (const TimeValue& span : series) {
    add(span, 1);
    while (series[first].to_s <= span.to_s - window_s) add(series[first++], -1);
    // The part of the first span that lies before the window.
    double before_s = std::max(0.0, span.to_s - window_s - series[first].from_s), outside = 0;
    if (std::isnan(series[first].value)) before_s = 0;
    if (before_s > 0) outside = before_s * series[first].value;
    const double seconds = known_s - before_s;
    const bool known = !std::isnan(span.value) && seconds > 1e-9;
    means.push_back({span.from_s, span.to_s, known ? std::max(0.0, (sum - outside) / seconds) : kUnknown});
  }
  return means;
}

TimeSeries ZeroUnknown(TimeSeries series) {
  for (TimeValue& value : series) {
    if (value.value == 0) value.value = kUnknown;
  }
  return series;
}

RunSummary Summarise(const RunLog& log) {
  RunSummary s;
  s.seconds = log.end_s() - log.begin_s();
  s.point_frac.assign(log.points.size(), 0);
  double loss = 0, paused_s = 0;
  int64_t decode_steps = 0, late = 0;
  bool target = false;
  const RunTick* before = nullptr;
  for (const RunTick& tick : log.ticks) {
    const double seconds = tick.to_s - tick.from_s;
    s.steps += tick.steps, s.decoded += tick.decoded, s.prefilled += tick.prefilled;
    loss += tick.loss_nats * static_cast<double>(tick.decoded);
    paused_s += tick.pause_frac * seconds;
    if (tick.safest) s.safest_s += seconds;
    s.point_frac[tick.point] += seconds / s.seconds;
    if (tick.temp_c != 0 && !(tick.temp_c <= s.most_temp_c)) s.most_temp_c = tick.temp_c;
    if (tick.limits.latency_ms > 0) target = true, decode_steps += tick.decode_steps, late += tick.late;
    if (before != nullptr && before->point != tick.point) ++s.point_changes;
    before = &tick;
  }
  s.tokens_per_s = static_cast<double>(s.decoded) / s.seconds;
  s.pause_frac = paused_s / s.seconds;
  if (s.decoded > 0) s.loss_nats = loss / static_cast<double>(s.decoded);
  if (target && decode_steps > 0) s.late_frac = static_cast<double>(late) / static_cast<double>(decode_steps);
  const TimeSeries power = PowerSeries(log);
  double known_s = 0, joules = 0;
  for (const TimeValue& span : power) {
    if (std::isnan(span.value)) continue;
    known_s += span.to_s - span.from_s;
    joules += span.value * (span.to_s - span.from_s);
  }
  if (known_s > 0) {
    s.mean_w = joules / known_s;
    s.joules = s.mean_w * s.seconds;
    if (s.decoded > 0) s.joules_per_token = s.joules / static_cast<double>(s.decoded);
    s.worst_over_cap_frac = WorstOverCap(log, TrailingMean(power, kWindow_s));
  }
  return s;
}

Json SummaryJson(const RunLog& log, const RunSummary& s) {
  const RunTick& last = log.ticks.back();
  const auto limit = [](double value) { return value > 0 ? Json(value) : Json(); };
  const auto name = [](const std::string& text) { return text.empty() ? Json() : Json(text); };
  Json json;
  json["model_name"] = name(log.model);
  json["telemetry"] = name(log.telemetry);
  json["simulated"] = log.simulated;
  json["replayed"] = log.replayed;
  json["router"] = name(log.router);
  json["cut"] = log.cut;
  json["seconds"] = s.seconds;
  json["ticks"] = log.ticks.size();
  json["steps"] = s.steps;
  json["decoded_tokens"] = s.decoded;
  json["prefilled_tokens"] = s.prefilled;
  json["tokens_per_s"] = s.tokens_per_s;
  json["joules_per_token"] = Known(s.joules_per_token);
  json["mean_w"] = Known(s.mean_w);
  json["power_limit_w"] = limit(last.limits.power_w);
  json["worst_1s_frac"] = Known(s.worst_over_cap_frac);
  json["most_temp_c"] = Known(s.most_temp_c);
  json["temp_limit_c"] = limit(last.limits.temp_c);
  json["latency_target_ms"] = limit(last.limits.latency_ms);
  json["over_latency_frac"] = Known(s.late_frac);
  json["loss_nats"] = s.loss_nats;
  json["pause_frac"] = s.pause_frac;
  json["safest_s"] = s.safest_s;
  json["point_changes"] = s.point_changes;
  const RunLog::Adaptation& a = log.adaptation;
  json["adaptation"] = a.segments == 0 ? Json() : Json{{"segments", a.segments}, {"learnt", a.learnt}, {"deferred", a.deferred}, {"guards", a.guards}};
  json["points"] = Json::array();
  for (size_t i = 0; i < log.points.size(); ++i) {
    if (s.point_frac[i] > 0) json["points"].push_back({{"point", log.point_texts[i]}, {"time_frac", s.point_frac[i]}});
  }
  return json;
}

std::vector<std::pair<std::string, std::string>> SummaryRows(const RunLog& log, const RunSummary& s) {
  const RunLimits& limits = log.ticks.back().limits;
  std::vector<std::pair<std::string, std::string>> rows;
  rows.emplace_back("time", fmt::format("{:.1f} s, {} steps{}", s.seconds, WithCommas(s.steps),
                                        log.cut ? "; the log's last line has no end" : ""));
  rows.emplace_back("speed", fmt::format("{:.1f} tokens/s: {} decoded, {} of prompts", s.tokens_per_s,
                                         WithCommas(s.decoded), WithCommas(s.prefilled)));
  if (!std::isnan(s.mean_w)) {
    std::string text = fmt::format("{:.4g} W mean", s.mean_w);
    if (limits.power_w > 0) text += fmt::format(", limit {:g} W", limits.power_w);
    if (!std::isnan(s.worst_over_cap_frac))
      text += fmt::format(", worst second {:+.1f} % of it", 100 * s.worst_over_cap_frac);
    rows.emplace_back("power", text);
  }
  if (!std::isnan(s.joules_per_token))
    rows.emplace_back("energy", fmt::format("{:.3g} mJ per decoded token", 1e3 * s.joules_per_token));
  if (!std::isnan(s.most_temp_c)) {
    rows.emplace_back("heat", fmt::format("{:.0f} C at most{}", s.most_temp_c,
                                          limits.temp_c > 0 ? fmt::format(", limit {:g} C", limits.temp_c) : ""));
  }
  if (!std::isnan(s.late_frac)) {
    rows.emplace_back("latency",
                      fmt::format("{:.2f} % of decode steps over {:g} ms", 100 * s.late_frac, limits.latency_ms));
  }
  rows.emplace_back("quality", fmt::format("{:.4f} nats lost per token, by the points' calibration", s.loss_nats));
  rows.emplace_back("paused", fmt::format("{:.0f} % of the time", 100 * s.pause_frac));
  if (s.safest_s > 0) rows.emplace_back("sensors", fmt::format("failed for {:.1f} s", s.safest_s));
  if (const RunLog::Adaptation& a = log.adaptation; a.segments > 0) {
    rows.emplace_back("adapting", fmt::format("learnt from {} of {} segments, {} put off; {} guard passes", WithCommas(a.learnt),
                                              WithCommas(a.segments), WithCommas(a.deferred), WithCommas(a.guards)));
  }
  std::vector<std::pair<double, size_t>> order;
  for (size_t i = 0; i < s.point_frac.size(); ++i) {
    if (s.point_frac[i] >= kLeastPart) order.emplace_back(-s.point_frac[i], i);
  }
  std::sort(order.begin(), order.end());
  std::vector<std::string> parts;
  for (const auto& [frac, i] : order) parts.push_back(fmt::format("{} {:.0f} %", log.point_texts[i], -100 * frac));
  rows.emplace_back("routing", Join(parts, "; ") + fmt::format("; {} changes", WithCommas(s.point_changes)));
  return rows;
}

std::string RunTitle(const RunLog& log) {
  std::vector<std::string> parts;
  if (!log.model.empty()) parts.push_back(log.model);
  if (!log.router.empty()) parts.push_back(log.router + " router");
  if (!log.telemetry.empty())
    parts.push_back(log.telemetry + (log.simulated  ? " (simulated)"
                                     : log.replayed ? " (replayed: of other work)"
                                                    : ""));
  return parts.empty() ? "a run" : Join(parts, ", ");
}

}  // namespace thermoe
