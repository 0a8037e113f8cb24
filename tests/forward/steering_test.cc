// SPDX-License-Identifier: Apache-2.0
#include "forward/steering.h"

#include <gtest/gtest.h>

#include <limits>

namespace thermoe {
namespace {

constexpr SteeringShape kShape{2, 4, 2, true};

Steering With(void (*change)(LayerSteering*)) {
  Steering steering;
  steering.layers.resize(2);
  change(&steering.layers[1]);
  return steering;
}

TEST(CheckSteering, AcceptsNeutralAndFullSettings) {
  EXPECT_TRUE(CheckSteering(Steering{}, kShape).ok());
  EXPECT_TRUE(CheckSteering(With([](LayerSteering* l) {
                              *l = {{0.1f, 0, 0, -1}, {1, 2, 2, 1}, 1, 2, 0.5f, 0};
                            }), kShape).ok());
}

TEST(CheckSteering, BoundsTheSampleOfGateRows) {
  Steering steering;
  steering.sample_gate_rows = kMostGateRows;
  EXPECT_TRUE(CheckSteering(steering, kShape).ok());
  for (const int32_t rows : {-1, kMostGateRows + 1}) {
    steering.sample_gate_rows = rows;
    EXPECT_NE(CheckSteering(steering, kShape).message().find("rows of gate logits; give 0 to 1024"), std::string::npos);
  }
}

TEST(CheckSteering, NamesLayerFieldAndRemedy) {
  const auto message = [](void (*change)(LayerSteering*), SteeringShape shape = kShape) {
    const Status status = CheckSteering(With(change), shape);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    return status.message();
  };
  EXPECT_NE(message([](LayerSteering* l) { l->guaranteed_slots = 0; }).find("layer 1: guaranteed slots (k0) is 0"), std::string::npos);
  EXPECT_NE(message([](LayerSteering* l) { l->max_slots = 3; }).find("give 1 to 2"), std::string::npos);
  EXPECT_NE(message([](LayerSteering* l) { l->full_slots = -2; }).find("full slots is -2"), std::string::npos);
  EXPECT_NE(message([](LayerSteering* l) { l->drop_below_frac = 1.5f; }).find("fraction"), std::string::npos);
  EXPECT_NE(message([](LayerSteering* l) { l->drop_below_frac = std::numeric_limits<float>::quiet_NaN(); }).find("fraction"), std::string::npos);
  EXPECT_NE(message([](LayerSteering* l) { l->selection_bias = {1, 2}; }).find("2 selection biases for 4 experts"), std::string::npos);
  EXPECT_NE(message([](LayerSteering* l) { l->selection_bias = {1, 2, std::numeric_limits<float>::infinity(), 0}; }).find("expert 2"), std::string::npos);
  EXPECT_NE(message([](LayerSteering* l) { l->plane_cap = {1, 2, 3, 1}; }).find("plane cap of expert 2 is 3"), std::string::npos);
  const SteeringShape native{2, 4, 2, false};
  EXPECT_NE(message([](LayerSteering* l) { l->full_slots = 1; }, native).find("--experts nested"), std::string::npos);
  EXPECT_NE(message([](LayerSteering* l) { l->plane_cap = {1, 1, 1, 1}; }, native).find("--experts nested"), std::string::npos);
  Steering one;
  one.layers.resize(1);
  EXPECT_NE(CheckSteering(one, kShape).message().find("1 layers"), std::string::npos);
}

}  // namespace
}  // namespace thermoe
