// SPDX-License-Identifier: Apache-2.0
// Flags of test-time training, shared by run and eval (docs/test-time-training.md).
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>

#include "json_out.h"
#include "model_options.h"
#include "thermoe/engine.h"
#include "thermoe/status.h"
#include "thermoe/ttt.h"

namespace thermoe {

struct TttFlags {
  std::string tier = "off";  // a name of TttTiers(), or a TOML file
  std::string objective;     // empty: the tier's own
  std::string features;      // statistics of activations, for the objective of that name
  std::string save, load;    // files of deltas
  std::optional<double> budget_joules;  // of an automatic tier

  bool on() const { return tier != "off"; }
};

void AddTttFlags(CLI::App* app, TttFlags* flags);

// The tier with what the flags change. Errors: an unknown tier or objective; flags that need a tier; a backend that does not train.
Result<TttOptions> TttOptionsFrom(const TttFlags& flags, const ModelFlags& model);

// The settings: {"tier", "objective", "groups", "rank", "segment", ...}.
Json TttOptionsJson(const TttOptions& options);
// {"tier", "segments", "updates", ...}; null where nothing is adapted.
Json TttJson(const TttOptions& options, const TttStats& stats);
// {"tiers": segments by tier, "reverted", "deferred", "caught_up", "dropped", "guard_passes", "adapt_joules", ...}.
Json TttChoicesJson(const TttOptions& options, const TttStats& stats);
// Of each choice that made updates: {"updates", "error_frac", "profile_error_frac"}, how far predicted seconds were off.
Json AdaptCostJson(const CostView& view);
// "adapted by combined: 4 updates, 1.2 s, 3.1 J".
std::string TttText(const TttOptions& options, const TttStats& stats);

}  // namespace thermoe
