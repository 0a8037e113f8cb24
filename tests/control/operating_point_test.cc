// SPDX-License-Identifier: Apache-2.0
#include "control/router/operating_point.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "base/random.h"

namespace thermoe {
namespace {

namespace fs = std::filesystem;

OperatingPoint Point(double loss, double bytes) {
  OperatingPoint point;
  point.windows = 32;
  point.batch1 = {loss, 0.001, {loss, loss}, bytes};
  point.batch16 = {2 * loss, 0.001, {loss, 3 * loss}, bytes / 2};
  return point;
}

OperatingPoints Example() {
  OperatingPoints file;
  file.model_identity = "0123abcd";
  file.model_name = "tiny";
  file.layers = 2;
  file.experts = 3;
  file.slots = 2;
  file.window = 1024;
  file.texts = {{"prose", "aa"}, {"code \"quoted\"", "bb"}};
  file.points = {Point(0, 1), Point(0.01, 0.6)};
  file.points[1].full_slots = 0;
  file.points[1].k0 = 1;
  file.points[1].soft_batch = 0.15f;
  file.points[1].drop_below_frac = 0.05f;
  file.points[1].plane_cap = {{1, 2, 1}, {}};
  return file;
}

TEST(OperatingPoint, BecomesSteering) {
  const OperatingPoint point = Example().points[1];
  const Steering steering = ToSteering(point, 2, 7);
  EXPECT_EQ(steering.version, 7u);
  ASSERT_EQ(steering.layers.size(), 2u);
  EXPECT_EQ(steering.layers[0].plane_cap, (std::vector<uint8_t>{1, 2, 1}));
  EXPECT_TRUE(steering.layers[1].plane_cap.empty());
  EXPECT_EQ(steering.layers[1].full_slots, 0);
  EXPECT_EQ(steering.layers[1].guaranteed_slots, 1);
  EXPECT_EQ(steering.layers[1].max_slots, kAllSlots);
  EXPECT_EQ(steering.layers[1].soft_batch, 0.15f);
  EXPECT_EQ(steering.layers[1].drop_below_frac, 0.05f);
  EXPECT_TRUE(CheckSteering(steering, {2, 3, 2, true}).ok());
  EXPECT_EQ(ToSteering({}, 2, 0).layers[0], LayerSteering());
}

TEST(OperatingPoint, AloneNobodyGuaranteesAnything) {
  OperatingPoint point;
  point.soft_batch = 0.2f;
  point.full_slots = 1;
  EXPECT_TRUE(point.batch_aware(8));
  EXPECT_FALSE(Alone(point, 8).batch_aware(8));
  EXPECT_EQ(Alone(point, 8).k_max, kAllSlots);
  EXPECT_EQ(Alone(point, 8).full_slots, 1);
  point.k0 = 6;
  EXPECT_EQ(Alone(point, 8).k_max, 6);
  point.k_max = 5;
  EXPECT_EQ(Alone(point, 8).k_max, 5);
  point.k0 = 8;
  point.soft_batch = 0;
  EXPECT_FALSE(point.batch_aware(8));
}

TEST(OperatingPoint, FrontDropsWhatAnotherBeats) {
  const std::vector<OperatingPoint> points = {Point(0.02, 0.5), Point(0, 1),       Point(0.03, 0.5), Point(0.01, 0.7),
                                              Point(0.01, 0.8), Point(0.015, 0.7), Point(0, 1)};
  EXPECT_EQ(ParetoFront(points, &OperatingPoint::batch1), (std::vector<size_t>{1, 3, 0}));
  std::vector<OperatingPoint> screened = points;
  screened[0].windows = 16;
  EXPECT_EQ(ParetoFront(screened, &OperatingPoint::batch1), (std::vector<size_t>{1, 3, 2})) << "0 was only screened";
  EXPECT_TRUE(ParetoFront({}, &OperatingPoint::batch16).empty());
}

TEST(OperatingPoint, FileRoundTrips) {
  const fs::path path = fs::path(testing::TempDir()) / "points_round_trip.json";
  ASSERT_TRUE(WriteOperatingPoints(path, Example()).ok());
  const auto read = ReadOperatingPoints(path, "0123abcd");
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(OperatingPointsJson(*read), OperatingPointsJson(Example()));
  EXPECT_TRUE(read->points[1].SameSettings(Example().points[1]));
  EXPECT_EQ(read->texts[1].name, "code \"quoted\"");
  for (const auto& entry : fs::directory_iterator(path.parent_path())) {
    EXPECT_NE(entry.path().extension(), ".part") << "nothing half-written stays";
  }
  fs::remove(path);
}

TEST(OperatingPoint, OtherModelsAreRefused) {
  const fs::path path = fs::path(testing::TempDir()) / "points_other_model.json";
  ASSERT_TRUE(WriteOperatingPoints(path, Example()).ok());
  const auto read = ReadOperatingPoints(path, "ffff");
  ASSERT_FALSE(read.ok());
  EXPECT_EQ(read.status().code(), StatusCode::kInvalidArgument);
  EXPECT_NE(read.status().message().find("another model (tiny"), std::string::npos) << read.status().message();
  fs::remove(path);
  EXPECT_EQ(ReadOperatingPoints(path, "ffff").status().code(), StatusCode::kNotFound);
  EXPECT_FALSE(WriteOperatingPoints("/nonexistent/folder/points.json", Example()).ok());
}

void Replace(std::string* text, const std::string& from, const std::string& to) {
  const size_t at = text->find(from);
  ASSERT_NE(at, std::string::npos) << from;
  text->replace(at, from.size(), to);
}

TEST(OperatingPoint, ErrorsNameTheField) {
  const struct {
    const char *from, *to, *named;
  } kCases[] = {
      {"\"schema_version\": 1", "\"schema_version\": 2", "schema_version"},
      {"\"k0\":1", "\"k0\":3", "points[1].k0"},
      {"\"full_slots\":0", "\"full_slots\":-1", "points[1].full_slots"},
      {"\"full_slots\":0", "\"full_slots\":0.5", "points[1].full_slots"},
      {"[1,2,1]", "[1,2]", "plane_cap"},
      {"[1,2,1]", "[1,2,3]", "plane_cap"},
      {"\"drop_below\":0.0", "\"drop_below\":\"0\"", "points[0].drop_below"},
      {"\"text_loss_nats\":[0.0,0.0]", "\"text_loss_nats\":[0.0]", "points[0].batch1.text_loss_nats"},
      {"\"loss_nats\":0.0", "\"loss_nats\":1e300", "points[0].batch1.loss_nats"},
      {"\"identity\": \"aa\"", "\"identity\": 7", "texts[0].identity"},
      {"\"moe_layers\": 2", "\"moe_layers\": 99999999999", "moe_layers"},
  };
  for (const auto& c : kCases) {
    std::string text = OperatingPointsJson(Example());
    Replace(&text, c.from, c.to);
    const auto read = ParseOperatingPoints(text, "p.json");
    ASSERT_FALSE(read.ok()) << c.to;
    EXPECT_EQ(read.status().code(), StatusCode::kCorrupt);
    EXPECT_EQ(read.status().message().rfind("p.json: ", 0), 0u) << read.status().message();
    EXPECT_NE(read.status().message().find(c.named), std::string::npos) << read.status().message();
  }
}

TEST(OperatingPoint, HostileBytesAreRefusedOrRead) {
  const std::string good = OperatingPointsJson(Example());
  for (const char* bytes : {"", "{", "[]", "null", "{\"schema_version\":1}", "\xff\xfe", "7"}) {
    EXPECT_FALSE(ParseOperatingPoints(bytes, "p.json").ok()) << bytes;
  }
  EXPECT_FALSE(ParseOperatingPoints(std::string(100000, '['), "p.json").ok());
  for (size_t length = 0; length + 2 < good.size(); ++length) {
    EXPECT_FALSE(ParseOperatingPoints(std::string_view(good).substr(0, length), "p.json").ok()) << length;
  }
  Random random(5);
  for (int round = 0; round < 20000; ++round) {
    std::string bytes = good;
    for (uint64_t n = 1 + random.Below(4); n > 0; --n) bytes[random.Below(bytes.size())] = static_cast<char>(random.Below(256));
    const auto read = ParseOperatingPoints(bytes, "p.json");
    if (!read.ok()) continue;
    for (const OperatingPoint& point : read->points) {  // what is accepted can be used
      EXPECT_TRUE(CheckSteering(ToSteering(point, read->layers, 1), {read->layers, read->experts, read->slots, true}).ok());
    }
  }
}

}  // namespace
}  // namespace thermoe
