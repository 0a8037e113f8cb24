// SPDX-License-Identifier: Apache-2.0
#include "control/router/decision_log.h"

#include <cerrno>
#include <cstring>
#include <iterator>
#include <nlohmann/json.hpp>

#include "base/errors.h"
#include "control/router/expert_log.h"
#include "control/router/router_state.h"

namespace thermoe {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMostRows = 4096;  // between two ticks; more are written early

Json ConfigJson(const ControlConfig& config) {
  Json json;
  json["model"] = config.model;
  json["telemetry"] = config.telemetry;
  json["simulated"] = config.simulated;
  json["replayed"] = config.replayed;
  json["router"] = RouterModeName(config.router);
  json["prefer"] = PreferenceName(config.prefer);
  json["power_limit_w"] = config.limits.power_w;
  json["temp_limit_c"] = config.limits.temp_c;
  json["latency_target_ms"] = config.limits.latency_ms;
  json["quality_floor_nats"] = config.quality_floor_nats;
  json["quality_budget_nats"] = config.quality_budget_nats;
  json["gather"] = config.gather;
  json["tick_s"] = config.tick_s;
  json["idle_w"] = config.prices.idle_w;
  json["j_per_byte"] = config.prices.j_per_byte;
  json["j_per_flop"] = config.prices.j_per_flop;
  json["die_j_per_c"] = config.prices.die_j_per_c;
  json["bytes_per_s"] = config.bytes_per_s;
  json["flops_per_s"] = config.flops_per_s;
  json["device_power_w"] = config.device_power_w;
  json["device_temp_c"] = config.device_temp_c;
  json["prefill_chunk"] = config.prefill_chunk;
  json["max_sequences"] = config.max_sequences;
  json["ttha"] = config.ttha;
  if (!config.placement.empty()) json["placement"] = config.placement;
  return json;
}

// In the format of operating point files; losses by text are no part of a decision.
Json PointsJson(const OperatingPoints& front, const std::vector<OperatingPoint>& points) {
  OperatingPoints file;
  file.model_identity = front.model_identity;
  file.model_name = front.model_name;
  file.layers = std::max(front.layers, 1);
  file.experts = std::max(front.experts, 1);
  file.slots = std::max(front.slots, 1);
  file.window = std::max(front.window, 2);
  file.points = points;
  for (OperatingPoint& point : file.points) {
    point.windows = std::max(point.windows, 1);
    point.batch1.text_loss_nats.clear();
    point.batch16.text_loss_nats.clear();
    file.slots = std::max({file.slots, point.full_slots, point.k0, point.k_max});
    for (const auto& layer : point.plane_cap) file.experts = std::max(file.experts, static_cast<int32_t>(layer.size()));
    if (!point.plane_cap.empty()) file.layers = static_cast<int32_t>(point.plane_cap.size());
  }
  return Json::parse(OperatingPointsJson(file));
}

void Optional(fmt::memory_buffer* line, const std::optional<double>& value) {
  if (value) {
    fmt::format_to(std::back_inserter(*line), ",{}", *value);
  } else {
    fmt::format_to(std::back_inserter(*line), ",null");
  }
}

}  // namespace

DecisionLog::~DecisionLog() {
  if (file_ == nullptr) return;
  (void)Flush();
  std::fclose(file_);
}

Status DecisionLog::Open(const std::string& path, const ControlConfig& config, const SteeringShape& shape,
                         const OperatingPoints& front, const std::vector<OperatingPoint>& points, int32_t fixed,
                         const std::optional<ControlState>& state) {
  path_ = path;
  file_ = std::fopen(path.c_str(), "we");
  if (file_ == nullptr)
    return InvalidArgument("{}: cannot be written ({}); check the folder and its room", path, std::strerror(errno));
  rows_.reserve(kMostRows);
  Json header;
  header["decision_log"] = 1;
  header["config"] = ConfigJson(config);
  header["shape"] = {shape.layers, shape.experts, shape.slots, shape.nested ? 1 : 0};
  header["fixed"] = fixed;
  header["front_identity"] = front.model_identity;
  header["points"] = PointsJson(front, points);
  header["state"] = state ? Json::parse(ControlStateJson(*state)) : Json();
  const std::string text = header.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  failed_ = std::fwrite(text.data(), 1, text.size(), file_) != text.size();
  return Flush();
}

void DecisionLog::Add(const StepInput& input, const StepOutput& output, const ControlCore& core,
                      const ExpertSteering& experts) {
  if (file_ == nullptr || failed_) return;
  rows_.push_back({input, output});
  if (!core.ticked() && rows_.size() < kMostRows) return;
  WriteRows(core.ticked() ? &core : nullptr);
  if (core.ticked() && experts.learnt()) AppendExperts(experts, &line_);
  EndLine();
}

// A step: [start_s, end_s, prefill, decode, queued, expert_bytes, other_bytes, flops, point, pause_s, prefill_chunk,
// max_sequences] and, where they changed, [..., source state, temp_c, power_w, energy_j].
void DecisionLog::WriteRows(const ControlCore* core) {
  const auto out = std::back_inserter(line_);
  if (core != nullptr) {
    fmt::format_to(out, "{{\"tick\":{},\"time_s\":{},\"steps\":[", core->status().ticks, core->status().time_s);
  } else {
    fmt::format_to(out, "{{\"steps\":[");
  }
  for (size_t i = 0; i < rows_.size(); ++i) {
    const StepInput& in = rows_[i].input;
    const StepOutput& o = rows_[i].output;
    fmt::format_to(out, "{}[{},{},{},{},{},{},{},{},{},{},{},{}", i == 0 ? "" : ",", in.start_s, in.end_s,
                   in.prefill_tokens, in.decode_tokens, in.queued, in.expert_bytes, in.other_bytes, in.flops, o.point,
                   o.pause_s, o.prefill_chunk, o.max_sequences);
    if (!has_written_ || !(in.sensors == written_)) {
      fmt::format_to(out, ",{}", static_cast<int>(in.sensors.state));
      Optional(&line_, in.sensors.temp_c);
      Optional(&line_, in.sensors.power_w);
      Optional(&line_, in.sensors.energy_j);
      written_ = in.sensors;
      has_written_ = true;
    }
    line_.push_back(']');
  }
  line_.push_back(']');
  if (core != nullptr) {
    const ControlStatus& s = core->status();
    fmt::format_to(out,
                   ",\"measured\":{{\"counted_j\":{},\"predicted_j\":{},\"power_w\":{},\"temp_c\":{},\"latency_ms\":{},"
                   "\"batch\":{}}}",
                   core->counted_j(), core->predicted_j(), s.power_w, s.temp_c, s.latency_ms, s.batch);
    fmt::format_to(out,
                   ",\"decision\":{{\"point\":{},\"text\":\"{}\",\"reason\":\"{}\",\"cap_w\":{},\"lambda_power\":{},"
                   "\"lambda_temp\":{},"
                   "\"lambda_latency\":{},\"safest\":{},\"pause_frac\":{}}}",
                   s.point_index, s.point_text, DecisionReasonName(s.reason), s.cap_w, s.lambda_power, s.lambda_temp,
                   s.lambda_latency, s.safest, s.pause_frac);
    fmt::format_to(out,
                   ",\"predicted\":{{\"power_w\":{},\"temp_c\":{},\"demand_w\":{},\"idle_w\":{},\"j_per_byte\":{},\"j_"
                   "per_flop\":{}}}",
                   s.forecast_power_w, s.forecast_temp_c, s.demand_w, s.idle_w, s.j_per_byte, s.j_per_flop);
  }
  rows_.clear();
}

void DecisionLog::EndLine() {
  line_.push_back('}');
  line_.push_back('\n');
  Write();
}

void DecisionLog::Write() {
  failed_ = failed_ || std::fwrite(line_.data(), 1, line_.size(), file_) != line_.size();
  line_.clear();
}

void DecisionLog::AddLimits(const ControlLimits& limits) {
  if (file_ == nullptr || failed_) return;
  if (!rows_.empty()) WriteRows(nullptr), EndLine();
  fmt::format_to(std::back_inserter(line_), "{{\"limits\":[{},{},{}]}}\n", limits.power_w, limits.temp_c,
                 limits.latency_ms);
  Write();
}

void DecisionLog::AddLine(std::string_view json) {
  if (file_ == nullptr || failed_) return;
  if (!rows_.empty()) WriteRows(nullptr), EndLine();
  line_.append(json);
  line_.push_back('\n');
  Write();
}

Status DecisionLog::Flush() {
  if (file_ == nullptr) return Status::Ok();
  if (!rows_.empty() && !failed_) WriteRows(nullptr), EndLine();
  failed_ = failed_ || std::fflush(file_) != 0;
  if (failed_)
    return InvalidArgument("{}: the decision log could not be written to its end; check the room on its disk", path_);
  return Status::Ok();
}

}  // namespace thermoe
