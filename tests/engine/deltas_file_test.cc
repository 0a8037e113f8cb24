// SPDX-License-Identifier: Apache-2.0
// Deltas on disk: the same bits come back, and nothing else is taken for them.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "base/random.h"
#include "engine/adaptation.h"
#include "kernels/dispatch.h"
#include "support/fixtures.h"

namespace thermoe::testing {
namespace {

using ::testing::HasSubstr;

class DeltasFile : public ::testing::Test {
 protected:
  DeltasFile() : folder_(std::filesystem::path(::testing::TempDir()) / fmt::format("deltas_{}", ::getpid())) {
    std::filesystem::create_directories(folder_);
  }
  ~DeltasFile() override {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }

  std::string Path(const std::string& name = "deltas") const { return (folder_ / name).string(); }
  static std::string Read(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  static void Write(const std::string& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
  }

  // A model small enough for many files.
  static ModelConfig Config() {
    ModelConfig config;
    config.layers = 2;
    config.hidden = 8;
    config.heads = 2;
    config.kv_heads = 1;
    config.head_dim = 4;
    config.vocab = 16;
    config.experts = 4;
    config.slots = 2;
    return config;
  }
  static TttOptions Options() {
    TttOptions options;
    options.groups = {
        {DeltaGroup::kOutputBias, 0.01f, 0}, {DeltaGroup::kExpertGain, 0.02f, 1}, {DeltaGroup::kLowRankQ, 0.01f, 0}};
    options.rank = 2;
    options.scale_rate = 0.15f;
    return options;
  }
  // As after some steps.
  static Adaptation Learnt(uint64_t seed, const TttOptions& options = Options()) {
    Adaptation adaptation(Config(), options, nullptr);
    const std::unique_ptr<kernels::Ops> ops = kernels::MakeReferenceOps();
    Random random(seed);
    std::vector<float> gradient(adaptation.mutable_deltas().values.size());
    for (int step = 0; step < 3; ++step) {
      for (float& value : gradient) value = static_cast<float>(random.Normal());
      adaptation.scale.Begin(adaptation.layout(), {}, gradient, adaptation.mutable_deltas().values);
      adaptation.optimizer().Step(*ops, gradient, 1.0f, 16, adaptation.mutable_deltas().values);
      adaptation.scale.End(adaptation.layout(), {}, adaptation.mutable_deltas().values);
    }
    return adaptation;
  }
  static void ExpectSame(const Adaptation& a, const Adaptation& b) {
    EXPECT_EQ(a.deltas()->values, b.deltas()->values);
    EXPECT_EQ(a.scale.parts(), b.scale.parts());
    EXPECT_NE(a.scale.parts(), decltype(a.scale.parts()){});
    EXPECT_EQ(a.optimizer().steps(), b.optimizer().steps());
    EXPECT_EQ(a.optimizer().tokens(), b.optimizer().tokens());
    EXPECT_TRUE(std::ranges::equal(a.optimizer().first_moment(), b.optimizer().first_moment()));
    EXPECT_TRUE(std::ranges::equal(a.optimizer().second_moment(), b.optimizer().second_moment()));
  }

  std::filesystem::path folder_;
};

TEST_F(DeltasFile, GivesBackTheSameBits) {
  for (const TttOptimizer optimizer : {TttOptimizer::kAdam, TttOptimizer::kSgd, TttOptimizer::kMuon}) {
    TttOptions options = Options();
    options.optimizer = optimizer;
    const Adaptation learnt = Learnt(1, options);
    ASSERT_TRUE(WriteDeltas(Path(), "model", learnt).ok());
    Adaptation read(Config(), options, nullptr);
    const Status status = ReadDeltas(Path(), "model", &read);
    ASSERT_TRUE(status.ok()) << status.message();
    ExpectSame(read, learnt);
  }
}

TEST_F(DeltasFile, OtherModelsAndTiersAreRefused) {
  ASSERT_TRUE(WriteDeltas(Path(), "model", Learnt(1)).ok());
  const auto refuses = [&](const TttOptions& options, const std::string& model, const std::string& says) {
    Adaptation adaptation = Learnt(2, options);
    const Status status = ReadDeltas(Path(), model, &adaptation);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(status.message(), HasSubstr(says));
    ExpectSame(adaptation, Learnt(2, options));
  };
  refuses(Options(), "another", "was learnt on model model but this one is another");
  TttOptions options = Options();
  options.groups.push_back({DeltaGroup::kRouterShift, 0.01f, 0});
  refuses(options, "model", "has no router_shift.0.whole");
  options = Options();
  options.groups.pop_back();
  refuses(options, "model", "holds more tensors than the tier adapts");
  options = Options();
  options.groups[1].last_layers = 0;
  refuses(options, "model", "has no expert_gain.0.whole");
  options = Options();
  options.groups[2].last_layers = 1;
  refuses(options, "model", "holds more tensors than the tier adapts");
  options = Options();
  options.rank = 3;
  refuses(options, "model", "another rank");
  options = Options();
  options.optimizer = TttOptimizer::kSgd;
  refuses(options, "model", "another optimiser");
  Adaptation adaptation = Learnt(2);
  EXPECT_EQ(ReadDeltas(Path("none"), "model", &adaptation).code(), StatusCode::kNotFound);
}

TEST_F(DeltasFile, OtherVersionsAndValuesThatAreNoNumbersAreRefused) {
  Adaptation learnt = Learnt(1);
  ASSERT_TRUE(WriteDeltas(Path(), "model", learnt).ok());
  std::string bytes = Read(Path());
  const std::string version = "\"schema_version\":\"1\"";
  const size_t at = bytes.find(version);
  ASSERT_NE(at, std::string::npos);
  bytes[at + version.size() - 2] = '2';
  Write(Path(), bytes);
  Adaptation adaptation = Learnt(2);
  Status status = ReadDeltas(Path(), "model", &adaptation);
  EXPECT_EQ(status.code(), StatusCode::kUnsupported);
  EXPECT_THAT(status.message(), HasSubstr("schema version 2 but this build reads 1"));
  for (const float bad : {std::nanf(""), INFINITY}) {
    learnt.mutable_deltas().values[5] = bad;
    ASSERT_TRUE(WriteDeltas(Path(), "model", learnt).ok());
    status = ReadDeltas(Path(), "model", &adaptation);
    EXPECT_EQ(status.code(), StatusCode::kCorrupt);
    EXPECT_THAT(status.message(), HasSubstr("not finite numbers"));
  }
  ExpectSame(adaptation, Learnt(2));
}

// Whatever byte is another, or missing, or too many: the file is refused and the session keeps what it had.
TEST_F(DeltasFile, DamageAtAnyByteIsSeen) {
  ASSERT_TRUE(WriteDeltas(Path(), "model", Learnt(1)).ok());
  const std::string whole = Read(Path());
  Adaptation adaptation = Learnt(2);
  Random random(3);
  const auto refuses = [&](const std::string& bytes) {
    return !ParseDeltas("deltas", std::as_bytes(std::span(bytes)), "model", &adaptation).ok();
  };
  for (size_t i = 0; i < whole.size(); ++i) {  // every byte: the file is small
    std::string bytes = whole;
    bytes[i] = static_cast<char>(bytes[i] ^ (1 << random.Below(8)));
    EXPECT_TRUE(refuses(bytes)) << "byte " << i;
    EXPECT_TRUE(refuses(whole.substr(0, i))) << "cut at " << i;
  }
  EXPECT_TRUE(refuses(whole + '\0'));
  ExpectSame(adaptation, Learnt(2));
  EXPECT_FALSE(refuses(whole));
  Write(Path("cut"), whole.substr(0, whole.size() / 2));
  const Status status = ReadDeltas(Path("cut"), "model", &adaptation);
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(status.message(), HasSubstr(Path("cut")));
}

TEST_F(DeltasFile, AKilledSaveLeavesTheOldOrTheNewFile) {
  const Adaptation first = Learnt(1), second = Learnt(2);
  ASSERT_TRUE(WriteDeltas(Path(), "model", first).ok());
  Random random(4);
  int news = 0, unfinished = 0;
  for (int kill_number = 0; kill_number < 200; ++kill_number) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      for (;;) {
        if (!WriteDeltas(Path(), "model", second).ok() || !WriteDeltas(Path(), "model", first).ok()) ::_exit(1);
      }
    }
    std::this_thread::sleep_for(std::chrono::microseconds(500 + random.Below(8000)));
    ASSERT_EQ(::kill(child, SIGKILL), 0);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the save itself failed";
    Adaptation read(Config(), Options(), nullptr);
    const Status loaded = ReadDeltas(Path(), "model", &read);
    ASSERT_TRUE(loaded.ok()) << loaded.message();
    const bool is_new = read.deltas()->values == second.deltas()->values;
    ExpectSame(read, is_new ? second : first);
    news += is_new ? 1 : 0;
    const std::string part = fmt::format("{}.{}.part", Path(), child);
    unfinished += std::filesystem::remove(part) ? 1 : 0;
  }
  EXPECT_GT(news, 0);
  EXPECT_LT(news, 200);
  EXPECT_GT(unfinished, 0) << "no kill came in the middle of a save";
}

// In the engine: what is loaded learns on as what was saved would have.
TEST_F(DeltasFile, ASessionGoesOnFromItsFile) {
  const auto model = OpenModel(EmberPath());
  EngineOptions engine_options;
  engine_options.context = 128;
  engine_options.max_sequences = 3;
  engine_options.threads = 2;
  const auto engine = MakeEngine(model, engine_options);
  TttOptions tier = TttTier("combined").value();
  tier.segment = 16;
  tier.keep = 64;
  const auto ask = [&](SessionId session, int salt) {
    Request request;
    for (int i = 0; i < 64; ++i) request.prompt.push_back(3 + (i * 7919 + salt * 104729) % 8000);
    request.session = session;
    request.max_new_tokens = 4;
    request.ignore_end = true;
    request.keep_logits = KeepLogits::kAll;
    return RunRequest(engine.get(), request);
  };
  const SessionId saved = engine->OpenSession().value(), loaded = engine->OpenSession().value();
  ASSERT_TRUE(engine->SetTtt(saved, tier).ok());
  ask(saved, 1);
  ASSERT_TRUE(engine->SaveDeltas(saved, Path()).ok());
  ASSERT_TRUE(engine->TruncateSession(saved, 0).ok());
  const RequestResult expected = ask(saved, 2);
  ASSERT_TRUE(engine->SetTtt(loaded, tier).ok());
  const Status status = engine->LoadDeltas(loaded, Path());
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_TRUE(ask(loaded, 2).logits == expected.logits);
  ASSERT_TRUE(engine->SaveDeltas(saved, Path("a")).ok());
  ASSERT_TRUE(engine->SaveDeltas(loaded, Path("b")).ok());
  EXPECT_TRUE(Read(Path("a")) == Read(Path("b")));
  // Another model.
  const auto other = MakeEngine(OpenModel(FixturePath("olmoe")));
  const SessionId elsewhere = other->OpenSession().value();
  ASSERT_TRUE(other->SetTtt(elsewhere, tier).ok());
  EXPECT_THAT(other->LoadDeltas(elsewhere, Path()).message(), HasSubstr("use the model it came from"));
}

}  // namespace
}  // namespace thermoe::testing
