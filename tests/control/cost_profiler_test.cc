// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <optional>
#include <set>

#include "control/cost/profile_store.h"
#include "control/cost/profiler.h"
#include "engine/profile_target.h"
#include "support/fixtures.h"

namespace thermoe {
namespace {

using testing::EmberPath;
using testing::FixturePath;
using testing::MakeEngine;
using testing::OpenModel;
using testing::RunRequest;

std::unique_ptr<Profiler> MakeProfiler(const Model& model) {
  ProfilerOptions options;
  options.threads = 1;
  options.quick = true;
  Result<std::unique_ptr<Profiler>> profiler = Profiler::Create(ProfileTargetOf(model), options);
  EXPECT_TRUE(profiler.ok()) << profiler.status().message();
  return std::move(profiler).value();
}

TEST(Profiler, PlansEveryFamilyOfTheBuildOnce) {
  const auto native = OpenModel(EmberPath()), nested = OpenModel(EmberPath(), ExpertStorage::kNested),
             shared = OpenModel(FixturePath("qwen2moe"));
  std::set<Family> planned;
  for (const auto& model : {native, nested, shared}) {
    for (const bool quick : {true, false}) {
      std::set<std::string> seen;
      int held_out = 0;
      for (const PlannedPoint& point : PlanProfile(ShapeOf(ProfileTargetOf(*model)), quick)) {
        EXPECT_TRUE(seen.insert(TextOf(point.shape)).second) << TextOf(point.shape);
        planned.insert(point.shape.family);
        held_out += point.held_out;
      }
      EXPECT_GT(held_out, 20);
    }
  }
  for (const FamilyInfo& info : Families()) {
    if (info.family == Family::kClamp || info.family == Family::kClampBackward) continue;  // of OLMoE with a limit
    EXPECT_GT(planned.count(info.family), 0u) << info.name;
  }
}

// A device that draws 12 W always, with a counter that changes every 2 ms.
std::function<std::optional<double>()> Counter12W(int* readings) {
  return [readings]() -> std::optional<double> {
    ++*readings;
    const double now_s = std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
    return 12.0 * std::floor(now_s / 0.002) * 0.002;
  };
}

TEST(Profiler, MeasuresEnergyByACounter) {
  const auto model = OpenModel(EmberPath(), ExpertStorage::kNested);
  ProfilerOptions options;
  options.threads = 1;
  options.quick = true;
  int readings = 0;
  options.energy_j = Counter12W(&readings);
  const auto profiler = std::move(Profiler::Create(ProfileTargetOf(*model), options)).value();
  std::vector<double> watts;
  const auto keep = [&](const CostPoint& point) {
    EXPECT_TRUE(point.energy_j.has_value()) << TextOf(point.shape);
    watts.push_back(point.energy_j.value_or(0) / (point.latency_us * 1e-6));
    return Status::Ok();
  };
  const Status status = profiler->Run({}, keep, [&](double) { return watts.size() < 25; });
  EXPECT_EQ(status.code(), StatusCode::kCancelled);
  EXPECT_GT(readings, 25 * 20);
  std::sort(watts.begin(), watts.end());
  EXPECT_NEAR(watts[watts.size() / 2], 12, 1.5);

  // A counter that rests, or is lost, measures nothing and ends.
  options.energy_j = [&]() -> std::optional<double> {
    return ++readings % 3 == 0 ? std::nullopt : std::optional<double>(7.0);
  };
  const auto resting = std::move(Profiler::Create(ProfileTargetOf(*model), options)).value();
  bool measured = false;
  const auto unknown = [&](const CostPoint& point) {
    EXPECT_FALSE(point.energy_j.has_value());
    measured = true;
    return Status::Ok();
  };
  EXPECT_EQ(resting->Run({}, unknown, [&](double) { return !measured; }).code(), StatusCode::kCancelled);
}

// What a profile in steps says of an engine's steps.
struct StepsMeasured {
  double watts = 0;  // predicted, of a counter that shows 12
  double ratio = 0;  // predicted time of an engine's steps, over theirs

  // Calls that others hold up take more: within a factor of two and a half.
  bool plausible() const { return watts > 8 && watts < 40 && ratio > 0.4 && ratio < 2.5; }
};

void MeasureSteps(const char* name, StepsMeasured* measured) {
  const auto model = OpenModel(FixturePath(name));
  ProfilerOptions options;
  options.threads = 1;
  options.quick = options.in_steps = true;
  int readings = 0;
  options.energy_j = Counter12W(&readings);
  const auto profiler = std::move(Profiler::Create(ProfileTargetOf(*model), options)).value();
  const std::vector<PlannedPoint> plan = PlanProfile(profiler->model(), true, true);
  std::vector<CostPoint> points;
  const auto keep = [&](const CostPoint& point) {
    points.push_back(point);
    return Status::Ok();
  };
  const Status run = profiler->Run({}, keep, [](double) { return true; });
  ASSERT_TRUE(run.ok()) << run.message();
  EXPECT_EQ(points.size(), plan.size()) << name;
  std::set<Family> families;
  int with_energy = 0, planned_energy = 0;
  for (const CostPoint& point : points) {
    EXPECT_GT(point.latency_us, 0) << TextOf(point.shape);
    families.insert(point.shape.family);
    with_energy += point.energy_j.has_value();
  }
  for (const PlannedPoint& point : plan) planned_energy += point.energy;
  EXPECT_EQ(with_energy, planned_energy) << name;
  EXPECT_GT(planned_energy, 30);
  EXPECT_LT(planned_energy, static_cast<int>(plan.size()) / 2);
  EXPECT_FALSE(families.contains(Family::kLinearBackward));
  const KernelCostModel cost(points);
  StepShape step;
  step.decode_tokens = step.logit_rows = 8;
  step.decode_positions = 64;
  const ModelConfig& config = *ProfileTargetOf(*model).config;
  step.layers.assign(profiler->model().layers.size(), {config.slots, config.slots, 0, 8 * config.slots, 0});
  const StepPrediction predicted = cost.PredictStep(profiler->model(), step);
  EXPECT_TRUE(predicted.total.energy_measured) << name;
  measured->watts = predicted.total.energy_j / (predicted.total.latency_us * 1e-6);

  // An engine's steps of this size.
  EngineOptions engine_options;
  engine_options.threads = 1;
  engine_options.max_sequences = 8;
  const auto engine = MakeEngine(model, engine_options);
  Request request;
  request.prompt = {1, 2, 3, 4};
  request.max_new_tokens = 12;
  request.ignore_end = true;
  for (int i = 0; i < 8; ++i) ASSERT_TRUE(engine->Submit(request).ok());
  std::vector<double> ratios;
  std::vector<Event> events;
  while (*engine->Step(&events)) {
    const StepRecord& record = engine->last_step();
    if (record.prefill_tokens > 0) continue;
    ratios.push_back(cost.PredictStep(profiler->model(), StepShapeFrom(record, profiler->model())).total.latency_us / record.times.total_us);
  }
  ASSERT_GT(ratios.size(), 8u);
  std::nth_element(ratios.begin(), ratios.begin() + 4, ratios.end());
  measured->ratio = ratios[4];
}

// As on a GPU, on backends that have no graphs: every operation of a step has a time, and those of a step sum up to what it takes.
TEST(Profiler, InStepsSumsUpToWhatAStepTakes) {
  for (const char* name : {"olmoe", "qwen2moe"}) {  // the second has a shared expert
    StepsMeasured measured;
    for (int tries = 0; tries < 3 && !measured.plausible(); ++tries) {
      MeasureSteps(name, &measured);
      if (HasFatalFailure()) return;
    }
    EXPECT_TRUE(measured.plausible()) << name << ": " << measured.watts << " W, " << measured.ratio << " times the steps";
  }
}

TEST(Profiler, MeasuresAllAndGoesOnWhereItStopped) {
  const auto model = OpenModel(EmberPath(), ExpertStorage::kNested);
  const std::string path =
      (std::filesystem::temp_directory_path() / ("thermoe-profiler-" + std::to_string(getpid()) + ".sqlite")).string();
  std::filesystem::remove(path);
  const auto profiler = MakeProfiler(*model);
  const ProfileKey key = {"cpu", profiler->Describe(), model->info().identity, "test"};
  const size_t all = PlanProfile(profiler->model(), true).size();
  size_t measured = 0;
  {
    const auto store = std::move(ProfileStore::Open(path)).value();
    // Stopped before anything was measured whole, then after a third.
    const auto keep = [&](const CostPoint& point) {
      if (++measured > all / 3) return Status(StatusCode::kInternal, "the disk is full");
      return store->Add(key, point);
    };
    double seen = 0;
    const auto at_once = [&](double done_frac) { return (seen = done_frac) == 0; };
    EXPECT_EQ(profiler->Run({}, keep, at_once).code(), StatusCode::kCancelled);
    EXPECT_EQ(measured, 0u);
    EXPECT_GT(seen, 0);
    const Status stopped = profiler->Run({}, keep, [](double) { return true; });
    EXPECT_EQ(stopped.message(), "the disk is full");
    --measured;
  }
  const auto store = std::move(ProfileStore::Open(path)).value();
  const std::vector<CostPoint> known = std::move(store->Load(key)).value();
  EXPECT_EQ(known.size(), measured);
  double last = 0;
  const auto keep = [&](const CostPoint& point) {
    EXPECT_GT(point.latency_us, 0) << TextOf(point.shape);
    EXPECT_GT(point.bytes, 0) << TextOf(point.shape);
    ++measured;
    return store->Add(key, point);
  };
  const Status finished = profiler->Run(known, keep, [&](double done_frac) {
    EXPECT_GE(done_frac, last);
    last = done_frac;
    return true;
  });
  EXPECT_TRUE(finished.ok()) << finished.message();
  EXPECT_EQ(measured, all);
  EXPECT_NEAR(last, 1, 1e-9);
  const std::vector<CostPoint> points = std::move(store->Load(key)).value();
  EXPECT_EQ(points.size(), all);
  EXPECT_TRUE(profiler->Run(points, keep, [](double) { return false; }).ok()) << "nothing is left to measure";
  // An engine finds it, and says so; of other threads there is none, and a damaged file costs nothing but itself.
  EngineOptions options;
  options.threads = 1;
  options.profile_path = path;
  {
    const auto store_as_engine = std::move(ProfileStore::Open(path)).value();
    for (const CostPoint& point : points)
      ASSERT_TRUE(store_as_engine->Add(ProfileKeyOf(*model, profiler->Describe(), "", true), point).ok());
  }
  Request few;
  few.prompt = {1, 2, 3, 4};
  few.max_new_tokens = 4;
  few.ignore_end = true;
  const auto with_profile = MakeEngine(model, options);
  RunRequest(with_profile.get(), few);
  EXPECT_GT(with_profile->cost_view().profiled_points, 100);
  EXPECT_GE(with_profile->cost_view().steps, 1);
  EXPECT_LT(with_profile->cost_view().profile_error_frac, 3);
  options.threads = 2;
  EXPECT_EQ(MakeEngine(model, options)->cost_view().profiled_points, 0);
  std::ofstream(path) << std::string(5000, 'x');
  const auto damaged = MakeEngine(model, options);
  RunRequest(damaged.get(), few);
  EXPECT_EQ(damaged->cost_view().profiled_points, 0);
  EXPECT_NE(damaged->cost_view().profile_error.find(path), std::string::npos) << damaged->cost_view().profile_error;
  std::filesystem::remove(path);

  // A whole step, and what the engine then says it took.
  KernelCostModel cost(points);
  options.threads = 1;
  options.profile_path.clear();
  const auto engine = MakeEngine(model, options);
  Request request;
  request.prompt = {1, 2, 3, 4, 5, 6, 7, 8};
  request.max_new_tokens = 60;
  request.ignore_end = true;
  ASSERT_TRUE(engine->Submit(request).ok());
  std::vector<Event> events;
  double before = 0;
  std::vector<double> late;  // errors of the last steps: their median, since other programs disturb some
  int steps = 0;
  while (*engine->Step(&events)) {
    const StepRecord& record = engine->last_step();
    const StepPrediction prediction = cost.PredictStep(profiler->model(), StepShapeFrom(record, profiler->model()));
    double sum = 0;
    for (const double stage_us : prediction.stage_us) sum += stage_us;
    EXPECT_NEAR(prediction.total.latency_us, sum, 1e-6 * sum);
    const double error = std::abs(std::log(sum / record.times.total_us));
    if (steps < 10) before += error / 10;
    if (steps >= 40) late.push_back(error);
    EXPECT_TRUE(cost.Learn(profiler->model(), record));
    ++steps;
  }
  ASSERT_GE(steps, 60);
  EXPECT_LT(before, 1.5);  // the microbenchmarks are of the right size even on a busy machine
  std::nth_element(late.begin(), late.begin() + static_cast<ptrdiff_t>(late.size() / 2), late.end());
  EXPECT_LT(late[late.size() / 2], 0.7);
}

}  // namespace
}  // namespace thermoe
