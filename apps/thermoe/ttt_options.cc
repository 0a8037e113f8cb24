// SPDX-License-Identifier: Apache-2.0
#include "ttt_options.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "base/errors.h"
#include "flags.h"
#include "telemetry_options.h"

namespace thermoe {

void AddTttFlags(CLI::App* app, TttFlags* flags) {
  constexpr const char* kGroup = "Test-time training options";
  std::string names;
  for (const TttOptions& tier : TttTiers()) names += (names.empty() ? "" : ", ") + tier.tier;
  app->add_option("--ttt", flags->tier, "Learn from the text while it is read: " + names + ", or a TOML file; default off.")
      ->type_name("TIER")
      ->group(kGroup);
  app->add_option("--ttt-objective", flags->objective,
                  "What is learnt: nll (next token, the default), entropy, pseudo-labels or features.")
      ->type_name("NAME")
      ->group(kGroup);
  app->add_option("--ttt-features", flags->features, "Statistics of activations that 'thermoe calibrate --features' wrote.")
      ->type_name("FILE")
      ->group(kGroup);
  AddNumber(app, "--ttt-budget-joules", &flags->budget_joules, {0, 1e15, true, false},
            "With --ttt auto: adapting takes at most X joules of each session.")
      ->type_name("J")
      ->group(kGroup);
  app->add_option("--ttt-load", flags->load, "Start from the deltas in FILE.")->type_name("FILE")->group(kGroup);
  app->add_option("--ttt-save", flags->save, "Write the deltas to FILE at the end.")->type_name("FILE")->group(kGroup);
}

Result<TttOptions> TttOptionsFrom(const TttFlags& flags, const ModelFlags& model) {
  if (!flags.on()) {
    for (const auto& [name, value] : {std::pair{"--ttt-objective", &flags.objective}, {"--ttt-features", &flags.features}, {"--ttt-load", &flags.load}, {"--ttt-save", &flags.save}}) {
      if (!value->empty()) return InvalidArgument("{} needs a tier; add --ttt TIER", name);
    }
    if (flags.budget_joules) return InvalidArgument("--ttt-budget-joules needs an automatic tier; use --ttt auto");
  }
  if (!flags.save.empty()) {  // told before the work whose result it would lose
    const std::filesystem::path folder = std::filesystem::path(flags.save).parent_path();
    if (access(folder.empty() ? "." : folder.c_str(), W_OK) != 0) {
      return InvalidArgument("--ttt-save {}: its folder cannot be written to: {}; name another file", flags.save, std::strerror(errno));
    }
  }
  const bool file = flags.tier.ends_with(".toml") || flags.tier.find('/') != std::string::npos;
  Result<TttOptions> options = file ? ReadTttTier(flags.tier) : TttTier(flags.tier);
  if (!options.ok()) return file ? options : Result<TttOptions>(InvalidArgument("--ttt: {}", options.status().message()));
  if (options->adapts() && ComputesOnCuda(model)) {
    return Unsupported("--ttt {}: test-time training runs on the cpu backend, not on cuda; use --backend cpu (or THERMOE_BACKEND=cpu), or leave --ttt out", flags.tier);
  }
  if (!flags.objective.empty()) {
    const Result<TttObjective> objective = ParseTttObjective(flags.objective);
    if (!objective.ok()) return InvalidArgument("--ttt-objective: {}", objective.status().message());
    options->objective = *objective;
  }
  if (!flags.features.empty()) {
    if (options->objective != TttObjective::kFeatureAlignment) return InvalidArgument("--ttt-features is for --ttt-objective features");
    options->features_path = flags.features;
  }
  if (flags.budget_joules) {
    if (!options->automatic) return InvalidArgument("--ttt-budget-joules needs an automatic tier; use --ttt auto");
    options->budget_joules = *flags.budget_joules;
  }
  return options;
}

Json TttOptionsJson(const TttOptions& options) {
  Json json;
  json["tier"] = options.tier;
  json["objective"] = TttObjectiveName(options.objective);
  json["groups"] = Json::object();
  for (const DeltaGroupOptions& group : options.groups) {
    json["groups"][std::string(DeltaGroupName(group.group))] = {{"learning_rate", group.learning_rate}, {"last_layers", group.last_layers}, {"damping", group.damping}};
  }
  json["rank"] = options.rank;
  json["segment"] = options.segment;
  json["steps"] = options.steps;
  json["look_back"] = options.look_back;
  json["every"] = options.every;
  json["optimizer"] = TttOptimizerName(options.optimizer);
  json["beta1"] = options.beta1;
  json["beta2"] = options.beta2;
  json["cooling"] = options.cooling;
  json["surprise"] = options.surprise;
  json["scale_rate"] = options.scale_rate;
  json["decay"] = options.decay;
  json["window"] = options.window;
  json["keep"] = options.keep;
  json["recompute_share"] = options.recompute_share;
  json["seed"] = options.seed;
  json["start"] = TttStartName(options.start);
  json["automatic"] = options.automatic;
  if (options.automatic) {
    json["budget_joules"] = options.budget_joules > 0 ? Json(options.budget_joules) : Json();
    json["price_nats"] = options.price_nats;
    json["least_nats"] = options.least_nats;
    json["deep_nats"] = options.deep_nats;
  }
  return json;
}

Json TttChoicesJson(const TttOptions& options, const TttStats& stats) {
  Json json;
  json["tiers"] = Json::object();
  if (options.automatic) {
    for (int choice = 0; choice < kTttChoices; ++choice) json["tiers"][std::string(TttChoiceName(choice))] = stats.choices[static_cast<size_t>(choice)];
    json["left_out_tokens"] = stats.left_out_tokens;
    json["caught_up"] = stats.caught_up;
    json["dropped"] = stats.dropped;
    json["guard_passes"] = stats.guard_passes;
    json["guard_seconds"] = stats.guard_seconds;
  } else {
    json["tiers"][options.tier] = stats.segments;
  }
  json["reverted"] = stats.reverted;
  json["deferred"] = stats.deferred;
  json["adapt_joules"] = stats.adapt_joules;
  json["adapt_joules_estimated"] = stats.joules_estimated;
  return json;
}

Json AdaptCostJson(const CostView& view) {
  Json json = Json::object();
  for (size_t choice = 0; choice < view.adapt_updates.size(); ++choice) {
    if (view.adapt_updates[choice] == 0) continue;
    json[std::string(TttChoiceName(static_cast<int>(choice)))] = {{"updates", view.adapt_updates[choice]},
                                                                  {"error_frac", view.adapt_error_frac[choice]},
                                                                  {"profile_error_frac", view.adapt_profile_error_frac[choice]}};
  }
  return json;
}

Json TttJson(const TttOptions& options, const TttStats& stats) {
  if (!options.adapts()) return Json();
  Json json;
  json["tier"] = options.tier;
  json["objective"] = TttObjectiveName(options.objective);
  json["segments"] = stats.segments;
  json["updates"] = stats.updates;
  json["adapted_tokens"] = stats.adapted_tokens;
  json["restarts"] = stats.restarts;
  json["recomputed_tokens"] = stats.recomputed_tokens;
  json["flops"] = stats.flops;
  json["adapt_seconds"] = stats.adapt_seconds;
  json.update(TttChoicesJson(options, stats));
  json["delta_bytes"] = stats.delta_bytes;
  json["recall_bytes"] = stats.recall_bytes;
  return json;
}

std::string TttText(const TttOptions& options, const TttStats& stats) {
  if (!options.adapts()) return "";
  const std::string joules = ", " + JoulesText(stats.adapt_joules) + (stats.joules_estimated ? " (estimated)" : "");
  return fmt::format("adapted by {}: {} update{}, {:.2f} s{}", options.tier, stats.updates, stats.updates == 1 ? "" : "s", stats.adapt_seconds,
                     joules);
}

}  // namespace thermoe
