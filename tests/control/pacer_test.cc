// SPDX-License-Identifier: Apache-2.0
// The pacer against a device of which everything is known, and the energy model that feeds it.
#include "control/router/pacer.h"

#include <gtest/gtest.h>

#include "control/router/energy_model.h"

namespace thermoe {
namespace {

constexpr double kIdle_w = 120, kStep_s = 0.0025, kBusy_w = 500;

// Mean power of `steps` steps, those with `burst_every` at 700 W. `told`: of the true joules, what the pacer is told.
double MeanPower(Pacer* pacer, int steps, int burst_every, double told) {
  double energy_j = 0, time_s = 0, pause_s = 0, window_told_j = 0, window_true_j = 0, window_s = 0;
  for (int i = 0; i < steps; ++i) {
    const double watts = burst_every > 0 && i % burst_every == 0 ? 700 : kBusy_w;
    const double joules = watts * kStep_s + kIdle_w * pause_s, passed_s = kStep_s + pause_s;
    energy_j += joules, time_s += passed_s;
    window_true_j += joules, window_told_j += told * joules, window_s += passed_s;
    if (window_s > 0.1) {
      pacer->Correct(window_true_j - window_told_j);
      window_true_j = window_told_j = window_s = 0;
    }
    pause_s = pacer->AfterStep(told * joules, passed_s, kIdle_w);
  }
  return energy_j / time_s;
}

TEST(Pacer, MeetsTheCapExactlyByFeedForward) {
  for (const double cap_w : {200.0, 350.0, 499.0}) {
    Pacer pacer;
    pacer.SetCap(cap_w);
    EXPECT_NEAR(MeanPower(&pacer, 4000, 0, 1), cap_w, 1e-3 * cap_w);
    Pacer mixed;
    mixed.SetCap(cap_w);
    EXPECT_NEAR(MeanPower(&mixed, 4000, 4, 1), cap_w, 1e-3 * cap_w);
  }
}

TEST(Pacer, TheCounterPutsAWrongModelRight) {
  for (const double told : {0.9, 1.05}) {  // far too high a model meets the bound on credit: it errs below the cap
    Pacer pacer;
    pacer.SetCap(350);
    MeanPower(&pacer, 2000, 0, told);
    EXPECT_NEAR(MeanPower(&pacer, 4000, 0, told), 350, 5) << told;
  }
}

TEST(Pacer, PausesNothingBelowTheCapAndSavesLittle) {
  Pacer pacer;
  pacer.SetCap(510);
  EXPECT_NEAR(MeanPower(&pacer, 4000, 0, 1), kBusy_w, 1e-9);
  EXPECT_GE(pacer.debt_j(), -0.01 * 510 - 1e-9);  // hours below the cap buy 10 ms at it
  pacer.SetCap(0);
  EXPECT_EQ(pacer.AfterStep(1e6, 0.1, kIdle_w), 0);
}

TEST(Pacer, ACapAtIdlePowerPausesAsLongAsItMay) {
  Pacer pacer;
  pacer.SetCap(100);
  for (int i = 0; i < 50; ++i) EXPECT_LE(pacer.AfterStep(20, 0.01, kIdle_w), Pacer::kMostPause_s);
  EXPECT_EQ(pacer.AfterStep(20, 0.01, kIdle_w), Pacer::kMostPause_s);
}

TEST(EnergyModel, FindsPricesFromVaryingWork) {
  EnergyModel model({50, 300e-12, 0.3e-12, 20}, 0, 0, 700);
  for (int i = 0; i < 400; ++i) {
    const WorkTotals work = {0.5, (1 + i % 5) * 1e11, (i % 7) * 2e13};
    model.LearnEnergy(120 * work.seconds + 130e-12 * work.bytes + 1e-12 * work.flops, work);
  }
  EXPECT_NEAR(model.idle_w(), 120, 3);
  EXPECT_NEAR(model.j_per_byte(), 130e-12, 3e-12);
  EXPECT_NEAR(model.j_per_flop(), 1e-12, 0.03e-12);
}

TEST(EnergyModel, AConstantLoadForAnHourKeepsWhatWasKnown) {
  EnergyModel model({120, 130e-12, 1e-12, 20}, 0, 0, 700);
  for (int i = 0; i < 7200; ++i) {
    const WorkTotals work = {0.5, 5e11, 3e12};
    model.LearnEnergy((60 + 65 + 3) * (1 + 0.03 * ((i * 7919) % 11 - 5) / 5.0), work);
  }
  EXPECT_NEAR(model.idle_w(), 120, 12);
  EXPECT_NEAR(model.Joules({0.5, 5e11, 3e12}), 128, 2);
}

TEST(EnergyModel, FollowsSpeedAndTellsBoundsApart) {
  EnergyModel model({}, 0, 0, 0);
  for (int i = 0; i < 200; ++i) {
    model.LearnTime(6e9 / 2.8e12, 6e9, 4e10);
    model.LearnTime(4e12 / 6e14, 7e9, 4e12);
  }
  EXPECT_NEAR(model.Seconds(3e9, 4e10), 3e9 / 2.8e12, 1e-5);
  EXPECT_NEAR(model.Seconds(7e9, 8e12), 8e12 / 6e14, 1e-4);
}

}  // namespace
}  // namespace thermoe
