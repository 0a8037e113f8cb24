// SPDX-License-Identifier: Apache-2.0
// The backward pass: with the reference backend against central differences of a forward pass in double, the choice of
// experts held fixed; the fast CPU backend against the reference.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <future>
#include <map>
#include <sstream>

#include "support/fixtures.h"
#include "support/float64_model.h"
#include "support/learning_harness.h"
#include "support/mixed_ops.h"

namespace thermoe::testing {
namespace {

constexpr double kReferenceTolerance = 1e-3, kFastTolerance = 2e-3;
// Of a whole fast pass whose products round activations to 8 bits: the largest measured here is 4.3e-2.
constexpr double kRoundedTolerance = 6e-2;

struct Case {
  std::string name;
  std::string path;  // below the fixtures; "": the bundled model
  ExpertStorage storage = ExpertStorage::kNative;
  double clip_qkv = 0;  // written into a copy of the folder's config.json
  LayerSteering steering = {};
  bool interleave = true;  // false: weights stay as they are and activations are not rounded to 8 bits
};

void PrintTo(const Case& test, std::ostream* out) { *out << test.name; }

std::vector<Case> Cases() {
  std::vector<Case> cases = {{"qwen3moe", "qwen3moe"}, {"olmoe", "olmoe"},
                             {"mixtral", "mixtral"},   {"mixtral_gguf", "mixtral/model-bf16.gguf"},
                             {"qwen2moe", "qwen2moe"}, {"ember", ""}};
  cases.push_back({"olmoe_clipped", "olmoe", ExpertStorage::kNative, 1.0});
  Case hi_only{"ember_hi_planes", "", ExpertStorage::kNested};
  hi_only.steering.full_slots = 0;
  cases.push_back(hi_only);
  Case mixed{"olmoe_nested_fewer_slots", "olmoe", ExpertStorage::kNested};
  mixed.steering.full_slots = 1;
  mixed.steering.max_slots = 3;
  cases.push_back(mixed);
  return cases;
}

std::vector<Case> FastCases() {
  std::vector<Case> cases = Cases();
  cases.push_back({"ember_in_float", "", ExpertStorage::kNative, 0, {}, false});
  return cases;
}

std::shared_ptr<const Model> Clipped(const std::string& folder, double clip_qkv) {
  namespace fs = std::filesystem;
  const fs::path copy = fs::path(::testing::TempDir()) / fmt::format("clipped_{}", ::getpid());
  fs::create_directories(copy);
  for (const auto& entry : fs::directory_iterator(folder))
    fs::copy_file(entry.path(), copy / entry.path().filename(), fs::copy_options::overwrite_existing);
  nlohmann::json config = ReadJson(folder + "/config.json");
  config["clip_qkv"] = clip_qkv;
  std::ofstream(copy / "config.json") << config.dump();
  std::shared_ptr<const Model> model = OpenModel(copy.string());
  fs::remove_all(copy);  // what is mapped stays
  return model;
}

std::vector<TokenId> TextIds(const Model& model) {
  std::ifstream file(FixturePath("texts/harbour.txt"));
  std::stringstream text;
  text << file.rdbuf();
  const auto ids = model.tokenizer().Encode(text.str());
  EXPECT_TRUE(ids.ok()) << ids.status().message();
  return *ids;
}

FeatureStatistics Statistics(const ModelConfig& config) {
  FeatureStatistics features{config.layers, config.hidden, {}, {}};
  for (int32_t l = 0; l < config.layers; ++l) {
    for (int32_t c = 0; c < config.hidden; ++c) {
      features.mean.push_back(0.1f * std::sin(0.3f * static_cast<float>(c) + static_cast<float>(l)));
      features.variance.push_back(1 + 0.5f * std::cos(0.2f * static_cast<float>(c)));
    }
  }
  return features;
}

class GradientsOf : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const Case& test = GetParam();
    const std::string path = test.path.empty() ? EmberPath() : FixturePath(test.path);
    if (test.interleave) {
      model_ = test.clip_qkv > 0 ? Clipped(path, test.clip_qkv) : OpenModel(path, test.storage);
    } else {
      LoadOptions options;
      options.interleave = false;
      model_ = Model::Load(path, options).value();
    }
    ASSERT_NE(model_, nullptr);
    reference_ = kernels::MakeReferenceOps();
    if (test.steering.full_slots != kAllSlots || test.steering.max_slots != kAllSlots) {
      steering_.layers.assign(static_cast<size_t>(config().layers), test.steering);
    }
    text_ = TextIds(*model_);
    ASSERT_GT(text_.size(), 64u);
  }

  const ModelConfig& config() const { return model_->impl().config(); }
  // The bundled model: fewer and shorter passes, which take long.
  bool large() const { return config().layers > 2; }
  LearningHarness Harness(const kernels::Ops& ops) const {
    return LearningHarness(model_, ops, steering_.layers.empty() ? nullptr : &steering_);
  }
  std::vector<TokenId> Ids(int first, int count) const {
    return {text_.begin() + first, text_.begin() + first + count};
  }

  std::shared_ptr<const Model> model_;
  std::unique_ptr<kernels::Ops> reference_;
  Steering steering_;
  std::vector<TokenId> text_;
};

class FastGradientsOf : public GradientsOf {};

using Direction = std::vector<double>;  // [layout->size()], of one group

// Places of a group's values.
std::vector<std::pair<size_t, size_t>> PartsOf(const DeltaLayout& layout, DeltaGroup group) {
  std::vector<std::pair<size_t, size_t>> parts;
  for (const DeltaTensor& tensor : layout.tensors()) {
    if (tensor.group == group) parts.emplace_back(tensor.offset, tensor.offset + tensor.size());
  }
  return parts;
}

double NormOf(const std::vector<float>& gradient, const std::vector<std::pair<size_t, size_t>>& parts) {
  double squares = 0;
  for (const auto& [begin, end] : parts) {
    for (size_t i = begin; i < end; ++i) squares += static_cast<double>(gradient[i]) * gradient[i];
  }
  return std::sqrt(squares);
}

// (loss(at + h d) - loss(at - h d)) / 2h, h so that the step's length is 1e-4; its two sides beside each other.
double Slope(const Float64Model& model, const Float64Segment& segment, const std::vector<double>& at,
             const Direction& direction) {
  const double length = std::sqrt(std::inner_product(direction.begin(), direction.end(), direction.begin(), 0.0));
  const double step = 1e-4 / length;
  const auto loss = [&](double by) {
    std::vector<double> moved = at;
    for (size_t i = 0; i < moved.size(); ++i) moved[i] += by * direction[i];
    return model.Loss(segment, moved);
  };
  std::future<double> above = std::async(std::launch::async, loss, step);
  const double below = loss(-step);
  return (above.get() - below) / (2 * step);
}

// Slopes along the gradient of each group, which must be its length, and along `randoms` random directions with
// elements of about 1, where an error as long as a thousandth of the gradient would show as about a thousandth of its
// length.
void ExpectSlopes(const Float64Model& model, const Float64Segment& segment, const Deltas& deltas,
                  const std::vector<float>& gradient, const std::vector<DeltaGroup>& groups, int randoms) {
  const std::vector<double> at(deltas.values.begin(), deltas.values.end());
  for (const DeltaGroup group : groups) {
    const auto parts = PartsOf(*deltas.layout, group);
    const double norm = NormOf(gradient, parts);
    ASSERT_GT(norm, 0) << DeltaGroupName(group);
    Random random(static_cast<uint64_t>(group) + 40);
    for (int k = 0; k <= randoms; ++k) {
      Direction direction(at.size());
      double expected = 0;
      for (const auto& [begin, end] : parts) {
        for (size_t i = begin; i < end; ++i) {
          direction[i] = k == 0 ? gradient[i] / norm : random.Normal();
          expected += direction[i] * gradient[i];
        }
      }
      EXPECT_NEAR(Slope(model, segment, at, direction), expected, kReferenceTolerance * norm)
          << DeltaGroupName(group) << ", direction " << k;
    }
  }
}

std::vector<DeltaGroup> AllOf() {
  std::vector<DeltaGroup> groups;
  for (int group = 0; group < kDeltaGroups; ++group) groups.push_back(static_cast<DeltaGroup>(group));
  return groups;
}

// One whole text, then a part of it behind keys and values of other deltas, where the last position has nothing to
// learn.
TEST_P(GradientsOf, NllAreThoseOfCentralDifferences) {
  const Float64Model exact(model_->impl());
  const Deltas deltas = RandomDeltas(config(), AllGroups(), 11), stale = RandomDeltas(config(), AllGroups(), 12);
  for (const int past : {0, 24}) {
    if (past == 0 && large() && !steering_.layers.empty()) continue;
    const int count = past == 0 ? 48 : 20;
    LearningHarness harness = Harness(*reference_);
    if (past > 0) harness.Read(Ids(0, past), &stale);
    std::vector<TokenId> targets = Ids(past + 1, count);
    if (past > 0) targets.back() = -1;
    const Learnt learnt = harness.Learn(Ids(past, count), targets, deltas);
    const PastKeys keys = harness.Past();
    const Float64Segment segment{Ids(past, count), targets, &keys, deltas.layout.get(), &learnt.choice};
    const std::vector<double> at(deltas.values.begin(), deltas.values.end());
    EXPECT_EQ(learnt.rows, past == 0 ? count : count - 1);
    EXPECT_NEAR(learnt.loss, exact.Loss(segment, at), 1e-4 * learnt.loss);
    ExpectSlopes(exact, segment, deltas, learnt.gradient, AllOf(), large() ? 1 : 2);
  }
}

TEST_P(GradientsOf, OtherObjectivesAreThoseOfCentralDifferences) {
  const int count = large() ? 12 : 20;
  const Float64Model exact(model_->impl());
  const Deltas deltas = RandomDeltas(config(), AllGroups(), 13);
  const FeatureStatistics features = Statistics(config());
  for (const TttObjective objective :
       {TttObjective::kEntropy, TttObjective::kPseudoLabels, TttObjective::kFeatureAlignment}) {
    SCOPED_TRACE(TttObjectiveName(objective));
    LearningHarness harness = Harness(*reference_);
    harness.Read(Ids(0, 5), &deltas);
    LearnOptions options{objective, 0.2f};
    if (objective == TttObjective::kFeatureAlignment) options.features = &features;
    const Learnt learnt = harness.Learn(Ids(5, count), Ids(6, count), deltas, options);
    if (objective == TttObjective::kEntropy) {
      EXPECT_EQ(learnt.rows, count);
    }
    if (objective == TttObjective::kPseudoLabels) {
      ASSERT_TRUE(learnt.rows > 0 && learnt.rows < count) << learnt.rows << " rows are confident";
    }
    const PastKeys keys = harness.Past();
    const Float64Segment segment{Ids(5, count),       Ids(6, count),   &keys,
                                 deltas.layout.get(), &learnt.choice,  objective,
                                 options.confidence,  options.features};
    const std::vector<double> at(deltas.values.begin(), deltas.values.end());
    EXPECT_NEAR(learnt.loss, exact.Loss(segment, at), 1e-4 * learnt.loss);
    std::vector<DeltaGroup> groups = {DeltaGroup::kResidualBias, DeltaGroup::kExpertGain, DeltaGroup::kExpertScale,
                                      DeltaGroup::kLowRankQ};
    if (objective != TttObjective::kFeatureAlignment) groups.push_back(DeltaGroup::kOutputBias);
    ExpectSlopes(exact, segment, deltas, learnt.gradient, groups, 1);
  }
}

// Held to the engine's choice the double pass must choose the same where nothing is steered: both are the plain model.
TEST_P(GradientsOf, TheExactPassChoosesAsTheEngineDoes) {
  if (!steering_.layers.empty()) GTEST_SKIP() << "steered";
  const Float64Model exact(model_->impl());
  const Deltas deltas = RandomDeltas(config(), AllGroups(), 11);
  LearningHarness harness = Harness(*reference_);
  const Learnt learnt = harness.Learn(Ids(0, 24), Ids(1, 24), deltas);
  const std::vector<double> at(deltas.values.begin(), deltas.values.end());
  const Float64Segment free{Ids(0, 24), Ids(1, 24), nullptr, deltas.layout.get(), nullptr};
  Float64Segment held = free;
  held.held = &learnt.choice;
  EXPECT_NEAR(exact.Loss(free, at), exact.Loss(held, at), 1e-12);
}

// Adapting fewer layers or groups leaves out work, not digits.
TEST_P(GradientsOf, TruncatedPassGivesTheSameGradients) {
  const Deltas all = RandomDeltas(config(), AllGroups(), 14);
  LearningHarness harness = Harness(*reference_);
  for (const bool attention : {true, false}) {
    TttOptions options;
    options.rank = 3;
    for (const DeltaGroup group : AllOf()) {
      const bool in_attention =
          group == DeltaGroup::kAttentionGain || (group >= DeltaGroup::kLowRankQ && group <= DeltaGroup::kLowRankO);
      if (attention || !in_attention) options.groups.push_back({group, 0.01f, 1});
    }
    Deltas last = Deltas::Start(std::make_shared<DeltaLayout>(config(), options), 0);
    ASSERT_EQ(last.layout->lowest_layer(), config().layers - 1);
    ASSERT_EQ(last.layout->lowest_has_attention(), attention);
    // The same function: what the truncated layout does not have is zero in the whole one.
    Deltas whole = all;
    std::fill(whole.values.begin(), whole.values.end(), 0.0f);
    for (const DeltaTensor& tensor : last.layout->tensors()) {
      const DeltaTensor* twin = whole.layout->Find(tensor.group, tensor.layer, tensor.part);
      std::copy_n(all.values.begin() + twin->offset, tensor.size(), last.values.begin() + tensor.offset);
      std::copy_n(all.values.begin() + twin->offset, tensor.size(), whole.values.begin() + twin->offset);
    }
    const Learnt truncated = harness.Learn(Ids(0, 20), Ids(1, 20), last),
                 full = harness.Learn(Ids(0, 20), Ids(1, 20), whole);
    EXPECT_EQ(truncated.logits, full.logits);
    for (const DeltaTensor& tensor : last.layout->tensors()) {
      const DeltaTensor* twin = whole.layout->Find(tensor.group, tensor.layer, tensor.part);
      EXPECT_TRUE(std::equal(truncated.gradient.begin() + tensor.offset,
                             truncated.gradient.begin() + tensor.offset + tensor.size(),
                             full.gradient.begin() + twin->offset))
          << DeltaGroupName(tensor.group);
    }
  }
}

TEST_P(FastGradientsOf, ActivationsComputedAgainGiveTheSameBits) {
  ThreadPool threads(2);
  const Deltas deltas = RandomDeltas(config(), AllGroups(), 15);
  std::vector<std::unique_ptr<kernels::Ops>> backends;
  backends.push_back(kernels::MakeReferenceOps());
  for (const std::string& isa : kernels::SupportedIsas())
    backends.push_back(kernels::MakeCpuOps(&threads, isa).value());
  for (const auto& ops : backends) {
    LearningHarness harness = Harness(*ops);
    const Learnt kept = harness.Learn(Ids(0, 20), Ids(1, 20), deltas);
    const Learnt again = harness.Learn(Ids(0, 20), Ids(1, 20), deltas, {TttObjective::kNll, 0, nullptr, false});
    EXPECT_EQ(kept.logits, again.logits) << ops->name();
    EXPECT_TRUE(kept.gradient == again.gradient) << ops->name();
  }
}

// |got - expected| / |expected| of each group.
std::map<DeltaGroup, double> Errors(const DeltaLayout& layout, const std::vector<float>& got,
                                    const std::vector<float>& expected) {
  std::vector<float> off(got.size());
  std::transform(got.begin(), got.end(), expected.begin(), off.begin(), std::minus<>());
  std::map<DeltaGroup, double> errors;
  for (const DeltaGroup group : AllOf())
    errors[group] = NormOf(off, PartsOf(layout, group)) / NormOf(expected, PartsOf(layout, group));
  return errors;
}

// Its gradients against the reference's from the same activations: what its own forward pass computed.
TEST_P(FastGradientsOf, AreThoseOfTheReference) {
  ThreadPool threads(2);
  const Deltas deltas = RandomDeltas(config(), AllGroups(), 16);
  for (const std::string& isa : kernels::SupportedIsas()) {
    const auto fast = kernels::MakeCpuOps(&threads, isa).value();
    const MixedOps mixed(*fast, *reference_);
    Learnt learnt[2];
    for (const bool exact : {false, true}) {
      LearningHarness harness = Harness(exact ? static_cast<const kernels::Ops&>(mixed) : *fast);
      harness.Read(Ids(0, 16), nullptr);
      learnt[exact] = harness.Learn(Ids(16, 32), Ids(17, 32), deltas);
    }
    EXPECT_EQ(learnt[0].logits, learnt[1].logits);
    for (const auto& [group, error] : Errors(*deltas.layout, learnt[0].gradient, learnt[1].gradient)) {
      EXPECT_LT(error, kFastTolerance) << isa << " " << DeltaGroupName(group);
    }
  }
}

// From its own forward pass against the reference from its own, the choice of experts held.
TEST_P(FastGradientsOf, AreThoseOfAWholeReferencePass) {
  ThreadPool threads(2);
  const Deltas deltas = RandomDeltas(config(), AllGroups(), 16);
  const bool rounds = model_->impl().experts().layer(0)[0].gate.interleaved();
  const Learnt expected = Harness(*reference_).Learn(Ids(0, 32), Ids(1, 32), deltas);
  for (const std::string& isa : kernels::SupportedIsas()) {
    const auto fast = kernels::MakeCpuOps(&threads, isa).value();
    const MixedOps held(*fast, *fast, &expected.choice);
    const Learnt learnt = Harness(held).Learn(Ids(0, 32), Ids(1, 32), deltas);
    EXPECT_NEAR(learnt.loss, expected.loss, rounds ? 5e-2 : 1e-4);
    for (const auto& [group, error] : Errors(*deltas.layout, learnt.gradient, expected.gradient)) {
      EXPECT_LT(error, rounds ? kRoundedTolerance : kFastTolerance) << isa << " " << DeltaGroupName(group);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backward, GradientsOf, ::testing::ValuesIn(Cases()),
                         [](const auto& test) { return test.param.name; });
INSTANTIATE_TEST_SUITE_P(Backward, FastGradientsOf, ::testing::ValuesIn(FastCases()),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace thermoe::testing
