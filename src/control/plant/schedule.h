// SPDX-License-Identifier: Apache-2.0
// Values over time that the plant's surroundings follow, and the TOML file that holds them.
#pragma once

#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "thermoe/status.h"

namespace thermoe {

// Piecewise constant or linear in time. Before the first point it has the first value, after the last point the last.
class Schedule {
 public:
  enum class Shape { kSteps, kLinear };
  static constexpr double kNever = std::numeric_limits<double>::infinity();

  explicit Schedule(double constant) : points_{{0.0, constant}} {}
  // points: {time_s, value}, at least one, times finite and rising.
  static Result<Schedule> Create(Shape shape, std::vector<std::pair<double, double>> points);

  double At(double time_s) const;
  // The first point's time after `time_s`, or kNever.
  double NextEdge(double time_s) const;
  // Whether the value rests from `time_s` to NextEdge(time_s).
  bool Rests(double time_s) const;

 private:
  Schedule(Shape shape, std::vector<std::pair<double, double>> points) : shape_(shape), points_(std::move(points)) {}
  size_t Passed(double time_s) const;  // points at or before time_s

  Shape shape_ = Shape::kSteps;
  std::vector<std::pair<double, double>> points_;
};

// What the device meets. background_frac: the share of its time that others take; they read memory at full bandwidth.
struct Scenario {
  Schedule ambient_c;
  Schedule background_frac;
};

Scenario ConstantScenario(double ambient_c);

// TOML: schema = 1, ambient_c = [[0, 25], [600, 40]], optional ambient_shape = "steps" | "linear" (default), and the
// same for background_frac and background_shape (default "steps"). A missing schedule is constant: `ambient_c` and no
// background.
Result<Scenario> LoadScenario(const std::string& path, double ambient_c);

}  // namespace thermoe
