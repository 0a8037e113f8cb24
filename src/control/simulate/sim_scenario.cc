// SPDX-License-Identifier: Apache-2.0
#include "control/simulate/sim_scenario.h"

#include <cmath>
#include <filesystem>
#include <utility>

#include "base/errors.h"
#include "control/plant/toml_file.h"
#include "control/router/control_config.h"

namespace thermoe {
namespace {

constexpr double kMostSeconds = 86'400, kMostWatts = 20'000, kMostRate = 1e5, kMostBackground = 0.95;
constexpr double kMostBatch = 256, kMostTokens = 32'768, kMostSeed = 9007199254740992.0;  // 2^53
constexpr double kLeastLength_s = 1;

// A whole number, where the file has the key.
template <typename Integer>
Status ReadWhole(TomlFile* file, const char* key, double low, double high, Integer* value) {
  if (!file->Has(key)) return Status::Ok();
  const Result<double> number = file->Number(key, low, high);
  if (!number.ok()) return number.status();
  if (*number != std::floor(*number)) return InvalidArgument("{} is {}; make it a whole number", file->Where(key), *number);
  *value = static_cast<Integer>(*number);
  return Status::Ok();
}

Status ReadNumber(TomlFile* file, const char* key, double low, double high, double* value) {
  if (!file->Has(key)) return Status::Ok();
  const Result<double> number = file->Number(key, low, high);
  if (!number.ok()) return number.status();
  *value = *number;
  return Status::Ok();
}

Status ReadText(TomlFile* file, const char* key, std::string* value) {
  if (!file->Has(key)) return Status::Ok();
  Result<std::string> text = file->Text(key);
  if (!text.ok()) return text.status();
  *value = std::move(text).value();
  return Status::Ok();
}

// *first: whether the text is `yes`; anything but the two is refused.
Status ReadChoice(TomlFile* file, const char* key, const std::string& yes, const std::string& no, bool* chosen) {
  std::string text = *chosen ? yes : no;
  THERMOE_RETURN_IF_ERROR(ReadText(file, key, &text));
  if (text != yes && text != no) return InvalidArgument("{} is \"{}\"; make it \"{}\" or \"{}\"", file->Where(key), text, yes, no);
  *chosen = text == yes;
  return Status::Ok();
}

// Pairs of time and value, with `key`_shape "steps" or "linear".
Status ReadSchedule(TomlFile* file, const std::string& key, double low, double high, bool steps, std::optional<Schedule>* schedule) {
  THERMOE_RETURN_IF_ERROR(ReadChoice(file, (key + "_shape").c_str(), "steps", "linear", &steps));
  if (!file->Has(key)) return Status::Ok();
  Result<std::vector<std::pair<double, double>>> pairs = file->Pairs(key, low, high);
  if (!pairs.ok()) return pairs.status();
  Result<Schedule> made = Schedule::Create(steps ? Schedule::Shape::kSteps : Schedule::Shape::kLinear, std::move(pairs).value());
  if (!made.ok()) return InvalidArgument("{}: {}", file->Where(key), made.status().message());
  *schedule = std::move(made).value();
  return Status::Ok();
}

Status ReadModel(TomlFile* file, SimModel* model) {
  THERMOE_RETURN_IF_ERROR(ReadText(file, "model.arch", &model->arch));
  THERMOE_RETURN_IF_ERROR(ReadWhole(file, "model.layers", 1, 1024, &model->layers));
  THERMOE_RETURN_IF_ERROR(ReadText(file, "model.points", &model->points));
  std::string type = std::string(TraitsOf(model->type).name);
  THERMOE_RETURN_IF_ERROR(ReadText(file, "model.type", &type));
  constexpr DType kTypes[] = {DType::kQ8_0, DType::kQ4_0, DType::kBF16, DType::kF16, DType::kF32};
  bool known = false;
  for (const DType each : kTypes) {
    if (TraitsOf(each).name == type) model->type = each, known = true;
  }
  if (!known) return InvalidArgument("{} is \"{}\"; make it q8_0, q4_0, bf16, f16 or f32", file->Where("model.type"), type);
  model->nested = model->type == DType::kQ8_0;
  THERMOE_RETURN_IF_ERROR(ReadChoice(file, "model.experts", "nested", "native", &model->nested));
  if (model->nested && model->type == DType::kQ4_0) {
    return InvalidArgument("{} is \"nested\", which 4-bit weights cannot be; make it \"native\" or model.type \"q8_0\"",
                           file->Where("model.experts"));
  }
  const Result<ModelShape> shape = SimModelShape(*model);
  if (!shape.ok()) return InvalidArgument("{}: {}", file->Where("model.arch"), shape.status().message());
  return Status::Ok();
}

Status ReadLoad(TomlFile* file, SimLoad* load) {
  THERMOE_RETURN_IF_ERROR(ReadWhole(file, "load.batch", 1, kMostBatch, &load->batch));
  THERMOE_RETURN_IF_ERROR(ReadSchedule(file, "load.sequences", 1, kMostBatch, true, &load->sequences));
  THERMOE_RETURN_IF_ERROR(ReadSchedule(file, "load.arrivals_per_s", 0, kMostRate, true, &load->arrivals_per_s));
  if ((load->batch > 0 ? 1 : 0) + (load->sequences ? 1 : 0) + (load->arrivals_per_s ? 1 : 0) != 1) {
    return InvalidArgument("{}: give either load.batch (so many sequences at all times), load.sequences (so many over time) or "
                           "load.arrivals_per_s (requests per second over time), and not both",
                           file->Where("load"));
  }
  if (load->sequences && !load->sequences->Rests(0)) return InvalidArgument("{} must be in steps", file->Where("load.sequences_shape"));
  for (double at_s = 0; load->sequences && at_s < kMostSeconds; at_s = load->sequences->NextEdge(at_s)) {
    load->batch = std::max(load->batch, static_cast<int32_t>(std::lround(load->sequences->At(at_s))));
  }
  load->max_batch = load->batch > 0 ? load->batch : load->max_batch;
  THERMOE_RETURN_IF_ERROR(ReadWhole(file, "load.max_batch", std::max(1, load->batch), kMostBatch, &load->max_batch));
  THERMOE_RETURN_IF_ERROR(ReadWhole(file, "load.prompt_tokens", 1, kMostTokens, &load->prompt_tokens));
  THERMOE_RETURN_IF_ERROR(ReadWhole(file, "load.generated_tokens", 1, kMostTokens, &load->generated_tokens));
  THERMOE_RETURN_IF_ERROR(ReadWhole(file, "load.prefill_chunk", 1, kMostTokens, &load->prefill_chunk));
  THERMOE_RETURN_IF_ERROR(ReadWhole(file, "load.burst_tokens", 1, kMostTokens, &load->burst_tokens));
  THERMOE_RETURN_IF_ERROR(ReadWhole(file, "load.burst_after_steps", 1, 1e6, &load->burst_after_steps));
  if ((load->burst_tokens > 0) != (load->burst_after_steps > 0)) {
    return InvalidArgument("{}: load.burst_tokens and load.burst_after_steps belong together; give both or neither", file->Where("load"));
  }
  return Status::Ok();
}

Status ReadLimits(TomlFile* file, SimScenario* scenario) {
  std::optional<Schedule> cap;
  THERMOE_RETURN_IF_ERROR(ReadSchedule(file, "limits.power_w", 0, kMostWatts, true, &cap));
  if (cap) scenario->power_w = *cap;
  if (!scenario->power_w.Rests(0)) return InvalidArgument("{} must be in steps", file->Where("limits.power_w_shape"));
  THERMOE_RETURN_IF_ERROR(ReadNumber(file, "limits.temp_c", 0, 200, &scenario->temp_c));
  THERMOE_RETURN_IF_ERROR(ReadNumber(file, "limits.latency_ms", 0, 1e6, &scenario->latency_ms));
  THERMOE_RETURN_IF_ERROR(ReadNumber(file, "limits.quality_floor_nats", 0, 10, &scenario->quality_floor_nats));
  THERMOE_RETURN_IF_ERROR(ReadNumber(file, "limits.quality_budget_nats", 0, 10, &scenario->quality_budget_nats));
  if (scenario->quality_budget_nats > 0 && !file->Has("limits.quality_floor_nats"))
    scenario->quality_floor_nats = kFloorOverBudget * scenario->quality_budget_nats;
  THERMOE_RETURN_IF_ERROR(ReadChoice(file, "limits.gather", "on", "off", &scenario->gather));
  THERMOE_RETURN_IF_ERROR(ReadChoice(file, "limits.ttha", "on", "off", &scenario->ttha));
  THERMOE_RETURN_IF_ERROR(ReadText(file, "limits.prefer", &scenario->prefer));
  if (const Result<Preference> prefer = ParsePreference(scenario->prefer); !prefer.ok()) {
    return InvalidArgument("{}: {}", file->Where("limits.prefer"), prefer.status().message());
  }
  if (scenario->quality_budget_nats > scenario->quality_floor_nats) {
    return InvalidArgument("{} is above limits.quality_floor_nats, which bounds every step; lower it or raise the floor",
                           file->Where("limits.quality_budget_nats"));
  }
  if (scenario->quality_budget_nats > 0 && scenario->prefer != "energy") {
    return InvalidArgument("{} is for limits.prefer = \"energy\"; set that or leave it out", file->Where("limits.quality_budget_nats"));
  }
  return Status::Ok();
}

Status ReadTtt(TomlFile* file, SimScenario* scenario) {
  THERMOE_RETURN_IF_ERROR(ReadWhole(file, "ttt.segment", 1, kMostTokens, &scenario->ttt.segment));
  THERMOE_RETURN_IF_ERROR(ReadWhole(file, "ttt.text_tokens", 0, 1e9, &scenario->ttt.text_tokens));
  return ReadNumber(file, "ttt.price_nats", 0, 1e6, &scenario->ttt.price_nats);
}

std::string Trimmed(const std::string& text) {
  const size_t first = text.find_first_not_of(" \t"), last = text.find_last_not_of(" \t");
  return first == std::string::npos ? "" : text.substr(first, last - first + 1);
}

}  // namespace

Result<std::vector<std::string>> ParseRouters(const std::string& text) {
  std::vector<std::string> routers;
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find(';', at), text.size());
    const std::string full = Trimmed(text.substr(at, end - at)), name = full.substr(0, full.find("+ttt"));
    const std::string_view ttt = std::string_view(full).substr(name.size());
    const bool known = (ttt.empty() || ttt == "+ttt" || ttt == "+ttt-always") &&
                       (name == "plain" || name == "q4" || name == "adaptive" || name == "adaptive-no-adapter" || name == "adaptive-adapter" ||
                        name == "adaptive-no-gather" || (name.starts_with("static:") && name.size() > 7));
    if (!known) {
      return InvalidArgument("there is no router \"{}\"; choose among plain, q4, adaptive, adaptive-no-adapter, adaptive-adapter, adaptive-no-gather, static:best and "
                             "static:SETTINGS such as \"static:full 0, soft 0.15\", separated by semicolons; +ttt or +ttt-always after one learns from prompts",
                             full);
    }
    routers.push_back(full);
    at = end + 1;
  }
  return routers;
}

Result<SimScenario> LoadSimScenario(const std::string& path) {
  Result<TomlFile> file = TomlFile::Open(path);
  if (!file.ok()) return file.status();
  if (const Result<double> schema = file->Number("schema", 1, 1); !schema.ok()) return schema.status();
  SimScenario scenario;
  scenario.path = path;
  scenario.name = std::filesystem::path(path).stem().string();
  const Result<double> duration = file->Number("duration_s", kLeastLength_s, kMostSeconds);
  if (!duration.ok()) return duration.status();
  scenario.duration_s = *duration;
  THERMOE_RETURN_IF_ERROR(ReadWhole(&*file, "seed", 0, kMostSeed, &scenario.seed));
  std::string routers = "plain; q4; static:best; adaptive";
  THERMOE_RETURN_IF_ERROR(ReadText(&*file, "routers", &routers));
  Result<std::vector<std::string>> parsed = ParseRouters(routers);
  if (!parsed.ok()) return InvalidArgument("{}: {}", file->Where("routers"), parsed.status().message());
  scenario.routers = std::move(parsed).value();
  THERMOE_RETURN_IF_ERROR(ReadModel(&*file, &scenario.model));
  THERMOE_RETURN_IF_ERROR(ReadText(&*file, "device.profile", &scenario.profile));
  THERMOE_RETURN_IF_ERROR(ReadText(&*file, "device.costs", &scenario.costs));
  THERMOE_RETURN_IF_ERROR(ReadSchedule(&*file, "device.ambient_c", -50, 100, false, &scenario.ambient_c));
  THERMOE_RETURN_IF_ERROR(ReadSchedule(&*file, "device.background_frac", 0, kMostBackground, true, &scenario.background_frac));
  THERMOE_RETURN_IF_ERROR(ReadLoad(&*file, &scenario.load));
  THERMOE_RETURN_IF_ERROR(ReadLimits(&*file, &scenario));
  THERMOE_RETURN_IF_ERROR(ReadTtt(&*file, &scenario));
  THERMOE_RETURN_IF_ERROR(file->CheckAllRead());
  return scenario;
}

}  // namespace thermoe
