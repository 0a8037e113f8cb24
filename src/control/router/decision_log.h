// SPDX-License-Identifier: Apache-2.0
// Every decision of a control loop as JSON lines, with all that it depended on; Replay makes them again
// (docs/control-loop.md).
//
// Line 1: {"decision_log": 1, "config", "shape", "fixed", "front_identity", "points", "state"}. Then a line a tick:
// {"tick", "time_s", "steps", "measured", "decision", "predicted"}, where biases on experts were learnt also "experts"
// (what from) and "ttha" (each term with its weight and value), {"limits"} where they changed,
// and {"adapt"} for every decision on test-time training (control/adapt/adapt_log.h). Numbers are written
// so that they read back the same.
#pragma once

#include <fmt/format.h>

#include <cstdio>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "control/router/control_core.h"
#include "control/router/expert_steering.h"
#include "thermoe/status.h"

namespace thermoe {

class DecisionLog {
 public:
  ~DecisionLog();

  // `state`: what the core was restored from. kInvalidArgument when `path` cannot be written.
  Status Open(const std::string& path, const ControlConfig& config, const SteeringShape& shape,
              const OperatingPoints& front, const std::vector<OperatingPoint>& points, int32_t fixed,
              const std::optional<ControlState>& state);
  // After every step; formats and writes at ticks. Nothing is allocated in between.
  void Add(const StepInput& input, const StepOutput& output, const ControlCore& core, const ExpertSteering& experts);
  void AddLimits(const ControlLimits& limits);
  // A JSON object of another part of the loop, as it is.
  void AddLine(std::string_view json);
  // Steps since the last tick too. The first error stays.
  Status Flush();

 private:
  struct Row {
    StepInput input;
    StepOutput output;
  };
  void WriteRows(const ControlCore* core);
  void EndLine();
  void Write();

  std::string path_;
  std::FILE* file_ = nullptr;
  std::vector<Row> rows_;  // since the last line
  SensorInput written_;    // sensors as the last row told them
  bool has_written_ = false;
  fmt::memory_buffer line_;
  bool failed_ = false;
};

struct ReplayReport {
  int64_t ticks = 0, steps = 0, adaptations = 0;
  bool cut = false;  // the last line has no end: what wrote it was stopped
  // The first decision that came out otherwise; empty: all are the same to the bit.
  std::string difference;
};

// kNotFound, or kCorrupt with the line and what it must be, whatever the bytes are.
Result<ReplayReport> Replay(const std::string& path);
Result<ReplayReport> ReplayText(std::string_view text, const std::string& source);

}  // namespace thermoe
