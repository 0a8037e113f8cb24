// SPDX-License-Identifier: Apache-2.0
#include "control/plant/schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "support/plant_util.h"

namespace thermoe {
namespace {

using ::testing::HasSubstr;

Schedule Make(Schedule::Shape shape, std::vector<std::pair<double, double>> points) {
  return Schedule::Create(shape, std::move(points)).value();
}

TEST(Schedule, StepsHoldAndLinesInterpolate) {
  const Schedule steps = Make(Schedule::Shape::kSteps, {{10, 1}, {20, 3}});
  const Schedule lines = Make(Schedule::Shape::kLinear, {{10, 1}, {20, 3}});
  for (const Schedule* schedule : {&steps, &lines}) {
    EXPECT_EQ(schedule->At(-5), 1);
    EXPECT_EQ(schedule->At(10), 1);
    EXPECT_EQ(schedule->At(20), 3);
    EXPECT_EQ(schedule->At(1e9), 3);
    EXPECT_EQ(schedule->NextEdge(0), 10);
    EXPECT_EQ(schedule->NextEdge(10), 20);
    EXPECT_EQ(schedule->NextEdge(20), Schedule::kNever);
  }
  EXPECT_EQ(steps.At(19.9), 1);
  EXPECT_EQ(lines.At(15), 2);
  EXPECT_TRUE(steps.Rests(15));
  EXPECT_FALSE(lines.Rests(15));
  EXPECT_TRUE(lines.Rests(5));
  EXPECT_TRUE(lines.Rests(20));
  EXPECT_EQ(Schedule(7).At(3), 7);
}

TEST(Schedule, RefusesWhatHasNoMeaning) {
  EXPECT_THAT(Schedule::Create(Schedule::Shape::kSteps, {}).status().message(), HasSubstr("at least one pair"));
  EXPECT_THAT(Schedule::Create(Schedule::Shape::kSteps, {{1, 0}, {1, 2}}).status().message(),
              HasSubstr("make times rise"));
  EXPECT_THAT(Schedule::Create(Schedule::Shape::kSteps, {{0, NAN}}).status().message(), HasSubstr("not finite"));
}

TEST(Scenario, ComesFromToml) {
  const TempFile file("schema = 1\nambient_c = [[0, 25], [60, 35.5]]\nbackground_frac = [[0, 0], [30, 0.4]]\n");
  const Result<Scenario> scenario = LoadScenario(file.path(), 20);
  ASSERT_TRUE(scenario.ok()) << scenario.status().message();
  EXPECT_EQ(scenario->ambient_c.At(30), 30.25);      // linear unless the file says otherwise
  EXPECT_EQ(scenario->background_frac.At(29.9), 0);  // steps
  EXPECT_EQ(scenario->background_frac.At(30), 0.4);
}

TEST(Scenario, MissingSchedulesAreConstantAndShapesCanBeChosen) {
  const TempFile file("schema = 1\nambient_shape = \"steps\"\nambient_c = [[0, 25], [60, 35]]\n");
  const Result<Scenario> scenario = LoadScenario(file.path(), 20);
  ASSERT_TRUE(scenario.ok()) << scenario.status().message();
  EXPECT_EQ(scenario->ambient_c.At(59), 25);
  EXPECT_EQ(scenario->background_frac.At(59), 0);
  const TempFile empty("schema = 1\n");
  EXPECT_EQ(LoadScenario(empty.path(), 20)->ambient_c.At(5), 20);
}

TEST(Scenario, ErrorsNameFileKeyRangeAndRemedy) {
  const auto error = [](const std::string& text) {
    const TempFile file(text);
    const Result<Scenario> scenario = LoadScenario(file.path(), 20);
    EXPECT_FALSE(scenario.ok()) << text;
    EXPECT_THAT(scenario.status().message(), HasSubstr(file.path()));
    return scenario.status().message();
  };
  EXPECT_THAT(error("schema = 1\nambient_c = 25\n"),
              HasSubstr("ambient_c is a number; make it an array of pairs [time in seconds, value from -50 to 100]"));
  EXPECT_THAT(error("schema = 1\nambient_c = [[0, 25, 1]]\n"), HasSubstr("ambient_c is an array of something else"));
  EXPECT_THAT(error("schema = 1\nambient_c = []\n"), HasSubstr("ambient_c is an array of something else"));
  EXPECT_THAT(error("schema = 1\nbackground_frac = [[0, 1]]\n"),
              HasSubstr("has the pair [0, 1]; make it an array of pairs [time in seconds, value from 0 to 0.95]"));
  EXPECT_THAT(error("schema = 1\nambient_c = [[5, 25], [4, 26]]\n"), HasSubstr("make times rise"));
  EXPECT_THAT(error("schema = 1\nambient_shape = \"round\"\n"), HasSubstr("make it \"steps\" or \"linear\""));
  EXPECT_THAT(error("schema = 1\nambient = [[0, 25]]\n"), HasSubstr("ambient is no key"));
  EXPECT_THAT(error("ambient_c = [[0, 25]]\n"), HasSubstr("schema is missing"));
}

}  // namespace
}  // namespace thermoe
