// SPDX-License-Identifier: Apache-2.0
#include "control/cost/cost_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <iterator>

#include "control/plant/plant.h"
#include "control/simulate/sim_scenario.h"
#include "control/telemetry_testing.h"

namespace thermoe {
namespace {

using ::testing::HasSubstr;

class ShippedCosts : public testing::TestWithParam<const char*> {
 protected:
  static std::string Path(const char* rest) { return std::string(THERMOE_SOURCE_DIR) + "/data/profiles/" + GetParam() + rest; }
  static Result<CostFile> Read() { return ReadCostFile(Path("-olmoe-nested8.csv")); }
};

TEST(CostFile, ComesBackAsItWasWritten) {
  CostFile file{{"a card", "cuda (a card)", "some model", "1.2"}, {}};
  for (int i = 1; i <= 3; ++i) {
    CostPoint point;
    point.shape.family = i == 1 ? Family::kAttentionDecode : Family::kExpertNestedHi;
    point.shape.matrix = {DType::kNested8, 16 * i, 32, false};
    point.shape.down_type = DType::kQ6K;
    point.shape.kv_heads = 4, point.shape.tokens = i, point.shape.positions = 100 * i, point.shape.distinct_positions = 90 * i;
    point.shape.experts = 3, point.shape.experts_hi = 3, point.shape.slots_hi = 8;
    point.latency_us = 1.5 * i, point.spread_frac = 0.01;
    if (i == 2) point.energy_j = 2.5e-4;
    point.held_out = i == 3;
    file.points.push_back(point);
  }
  TempFolder folder;
  const std::string path = folder.Write("costs.csv", CostFileText(file));
  const Result<CostFile> read = ReadCostFile(path);
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(read->key.device, "a card");
  EXPECT_EQ(read->key.backend, "cuda (a card)");
  EXPECT_EQ(read->key.model, "some model");
  EXPECT_EQ(read->key.build, "1.2");
  ASSERT_EQ(read->points.size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(read->points[i].shape, file.points[i].shape);
    EXPECT_DOUBLE_EQ(read->points[i].latency_us, file.points[i].latency_us);
    EXPECT_EQ(read->points[i].energy_j, file.points[i].energy_j);
    EXPECT_EQ(read->points[i].held_out, file.points[i].held_out);
    EXPECT_GT(read->points[i].bytes, 0);
  }
}

TEST(CostFile, SaysWhatIsWrong) {
  TempFolder folder;
  EXPECT_EQ(ReadCostFile("/nowhere/costs.csv").status().code(), StatusCode::kNotFound);
  EXPECT_THAT(ReadCostFile(folder.Write("a.csv", "time_s,power_w\n1,2\n")).status().message(), HasSubstr("no file of costs"));
  const std::string start = CostFileText({});
  EXPECT_THAT(ReadCostFile(folder.Write("b.csv", start)).status().message(), HasSubstr("no points"));
  for (const char* line : {"embed,q8_0,f32,0,1,2", "no such,q8_0,f32,0,1,2,0,0,1,0,0,0,0,0,0,0,1,0,,0", "embed,q8_0,f32,0,1,2,0,0,1,0,0,0,0,0,0,0,-1,0,,0",
                           "embed,q8_0,f32,0,1,2,0,0,1,0,0,0,0,0,0,0,1,0,,0,7", "embed,q8_0,f32,0,1,2,0,0,x,0,0,0,0,0,0,0,1,0,,0"}) {
    EXPECT_THAT(ReadCostFile(folder.Write("c.csv", start + line + "\n")).status().message(), HasSubstr("line 7")) << line;
  }
}

// What is asked of a cost model on shapes that it was not made of, by the cards' own measurements.
TEST_P(ShippedCosts, PredictWhatWasHeldOut) {
  const Result<CostFile> file = Read();
  ASSERT_TRUE(file.ok()) << file.status().message();
  std::vector<CostPoint> held_out;
  std::copy_if(file->points.begin(), file->points.end(), std::back_inserter(held_out), [](const CostPoint& point) { return point.held_out; });
  const KernelCostModel model(file->points);
  const CostErrors latency = ErrorsOf(model, held_out), energy = EnergyErrorsOf(model, held_out);
  EXPECT_GE(latency.points, 400);
  EXPECT_LT(latency.median_frac, 0.05);
  EXPECT_LT(latency.p95_frac, 0.15);
  EXPECT_GE(energy.points, 40);
  EXPECT_LT(energy.median_frac, 0.10);
}

// A whole step of the model that a shipped file is of is priced by measured points alone.
TEST_P(ShippedCosts, PriceTheirModelsSteps) {
  const Result<CostFile> file = Read();
  ASSERT_TRUE(file.ok()) << file.status().message();
  EXPECT_THAT(file->key.backend, HasSubstr("cuda"));
  const Result<DeviceProfile> device = LoadDeviceProfile(Path(".toml"));
  ASSERT_TRUE(device.ok()) << device.status().message();
  const KernelCostModel model(file->points);
  const Result<ModelShape> shape = SimModelShape(SimModel{});
  ASSERT_TRUE(shape.ok());
  for (const int64_t batch : {1, 8, 32}) {
    StepShape step;
    step.decode_tokens = step.logit_rows = batch;
    step.decode_positions = batch * 200;
    const int64_t experts = std::min<int64_t>(64, batch * 8);
    step.layers.assign(shape->layers.size(), {experts, experts, 0, batch * 8, 0});
    const CostPrediction total = model.PredictStep(*shape, step).total;
    EXPECT_NE(total.basis, PredictionBasis::kRoofline) << batch;
    EXPECT_TRUE(total.energy_measured) << batch;
    // A plant takes at least what its bandwidth takes: what was measured must not be hidden by that.
    EXPECT_GT(total.latency_us * 1e-6, 0.95 * total.memory_bytes / (device->bandwidth_gbps * 1e9)) << batch;
    const double watts = total.energy_j / (total.latency_us * 1e-6);
    EXPECT_GT(watts, 150) << batch;
    EXPECT_LT(watts, 700) << batch;
  }
}

INSTANTIATE_TEST_SUITE_P(Cards, ShippedCosts, testing::Values("h100", "h200"), [](const auto& test) { return std::string(test.param); });

TEST(Plant, TakesWhatACostModelMeasured) {
  const Result<DeviceProfile> profile = LoadDeviceProfile(std::string(THERMOE_SOURCE_DIR) + "/data/profiles/h100.toml");
  ASSERT_TRUE(profile.ok());
  Plant plant(*profile, ConstantScenario(profile->ambient_c), 1);
  const Work bytes{profile->bandwidth_gbps * 1e6, 0};  // a millisecond of them
  EXPECT_NEAR(plant.Predict(bytes).duration_s, 1e-3, 1e-6);
  Work measured = bytes;
  measured.least_s = 3e-3;
  measured.least_j = 1;
  EXPECT_NEAR(plant.Predict(measured).duration_s, 3e-3, 1e-6);
  EXPECT_NEAR(plant.Predict(measured).energy_j, 1, 0.03);
  measured.least_s = 1e-4, measured.least_j = 0;  // less than the bytes allow
  EXPECT_NEAR(plant.Predict(measured).duration_s, 1e-3, 1e-6);
  EXPECT_NEAR(plant.Predict(measured).energy_j, plant.Predict(bytes).energy_j, 1e-9);
}

}  // namespace
}  // namespace thermoe
