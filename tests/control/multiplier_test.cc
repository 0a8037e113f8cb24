// SPDX-License-Identifier: Apache-2.0
#include "control/router/multiplier.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace thermoe {
namespace {

double After(Multiplier* multiplier, double violation, double seconds) {
  for (int i = 0; i < std::lround(seconds / 0.1); ++i) multiplier->Update(violation, 0.1);
  return multiplier->value();
}

TEST(Multiplier, RestsInProportionToTheViolation) {
  Multiplier a, b;
  EXPECT_NEAR(After(&a, 0.03, 20), 0.3, 1e-3);
  EXPECT_NEAR(After(&b, 0.06, 20), 0.6, 1e-3);
}

TEST(Multiplier, IsExactlyZeroWithHeadroomAndAfterAViolation) {
  Multiplier multiplier;
  EXPECT_EQ(After(&multiplier, -0.2, 1), 0);
  EXPECT_GT(After(&multiplier, 0.1, 1), 0.3);
  EXPECT_EQ(After(&multiplier, -0.1, 3), 0);
}

TEST(Multiplier, DoesNotWindUp) {
  Multiplier brief, lasting;
  EXPECT_EQ(After(&brief, 1, 2), 1);
  EXPECT_EQ(After(&lasting, 1, 1000), 1);
  // A thousand seconds at the bound are left as fast as two.
  EXPECT_NEAR(After(&brief, -0.1, 0.5), After(&lasting, -0.1, 0.5), 0.15);
  EXPECT_EQ(After(&lasting, -0.1, 3), 0);
}

TEST(Multiplier, TheDerivativeActsBeforeTheIntegral) {
  MultiplierGains without;
  without.kd_s = 0;
  Multiplier fast, slow(without);
  EXPECT_GT(fast.Update(0.05, 0.1), slow.Update(0.05, 0.1));
}

TEST(Multiplier, SurvivesWhatIsNotFinite) {
  Multiplier multiplier;
  for (const double bad :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity(), -1e300, 1e300}) {
    const double value = multiplier.Update(bad, 0.1);
    EXPECT_TRUE(value >= 0 && value <= 1) << bad;
  }
}

}  // namespace
}  // namespace thermoe
