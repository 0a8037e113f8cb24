// SPDX-License-Identifier: Apache-2.0
// `thermoe eval --ttt`: texts read as streams, each segment scored before it is learnt from, beside the plain model on the same
// segments with the same context restarts.
#pragma once

#include <string>
#include <vector>

#include "eval_score.h"
#include "eval_windows.h"
#include "json_out.h"
#include "thermoe/engine.h"
#include "ttt_options.h"

namespace thermoe {

// One text: streams (documents, or windows of them) with the deltas new in each.
struct TttScores {
  std::string file;
  std::vector<WindowScore> plain, adapted;  // [streams]
  std::vector<TttStats> stats;              // [streams] of the adapted pass
  double plain_seconds = 0, adapted_seconds = 0;
  double plain_flops = 0, adapted_flops = 0;  // context restarts counted in both

  int64_t tokens() const;
  double plain_nll() const;
  double adapted_nll() const;
  double passes() const { return adapted_flops / plain_flops; }  // forward passes that a token costs
};

// `flags`: save and load need a single stream.
Result<TttScores> ScoreStreams(Engine* engine, const std::vector<EvalWindow>& streams, const TttOptions& options, const TttFlags& flags,
                               const ScoreProgress& progress);

// {"plain_nll", "adapted_nll", "tiers", "reverted", "deferred", "adapt_joules", "adapt_seconds", ...}.
Json TttScoresJson(const TttScores& scores, const TttOptions& options);
void PrintTttTable(const std::vector<TttScores>& files);

}  // namespace thermoe
