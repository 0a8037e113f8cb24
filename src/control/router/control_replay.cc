// SPDX-License-Identifier: Apache-2.0
// Makes the decisions of a log again.
#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/errors.h"
#include "control/adapt/adapt_log.h"
#include "control/router/decision_log.h"
#include "control/router/expert_log.h"
#include "control/router/router_state.h"

namespace thermoe {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kRow = 12, kRowWithSensors = 16;
constexpr double kMostCount = 1 << 30;
constexpr int32_t kMostLayers = 1024, kMostExperts = 4096, kMostGroups = 4095;

struct Replayer {
  const std::string& source;
  int64_t line = 0;
  std::unique_ptr<ControlCore> core;
  std::unique_ptr<ExpertSteering> experts;
  ControlConfig config;
  SensorInput sensors;
  AdaptReplay adaptation;
  ReplayReport report;

  Status Bad(const char* what, const char* expected) const {
    return Corrupt("{}: line {}: {} must be {}; it is no decision log of this version", source, line, what, expected);
  }

  static bool Number(const Json& json, double* out) {
    if (!json.is_number() || !std::isfinite(json.get<double>())) return false;
    *out = json.get<double>();
    return true;
  }
  static bool Count(const Json& json, int32_t* out) {
    double number = 0;
    if (!Number(json, &number) || !(number >= 0 && number <= kMostCount) || number != std::floor(number)) return false;
    *out = static_cast<int32_t>(number);
    return true;
  }
  static bool Maybe(const Json& json, std::optional<double>* out) {
    double number = 0;
    if (json.is_null()) {
      out->reset();
    } else if (Number(json, &number)) {
      *out = number;
    } else {
      return false;
    }
    return true;
  }

  Status Header(const Json& json) {
    if (!json.contains("decision_log") || json["decision_log"] != Json(1)) return Bad("decision_log", "1");
    const Json empty = Json::object();
    const Json& c = json.contains("config") && json["config"].is_object() ? json["config"] : empty;
    bool ok = true;
    const auto number = [&](const char* key, double* out) { ok = ok && c.contains(key) && Number(c[key], out); };
    const auto count = [&](const char* key, int32_t* out) { ok = ok && c.contains(key) && Count(c[key], out); };
    const auto text = [&](const char* key) {
      return c.contains(key) && c[key].is_string() ? c[key].get<std::string>() : std::string();
    };
    number("power_limit_w", &config.limits.power_w);
    number("temp_limit_c", &config.limits.temp_c);
    number("latency_target_ms", &config.limits.latency_ms);
    number("quality_floor_nats", &config.quality_floor_nats);
    number("quality_budget_nats", &config.quality_budget_nats);
    number("tick_s", &config.tick_s);
    number("idle_w", &config.prices.idle_w);
    number("j_per_byte", &config.prices.j_per_byte);
    number("j_per_flop", &config.prices.j_per_flop);
    number("die_j_per_c", &config.prices.die_j_per_c);
    number("bytes_per_s", &config.bytes_per_s);
    number("flops_per_s", &config.flops_per_s);
    number("device_power_w", &config.device_power_w);
    number("device_temp_c", &config.device_temp_c);
    count("prefill_chunk", &config.prefill_chunk);
    count("max_sequences", &config.max_sequences);
    if (!ok) return Bad("config", "complete, and of finite numbers");
    const Result<RouterMode> router = ParseRouterMode(text("router"));
    const Result<Preference> prefer = ParsePreference(text("prefer"));
    if (!router.ok()) return Bad("config.router", "plain, static or adaptive");
    if (!prefer.ok()) return Bad("config.prefer", "throughput, quality or energy");
    config.router = *router;
    config.prefer = *prefer;
    if (Status status = CheckConfig(config); !status.ok())
      return Corrupt("{}: line {}: {}", source, line, status.message());

    if (!json.contains("points")) return Bad("points", "there");
    const Result<OperatingPoints> points =
        ParseOperatingPoints(json["points"].dump(), fmt::format("{}: line {}: points", source, line));
    if (!points.ok()) return points.status();
    double fixed = 0;
    if (!json.contains("fixed") || !Number(json["fixed"], &fixed) || fixed != std::floor(fixed) ||
        points->points.empty() || fixed < -1 || fixed >= static_cast<double>(points->points.size())) {
      return Bad("fixed", "-1 or the index of a point");
    }
    SteeringShape shape;
    if (!Shape(json, c, &shape))
      return Bad("shape", "of a model, with a placement of its experts where config has one");
    core = std::make_unique<ControlCore>(config, points->points, static_cast<int32_t>(fixed));
    experts = std::make_unique<ExpertSteering>(config, shape);
    if (!json.contains("state") || json["state"].is_null()) return Status::Ok();
    const Result<ControlState> state =
        ParseControlState(json["state"].dump(), fmt::format("{}: line {}: state", source, line));
    if (!state.ok()) return state.status();
    THERMOE_RETURN_IF_ERROR(experts->Restore(state->ttha, fmt::format("{}: line {}: state.ttha", source, line)));
    return core->Restore(*state) ? Status::Ok() : Bad("state", "one that a control loop comes to");
  }

  // Also what of the configuration goes with it.
  bool Shape(const Json& json, const Json& c, SteeringShape* shape) {
    int32_t nested = 0;
    const auto found = json.find("shape");
    if (found == json.end() || !found->is_array() || found->size() != 4) return false;
    if (!Count((*found)[0], &shape->layers) || !Count((*found)[1], &shape->experts) ||
        !Count((*found)[2], &shape->slots) || !Count((*found)[3], &nested)) {
      return false;
    }
    shape->nested = nested == 1;
    if (shape->layers < 1 || shape->layers > kMostLayers || shape->experts < 1 || shape->experts > kMostExperts ||
        shape->slots < 1 || shape->slots > shape->experts) {
      return false;
    }
    for (const auto& [key, value] : {std::pair{"ttha", &config.ttha}, std::pair{"gather", &config.gather}}) {
      if (!c.contains(key) || !c[key].is_boolean()) return false;
      *value = c[key].get<bool>();
    }
    if (!c.contains("placement")) return true;
    if (!c["placement"].is_array() || c["placement"].size() != static_cast<size_t>(shape->layers * shape->experts))
      return false;
    for (const Json& group : c["placement"]) {
      int32_t number = 0;
      if (!Count(group, &number) || number > kMostGroups) return false;
      config.placement.push_back(static_cast<uint16_t>(number));
    }
    return true;
  }

  Status Limits(const Json& json) {
    ControlLimits limits;
    if (!json.is_array() || json.size() != 3 || !Number(json[0], &limits.power_w) || !Number(json[1], &limits.temp_c) ||
        !Number(json[2], &limits.latency_ms) ||
        !CheckLimits(limits, config.device_power_w, config.device_temp_c).ok()) {
      return Bad("limits", "three numbers within the device's own limits");
    }
    core->SetLimits(limits);
    return Status::Ok();
  }

  Status Step(const Json& row) {
    if (!row.is_array() || (row.size() != kRow && row.size() != kRowWithSensors))
      return Bad("a step", "12 or 16 values");
    StepInput in;
    StepOutput logged;
    bool ok = Number(row[0], &in.start_s) && Number(row[1], &in.end_s) && Count(row[2], &in.prefill_tokens) &&
              Count(row[3], &in.decode_tokens) && Count(row[4], &in.queued) && Number(row[5], &in.expert_bytes) &&
              Number(row[6], &in.other_bytes) && Number(row[7], &in.flops) && Count(row[8], &logged.point) &&
              Number(row[9], &logged.pause_s) && Count(row[10], &logged.prefill_chunk) &&
              Count(row[11], &logged.max_sequences);
    for (const double amount : {in.expert_bytes, in.other_bytes, in.flops}) ok = ok && amount >= 0 && amount < 2e18;
    if (ok && row.size() == kRowWithSensors) {
      int32_t state = 0;
      ok = Count(row[12], &state) && state <= static_cast<int32_t>(SourceState::kLost) &&
           Maybe(row[13], &sensors.temp_c) && Maybe(row[14], &sensors.power_w) && Maybe(row[15], &sensors.energy_j);
      sensors.state = static_cast<SourceState>(state);
    }
    if (!ok) return Bad("a step", "of numbers in their ranges");
    in.sensors = sensors;
    const StepOutput made = core->AfterStep(in);
    ++report.steps;
    if (made == logged) return Status::Ok();
    report.difference = fmt::format(
        "line {}, step {} at {} s: logged point {}, pause {} s, chunk {}, sequences {}; made again point {}, pause {} "
        "s, "
        "chunk {}, sequences {}",
        line, report.steps, in.end_s, logged.point, logged.pause_s, logged.prefill_chunk, logged.max_sequences,
        made.point, made.pause_s, made.prefill_chunk, made.max_sequences);
    return Status::Ok();
  }

  // Prices and forecasts of a tick too: they show a difference before it moves a decision.
  void CheckTick(const Json& json) {
    ++report.ticks;
    const auto at = [&](const char* group, const char* key) {
      return json.contains(group) && json[group].is_object() && json[group].contains(key) ? json[group][key] : Json();
    };
    const ControlStatus& s = core->status();
    const std::pair<std::pair<const char*, const char*>, double> values[] = {
        {{"decision", "lambda_power"}, s.lambda_power},     {{"decision", "lambda_temp"}, s.lambda_temp},
        {{"decision", "lambda_latency"}, s.lambda_latency}, {{"decision", "cap_w"}, s.cap_w},
        {{"predicted", "power_w"}, s.forecast_power_w},     {{"predicted", "temp_c"}, s.forecast_temp_c}};
    for (const auto& [name, made] : values) {
      double logged = 0;
      if (Number(at(name.first, name.second), &logged) && logged == made) continue;
      report.difference = fmt::format("line {}, tick at {} s: {}.{} was logged as {}, made again {}", line, s.time_s,
                                      name.first, name.second, at(name.first, name.second).dump(), made);
      return;
    }
  }

  Status TickExperts(const Json& json) {
    if (!experts->on() || !core->ticked()) return Status::Ok();
    if (json.contains("experts") && !ParseExperts(json["experts"], experts->shape(), experts->mutable_input())) {
      return Bad("experts", "what a tick learns from, for a model of this shape");
    }
    const auto& points = core->router().points();
    experts->Tick(core->Observed(), points[static_cast<size_t>(core->status().point_index)], core->status().safest);
    core->ShowAdapter(experts->report());
    const std::string other = CompareTtha(json.contains("ttha") ? json["ttha"] : Json(), *experts);
    if (!other.empty())
      report.difference = fmt::format("line {}, tick at {} s: {}", line, core->status().time_s, other);
    return Status::Ok();
  }

  Status Line(std::string_view text) {
    const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (json.is_discarded() || !json.is_object()) return Bad("it", "a JSON object");
    if (core == nullptr) return Header(json);
    if (json.contains("limits")) return Limits(json["limits"]);
    if (json.contains("adapt_session") || json.contains("adapt")) {
      THERMOE_RETURN_IF_ERROR(adaptation.Line(json, fmt::format("{}: line {}", source, line), &report.difference));
      report.adaptations = adaptation.decisions();
      return Status::Ok();
    }
    if (!json.contains("steps") || !json["steps"].is_array()) return Bad("steps", "a list");
    for (const Json& row : json["steps"]) {
      THERMOE_RETURN_IF_ERROR(Step(row));
      if (!report.difference.empty()) return Status::Ok();
    }
    if (!json.contains("tick")) return Status::Ok();
    CheckTick(json);
    return report.difference.empty() ? TickExperts(json) : Status::Ok();
  }
};

}  // namespace

Result<ReplayReport> ReplayText(std::string_view text, const std::string& source) {
  Replayer replayer{source, 0, nullptr, nullptr, {}, {}, {}, {}};
  while (!text.empty() && replayer.report.difference.empty()) {
    const size_t end = text.find('\n');
    ++replayer.line;
    if (end == std::string_view::npos) {
      if (replayer.core == nullptr) return replayer.Bad("it", "a whole line");
      replayer.report.cut = true;
      break;
    }
    if (Status status = replayer.Line(text.substr(0, end)); !status.ok()) return status;
    text.remove_prefix(end + 1);
  }
  if (replayer.core == nullptr) return Corrupt("{}: is empty; it is no decision log", source);
  return replayer.report;
}

Result<ReplayReport> Replay(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) return NotFound("{}: cannot be read; name a decision log", path);
  const std::string text((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  return ReplayText(text, path);
}

}  // namespace thermoe
