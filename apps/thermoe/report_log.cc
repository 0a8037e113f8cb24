// SPDX-License-Identifier: Apache-2.0
#include "report_log.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "base/errors.h"
#include "control/router/load_mix.h"
#include "json_out.h"

namespace thermoe {
namespace {

constexpr size_t kPoint = 8, kPause = 9, kRow = 12, kState = 12, kEnergy = 15, kRowWithSensors = 16;
constexpr size_t kMostTerms = 8;
constexpr double kMostTime_s = 1e9, kMostCount = 1 << 30, kMostPower_w = 1e6, kMostValue = 1e12;

// One line's reader. The first thing that is wrong stays.
class Reader {
 public:
  Reader(const std::string& source, RunLog* log) : source_(source), log_(*log) {}

  Status Line(std::string_view text) {
    ++line_;
    const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (json.is_discarded() || !json.is_object()) return Bad("it", "a JSON object");
    if (line_ == 1) return Header(json);
    if (json.contains("limits")) return Limits(json["limits"]);
    if (json.contains("adapt_session")) return Status::Ok();
    if (json.contains("adapt")) return Adaptation(json["adapt"]);
    if (!json.contains("steps") || !json["steps"].is_array()) return Bad("steps", "a list");
    for (const Json& row : json["steps"]) THERMOE_RETURN_IF_ERROR(Step(row));
    return json.contains("tick") ? Tick(json) : Status::Ok();
  }

  Status Adaptation(const Json& json) {
    for (const char* key : {"decision", "outcome"}) {
      if (!json.is_object() || !json.contains(key) || !json[key].is_object()) return Bad("adapt", "a decision and its outcome");
    }
    const auto flag = [&](const char* key) { return json["decision"].value(key, Json()) == Json(true); };
    ++log_.adaptation.segments;
    log_.adaptation.learnt += json["outcome"].value("tier", Json()) != Json("skip") ? 1 : 0;
    log_.adaptation.deferred += flag("defer") ? 1 : 0;
    log_.adaptation.guards += flag("guard") ? 1 : 0;
    return Status::Ok();
  }

  Status Bad(std::string_view what, std::string_view expected) const {
    return Corrupt("{}: line {}: {} must be {}; give a log that --decision-log wrote", source_, line_, what, expected);
  }
  // What happened after the last tick.
  void Close() {
    if (now_.steps > 0 && !log_.ticks.empty()) {
      RunTick last = log_.ticks.back();
      last.from_s = now_.from_s, last.to_s = step_end_s_;
      last.steps = now_.steps, last.decoded = now_.decoded, last.prefilled = now_.prefilled;
      last.decode_steps = now_.decode_steps, last.late = now_.late;
      if (last.to_s > last.from_s) log_.ticks.push_back(std::move(last));
    }
  }

 private:
  static bool Number(const Json& json, double low, double high, double* out) {
    if (!json.is_number()) return false;
    const double value = json.get<double>();
    if (!(value >= low && value <= high)) return false;  // NaN too
    *out = value;
    return true;
  }
  static bool Count(const Json& json, int64_t* out) {
    double number = 0;
    if (!Number(json, 0, kMostCount, &number) || number != std::floor(number)) return false;
    *out = static_cast<int64_t>(number);
    return true;
  }

  // A number of a group of a line; one that is not there is 0.
  Status Field(const Json& json, const char* group, const char* key, double low, double high, double* out) const {
    if (!json.contains(group) || !json[group].is_object() || !json[group].contains(key)) return Status::Ok();
    if (Number(json[group][key], low, high, out)) return Status::Ok();
    return Bad(fmt::format("{}.{}", group, key), fmt::format("a number from {:g} to {:g}", low, high));
  }
  static std::string Text(const Json& json, const char* key) {
    return json.contains(key) && json[key].is_string() ? json[key].get<std::string>() : std::string();
  }
  static bool Flag(const Json& json, const char* key) {
    return json.contains(key) && json[key].is_boolean() && json[key].get<bool>();
  }

  Status Header(const Json& json) {
    if (!json.contains("decision_log") || json["decision_log"] != Json(1)) return Bad("decision_log", "1");
    if (!json.contains("config") || !json["config"].is_object()) return Bad("config", "an object");
    const Json& config = json["config"];
    log_.model = Text(config, "model");
    log_.telemetry = Text(config, "telemetry");
    log_.simulated = Flag(config, "simulated");
    log_.replayed = Flag(config, "replayed");
    log_.router = Text(config, "router");
    log_.prefer = Text(config, "prefer");
    THERMOE_RETURN_IF_ERROR(Field(json, "config", "power_limit_w", 0, kMostPower_w, &limits_.power_w));
    THERMOE_RETURN_IF_ERROR(Field(json, "config", "temp_limit_c", 0, 1000, &limits_.temp_c));
    THERMOE_RETURN_IF_ERROR(Field(json, "config", "latency_target_ms", 0, kMostTime_s, &limits_.latency_ms));
    THERMOE_RETURN_IF_ERROR(Field(json, "config", "quality_floor_nats", 0, 1000, &log_.quality_floor_nats));
    if (!json.contains("points")) return Bad("points", "there");
    Result<OperatingPoints> points =
        ParseOperatingPoints(json["points"].dump(), fmt::format("{}: line 1: points", source_));
    if (!points.ok()) return points.status();
    if (points->points.empty()) return Bad("points", "one operating point or more");
    log_.points = std::move(points->points);
    for (const OperatingPoint& point : log_.points) log_.point_texts.push_back(Describe(point));
    return Status::Ok();
  }

  Status Limits(const Json& json) {
    const auto at = [&](size_t i, double high, double* out) { return Number(json[i], 0, high, out); };
    if (!json.is_array() || json.size() != 3 || !at(0, kMostPower_w, &limits_.power_w) ||
        !at(1, 1000, &limits_.temp_c) || !at(2, kMostTime_s, &limits_.latency_ms)) {
      return Bad("limits", "three numbers: watts, degrees, milliseconds");
    }
    return Status::Ok();
  }

  Status Step(const Json& row) {
    if (!row.is_array() || (row.size() != kRow && row.size() != kRowWithSensors))
      return Bad("a step", "a list of 12 or 16 values");
    double start_s = 0, end_s = 0;
    int64_t prefilled = 0, decoded = 0;
    if (!Number(row[0], -kMostTime_s, kMostTime_s, &start_s) || !Number(row[1], start_s, kMostTime_s, &end_s)) {
      return Bad("a step", "from a time to a later one, in seconds");
    }
    if (started_ && end_s < step_end_s_) return Bad("a step", "later than the one before it");
    if (!Count(row[2], &prefilled) || !Count(row[3], &decoded)) return Bad("tokens of a step", "whole numbers");
    int64_t point = 0;
    if (!Count(row[kPoint], &point) || static_cast<size_t>(point) >= log_.points.size())
      return Bad("a step's point", "the index of an operating point");
    if (!started_) now_.from_s = start_s;
    // A row tells the choice after its step: in force before the first one is what it left as it was.
    if (now_.steps == 0) now_.point = started_ ? point_ : static_cast<size_t>(point);
    const OperatingPoint& ran = log_.points[started_ ? point_ : static_cast<size_t>(point)];
    if (decoded > 0) now_.loss_nats += static_cast<double>(decoded) * LossAt(ran, static_cast<double>(decoded));
    point_ = static_cast<size_t>(point);
    if (row.size() == kRowWithSensors) THERMOE_RETURN_IF_ERROR(Sensors(row, end_s));
    if (decoded > 0) {
      ++now_.decode_steps;
      if (limits_.latency_ms > 0 && 1e3 * (end_s - start_s + pause_s_) > limits_.latency_ms) ++now_.late;
    }
    if (!Number(row[kPause], 0, kMostTime_s, &pause_s_)) return Bad("a step's pause", "a number of seconds");
    ++now_.steps;
    now_.prefilled += prefilled;
    now_.decoded += decoded;
    step_end_s_ = end_s;
    started_ = true;
    return Status::Ok();
  }

  // Where the counter moved, its joules belong to the time since it moved last.
  Status Sensors(const Json& row, double now_s) {
    int64_t state = 0;
    if (!Count(row[kState], &state)) return Bad("a step's sensor state", "a whole number");
    const Json& energy = row[kEnergy];
    double joules = 0;
    if (energy.is_null()) {
      counter_j_.reset();
      return Status::Ok();
    }
    if (!Number(energy, -kMostValue * kMostValue, kMostValue * kMostValue, &joules))
      return Bad("a step's joules", "a number or null");
    if (counter_j_ && joules == *counter_j_) return Status::Ok();
    if (counter_j_ && now_s > counter_s_) {
      const double power_w = (joules - *counter_j_) / (now_s - counter_s_);
      if (power_w >= 0 && power_w <= kMostPower_w) log_.energy.push_back({counter_s_, now_s, joules - *counter_j_});
    }
    counter_s_ = now_s;
    counter_j_ = joules;
    return Status::Ok();
  }

  Status Tick(const Json& json) {
    double time_s = 0;
    if (!json.contains("time_s") || !Number(json["time_s"], -kMostTime_s, kMostTime_s, &time_s))
      return Bad("time_s", "a time in seconds");
    if (!started_) return Bad("steps", "there before the first tick");
    if (time_s < now_.from_s) return Bad("time_s", "later than the tick before it");
    RunTick tick = now_;
    tick.to_s = time_s;
    tick.limits = limits_;
    THERMOE_RETURN_IF_ERROR(Field(json, "measured", "power_w", 0, kMostPower_w, &tick.power_w));
    THERMOE_RETURN_IF_ERROR(Field(json, "measured", "temp_c", -300, 1000, &tick.temp_c));
    THERMOE_RETURN_IF_ERROR(Field(json, "measured", "latency_ms", 0, kMostValue, &tick.latency_ms));
    THERMOE_RETURN_IF_ERROR(Field(json, "measured", "batch", 0, kMostCount, &tick.batch));
    THERMOE_RETURN_IF_ERROR(Field(json, "decision", "cap_w", 0, kMostValue, &tick.cap_w));
    THERMOE_RETURN_IF_ERROR(Field(json, "decision", "lambda_power", 0, kMostValue, &tick.lambda_power));
    THERMOE_RETURN_IF_ERROR(Field(json, "decision", "lambda_temp", 0, kMostValue, &tick.lambda_temp));
    THERMOE_RETURN_IF_ERROR(Field(json, "decision", "lambda_latency", 0, kMostValue, &tick.lambda_latency));
    THERMOE_RETURN_IF_ERROR(Field(json, "decision", "pause_frac", 0, kMostValue, &tick.pause_frac));
    double point = 0;
    THERMOE_RETURN_IF_ERROR(Field(json, "decision", "point", 0, static_cast<double>(log_.points.size() - 1), &point));
    if (point != std::floor(point)) return Bad("decision.point", "a whole number");
    tick.loss_nats = tick.decoded > 0 ? tick.loss_nats / static_cast<double>(tick.decoded)
                                      : LossAt(log_.points[tick.point], std::max(1.0, tick.batch));
    if (json.contains("decision"))
      tick.reason = Text(json["decision"], "reason"), tick.safest = Flag(json["decision"], "safest");
    if (json.contains("ttha")) Ttha(json["ttha"], &tick.ttha);
    now_ = {};
    now_.from_s = time_s;
    // Two at one time are one.
    if (tick.to_s > tick.from_s) log_.ticks.push_back(std::move(tick));
    return Status::Ok();
  }

  // Terms are those of the first line that has any; what is no pair of numbers is none.
  void Ttha(const Json& json, std::vector<double>* terms) {
    if (!json.is_object()) return;
    const bool first = log_.ttha_names.empty();
    const auto pair = [](const Json& term, double* weight, double* value) {
      return term.is_array() && term.size() == 2 && Number(term[0], -kMostValue, kMostValue, weight) &&
             Number(term[1], -kMostValue, kMostValue, value);
    };
    double weight = 0, value = 0;
    for (const auto& [name, term] : json.items()) {
      if (first && log_.ttha_names.size() < kMostTerms && pair(term, &weight, &value)) log_.ttha_names.push_back(name);
    }
    for (const std::string& name : log_.ttha_names) {
      terms->push_back(json.contains(name) && pair(json[name], &weight, &value) ? weight * value : std::nan(""));
    }
  }

  const std::string& source_;
  RunLog& log_;
  int64_t line_ = 0;
  RunLimits limits_;
  RunTick now_;  // since the last tick
  bool started_ = false;
  size_t point_ = 0;  // after the last step
  double step_end_s_ = 0, pause_s_ = 0, counter_s_ = 0;
  std::optional<double> counter_j_;
};

}  // namespace

Result<RunLog> ParseRunLog(std::string_view text, const std::string& source) {
  RunLog log;
  Reader reader(source, &log);
  bool any = false;
  while (!text.empty()) {
    const size_t end = text.find('\n');
    if (end == std::string_view::npos && any) {
      log.cut = true;
      break;
    }
    THERMOE_RETURN_IF_ERROR(reader.Line(text.substr(0, end)));
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    any = true;
  }
  reader.Close();
  if (!any) return Corrupt("{}: is empty; give a log that --decision-log wrote", source);
  if (log.ticks.empty())
    return Corrupt("{}: ends before the first tick, a tenth of a second into the run; there is nothing to draw",
                   source);
  return log;
}

}  // namespace thermoe
