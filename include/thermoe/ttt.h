// SPDX-License-Identifier: Apache-2.0
// Test-time training (TTT): small changes of a model ("deltas") that a session learns from the text it has just read. Base
// weights never change. docs/test-time-training.md has the method, its measured gains and a worked example.
//
// The standard step is the streaming one: the pass that scores a segment keeps its activations, one backward pass through that
// segment alone gives gradients, one optimiser step changes the deltas; keys and values of earlier tokens stay as they are.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "thermoe/status.h"

namespace thermoe {

// What may change. L: layers, D: hidden, E: experts, V: vocabulary, r: rank.
enum class DeltaGroup : uint8_t {
  kOutputBias,     // [V] logits + b
  kOutputGain,     // [D] normalised output * (1 + g),
  kHiddenBias,     // [D] then + b, before the output matrix
  kResidualBias,   // [L, D] what the experts of a layer give + b
  kAttentionGain,  // [L, D] normalised input of attention * (1 + g)
  kExpertGain,     // [L, D] normalised input of gate and experts * (1 + g)
  kExpertScale,    // [L, E] weight of a slot * exp(s), after the model's own normalisation
  kRouterShift,    // [L, E] gate logits + b
  kLowRankQ,       // y += (x A) B with A [in, r], B [r, out]: the projections of attention,
  kLowRankK,
  kLowRankV,
  kLowRankO,
  kLowRankGate,    // the gate,
  kLowRankOutput,  // and the output matrix
};
inline constexpr int kDeltaGroups = 14;
std::string_view DeltaGroupName(DeltaGroup group);  // "output_bias", "low_rank_q"
// kInvalidArgument lists the names.
Result<DeltaGroup> ParseDeltaGroup(std::string_view name);

struct DeltaGroupOptions {
  DeltaGroup group = DeltaGroup::kOutputBias;
  float learning_rate = 0.01f;
  int last_layers = 0;  // adapts only the last so many; 0: all. Ignored by groups without layers
  // Adam divides by sqrt(v) + damping * (root mean square of the tensor's sqrt(v)), times 1 + damping: above 0 elements whose gradients
  // are small beside the others' (logits of words that did not occur) move less.
  float damping = 0;

  bool operator==(const DeltaGroupOptions&) const = default;
};

enum class TttObjective : uint8_t {
  kNll,               // next-token negative log-likelihood of the text
  kEntropy,           // entropy of the model's prediction (Wang et al. 2021, arXiv 2006.10726)
  kPseudoLabels,      // likelihood of the model's own best guess where it is confident
  kFeatureAlignment,  // mean and variance of activations against those of `thermoe calibrate --features`
};
std::string_view TttObjectiveName(TttObjective objective);  // "nll", "entropy", "pseudo-labels", "features"
Result<TttObjective> ParseTttObjective(std::string_view name);

enum class TttOptimizer : uint8_t {
  kAdam,  // Kingma and Ba 2015, arXiv 1412.6980
  kSgd,   // with momentum beta1
  kMuon,  // matrices by orthogonalised momentum (Jordan et al. 2024), everything else by Adam
};
std::string_view TttOptimizerName(TttOptimizer optimizer);
Result<TttOptimizer> ParseTttOptimizer(std::string_view name);

// How A of the low-rank groups starts: every row is of length about 1, so that a step changes as much either way.
enum class TttStart : uint8_t {
  kNormal,       // elements ~ N(0, 1 / in)
  kOrthonormal,  // the same made orthonormal (each block of `in` rows): no direction is counted twice
};
std::string_view TttStartName(TttStart start);  // "normal", "orthonormal"
Result<TttStart> ParseTttStart(std::string_view name);

// A tier: what is adapted and how. Without groups nothing is adapted: the plain model, read in the same segments and with the
// same context restarts, to compare with.
struct TttOptions {
  std::string tier = "off";
  std::vector<DeltaGroupOptions> groups;
  int rank = 4;                // of the low-rank groups, 1 to 64
  int segment = 128;           // tokens between two updates; at most EngineOptions::prefill_chunk
  int steps = 1;               // optimiser steps a segment; further ones pass the segment again
  // Tokens before a segment that pass again with it, so that its backward pass goes through them too: deltas learn what to change in
  // the keys and values that the segment sees. 0: earlier keys and values are constants.
  int look_back = 0;
  int every = 1;               // learns from each so-manieth segment only, the first among them
  TttObjective objective = TttObjective::kNll;
  float confidence = 0.5f;     // pseudo-labels: least probability of a label
  TttOptimizer optimizer = TttOptimizer::kAdam;
  float beta1 = 0.5f, beta2 = 0.99f, epsilon = 1e-8f;
  // Learning rates fall as (1 + tokens learnt from / 512) ^ -cooling: the first pages teach most, later ones mend.
  float cooling = 0;
  // A token counts in the loss as (its NLL / the segment's mean so far) ^ surprise: above 0 what was not expected teaches more.
  float surprise = 0;
  // Parts of the deltas (at the output, in the last layers, below) are scaled by factors that are learnt beside them: at most so much a
  // step on their logarithms. 0: they stay 1, as with steps above 1.
  float scale_rate = 0;
  float decay = 0;             // share that a delta loses at each update (Krause et al. 2018, arXiv 1709.07432)
  // When a segment would pass `window` positions (0: the engine's context) the context restarts: the newest `keep` tokens are computed
  // again (half the window where they leave no room for a segment), with the deltas as they are, from position 0. 0: no restarts; a longer text is refused.
  int window = 0, keep = 512;
  // Of the tokens that pass again (those that a restart keeps, and the segment at each further step) this share, those whose input
  // has changed most, have their experts computed; the others keep what their experts gave. Each layer chooses for itself. 1: all.
  float recompute_share = 1;
  // Most bytes of kept activations and of the backward pass's own buffers, which the sessions of an engine share (the largest need
  // counts). Experts' inner activations are computed again in the backward pass where keeping them would pass it; a segment that
  // does not fit even so is refused. A session's own: TttStats::delta_bytes.
  int64_t activation_bytes = int64_t{256} << 20;
  uint64_t seed = 0;           // of the low-rank starts
  TttStart start = TttStart::kNormal;
  std::string features_path;   // statistics for kFeatureAlignment

  // The engine decides for every segment whether to adapt, by which tier and when, and for every token whether it takes part
  // (docs/adaptation-control.md). `groups` are then those of the dearest tier; cheaper ones learn some of them.
  bool automatic = false;
  double budget_joules = 0;    // most that adapting may take of a session; 0: no bound
  float price_nats = 0.04f;    // nats saved on later tokens that are worth the joules of reading one
  // Tokens by their NLL before the update: below `least_nats` they teach nothing and leave the backward pass at once; while a limit presses
  // those below `deep_nats` teach what lies at the output, not the layers.
  float least_nats = 0.5f, deep_nats = 1.0f;

  bool adapts() const { return !groups.empty(); }
  bool operator==(const TttOptions&) const = default;
};

// Settings that ship, cheapest first: "output", "last", "gains", "low-rank", "combined" and "off".
const std::vector<TttOptions>& TttTiers();
// One of TttTiers(), or kInvalidArgument with their names.
Result<TttOptions> TttTier(std::string_view name);
// A tier from a TOML file, docs/test-time-training.md lists the keys. Errors: kNotFound; kCorrupt names line and key.
Result<TttOptions> ReadTttTier(const std::string& path);
// The least EngineOptions::prefill_chunk that a tier is allowed with.
int TttLongestStep(const TttOptions& options);
// kInvalidArgument names the field and its range.
Status CheckTttOptions(const TttOptions& options);

// What an automatic session chooses among, by rising cost of the backward pass.
inline constexpr int kTttChoices = 6;
std::string_view TttChoiceName(int choice);  // "skip", "output", "last", "gains", "low-rank", "combined"

// What a session's adaptation did so far.
struct TttStats {
  int64_t segments = 0;        // scored
  int64_t updates = 0;         // optimiser steps
  int64_t adapted_tokens = 0;  // tokens that a backward pass went through
  int64_t restarts = 0, recomputed_tokens = 0;  // of the context
  // Of the experts in steps that do nothing but compute again what a restart keeps: time (0 under a plant) and work.
  double recompute_expert_seconds = 0, recompute_expert_flops = 0;
  double flops = 0;            // of everything that the session computed: forward, backward, recomputation
  double adapt_seconds = 0;    // of the engine's clock: backward passes, updates and further steps
  double adapt_joules = 0;     // of the same; see joules_estimated
  int64_t recall_bytes = 0;    // of what the experts gave, kept for passes with recompute_share below 1
  bool joules_estimated = false;  // predicted from bytes, FLOPs and time; no sensor shows power
  // Of an automatic session.
  std::array<int64_t, kTttChoices> choices = {};  // segments by what was chosen for them
  int64_t left_out_tokens = 0;    // that taught nothing
  int64_t deferred = 0, caught_up = 0, dropped = 0;  // segments put off, learnt from later, and let go unlearnt
  int64_t guard_passes = 0, reverted = 0;  // plain passes beside adapted ones; times that the deltas were reset
  double guard_seconds = 0;       // of adapt_seconds
  double gain_nats = 0;           // what a token is thought to gain now, and the deviation of that
  double gain_deviation_nats = 0;
  int64_t delta_bytes = 0;     // of the session's deltas; their gradient takes as much again, each of the optimiser's moments too
};

}  // namespace thermoe
