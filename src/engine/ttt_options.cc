// SPDX-License-Identifier: Apache-2.0
// Tiers of test-time training: names, those that ship, TOML files, ranges.
#include <algorithm>
#include <array>
#include <cmath>

#include "base/errors.h"
#include "control/adapt/benefit_model.h"
#include "control/plant/toml_file.h"
#include "kernels/backward_ops.h"
#include "thermoe/ttt.h"

namespace thermoe {
namespace {

constexpr std::array<std::string_view, kDeltaGroups> kGroupNames = {
    "output_bias", "output_gain", "hidden_bias", "residual_bias", "attention_gain", "expert_gain",  "expert_scale",   "router_shift",
    "low_rank_q",  "low_rank_k",  "low_rank_v",    "low_rank_o",     "low_rank_gate", "low_rank_output"};
constexpr std::array<std::string_view, 4> kObjectiveNames = {"nll", "entropy", "pseudo-labels", "features"};
constexpr std::array<std::string_view, 3> kOptimizerNames = {"adam", "sgd", "muon"};
constexpr std::array<std::string_view, 2> kStartNames = {"normal", "orthonormal"};

template <typename Enum, size_t kCount>
Result<Enum> ParseName(const std::array<std::string_view, kCount>& names, std::string_view name, std::string_view what) {
  const auto found = std::find(names.begin(), names.end(), name);
  if (found != names.end()) return static_cast<Enum>(found - names.begin());
  return InvalidArgument("\"{}\" is no {}; there are: {}", name, what, fmt::join(names, ", "));
}

// Chosen on the even windows of three texts (docs/test-time-training.md). Per token; a longer segment takes larger steps of its own
// accord, so learning rates scale with sqrt(segment / 64).
TttOptions Tier(std::string name, std::vector<DeltaGroupOptions> groups) {
  TttOptions options;
  options.tier = std::move(name);
  options.groups = std::move(groups);
  options.segment = 64;
  options.rank = 12;
  options.beta1 = 0.15f;
  options.cooling = 0.2f;
  options.surprise = 0.25f;
  options.scale_rate = 0.15f;
  return options;
}

std::vector<TttOptions> MakeTiers() {
  using enum DeltaGroup;
  constexpr float kDamping = 3;  // of the logits' biases
  std::vector<TttOptions> tiers;
  tiers.push_back(TttOptions{});
  tiers.push_back(Tier("output", {{kOutputBias, 0.0156f, 0, kDamping}, {kOutputGain, 0.0265f}, {kLowRankOutput, 0.0038f}}));
  tiers.push_back(Tier("last", {{kOutputBias, 0.0343f, 0, kDamping},
                                {kOutputGain, 0.0266f},
                                {kResidualBias, 0.00058f, 2},
                                {kAttentionGain, 0.0082f, 2},
                                {kExpertGain, 0.0081f, 2},
                                {kExpertScale, 0.0069f, 2},
                                {kLowRankQ, 0.0043f, 2},
                                {kLowRankV, 0.0023f, 2},
                                {kLowRankO, 0.0046f, 2}}));
  tiers.push_back(Tier("gains", {{kOutputBias, 0.0213f, 0, kDamping},
                                 {kOutputGain, 0.0165f},
                                 {kAttentionGain, 0.0142f},
                                 {kExpertGain, 0.0081f},
                                 {kExpertScale, 0.0076f}}));
  tiers.push_back(Tier("low-rank", {{kLowRankQ, 0.0029f}, {kLowRankK, 0.0031f}, {kLowRankV, 0.0023f}, {kLowRankO, 0.0033f}, {kLowRankGate, 0.00089f}}));
  tiers.push_back(Tier("combined", {{kOutputBias, 0.0155f, 0, kDamping},
                                    {kOutputGain, 0.0112f},
                                    {kResidualBias, 0.000234f},
                                    {kAttentionGain, 0.00574f},
                                    {kExpertGain, 0.00553f},
                                    {kExpertScale, 0.00561f},
                                    {kLowRankQ, 0.0011f},
                                    {kLowRankV, 0.0007f},
                                    {kLowRankO, 0.00168f},
                                    {kLowRankOutput, 0.00131f}}));
  tiers.back().segment = 48;
  tiers.back().rank = 24;
  tiers.back().start = TttStart::kOrthonormal;
  tiers.back().beta2 = 0.9925f;  // 0.99 ^ (48 / 64)
  tiers.push_back(tiers.back());
  tiers.back().tier = "auto";
  tiers.back().automatic = true;
  return tiers;
}

// Sets *field where the file has the key.
Status Read(TomlFile* file, std::string_view key, double low, double high, auto* field) {
  if (!file->Has(key)) return Status::Ok();
  const Result<double> number = file->Number(key, low, high);
  if (!number.ok()) return number.status();
  using Field = std::remove_pointer_t<decltype(field)>;
  if (std::is_integral_v<Field> && *number != std::floor(*number)) {
    return Corrupt("{} is {}; give a whole number", file->Where(key), *number);
  }
  *field = static_cast<Field>(*number);
  return Status::Ok();
}

template <typename Enum>
Status ReadName(TomlFile* file, std::string_view key, Result<Enum> (*parse)(std::string_view), Enum* field) {
  if (!file->Has(key)) return Status::Ok();
  const Result<std::string> text = file->Text(key);
  if (!text.ok()) return text.status();
  const Result<Enum> value = parse(*text);
  if (!value.ok()) return Corrupt("{}: {}", file->Where(key), value.status().message());
  *field = *value;
  return Status::Ok();
}

Status ReadGroups(TomlFile* file, TttOptions* options) {
  for (int i = 0; i < kDeltaGroups; ++i) {
    const std::string prefix = fmt::format("groups.{}.", kGroupNames[static_cast<size_t>(i)]);
    if (!file->Has(prefix + "learning_rate")) continue;
    DeltaGroupOptions group{static_cast<DeltaGroup>(i)};
    THERMOE_RETURN_IF_ERROR(Read(file, prefix + "learning_rate", 0, 100, &group.learning_rate));
    THERMOE_RETURN_IF_ERROR(Read(file, prefix + "last_layers", 0, 10000, &group.last_layers));
    THERMOE_RETURN_IF_ERROR(Read(file, prefix + "damping", 0, 1000, &group.damping));
    std::erase_if(options->groups, [&](const DeltaGroupOptions& base) { return base.group == group.group; });
    options->groups.push_back(group);
  }
  return Status::Ok();
}

}  // namespace

std::string_view TttChoiceName(int choice) { return AdaptTierName(static_cast<AdaptTier>(choice)); }
std::string_view DeltaGroupName(DeltaGroup group) { return kGroupNames[static_cast<size_t>(group)]; }
Result<DeltaGroup> ParseDeltaGroup(std::string_view name) { return ParseName<DeltaGroup>(kGroupNames, name, "group of deltas"); }
std::string_view TttObjectiveName(TttObjective objective) { return kObjectiveNames[static_cast<size_t>(objective)]; }
Result<TttObjective> ParseTttObjective(std::string_view name) { return ParseName<TttObjective>(kObjectiveNames, name, "objective"); }
std::string_view TttOptimizerName(TttOptimizer optimizer) { return kOptimizerNames[static_cast<size_t>(optimizer)]; }
Result<TttOptimizer> ParseTttOptimizer(std::string_view name) { return ParseName<TttOptimizer>(kOptimizerNames, name, "optimizer"); }
std::string_view TttStartName(TttStart start) { return kStartNames[static_cast<size_t>(start)]; }
Result<TttStart> ParseTttStart(std::string_view name) { return ParseName<TttStart>(kStartNames, name, "start"); }

const std::vector<TttOptions>& TttTiers() {
  static const std::vector<TttOptions> tiers = MakeTiers();
  return tiers;
}

Result<TttOptions> TttTier(std::string_view name) {
  std::vector<std::string_view> names;
  for (const TttOptions& tier : TttTiers()) {
    if (tier.tier == name) return tier;
    names.push_back(tier.tier);
  }
  return InvalidArgument("\"{}\" is no tier; give {}, or a TOML file", name, fmt::join(names, ", "));
}

Result<TttOptions> ReadTttTier(const std::string& path) {
  Result<TomlFile> file = TomlFile::Open(path);
  if (!file.ok()) return file.status();
  TttOptions options;
  if (file->Has("base")) {
    const Result<std::string> base = file->Text("base");
    if (!base.ok()) return base.status();
    const Result<TttOptions> tier = TttTier(*base);
    if (!tier.ok()) return Corrupt("{}: {}", file->Where("base"), tier.status().message());
    options = *tier;
  }
  options.tier = path;
  if (file->Has("tier")) {
    Result<std::string> name = file->Text("tier");
    if (!name.ok()) return name.status();
    options.tier = *std::move(name);
  }
  THERMOE_RETURN_IF_ERROR(Read(&*file, "rank", 1, kernels::kMaxRank, &options.rank));
  THERMOE_RETURN_IF_ERROR(Read(&*file, "segment", 1, 8192, &options.segment));
  THERMOE_RETURN_IF_ERROR(Read(&*file, "steps", 1, 64, &options.steps));
  THERMOE_RETURN_IF_ERROR(Read(&*file, "look_back", 0, 8192, &options.look_back));
  THERMOE_RETURN_IF_ERROR(Read(&*file, "every", 1, 1024, &options.every));
  THERMOE_RETURN_IF_ERROR(Read(&*file, "confidence", 0, 1, &options.confidence));
  THERMOE_RETURN_IF_ERROR(Read(&*file, "beta1", 0, 0.9999, &options.beta1));
  THERMOE_RETURN_IF_ERROR(Read(&*file, "beta2", 0, 0.99999, &options.beta2));
  THERMOE_RETURN_IF_ERROR(Read(&*file, "epsilon", 0, 1, &options.epsilon));
  THERMOE_RETURN_IF_ERROR(Read(&*file, "cooling", 0, 4, &options.cooling));
  THERMOE_RETURN_IF_ERROR(Read(&*file, "surprise", -4, 4, &options.surprise));
  THERMOE_RETURN_IF_ERROR(Read(&*file, "scale_rate", 0, 1, &options.scale_rate));
  THERMOE_RETURN_IF_ERROR(Read(&*file, "decay", 0, 0.9, &options.decay));
  THERMOE_RETURN_IF_ERROR(Read(&*file, "window", 0, 1e9, &options.window));
  THERMOE_RETURN_IF_ERROR(Read(&*file, "keep", 0, 1e9, &options.keep));
  THERMOE_RETURN_IF_ERROR(Read(&*file, "recompute_share", 0, 1, &options.recompute_share));
  THERMOE_RETURN_IF_ERROR(Read(&*file, "activation_bytes", 0, 1e15, &options.activation_bytes));
  THERMOE_RETURN_IF_ERROR(Read(&*file, "seed", 0, 9007199254740992.0, &options.seed));
  THERMOE_RETURN_IF_ERROR(Read(&*file, "automatic", 0, 1, &options.automatic));
  THERMOE_RETURN_IF_ERROR(Read(&*file, "budget_joules", 0, 1e15, &options.budget_joules));
  THERMOE_RETURN_IF_ERROR(Read(&*file, "price_nats", 0, 1e6, &options.price_nats));
  THERMOE_RETURN_IF_ERROR(Read(&*file, "least_nats", 0, 100, &options.least_nats));
  THERMOE_RETURN_IF_ERROR(Read(&*file, "deep_nats", 0, 100, &options.deep_nats));
  if (file->Has("features_path")) {
    Result<std::string> path_of = file->Text("features_path");
    if (!path_of.ok()) return path_of.status();
    options.features_path = *std::move(path_of);
  }
  THERMOE_RETURN_IF_ERROR(ReadName(&*file, "objective", ParseTttObjective, &options.objective));
  THERMOE_RETURN_IF_ERROR(ReadName(&*file, "optimizer", ParseTttOptimizer, &options.optimizer));
  THERMOE_RETURN_IF_ERROR(ReadName(&*file, "start", ParseTttStart, &options.start));
  THERMOE_RETURN_IF_ERROR(ReadGroups(&*file, &options));
  THERMOE_RETURN_IF_ERROR(file->CheckAllRead());
  if (options.groups.empty()) {
    return Corrupt("{}: no group is adapted; add a table [groups.NAME] with a learning_rate, NAME one of {}", path, fmt::join(kGroupNames, ", "));
  }
  if (!options.automatic && options.budget_joules > 0) {
    return InvalidArgument("{}: budget_joules is for automatic tiers; add automatic = true, or leave it out", path);
  }
  THERMOE_RETURN_IF_ERROR(CheckTttOptions(options));
  return options;
}

int TttLongestStep(const TttOptions& options) {
  return std::max(options.segment + options.look_back, options.recompute_share < 1 ? options.keep : 0);
}

Status CheckTttOptions(const TttOptions& options) {
  const auto range = [](std::string_view name, double value, double low, double high) {
    if (value >= low && value <= high) return Status::Ok();
    return InvalidArgument("test-time training: {} is {}; give {} to {}", name, value, low, high);
  };
  THERMOE_RETURN_IF_ERROR(range("rank", options.rank, 1, kernels::kMaxRank));
  THERMOE_RETURN_IF_ERROR(range("segment", options.segment, 1, 8192));
  THERMOE_RETURN_IF_ERROR(range("steps", options.steps, 1, 64));
  THERMOE_RETURN_IF_ERROR(range("look_back", options.look_back, 0, 8192));
  THERMOE_RETURN_IF_ERROR(range("every", options.every, 1, 1024));
  THERMOE_RETURN_IF_ERROR(range("confidence", options.confidence, 0, 1));
  THERMOE_RETURN_IF_ERROR(range("beta1", options.beta1, 0, 0.9999));
  THERMOE_RETURN_IF_ERROR(range("beta2", options.beta2, 0, 0.99999));
  THERMOE_RETURN_IF_ERROR(range("epsilon", options.epsilon, 0, 1));
  THERMOE_RETURN_IF_ERROR(range("cooling", options.cooling, 0, 4));
  THERMOE_RETURN_IF_ERROR(range("surprise", options.surprise, -4, 4));
  THERMOE_RETURN_IF_ERROR(range("scale_rate", options.scale_rate, 0, 1));
  THERMOE_RETURN_IF_ERROR(range("decay", options.decay, 0, 0.9));
  THERMOE_RETURN_IF_ERROR(range("window", options.window, 0, 1e9));
  THERMOE_RETURN_IF_ERROR(range("keep", options.keep, 0, 1e9));
  THERMOE_RETURN_IF_ERROR(range("recompute_share", options.recompute_share, 0, 1));
  THERMOE_RETURN_IF_ERROR(range("budget_joules", options.budget_joules, 0, 1e15));
  THERMOE_RETURN_IF_ERROR(range("price_nats", options.price_nats, 0, 1e6));
  THERMOE_RETURN_IF_ERROR(range("least_nats", options.least_nats, 0, 100));
  THERMOE_RETURN_IF_ERROR(range("deep_nats", options.deep_nats, 0, 100));
  if (options.automatic && options.every != 1) {
    return InvalidArgument("test-time training: an automatic tier chooses its segments; leave every out");
  }
  if (options.automatic && (options.objective != TttObjective::kNll || options.steps != 1 || options.look_back != 0 || options.recompute_share < 1 || !options.adapts())) {
    return InvalidArgument("test-time training: an automatic tier learns the next token in one step a segment; name groups and leave objective, steps, look_back and recompute_share out");
  }
  uint32_t seen = 0;
  for (const DeltaGroupOptions& group : options.groups) {
    THERMOE_RETURN_IF_ERROR(range(fmt::format("the learning rate of {}", DeltaGroupName(group.group)), group.learning_rate, 0, 100));
    THERMOE_RETURN_IF_ERROR(range(fmt::format("last_layers of {}", DeltaGroupName(group.group)), group.last_layers, 0, 10000));
    THERMOE_RETURN_IF_ERROR(range(fmt::format("damping of {}", DeltaGroupName(group.group)), group.damping, 0, 1000));
    const uint32_t bit = 1u << static_cast<uint32_t>(group.group);
    if ((seen & bit) != 0) return InvalidArgument("test-time training: {} is given twice; give each group once", DeltaGroupName(group.group));
    seen |= bit;
  }
  return Status::Ok();
}

}  // namespace thermoe
