// SPDX-License-Identifier: Apache-2.0
#include "control_options.h"

#include <fmt/format.h>

#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "base/errors.h"
#include "base/state_folder.h"
#include "control/plant/toml_file.h"
#include "control/router/control_config.h"
#include "flags.h"
#include "model_options.h"

namespace thermoe {
namespace {

namespace fs = std::filesystem;

constexpr const char* kGroup = "Control options";
constexpr Range kPower = {0, 1e5, true, false}, kTemp = {0, 150, true, false}, kLatency = {0, 1e6, true, false}, kFloor = {0, 10, false, false},
                kBudget = {0, 10, true, false};

// A flag wins over the file.
Status ReadNumber(TomlFile* file, const char* key, const Range& range, std::optional<double>* value) {
  if (!file->Has(key)) return Status::Ok();
  const Result<double> read = file->Number(key, range.low, range.high);
  if (!read.ok()) return read.status();
  if (const std::string bad = CheckRange(range, fmt::format("{}", *read)); !bad.empty()) return InvalidArgument("{}: {}", file->Where(key), bad);
  if (!*value) *value = *read;
  return Status::Ok();
}

Status ReadText(TomlFile* file, const char* key, std::optional<std::string>* value) {
  if (!file->Has(key)) return Status::Ok();
  Result<std::string> read = file->Text(key);
  if (!read.ok()) return read.status();
  if (!*value) *value = std::move(*read);
  return Status::Ok();
}

Status ReadFile(ControlFlags* flags, std::string* telemetry) {
  if (flags->file->empty()) return InvalidArgument("--control: the path is empty; name a TOML file");
  Result<TomlFile> file = TomlFile::Open(*flags->file);
  if (!file.ok()) return file.status();
  std::optional<std::string> source;
  THERMOE_RETURN_IF_ERROR(ReadText(&*file, "telemetry", &source));
  if (source && flags->app->get_option("--telemetry")->count() == 0) *telemetry = *source;
  THERMOE_RETURN_IF_ERROR(ReadNumber(&*file, "power-limit", kPower, &flags->power_limit_w));
  THERMOE_RETURN_IF_ERROR(ReadNumber(&*file, "temp-limit", kTemp, &flags->temp_limit_c));
  THERMOE_RETURN_IF_ERROR(ReadNumber(&*file, "latency-target", kLatency, &flags->latency_target_ms));
  THERMOE_RETURN_IF_ERROR(ReadNumber(&*file, "quality-floor", kFloor, &flags->quality_floor_nats));
  THERMOE_RETURN_IF_ERROR(ReadNumber(&*file, "quality-budget", kBudget, &flags->quality_budget_nats));
  THERMOE_RETURN_IF_ERROR(ReadText(&*file, "prefer", &flags->prefer));
  THERMOE_RETURN_IF_ERROR(ReadText(&*file, "gather", &flags->gather));
  THERMOE_RETURN_IF_ERROR(ReadText(&*file, "router", &flags->router));
  THERMOE_RETURN_IF_ERROR(ReadText(&*file, "ttha", &flags->ttha));
  THERMOE_RETURN_IF_ERROR(ReadText(&*file, "points", &flags->points));
  THERMOE_RETURN_IF_ERROR(ReadText(&*file, "decision-log", &flags->decision_log));
  THERMOE_RETURN_IF_ERROR(file->CheckAllRead());
  if (flags->on() || source) return Status::Ok();
  return InvalidArgument("{}: holds no key; write at least one, for example power-limit = 2.5", *flags->file);
}

// What would have no effect is refused.
Status CheckForAdaptive(const ControlFlags& flags, const std::string& router) {
  const std::pair<const char*, bool> given[] = {
      {"--points", flags.points.has_value()},
      {"--quality-floor", flags.quality_floor_nats.has_value()},
      {"--quality-budget", flags.quality_budget_nats.has_value()},
      {"--prefer", flags.prefer.has_value()},
      {"--gather on", flags.gather == "on"},
      {"--ttha on", flags.ttha == "on"},
  };
  for (const auto& [flag, is_given] : given) {
    if (is_given && router != "adaptive")
      return InvalidArgument("{} is for the adaptive router, not for --router {}; leave one of them out", flag, router);
  }
  const bool energy = flags.prefer == "energy";
  if (flags.quality_budget_nats && !energy) return InvalidArgument("--quality-budget needs --prefer energy; add that or leave it out");
  if (flags.gather == "on" && (!energy || !flags.latency_target_ms))
    return InvalidArgument("--gather on needs --prefer energy and --latency-target; add them or leave it out");
  return Status::Ok();
}

std::string RouterOf(const ControlFlags& flags) { return flags.router.value_or("adaptive"); }

std::string StatePath(const ModelInfo& model, const std::string& telemetry) {
  const Result<std::string> folder = StateFolder();
  if (!folder.ok()) return "";
  std::error_code error;
  fs::create_directories(*folder, error);
  if (error) return "";
  std::string source = telemetry;
  for (char& c : source) {
    if (!(c >= 'a' && c <= 'z') && !(c >= '0' && c <= '9')) c = '-';
  }
  return *folder + "/" + model.identity + "-control-" + source + ".json";
}

}  // namespace

std::string FindPoints(const ModelInfo& model) {
  std::error_code error;
  if (const Result<std::string> folder = StateFolder(); folder.ok()) {
    std::string path = *folder + "/" + model.identity + "-points.json";
    if (fs::exists(path, error)) return path;
  }
  const Result<std::string> path = BundledPoints();
  return path.ok() && ReadOperatingPoints(*path, model.identity).ok() ? *path : "";
}

void AddControlFlags(CLI::App* app, ControlFlags* flags) {
  flags->app = app;
  AddNumber(app, "--power-limit", &flags->power_limit_w, kPower, "Keep the device's power, mean over a second, at most at X watts.")
      ->type_name("W")
      ->group(kGroup);
  AddNumber(app, "--temp-limit", &flags->temp_limit_c, kTemp, "Keep the die at most at X degrees Celsius.")->type_name("C")->group(kGroup);
  AddNumber(app, "--latency-target", &flags->latency_target_ms, kLatency, "Keep the time between two tokens at most at X milliseconds.")
      ->type_name("MS")
      ->group(kGroup);
  AddNumber(app, "--quality-floor", &flags->quality_floor_nats, kFloor,
            "Never choose a way of routing that loses more than X nats per token; default 0.02, with a budget twice that.")
      ->type_name("NATS")
      ->group(kGroup);
  AddNumber(app, "--quality-budget", &flags->quality_budget_nats, kBudget,
            "With --prefer energy: lose X nats per token in the mean over the last minutes, and spend them where a nat saves most joules.")
      ->type_name("NATS")
      ->group(kGroup);
  const auto choice = [&](const char* name, std::optional<std::string>* value, const std::vector<std::string>& choices, const std::string& help) {
    AddChoice(app, name, value, choices, help)->group(kGroup);
  };
  choice("--prefer", &flags->prefer, {"throughput", "quality", "energy"},
         "What to keep longest under a limit; default throughput. energy: joules count without a limit, too: the most frugal routing within "
         "the quality floor, at whatever load there is, and steps as slow as the latency target allows while requests overlap.");
  choice("--router", &flags->router, {"plain", "static", "adaptive"},
         "How limits are kept: plain by pauses alone; static by the steering flags given and pauses; adaptive (default with any of "
         "these flags) by cheaper experts first, then pauses. adaptive keeps experts nested unless --experts says otherwise.");
  choice("--gather", &flags->gather, {"on", "off"},
         "With --prefer energy and a latency target: slow steps down while requests overlap, so that more share each read of the weights; "
         "default on.");
  choice("--ttha", &flags->ttha, {"on", "off"},
         "Learn which experts to avoid while a limit presses, on top of the points of the adaptive router; default off (docs/ttha.md).");
  app->add_option("--points", flags->points,
                  "Operating points to choose among (thermoe calibrate); default: those measured here, else those of the bundled model.")
      ->type_name("FILE")
      ->group(kGroup);
  app->add_option("--decision-log", flags->decision_log, "Write every decision to FILE, for thermoe report and replay.")
      ->type_name("FILE")
      ->group(kGroup);
  app->add_option("--control", flags->file, "Read these from a TOML file with the same names (power-limit = 2.5); flags win.")
      ->type_name("FILE")
      ->group(kGroup);
}

Status ResolveControl(ControlFlags* flags, SteeringFlags* steering, std::string* telemetry) {
  if (flags->file) THERMOE_RETURN_IF_ERROR(ReadFile(flags, telemetry));
  if (!flags->on()) return Status::Ok();
  if (flags->points && flags->points->empty()) return InvalidArgument("--points: the path is empty; name a file of operating points");
  if (flags->decision_log && flags->decision_log->empty()) return InvalidArgument("--decision-log: the path is empty; name a file to write");
  const std::string router = RouterOf(*flags);
  if (const auto mode = ParseRouterMode(router); !mode.ok()) return InvalidArgument("--control {}: {}", *flags->file, mode.status().message());
  if (flags->prefer && !ParsePreference(*flags->prefer).ok()) {
    return InvalidArgument("--control {}: {}", *flags->file, ParsePreference(*flags->prefer).status().message());
  }
  for (const auto& [name, value] : {std::pair{"gather", &flags->gather}, std::pair{"ttha", &flags->ttha}}) {
    if (*value && **value != "on" && **value != "off")
      return InvalidArgument("--control {}: {} is \"{}\"; make it \"on\" or \"off\"", *flags->file, name, **value);
  }
  THERMOE_RETURN_IF_ERROR(CheckForAdaptive(*flags, router));
  const bool is_static = router == "static";
  if (is_static && !steering->steers()) {
    return InvalidArgument("--router static keeps one way of routing; give it a steering flag, for example --k-max 6");
  }
  if (is_static && (!steering->expert_bias.empty() || !steering->plane_cap.empty())) {
    return InvalidArgument("--router static takes no --expert-bias or --plane-cap; leave --router out to steer by files");
  }
  if (!is_static && steering->steers()) {
    return InvalidArgument("--router {} {}; leave the steering flags out or use --router static", router,
                           router == "plain" ? "runs the plain model" : "chooses the routing itself");
  }
  if (router == "adaptive" && flags->app->get_option("--experts")->count() == 0) steering->experts = "nested";
  return Status::Ok();
}

Result<ControlOptions> ControlOptionsFrom(const ControlFlags& flags, const SteeringFlags& steering, const ModelInfo& model,
                                          const std::string& telemetry, bool keeps_state) {
  ControlOptions options;
  if (!flags.on()) return options;
  options.router = RouterOf(flags);
  options.power_limit_w = flags.power_limit_w.value_or(0);
  options.temp_limit_c = flags.temp_limit_c.value_or(0);
  options.latency_target_ms = flags.latency_target_ms.value_or(0);
  options.quality_budget_nats = flags.quality_budget_nats.value_or(0);
  const double floor_nats = flags.quality_budget_nats ? kFloorOverBudget * *flags.quality_budget_nats : options.quality_floor_nats;
  options.quality_floor_nats = flags.quality_floor_nats.value_or(floor_nats);
  options.gather = flags.gather != "off";
  options.prefer = flags.prefer.value_or(options.prefer);
  options.ttha = flags.ttha == "on";
  if (options.router == "static") {
    LayerSteering& point = options.static_point;
    point.full_slots = steering.full_slots.value_or(kAllSlots);
    point.guaranteed_slots = steering.k0.value_or(kAllSlots);
    point.max_slots = steering.k_max.value_or(kAllSlots);
    point.soft_batch = static_cast<float>(steering.soft_batch.value_or(0.0));
    point.drop_below_frac = static_cast<float>(steering.drop_below.value_or(0.0));
  }
  if (options.router == "adaptive") options.points_path = flags.points ? *flags.points : FindPoints(model);
  // A simulated or replayed device says nothing about this one.
  const bool real = !telemetry.starts_with("plant:") && !telemetry.starts_with("replay:");
  if (keeps_state && real) options.state_path = StatePath(model, telemetry);
  options.log_path = flags.decision_log.value_or("");
  return options;
}

Json ControlJson(const ControlView& view) {
  if (!view.on) return Json();
  const auto limit = [](double value) { return value > 0 ? Json(value) : Json(); };
  Json json;
  json["router"] = view.router;
  json["power_limit_w"] = limit(view.power_limit_w);
  json["temp_limit_c"] = limit(view.temp_limit_c);
  json["latency_target_ms"] = limit(view.latency_target_ms);
  json["power_w"] = limit(view.power_w);
  json["temp_c"] = limit(view.temp_c);
  json["lambda_power"] = view.lambda_power;
  json["lambda_temp"] = view.lambda_temp;
  json["lambda_latency"] = view.lambda_latency;
  json["point"] = view.point_text;
  json["point_loss_nats"] = view.point_loss_nats;
  json["points"] = view.points;
  json["point_changes"] = view.point_changes;
  json["mean_loss_nats"] = view.quality_budget_nats > 0 ? Json(view.mean_loss_nats) : Json();
  json["pause_frac"] = view.pause_frac;
  json["gather_ms"] = limit(view.gather_ms);
  json["safest"] = view.safest;
  json["unmet"] = view.unmet.empty() ? Json() : Json(view.unmet);
  json["ttha"] = view.ttha ? Json::object() : Json();
  if (view.ttha) {
    json["ttha"]["gain"] = view.ttha_gain;
    for (const AdapterTerm& term : view.ttha_terms) json["ttha"][term.name] = {{"weight", term.weight}, {"value", term.value}};
  }
  return json;
}

std::string ControlText(const ControlView& view) {
  if (!view.on) return "";
  std::string text = view.router + " router";
  if (view.power_limit_w > 0) text += fmt::format(", {:.4g} W of {:g} W", view.power_w, view.power_limit_w);
  if (view.temp_limit_c > 0) text += fmt::format(", {:.0f} C of {:g} C", view.temp_c, view.temp_limit_c);
  if (view.latency_target_ms > 0) text += fmt::format(", {:.3g} ms of {:g} ms", view.latency_ms, view.latency_target_ms);
  if (view.gather_ms > 0) text += fmt::format(", steps gathered to {:.3g} ms", view.gather_ms);
  text += fmt::format(", routing {}, {:.0f} % paused", view.point_text, 100 * view.pause_frac);
  return view.unmet.empty() ? text : text + "; " + view.unmet;
}

}  // namespace thermoe
