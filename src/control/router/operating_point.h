// SPDX-License-Identifier: Apache-2.0
// Operating points: ways of routing with what each costs in quality and reads in expert bytes (docs/operating-points.md).
// Plain data; `thermoe calibrate` measures them, the controller chooses among the Pareto front.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "forward/steering.h"
#include "thermoe/status.h"
#include "thermoe/steering.h"

namespace thermoe {

// What a point costs at one batch size, against the plain model on the same windows.
struct PointCost {
  double loss_nats = 0;        // mean over texts of the paired change of mean NLL
  double loss_error_nats = 0;  // its standard error over windows
  std::vector<double> text_loss_nats;  // [texts]
  double expert_bytes_frac = 1;        // expert bytes read, of the plain model's
};

struct OperatingPoint {
  int full_slots = kAllSlots;
  int k0 = kAllSlots;
  int k_max = kAllSlots;
  float soft_batch = 0;
  float drop_below_frac = 0;
  // [MoE layers]; of each [E] 1 (hi only) or 2 (both), or empty: both. Empty: both everywhere.
  std::vector<std::vector<uint8_t>> plane_cap;
  int windows = 0;  // of each text that it was measured on
  PointCost batch1, batch16;

  bool SameSettings(const OperatingPoint& other) const;
  // k0 and the soft rule look at the other rows of a decode step.
  bool batch_aware(int32_t slots) const { return soft_batch > 0 || (k0 != kAllSlots && k0 < slots); }
};

// What a token gets from `point` when it is alone in its step: nobody else guarantees or holds an expert, so k0 only
// limits the slots and the soft rule does nothing.
OperatingPoint Alone(const OperatingPoint& point, int32_t slots);

// "full 1, k0 6, 3 layers hi"; "plain".
std::string Describe(const OperatingPoint& point);

Steering ToSteering(const OperatingPoint& point, int32_t layers, uint64_t version);

struct CalibrationText {
  std::string name;      // for people
  std::string identity;  // hash of its bytes
};

// A file of points: all on the same model, texts and windows.
struct OperatingPoints {
  std::string model_identity, model_name;
  int32_t layers = 0, experts = 0, slots = 0;  // the shape that plane caps and slot counts refer to
  int32_t window = 0;                          // ids in a window
  std::vector<CalibrationText> texts;
  std::vector<OperatingPoint> points;
};

// Indices of the points that no other beats in both loss and bytes at that batch, by falling bytes. Of equals the first.
// Points measured on fewer windows than others were only screened and do not take part.
std::vector<size_t> ParetoFront(const std::vector<OperatingPoint>& points, PointCost OperatingPoint::* batch);

std::string OperatingPointsJson(const OperatingPoints& points);

// kCorrupt names `source`, the field and what it must be, whatever the bytes are.
Result<OperatingPoints> ParseOperatingPoints(std::string_view text, const std::string& source);

// kNotFound, kCorrupt, or kInvalidArgument when `path` was measured on a model other than `model_identity`.
Result<OperatingPoints> ReadOperatingPoints(const std::string& path, const std::string& model_identity);

// Replaces `path` at once: a reader sees the old file or the new one. Its folder must exist.
Status WriteOperatingPoints(const std::string& path, const OperatingPoints& points);

}  // namespace thermoe
