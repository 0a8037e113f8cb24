// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sqlite3.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "control/cost/profile_store.h"

namespace thermoe {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

class ProfileStoreTest : public ::testing::Test {
 protected:
  ProfileStoreTest() {
    folder_ = fs::temp_directory_path() / ("thermoe-store-" + std::to_string(getpid()) + "-" +
                                           ::testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    path_ = (folder_ / "deeper" / "profiles.sqlite").string();
  }
  ~ProfileStoreTest() override { fs::remove_all(folder_); }

  std::unique_ptr<ProfileStore> Open() {
    Result<std::unique_ptr<ProfileStore>> store = ProfileStore::Open(path_);
    EXPECT_TRUE(store.ok()) << store.status().message();
    return store.ok() ? std::move(store).value() : nullptr;
  }
  Status OpenFails() const {
    const Result<std::unique_ptr<ProfileStore>> store = ProfileStore::Open(path_);
    EXPECT_FALSE(store.ok());
    return store.status();
  }
  void Write(const std::string& text) const {
    fs::create_directories(fs::path(path_).parent_path());
    std::ofstream(path_, std::ios::binary) << text;
  }
  void Sql(const char* sql) const {
    fs::create_directories(fs::path(path_).parent_path());
    sqlite3* db = nullptr;
    ASSERT_EQ(sqlite3_open(path_.c_str(), &db), SQLITE_OK);
    EXPECT_EQ(sqlite3_exec(db, sql, nullptr, nullptr, nullptr), SQLITE_OK) << sqlite3_errmsg(db);
    sqlite3_close(db);
  }

  fs::path folder_;
  std::string path_;
};

CostPoint MakePoint(int64_t tokens) {
  CostPoint point;
  point.shape.family = Family::kExpertNestedHi;
  point.shape.matrix = {DType::kNested8, 128, 256, true};
  point.shape.down_type = DType::kQ6K;
  point.shape.kv_heads = 3;
  point.shape.rope_dim = 5;
  point.shape.tokens = tokens;
  point.shape.positions = 7;
  point.shape.distinct_positions = 6;
  point.shape.experts = 9;
  point.shape.experts_full = 4;
  point.shape.experts_hi = 8;
  point.shape.slots_full = 11;
  point.shape.slots_hi = 12;
  point.latency_us = 1.0 / 3;
  point.spread_frac = 0.1;
  point.bytes = 1e9 + 1;
  point.flops = 3e9;
  point.held_out = tokens % 2 == 0;
  if (tokens > 1) point.energy_j = 1e-5;
  return point;
}

const ProfileKey kKey = {"a cpu", "cpu/avx512, 2 threads", "0123 q8_0", "0.1.0"};

TEST_F(ProfileStoreTest, GivesBackWhatItGot) {
  for (int64_t tokens : {1, 2, 3}) EXPECT_TRUE(Open()->Add(kKey, MakePoint(tokens)).ok());  // a fresh connection each
  const Result<std::vector<CostPoint>> points = Open()->Load(kKey);
  ASSERT_TRUE(points.ok()) << points.status().message();
  ASSERT_EQ(points->size(), 3u);
  for (int64_t tokens : {1, 2, 3}) {
    const CostPoint& got = (*points)[static_cast<size_t>(tokens - 1)];
    const CostPoint want = MakePoint(tokens);
    EXPECT_EQ(got.shape, want.shape);
    EXPECT_EQ(got.latency_us, want.latency_us);
    EXPECT_EQ(got.spread_frac, want.spread_frac);
    EXPECT_EQ(got.energy_j, want.energy_j);
    EXPECT_EQ(got.bytes, want.bytes);
    EXPECT_EQ(got.flops, want.flops);
    EXPECT_EQ(got.held_out, want.held_out);
  }
}

TEST_F(ProfileStoreTest, OpenedToReadMakesAndChangesNothing) {
  EXPECT_EQ(ProfileStore::OpenToRead(path_).status().code(), StatusCode::kNotFound);
  EXPECT_FALSE(fs::exists(path_));
  ASSERT_TRUE(Open()->Add(kKey, MakePoint(1)).ok());
  const auto store = std::move(ProfileStore::OpenToRead(path_)).value();
  EXPECT_EQ(store->Load(kKey)->size(), 1u);
  EXPECT_FALSE(store->Add(kKey, MakePoint(2)).ok());
  EXPECT_EQ(store->Load(kKey)->size(), 1u);
}

TEST_F(ProfileStoreTest, KeepsKeysApartAndShapesOnce) {
  const auto store = Open();
  ASSERT_TRUE(store->Add(kKey, MakePoint(1)).ok());
  CostPoint again = MakePoint(1);
  again.latency_us = 2;
  ASSERT_TRUE(store->Add(kKey, again).ok());
  for (ProfileKey other :
       {ProfileKey{"b", kKey.backend, kKey.model, kKey.build}, ProfileKey{kKey.device, "b", kKey.model, kKey.build},
        ProfileKey{kKey.device, kKey.backend, "b", kKey.build},
        ProfileKey{kKey.device, kKey.backend, kKey.model, "b"}}) {
    EXPECT_TRUE(store->Load(other)->empty());
  }
  ASSERT_EQ(store->Load(kKey)->size(), 1u);
  EXPECT_EQ(store->Load(kKey)->front().latency_us, 2);
  ASSERT_TRUE(store->Clear(kKey).ok());
  EXPECT_TRUE(store->Load(kKey)->empty());
}

TEST_F(ProfileStoreTest, SaysWhatIsWrongWithAFile) {
  Write("no database at all, but long enough to look at: " + std::string(4096, 'x'));
  EXPECT_EQ(OpenFails().code(), StatusCode::kCorrupt);
  EXPECT_THAT(OpenFails().message(), HasSubstr("profiles.sqlite: is damaged or no profile store"));
  fs::remove(path_);
  Sql("CREATE TABLE other (x)");
  EXPECT_EQ(OpenFails().code(), StatusCode::kCorrupt);
  EXPECT_THAT(OpenFails().message(), HasSubstr("another program"));
  fs::remove(path_);
  Open();
  Sql("PRAGMA user_version = 99");
  EXPECT_THAT(OpenFails().message(), HasSubstr("schema version 99"));
  fs::remove(path_);
  fs::create_directories(path_);
  EXPECT_FALSE(OpenFails().message().empty());
}

TEST_F(ProfileStoreTest, RefusesPointsThatMakeNoSense) {
  ASSERT_TRUE(Open()->Add(kKey, MakePoint(1)).ok());
  Sql("UPDATE points SET family = 'unheard of'");
  const Result<std::vector<CostPoint>> points = Open()->Load(kKey);
  ASSERT_FALSE(points.ok());
  EXPECT_EQ(points.status().code(), StatusCode::kCorrupt);
}

TEST_F(ProfileStoreTest, SurvivesDamageAnywhere) {
  {
    const auto store = Open();
    for (int64_t tokens = 1; tokens < 60; ++tokens) ASSERT_TRUE(store->Add(kKey, MakePoint(tokens)).ok());
  }
  std::ifstream file(path_, std::ios::binary);
  const std::string whole((std::istreambuf_iterator<char>(file)), {});
  for (size_t at = 0; at < whole.size(); at += 509) {
    std::string damaged = whole;
    for (size_t i = at; i < std::min(at + 40, damaged.size()); ++i) damaged[i] = static_cast<char>(~damaged[i]);
    Write(damaged);
    const Result<std::unique_ptr<ProfileStore>> store = ProfileStore::Open(path_);
    if (!store.ok()) continue;
    const Result<std::vector<CostPoint>> points = (*store)->Load(kKey);
    if (points.ok()) (void)KernelCostModel(*points).Predict(MakePoint(5).shape);
  }
  Write(whole.substr(0, whole.size() / 2));
  const Result<std::unique_ptr<ProfileStore>> cut = ProfileStore::Open(path_);
  EXPECT_FALSE(cut.ok() && (*cut)->Load(kKey).ok());
}

}  // namespace
}  // namespace thermoe
