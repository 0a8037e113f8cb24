// SPDX-License-Identifier: Apache-2.0
// Gradients of every group of deltas against those of PyTorch's autograd in float64 (gradients.json, by
// make_gradients.py, which says how deltas and products are made).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "support/fixtures.h"
#include "support/learning_harness.h"

namespace thermoe::testing {
namespace {

// The fixtures' number of a group's tensors; A and B of a low-rank group follow each other.
const std::map<DeltaGroup, int> kNumbers = {
    {DeltaGroup::kOutputBias, 0},    {DeltaGroup::kHiddenBias, 1}, {DeltaGroup::kResidualBias, 2},
    {DeltaGroup::kAttentionGain, 3}, {DeltaGroup::kExpertGain, 4}, {DeltaGroup::kExpertScale, 5},
    {DeltaGroup::kRouterShift, 6},   {DeltaGroup::kLowRankQ, 7},   {DeltaGroup::kLowRankK, 9},
    {DeltaGroup::kLowRankV, 11},     {DeltaGroup::kLowRankO, 13},  {DeltaGroup::kLowRankGate, 15},
    {DeltaGroup::kLowRankOutput, 17}};

// Place of element i of the fixture in a tensor: A is [in, r] there and [r, in] here.
int64_t PlaceOf(const DeltaTensor& tensor, int64_t i) {
  return tensor.offset + (tensor.part == DeltaPart::kA ? i % tensor.rows * tensor.cols + i / tensor.rows : i);
}

Deltas FixtureDeltas(const ModelConfig& config) {
  TttOptions options;
  options.rank = 4;
  for (const auto& [group, number] : kNumbers) options.groups.push_back({group, 0.01f, 0});
  Deltas deltas = Deltas::Start(std::make_shared<DeltaLayout>(config, options), 0);
  for (const DeltaTensor& tensor : deltas.layout->tensors()) {
    const bool a = tensor.part == DeltaPart::kA, b = tensor.part == DeltaPart::kB;
    const double scale = a ? 1 / std::sqrt(static_cast<double>(tensor.cols)) : b ? 0.02 : 0.05;
    const int number = kNumbers.at(tensor.group) + (b ? 1 : 0);
    for (int64_t i = 0; i < tensor.size(); ++i) {
      const double value = scale * std::sin(0.7 * static_cast<double>(i) + 1.3 * number + 0.9 * tensor.layer + 0.1);
      deltas.values[static_cast<size_t>(PlaceOf(tensor, i))] = static_cast<float>(value);
    }
  }
  return deltas;
}

const DeltaTensor* TensorOf(const DeltaLayout& layout, const nlohmann::json& row) {
  std::string name = row["group"];
  if (name.starts_with("gain_")) name = name.substr(5) + "_gain";
  const std::string part = row.value("part", "");
  return layout.Find(ParseDeltaGroup(name).value(), row["layer"],
                     part.empty()  ? DeltaPart::kWhole
                     : part == "A" ? DeltaPart::kA
                                   : DeltaPart::kB);
}

void ExpectGradient(const DeltaTensor& tensor, const std::vector<float>& gradient, const nlohmann::json& row,
                    double tolerance) {
  double squares = 0, products[4] = {};
  for (int64_t i = 0; i < tensor.size(); ++i) {
    const double value = gradient[static_cast<size_t>(PlaceOf(tensor, i))];
    squares += value * value;
    for (int p = 0; p < 4; ++p) products[p] += value * std::sin(0.37 * static_cast<double>(i) * (p + 1) + p);
    if (i < 4) {
      EXPECT_NEAR(value, row["first"][static_cast<size_t>(i)].get<double>(), tolerance * row["norm"].get<double>());
    }
  }
  const double norm = row["norm"];
  EXPECT_NEAR(std::sqrt(squares), norm, tolerance * norm);
  for (size_t p = 0; p < 4; ++p) EXPECT_NEAR(products[p], row["probes"][p].get<double>(), tolerance * norm);
}

class Gradients : public ::testing::TestWithParam<std::string> {
 protected:
  // The four objectives, in the names of the fixture.
  void ExpectAll(const kernels::Ops& ops, const nlohmann::json& fixture, double tolerance) {
    const auto model = Open();
    LearningHarness harness(model, ops);
    const Deltas deltas = FixtureDeltas(harness.config());
    const auto ids = fixture["ids"].get<std::vector<TokenId>>();
    FeatureStatistics features{harness.config().layers, harness.config().hidden, {}, {}};
    for (int l = 0; l < features.layers; ++l) {
      for (int c = 0; c < features.hidden; ++c) {
        features.mean.push_back(static_cast<float>(0.1 * std::sin(0.3 * c + l)));
        features.variance.push_back(static_cast<float>(1 + 0.5 * std::cos(0.2 * c + l)));
      }
    }
    const std::map<std::string, LearnOptions> objectives = {
        {"nll", {TttObjective::kNll}},
        {"entropy", {TttObjective::kEntropy}},
        {"pseudo_labels", {TttObjective::kPseudoLabels, 0.5f}},
        {"feature_alignment", {TttObjective::kFeatureAlignment, 0, &features}}};
    for (const auto& [name, options] : objectives) {
      SCOPED_TRACE(std::string(ops.name()) + " " + name);
      // The NLL predicts ids[1:]; the others need no next token, only rows that take part.
      std::vector<TokenId> targets(ids.begin() + 1, ids.end());
      targets.push_back(options.objective == TttObjective::kNll ? -1 : 0);
      const Learnt learnt = harness.Learn(ids, targets, deltas, options);
      const nlohmann::json& expected = fixture["objectives"][name];
      EXPECT_NEAR(learnt.loss, expected["loss"].get<double>(), tolerance * expected["loss"].get<double>());
      for (const nlohmann::json& row : expected["gradients"]) {
        SCOPED_TRACE(row["group"].get<std::string>() + " of layer " + std::to_string(row["layer"].get<int>()) + " " +
                     row.value("part", ""));
        const DeltaTensor* tensor = TensorOf(*deltas.layout, row);
        ASSERT_NE(tensor, nullptr);
        ExpectGradient(*tensor, learnt.gradient, row, tolerance);
      }
    }
  }

  // In float: PyTorch does not round activations to 8 bits.
  static std::shared_ptr<const Model> Open() {
    LoadOptions options;
    options.interleave = false;
    const auto model = Model::Load(GetParam() == "ember-22m" ? EmberPath() : FixturePath(GetParam()), options);
    EXPECT_TRUE(model.ok()) << model.status().message();
    return *model;
  }
};

TEST_P(Gradients, AreThoseOfAutograd) {
  const nlohmann::json fixture = ReadJson(FixturePath(GetParam() + "/gradients.json"));
  EXPECT_GT(fixture["smallest_log_gap"].get<double>(), 1e-4) << "the choice of experts is not decided";
  ExpectAll(*kernels::MakeReferenceOps(), fixture, 1e-3);
  ThreadPool threads(2);
  for (const std::string& isa : kernels::SupportedIsas())
    ExpectAll(*kernels::MakeCpuOps(&threads, isa).value(), fixture, 1e-3);
}

INSTANTIATE_TEST_SUITE_P(Golden, Gradients, ::testing::Values("qwen3moe", "olmoe", "mixtral", "qwen2moe", "ember-22m"),
                         [](const auto& test) {
                           std::string name = test.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace thermoe::testing
