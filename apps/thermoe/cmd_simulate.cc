// SPDX-License-Identifier: Apache-2.0
// thermoe simulate: the control loop against a simulated device, without weights.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <system_error>
#include <thread>
#include <utility>

#include "base/errors.h"
#include "command.h"
#include "control/cost/cost_file.h"
#include "control/simulate/sim_routers.h"
#include "flags.h"
#include "help.h"
#include "interrupt.h"
#include "json_out.h"
#include "output.h"
#include "simulate_chart.h"
#include "table.h"
#include "telemetry_options.h"
#include "terminal.h"
#include "text_input.h"

namespace thermoe {
namespace {

namespace fs = std::filesystem;

constexpr const char* kGroup = "Simulation options";
constexpr std::string_view kPlant = "plant:";
constexpr const char* kBundledPoints = "ember-22m-points.json";

const HelpPage kPage = {
    "thermoe simulate SCENARIO.toml [--routers LIST] [--seed N] [--duration S] [--chart FILE.svg] [--json]",
    "Answers what a power cap, a hot room or a latency target would cost: runs the control loop against a simulated device at the speed of "
    "a cost model. No weights are needed: a scenario names a model's shape, a device profile, the load, limits and how they change. Each "
    "router of the scenario runs on the same load.\n\n"
    "Everything printed is simulated. What a way of routing loses in quality was measured on the model of the points file, which need not be "
    "the model whose shape is simulated.",
    " thermoe simulate scenarios/cap-350.toml\n"
    " thermoe simulate scenarios/hot-room.toml --routers 'plain; adaptive' --chart hot-room.svg"};

struct SimulateFlags {
  std::string scenario, chart, routers;
  std::optional<uint64_t> seed;
  std::optional<double> duration_s;
  int threads = 0;
  bool json = false;
};

// A path of a scenario is meant from where the scenario lies.
std::string FromFolderOf(const std::string& scenario, const std::string& path) {
  return (fs::path(scenario).parent_path() / path).lexically_normal().string();
}

Result<DeviceProfile> OpenProfile(const SimScenario& scenario) {
  const bool bare = scenario.profile.find_first_of("/.") == std::string::npos;
  Result<std::string> found =
      ResolveTelemetry(std::string(kPlant) + (bare ? scenario.profile : FromFolderOf(scenario.path, scenario.profile)));
  if (!found.ok()) return found.status();
  return LoadDeviceProfile(found->substr(kPlant.size()));
}

Result<std::string> PointsPath(const SimScenario& scenario) {
  if (!scenario.model.points.empty()) return FromFolderOf(scenario.path, scenario.model.points);
  std::error_code error;
  std::string looked;
  std::vector<fs::path> places;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  if (!error) places.push_back(program.parent_path() / "../share/thermoe/models" / kBundledPoints);
  places.push_back(fs::path(THERMOE_MODELS_DIR) / kBundledPoints);
  for (const fs::path& place : places) {
    if (fs::exists(place, error)) return place.lexically_normal().string();
    looked += (looked.empty() ? "" : " and ") + place.lexically_normal().string();
  }
  return NotFound("the bundled points were not found at {}; name a file of points as model.points in the scenario", looked);
}

Result<SimScenario> OpenScenario(const SimulateFlags& flags) {
  Result<SimScenario> scenario = LoadSimScenario(flags.scenario);
  if (!scenario.ok()) return scenario;
  if (flags.seed) scenario->seed = *flags.seed;
  if (flags.duration_s) scenario->duration_s = *flags.duration_s;
  if (!flags.routers.empty()) {
    Result<std::vector<std::string>> routers = ParseRouters(flags.routers);
    if (!routers.ok()) return InvalidArgument("--routers: {}", routers.status().message());
    scenario->routers = std::move(routers).value();
  }
  if (scenario->costs.empty()) return scenario;
  Result<CostFile> costs = ReadCostFile(FromFolderOf(scenario->path, scenario->costs));
  if (!costs.ok()) return costs.status();
  scenario->cost_model = std::make_shared<KernelCostModel>(std::move(costs->points));
  return scenario;
}

Json NumberOrNull(double value) { return std::isfinite(value) ? Json(value) : Json(); }

Json DwellJson(const SimDwell& dwell) {
  Json json;
  json["start_s"] = dwell.start_s;
  json["end_s"] = dwell.end_s;
  json["cap_w"] = dwell.cap_w;
  json["mean_w"] = dwell.mean_w;
  json["tokens_per_s"] = dwell.tokens_per_s;
  json["worst_1s_frac"] = dwell.worst_1s_frac;
  json["settle_s"] = dwell.settle_s;
  json["cap_binds"] = dwell.bound;
  return json;
}

Json TttRunJson(const SimRun& run) {
  if (run.ttt_mode == SimTttMode::kOff) return Json();
  Json json;
  json["mode"] = run.ttt_mode == SimTttMode::kAlways ? "always" : "auto";
  json["tokens"] = run.ttt.tokens;
  json["gain_nats"] = run.ttt.gain_nats;
  json["adapt_joules"] = run.ttt.joules;
  json["adapt_seconds"] = run.ttt.seconds;
  json["tiers"] = Json::object();
  for (size_t tier = 0; tier < kAdaptTiers; ++tier) json["tiers"][std::string(AdaptTierName(static_cast<AdaptTier>(tier)))] = run.ttt.tiers[tier];
  json["deferred"] = run.ttt.deferred;
  json["caught_up"] = run.ttt.caught_up;
  json["dropped"] = run.ttt.dropped;
  return json;
}

Json RunJson(const SimRun& run, const SimResults& results) {
  Json json;
  json["router"] = run.router;
  json["point"] = run.point;
  json["tokens_per_s"] = run.tokens_per_s();
  json["joules_per_token"] = run.decoded_tokens > 0 ? Json(run.joules_per_token()) : Json();
  json["loss_nats"] = NumberOrNull(run.loss_nats);
  json["bias_loss_nats"] = NumberOrNull(run.bias_loss_nats);
  json["settle_s"] = run.dwells.empty() ? Json() : Json(run.settle_s);
  json["overshoot_frac"] = run.dwells.empty() ? Json() : Json(run.overshoot_frac);
  json["violations"] = {{"power_s", run.over_power_s}, {"temp_s", run.over_temp_s}, {"latency_frac", run.over_latency_frac}};
  const double at_equal_loss = StaticTokensPerJoule(results.statics, run.loss_nats);
  const bool comparable = at_equal_loss > 0 && run.decoded_tokens > 0;
  json["tokens_per_joule_over_statics"] = comparable ? Json(1 / (run.joules_per_token() * at_equal_loss)) : Json();
  const SimRun* best = BestStatic(results.statics, run.loss_nats);
  const bool beside = best != nullptr && best->joules_per_token() > 0 && run.decoded_tokens > 0;
  json["tokens_per_joule_over_best_static"] = beside ? Json(best->joules_per_token() / run.joules_per_token()) : Json();
  json["best_static"] = beside ? Json(best->point) : Json();
  json["latency_p99_ms"] = run.latency_p99_ms;
  json["pause_frac"] = run.pause_frac;
  json["distinct_frac"] = run.distinct_frac;
  json["most_temp_c"] = run.most_temp_c;
  json["seconds"] = run.seconds;
  json["decoded_tokens"] = run.decoded_tokens;
  json["prefilled_tokens"] = run.prefilled_tokens;
  json["queued_at_end"] = run.queued_at_end;
  json["shut_down"] = run.shut_down;
  json["ttt"] = TttRunJson(run);
  json["dwells"] = Json::array();
  for (const SimDwell& dwell : run.dwells) json["dwells"].push_back(DwellJson(dwell));
  return json;
}

Json ResultJson(const SimSetup& setup, const SimResults& results) {
  const SimScenario& scenario = *setup.scenario;
  Json json = NewDocument();
  json["scenario"] = scenario.name;
  json["simulated"] = true;
  json["device"] = setup.profile->name;
  json["model"] = {{"arch", scenario.model.arch}, {"layers", setup.shape.config.layers}, {"type", TraitsOf(scenario.model.type).name},
                   {"experts", scenario.model.nested ? "nested" : "native"}};
  json["points_model"] = setup.points.model_name;
  json["seed"] = scenario.seed;
  json["bias_nats_per_mass"] = results.nats_per_mass;
  json["runs"] = Json::array();
  for (const SimRun& run : results.runs) json["runs"].push_back(RunJson(run, results));
  json["statics"] = Json::array();
  for (const SimRun& run : results.statics) json["statics"].push_back(RunJson(run, results));
  return json;
}

std::string ViolationsText(const SimRun& run) {
  std::vector<std::string> parts;
  if (run.shut_down) parts.push_back(fmt::format("shut down at {:.1f} s", run.seconds));
  if (run.over_power_s > 0) parts.push_back(fmt::format("power {:.1f} s", run.over_power_s));
  if (run.over_temp_s > 0) parts.push_back(fmt::format("heat {:.1f} s", run.over_temp_s));
  if (run.over_latency_frac > 0) parts.push_back(fmt::format("late {:.1f} %", 100 * run.over_latency_frac));
  return parts.empty() ? "none" : Join(parts, ", ");
}

void PrintTtt(const SimResults& results) {
  Table table({"router", "prompt tokens", "gain, nats", "adapting J", "segments learnt", "put off", "caught up"});
  bool any = false;
  for (const SimRun& run : results.runs) {
    if (run.ttt_mode == SimTttMode::kOff) continue;
    any = true;
    int64_t learnt = 0;
    for (size_t tier = 1; tier < kAdaptTiers; ++tier) learnt += run.ttt.tiers[tier];
    table.Add({run.router, WithCommas(run.ttt.tokens), fmt::format("{:.4f}", run.ttt.gain_nats), fmt::format("{:.1f}", run.ttt.joules),
               WithCommas(learnt), WithCommas(run.ttt.deferred), WithCommas(run.ttt.caught_up)});
  }
  if (!any) return;
  Print("\n");
  table.Print();
  Print("Gains by the curve measured on ember-22m.\n");
}

void PrintResults(const SimSetup& setup, const SimResults& results) {
  Print(fmt::format("{}: {}, {} layers, {} {}, simulated on {}\n\n", Printable(setup.scenario->name, STDOUT_FILENO), setup.scenario->model.arch,
                    setup.shape.config.layers, TraitsOf(setup.scenario->model.type).name, setup.scenario->model.nested ? "nested" : "native",
                    Printable(setup.profile->name, STDOUT_FILENO)));
  Table table({"router", "tokens/s", "J/token", "nats lost", "paused", "p99 ms", "settles s", "overshoot", "violations"});
  for (const SimRun& run : results.runs) {
    table.Add({run.router == "static:best" ? "static:best (" + run.point + ")" : run.router, fmt::format("{:.0f}", run.tokens_per_s()),
               fmt::format("{:.4f}", run.joules_per_token()), fmt::format("{:.4f}", run.loss_nats), fmt::format("{:.0f} %", 100 * run.pause_frac),
               fmt::format("{:.2f}", run.latency_p99_ms), run.dwells.empty() ? "-" : fmt::format("{:.1f}", run.settle_s),
               run.dwells.empty() ? "-" : fmt::format("{:.1f} %", 100 * run.overshoot_frac), ViolationsText(run)});
  }
  table.Print();
  PrintTtt(results);
  Print(fmt::format("\nSimulated throughout. Losses are those of {}, measured; a mix of its points where points change.\n",
                    Printable(setup.points.model_name, STDOUT_FILENO)));
}

Status RunSimulate(const SimulateFlags& flags) {
  Result<SimScenario> scenario = OpenScenario(flags);
  if (!scenario.ok()) return scenario.status();
  Result<DeviceProfile> profile = OpenProfile(*scenario);
  if (!profile.ok()) return profile.status();
  const Result<std::string> points_path = PointsPath(*scenario);
  if (!points_path.ok()) return points_path.status();
  Result<ModelShape> shape = SimModelShape(scenario->model);
  if (!shape.ok()) return shape.status();
  Result<std::string> text = ReadTextFile(*points_path);
  if (!text.ok()) return text.status();
  Result<OperatingPoints> points = ParseOperatingPoints(*text, *points_path);
  if (!points.ok()) return points.status();
  SimSetup setup;
  setup.scenario = &*scenario;
  setup.profile = &*profile;
  setup.points = FitPoints(*points, shape->config);
  setup.shape = std::move(shape).value();
  ProgressBar bar("simulating " + scenario->name);
  const int threads = flags.threads > 0 ? flags.threads : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  const Result<SimResults> results = Simulate(setup, threads, BarProgress(&bar));
  bar.Clear();
  if (!results.ok()) return results.status().code() == StatusCode::kCancelled ? InterruptedStatus() : results.status();
  if (!flags.chart.empty()) THERMOE_RETURN_IF_ERROR(WriteFile(flags.chart, SimulateChart(*scenario, *profile, *results), "--chart"));
  if (flags.json) return PrintJsonLine(ResultJson(setup, *results));
  PrintResults(setup, *results);
  return Status::Ok();
}

}  // namespace

Command MakeSimulateCommand(CLI::App* root) {
  CLI::App* app = root->add_subcommand("simulate", "what a limit would cost: the control loop on a simulated device");
  auto flags = std::make_shared<SimulateFlags>();
  SetHelpPage(app, kPage);
  app->add_option("SCENARIO", flags->scenario, "A TOML file such as scenarios/cap-350.toml; docs/simulate.md lists its keys.")->required();
  app->add_option("--routers", flags->routers,
                  "Instead of the scenario's, separated by semicolons: plain, q4, static:best, static:SETTINGS (such as 'static:full 0'), "
                  "adaptive, adaptive-no-adapter, adaptive-adapter (docs/ttha.md), adaptive-no-gather; with +ttt or +ttt-always prompts are learnt from.")->type_name("LIST")->group(kGroup);
  AddNumber(app, "--seed", &flags->seed, {0, kMostSeed}, "Instead of the scenario's: of arrivals, routing and noise.")->group(kGroup);
  AddNumber(app, "--duration", &flags->duration_s, {1, 86400, false, false}, "Simulated seconds, instead of the scenario's.")->group(kGroup);
  AddNumber(app, "--threads", &flags->threads, {1, 1024}, "Routers that run side by side; results do not depend on it.")->group(kGroup);
  app->add_option("--chart", flags->chart, "Draw power, temperature and pauses over time.")->type_name("FILE.svg")->group(kGroup);
  app->add_flag("--json", flags->json, "Print one JSON object; errors become JSON too.");
  return {app, [flags] { return RunSimulate(*flags); }};
}

}  // namespace thermoe
