// SPDX-License-Identifier: Apache-2.0
// Test-time training as a load of the simulator: the scenarios that ship, shortened.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>

#include "control/simulate/sim_routers.h"

namespace thermoe {
namespace {

using ::testing::HasSubstr;

std::vector<SimRun> RunShipped(const std::string& name, double duration_s) {
  const std::string root = THERMOE_SOURCE_DIR;
  SimScenario scenario = LoadSimScenario(root + "/scenarios/" + name + ".toml").value();
  scenario.duration_s = duration_s;
  const DeviceProfile profile = LoadDeviceProfile(root + "/data/profiles/h100.toml").value();
  SimSetup setup;
  setup.scenario = &scenario;
  setup.profile = &profile;
  setup.shape = SimModelShape(scenario.model).value();
  const std::string points = root + "/models/ember-22m-points.json";
  std::ifstream file(points);
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  setup.points = FitPoints(ParseOperatingPoints(text, points).value(), setup.shape.config);
  Result<SimResults> results = Simulate(setup, 2, {});
  EXPECT_TRUE(results.ok()) << results.status().message();
  return std::move(results->runs);
}

TEST(SimTtt, UnderACapAlwaysLearningIsLateAndAutoIsNot) {
  const std::vector<SimRun> runs = RunShipped("ttt-bursts", 12);
  const SimRun &off = runs[0], &always = runs[1], &decided = runs[2];
  EXPECT_EQ(off.ttt.tokens, 0);
  EXPECT_GT(always.over_latency_frac, 0.2);
  EXPECT_LT(decided.over_latency_frac, 0.01);
  EXPECT_EQ(decided.over_power_s, 0);
  EXPECT_GE(decided.ttt.gain_nats, 0.7 * always.ttt.gain_nats);
  EXPECT_LT(decided.ttt.joules, 0.5 * always.ttt.joules);
  EXPECT_GT(decided.tokens_per_s(), 1.3 * always.tokens_per_s());
}

TEST(SimTtt, InAHotRoomSegmentsArePutOffAndCaughtUpLater) {
  const std::vector<SimRun> cold = RunShipped("ttt-hot-start", 2), hot = RunShipped("ttt-hot-start", 8),
                            cooled = RunShipped("ttt-hot-start", 24);
  EXPECT_GE(hot[2].ttt.deferred, 4);
  EXPECT_LT(hot[2].ttt.joules - cold[2].ttt.joules, 0.2 * (hot[1].ttt.joules - cold[1].ttt.joules))
      << "no headroom once the die is warm";
  EXPECT_EQ(cooled[2].ttt.caught_up, cooled[2].ttt.deferred) << "nothing was let go";
  EXPECT_GT(cooled[2].ttt.gain_nats, hot[2].ttt.gain_nats);
  for (const SimRun& run : cooled) EXPECT_EQ(run.over_temp_s, 0);
}

TEST(SimTtt, RoutersThatThereAreNotAreRefused) {
  EXPECT_TRUE(ParseRouters("plain+ttt; adaptive+ttt-always").ok());
  EXPECT_THAT(ParseRouters("adaptive+ttt-never").status().message(), HasSubstr("+ttt-always"));
}

}  // namespace
}  // namespace thermoe
