// SPDX-License-Identifier: Apache-2.0
// A session's test-time training: its deltas, their optimiser, and how far its text has been read.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "control/adapt/adaptation_controller.h"
#include "engine/delta_scale.h"
#include "forward/backward/learn.h"
#include "forward/backward/optimizer.h"
#include "forward/deltas.h"
#include "forward/recall.h"
#include "model/config.h"
#include "thermoe/ttt.h"

namespace thermoe {

// A session whose tiers the engine chooses.
struct AutoAdaptation {
  AutoAdaptation(const TttOptions& options, const BenefitState& start);

  // Tokens of the session that were read while the machine had no room to learn from them.
  struct Segment {
    size_t first = 0;  // of the session's tokens
    int32_t count = 0;
  };
  BenefitState start;  // that the controller was made with
  AdaptationController controller;
  std::deque<Segment> deferred;
  double spent_j = 0;    // predicted
  mutable int64_t logged = 0;  // lines of the decision log
  bool restart = false;  // the context was computed with deltas that are gone: compute it again
};

class Adaptation {
 public:
  // `options` has been checked against the engine. `features`: of the feature alignment objective, else null.
  Adaptation(const ModelConfig& config, const TttOptions& options, std::shared_ptr<const FeatureStatistics> features);

  const TttOptions& options() const { return options_; }
  bool adapts() const { return options_.adapts(); }
  const DeltaLayout& layout() const { return *deltas_.layout; }
  // Null where nothing is adapted.
  const Deltas* deltas() const { return adapts() ? &deltas_ : nullptr; }
  Deltas& mutable_deltas() { return deltas_; }
  DeltaOptimizer& optimizer() { return optimizer_; }
  const DeltaOptimizer& optimizer() const { return optimizer_; }
  std::span<float> gradient() { return gradient_; }
  // The plain model again.
  void Reset();
  // For a session with the same contents: deltas, optimiser and place in the text; its statistics begin anew.
  std::unique_ptr<Adaptation> Fork() const;
  const FeatureStatistics* features() const { return features_.get(); }

  // Tokens of the session that come before position 0 of its context: those that restarts let go.
  size_t first = 0;
  // Positions that a restart computes again, without learning.
  int32_t recompute_until = 0;
  // Of those, how far back they were before the restart; -1: not known.
  int32_t moved = -1;
  // What the experts gave; nothing unless options().recompute_share < 1.
  std::optional<Recall> recall;
  DeltaScale scale;
  TttStats stats;
  std::optional<AutoAdaptation> automatic;

 private:
  TttOptions options_;
  std::shared_ptr<const FeatureStatistics> features_;
  Deltas deltas_;
  DeltaOptimizer optimizer_;
  std::vector<float> gradient_;
};

// deltas_file.cc: a safetensors file whose metadata hold a schema version, the model's identity and the groups.
// Errors: what the file system says, with the path. Written beside the old file, then put in its place at once.
Status WriteDeltas(const std::string& path, const std::string& model_identity, const Adaptation& adaptation);
// Into an adaptation of the same groups, rank and layers. kNotFound, kCorrupt, kInvalidArgument (another model or other groups);
// nothing changes then.
Status ReadDeltas(const std::string& path, const std::string& model_identity, Adaptation* adaptation);
// The same from the file's bytes; `path` is for messages.
Status ParseDeltas(const std::string& path, std::span<const std::byte> bytes, const std::string& model_identity, Adaptation* adaptation);

}  // namespace thermoe
