// SPDX-License-Identifier: Apache-2.0
#include "control/router/expert_log.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <iterator>
#include <nlohmann/json.hpp>

#include "base/base64.h"

namespace thermoe {
namespace {

using Json = nlohmann::ordered_json;

static_assert(std::endian::native == std::endian::little);
constexpr size_t kDeviceNumbers = 9;
constexpr int32_t kMostCount = 1 << 30;

template <typename T>
void AppendBytes(std::span<const T> values, fmt::memory_buffer* line) {
  line->push_back('"');
  AppendBase64({reinterpret_cast<const uint8_t*>(values.data()), values.size_bytes()}, line);
  line->push_back('"');
}

// Whole values of type T.
template <typename T>
bool TakeBytes(const Json& json, std::vector<T>* values) {
  if (!json.is_string()) return false;
  const std::optional<std::vector<uint8_t>> bytes = DecodeBase64(json.get_ref<const std::string&>());
  if (!bytes || bytes->size() % sizeof(T) != 0) return false;
  values->resize(bytes->size() / sizeof(T));
  if (!bytes->empty()) std::memcpy(values->data(), bytes->data(), bytes->size());
  return true;
}

bool TakeNumber(const Json& json, double* out) {
  if (!json.is_number() || !std::isfinite(json.get<double>())) return false;
  *out = json.get<double>();
  return true;
}

bool TakeCount(const Json& json, int32_t* out) {
  double number = 0;
  if (!TakeNumber(json, &number) || !(number >= 0 && number <= kMostCount) || number != std::floor(number))
    return false;
  *out = static_cast<int32_t>(number);
  return true;
}

void AppendMaybe(const std::optional<double>& value, fmt::memory_buffer* line) {
  if (value && std::isfinite(*value)) {
    fmt::format_to(std::back_inserter(*line), "{},", *value);
  } else {
    fmt::format_to(std::back_inserter(*line), "null,");
  }
}

bool TakeMaybe(const Json& json, std::optional<double>* value) {
  double number = 0;
  value->reset();
  if (json.is_null()) return true;
  if (!TakeNumber(json, &number)) return false;
  *value = number;
  return true;
}

void AppendTtha(const ExpertSteering& experts, fmt::memory_buffer* line) {
  const auto out = std::back_inserter(*line);
  const TthaReport& report = *experts.report();
  fmt::format_to(out, ",\"ttha\":{{");
  for (size_t term = 0; term < kTthaTerms; ++term) {
    fmt::format_to(out, "\"{}\":[{},{}],", TthaTermName(static_cast<TthaTerm>(term)), report.weight[term],
                   report.value[term]);
  }
  fmt::format_to(out, "\"gain\":{},\"uncertainty_nll\":{},\"mean_shrink\":{},\"bias_sum\":{}}}", report.gain,
                 report.uncertainty_nll, report.mean_shrink, experts.bias_sum());
}

}  // namespace

void AppendExperts(const ExpertSteering& experts, fmt::memory_buffer* line) {
  const auto out = std::back_inserter(*line);
  const ExpertInput& input = experts.input();
  const auto list = [&](const char* name, const auto& each) {
    fmt::format_to(out, ",\"{}\":[", name);
    for (size_t l = 0; l < input.counts.layers.size(); ++l) {
      if (l > 0) line->push_back(',');
      each(l);
    }
    line->push_back(']');
  };
  fmt::format_to(out, ",\"experts\":{{\"decode_tokens\":{},\"rows_tokens\":{},\"expert_bytes\":{}",
                 input.counts.decode_tokens, input.rows.decode_tokens, input.counts.expert_bytes);
  list("distinct", [&](size_t l) { fmt::format_to(out, "{}", input.counts.layers[l].distinct_experts); });
  const TthaDevice& device = input.device;
  fmt::format_to(out, ",\"device\":[");
  for (const auto& value : {device.temp_margin_c, device.temp_slope_c_per_s, device.power_frac, device.utilisation_frac,
                            device.memory_utilisation_frac, device.clock_frac, device.latency_slack_frac}) {
    AppendMaybe(value, line);
  }
  fmt::format_to(out, "{},{}]", device.throttle, device.queued);
  list("slots", [&](size_t l) { AppendBytes<int32_t>(input.counts.layers[l].expert_slots, line); });
  list("logits", [&](size_t l) { AppendBytes<float>(input.rows.layers[l].gate_logits, line); });
  line->push_back('}');
  if (experts.report() != nullptr) AppendTtha(experts, line);
}

bool ParseExperts(const Json& json, const SteeringShape& shape, ExpertInput* input) {
  const auto layers = static_cast<size_t>(shape.layers), experts = static_cast<size_t>(shape.experts);
  if (!json.is_object()) return false;
  const auto at = [&](const char* key) {
    const auto found = json.find(key);
    return found == json.end() ? Json() : *found;
  };
  const Json distinct = at("distinct"), device = at("device"), slots = at("slots"), logits = at("logits");
  for (const Json* list : {&distinct, &slots, &logits}) {
    if (!list->is_array() || list->size() != layers) return false;
  }
  if (!device.is_array() || device.size() != kDeviceNumbers) return false;
  bool ok = TakeCount(at("decode_tokens"), &input->counts.decode_tokens) &&
            TakeCount(at("rows_tokens"), &input->rows.decode_tokens) &&
            TakeNumber(at("expert_bytes"), &input->counts.expert_bytes);
  TthaDevice& d = input->device;
  size_t number = 0;
  for (auto* value : {&d.temp_margin_c, &d.temp_slope_c_per_s, &d.power_frac, &d.utilisation_frac,
                      &d.memory_utilisation_frac, &d.clock_frac, &d.latency_slack_frac}) {
    ok = ok && TakeMaybe(device[number++], value);
  }
  int32_t throttle = 0;
  ok = ok && TakeCount(device[7], &throttle) && TakeNumber(device[8], &d.queued);
  d.throttle = static_cast<uint32_t>(throttle);
  for (size_t l = 0; ok && l < layers; ++l) {
    std::vector<int32_t>& counts = input->counts.layers[l].expert_slots;
    std::vector<float>& rows = input->rows.layers[l].gate_logits;
    ok = TakeCount(distinct[l], &input->counts.layers[l].distinct_experts) && TakeBytes(slots[l], &counts) &&
         TakeBytes(logits[l], &rows) && counts.size() == experts && rows.size() % experts == 0 &&
         rows.size() <= experts * ExpertSteering::kSampleRows;
  }
  return ok;
}

std::string CompareTtha(const Json& json, const ExpertSteering& experts) {
  if (experts.report() == nullptr || !experts.learnt())
    return json.is_null() ? "" : "ttha was logged, and did not learn again";
  const TthaReport& report = *experts.report();
  const auto differs = [&](const Json& logged, double made) {
    return !logged.is_number() || logged.get<double>() != made;
  };
  const auto at = [&](const std::string& key) { return json.is_object() && json.contains(key) ? json[key] : Json(); };
  for (size_t term = 0; term < kTthaTerms; ++term) {
    const char* name = TthaTermName(static_cast<TthaTerm>(term));
    const Json pair = at(name);
    if (!pair.is_array() || pair.size() != 2 || differs(pair[0], report.weight[term]) ||
        differs(pair[1], report.value[term])) {
      return fmt::format("ttha.{} was logged as {}, made again [{},{}]", name, pair.dump(), report.weight[term],
                         report.value[term]);
    }
  }
  const std::pair<const char*, double> values[] = {{"gain", report.gain},
                                                   {"uncertainty_nll", report.uncertainty_nll},
                                                   {"mean_shrink", report.mean_shrink},
                                                   {"bias_sum", experts.bias_sum()}};
  for (const auto& [name, made] : values) {
    if (differs(at(name), made))
      return fmt::format("ttha.{} was logged as {}, made again {}", name, at(name).dump(), made);
  }
  return "";
}

}  // namespace thermoe
