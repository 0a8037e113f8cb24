// SPDX-License-Identifier: Apache-2.0
#include "control/plant/schedule.h"

#include <algorithm>
#include <cmath>

#include "base/errors.h"
#include "control/plant/toml_file.h"

namespace thermoe {
namespace {

constexpr double kSchema = 1;
constexpr double kMostBackground = 0.95;  // with less than a twentieth of the device left, steps would hardly end

// Reads `key` with its shape; leaves *schedule alone when the file does not have it.
Status ReadSchedule(TomlFile* file, const char* key, const char* shape_key, double low, double high,
                    Schedule::Shape shape, Schedule* schedule) {
  if (file->Has(shape_key)) {
    const Result<std::string> text = file->Text(shape_key);
    if (!text.ok()) return text.status();
    if (*text != "steps" && *text != "linear") {
      return InvalidArgument("{} is \"{}\"; make it \"steps\" or \"linear\"", file->Where(shape_key), *text);
    }
    shape = *text == "steps" ? Schedule::Shape::kSteps : Schedule::Shape::kLinear;
  }
  if (!file->Has(key)) return Status::Ok();
  Result<std::vector<std::pair<double, double>>> pairs = file->Pairs(key, low, high);
  if (!pairs.ok()) return pairs.status();
  Result<Schedule> made = Schedule::Create(shape, std::move(pairs).value());
  if (!made.ok()) return InvalidArgument("{}: {}", file->Where(key), made.status().message());
  *schedule = std::move(made).value();
  return Status::Ok();
}

}  // namespace

Result<Schedule> Schedule::Create(Shape shape, std::vector<std::pair<double, double>> points) {
  if (points.empty())
    return InvalidArgument("a schedule without points has no value; give at least one pair [time_s, value]");
  for (size_t i = 0; i < points.size(); ++i) {
    if (!std::isfinite(points[i].first) || !std::isfinite(points[i].second)) {
      return InvalidArgument("point {} of the schedule is not finite; give finite times and values", i + 1);
    }
    if (i > 0 && points[i].first <= points[i - 1].first) {
      return InvalidArgument("time {} of the schedule comes after {}; make times rise", points[i].first,
                             points[i - 1].first);
    }
  }
  return Schedule(shape, std::move(points));
}

size_t Schedule::Passed(double time_s) const {
  const auto after =
      std::upper_bound(points_.begin(), points_.end(), time_s,
                       [](double time, const std::pair<double, double>& point) { return time < point.first; });
  return static_cast<size_t>(after - points_.begin());
}

double Schedule::At(double time_s) const {
  const size_t passed = Passed(time_s);
  if (passed == 0) return points_.front().second;
  const auto& [t0, v0] = points_[passed - 1];
  if (shape_ == Shape::kSteps || passed == points_.size()) return v0;
  const auto& [t1, v1] = points_[passed];
  return v0 + (v1 - v0) * ((time_s - t0) / (t1 - t0));
}

double Schedule::NextEdge(double time_s) const {
  const size_t passed = Passed(time_s);
  return passed == points_.size() ? kNever : points_[passed].first;
}

bool Schedule::Rests(double time_s) const {
  const size_t passed = Passed(time_s);
  if (shape_ == Shape::kSteps || passed == 0 || passed == points_.size()) return true;
  return points_[passed - 1].second == points_[passed].second;
}

Scenario ConstantScenario(double ambient_c) { return {Schedule(ambient_c), Schedule(0.0)}; }

Result<Scenario> LoadScenario(const std::string& path, double ambient_c) {
  Result<TomlFile> file = TomlFile::Open(path);
  if (!file.ok()) return file.status();
  if (const Result<double> schema = file->Number("schema", kSchema, kSchema); !schema.ok()) return schema.status();
  Scenario scenario = ConstantScenario(ambient_c);
  THERMOE_RETURN_IF_ERROR(
      ReadSchedule(&*file, "ambient_c", "ambient_shape", -50, 100, Schedule::Shape::kLinear, &scenario.ambient_c));
  THERMOE_RETURN_IF_ERROR(ReadSchedule(&*file, "background_frac", "background_shape", 0, kMostBackground,
                                       Schedule::Shape::kSteps, &scenario.background_frac));
  THERMOE_RETURN_IF_ERROR(file->CheckAllRead());
  return scenario;
}

}  // namespace thermoe
