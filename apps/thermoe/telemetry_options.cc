// SPDX-License-Identifier: Apache-2.0
#include "telemetry_options.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <system_error>
#include <vector>

#include "base/errors.h"
#include "control/telemetry/find_sources.h"
#include "engine/gpus.h"

namespace thermoe {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPlant = "plant:";
constexpr double kShownEstimated_frac = 0.05;

std::vector<fs::path> ProfileFolders() {
  std::vector<fs::path> folders;
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  if (!error) folders.push_back(program.parent_path() / "../share/thermoe/profiles");
  folders.push_back(fs::path(THERMOE_MODELS_DIR) / "../data/profiles");
  return folders;
}

double PerToken(double joules, int tokens) { return tokens > 0 ? joules / tokens : 0; }
// The first token comes from the prompt's last row.
int DecodedTokens(const RequestTimings& timings) { return std::max(0, timings.generated_tokens - 1); }

}  // namespace

void AddTelemetryFlag(CLI::App* app, std::string* telemetry, const std::string& by_default) {
  app->add_option("--telemetry", *telemetry,
                  "Sensors to count joules with: " + SourceChoices() + ", none; default " + by_default +
                      "; auto: those of the device that computes. plant:FILE (a profile, or small, "
                      "h100 or h200) simulates a device in virtual time.")
      ->type_name("SOURCE")
      ->group("Engine options");
}

Result<std::string> ResolveTelemetry(const std::string& choice) {
  if (!choice.starts_with(kPlant)) return choice;
  const std::string name = choice.substr(kPlant.size());
  std::error_code error;
  const bool bare = !name.empty() && name.find_first_of("/.") == std::string::npos;
  if (!bare || fs::is_regular_file(name, error)) return choice;
  std::string looked;
  for (const fs::path& folder : ProfileFolders()) {
    const fs::path file = (folder / (name + ".toml")).lexically_normal();
    if (fs::exists(file, error)) return std::string(kPlant) + file.string();
    looked += (looked.empty() ? "" : " and ") + file.string();
  }
  return NotFound(
      "{}: no file and no shipped profile of that name ({}); give a device profile such as data/profiles/small.toml",
      choice, looked);
}

Result<std::string> ChooseSensors(const std::string& telemetry, const std::string& device) {
  if (telemetry.empty() || telemetry == "auto") return SensorsOf(device);
  if (device.empty()) return ResolveTelemetry(telemetry);
  return InvalidArgument("--device {} names a GPU's sensors and --telemetry {} others; give one of them", device, telemetry);
}

std::string JoulesText(double joules) {
  const double size = std::abs(joules);
  const auto [scale, unit] = size >= 1 || size == 0 ? std::pair(1.0, "J")
                             : size >= 1e-3         ? std::pair(1e3, "mJ")
                                                    : std::pair(1e6, "uJ");
  return fmt::format("{:.3g} {}", joules * scale, unit);
}

std::string EnergyLabel(EnergySource source) {
  switch (source) {
    case EnergySource::kEstimate: return "estimate";
    case EnergySource::kSimulated: return "simulated";
    case EnergySource::kReplayed: return "replayed: of other work";
    case EnergySource::kNone:
    case EnergySource::kCounter:
    case EnergySource::kPower: break;
  }
  return "";
}

std::string EnergyText(const RequestEnergy& energy, const RequestTimings& timings) {
  if (energy.source == EnergySource::kNone) return "";
  std::string text = energy.estimated_frac > 0.99 ? "about " : "";
  text += fmt::format("{:.3g}", 1e3 * PerToken(energy.prefill_j, timings.prompt_tokens));
  if (DecodedTokens(timings) > 0)
    text += fmt::format(" and {:.3g}", 1e3 * PerToken(energy.decode_j, DecodedTokens(timings)));
  text += " mJ/token";
  if (energy.idle_j > 0.01 * energy.total_j())
    text += fmt::format(", idle {:.0f} %", 100 * energy.idle_j / energy.total_j());
  std::string label = EnergyLabel(energy.source);
  if (energy.source != EnergySource::kEstimate && energy.estimated_frac > kShownEstimated_frac) {
    label += fmt::format("{}{:.0f} % of it estimate", label.empty() ? "" : "; ", 100 * energy.estimated_frac);
  }
  if (!label.empty()) text += " (" + label + ")";
  return text;
}

Json EnergyJson(const RequestEnergy& energy, const RequestTimings& timings) {
  if (energy.source == EnergySource::kNone) return {};
  Json json;
  json["energy_source"] = EnergySourceName(energy.source);
  json["estimated_frac"] = energy.estimated_frac;
  json["prefill_j"] = energy.prefill_j;
  json["decode_j"] = energy.decode_j;
  json["idle_j"] = energy.idle_j;
  json["prefill_j_per_token"] = PerToken(energy.prefill_j, timings.prompt_tokens);
  json["decode_j_per_token"] =
      DecodedTokens(timings) > 0 ? Json(PerToken(energy.decode_j, DecodedTokens(timings))) : Json();
  return json;
}

std::string CostText(const CostView& view) {
  if (view.steps == 0) return "";
  const std::string seen = fmt::format("steps predicted within {:.0f} %", 100 * view.error_frac);
  if (!view.profile_error.empty()) return seen + "; " + view.profile_error;
  if (view.profiled_points == 0)
    return seen + "; there is no profile of this model here: 'thermoe profile' measures one";
  return seen + fmt::format(", {:.0f} % without what they taught; profile of {} points", 100 * view.profile_error_frac,
                            view.profiled_points);
}

Json CostJson(const CostView& view) {
  if (view.steps == 0) return {};
  Json json;
  json["profiled_points"] = view.profiled_points;
  json["profile_error"] = view.profile_error.empty() ? Json() : Json(view.profile_error);
  json["steps"] = view.steps;
  json["step_error_frac"] = view.error_frac;
  json["profile_step_error_frac"] = view.profiled_points > 0 ? Json(view.profile_error_frac) : Json();
  return json;
}

Json TelemetryJson(const TelemetryInfo& info) {
  Json json;
  json["name"] = info.name;
  json["simulated"] = info.simulated;
  json["replayed"] = info.replayed;
  return json;
}

}  // namespace thermoe
