// SPDX-License-Identifier: Apache-2.0
// Which runs of recorded operations launches put together; needs no device.
#include "kernels/cuda/node_patterns.h"

#include <gtest/gtest.h>

#include <utility>
#include <vector>

namespace thermoe::cuda {
namespace {

// Norms of q and k, clamps of q, k and v, rope of q and k, store, attention: as a layer records them.
class NodePatterns : public testing::Test {
 protected:
  static NormLaunch Norm(const float* x, const float* gain, float* out, int32_t n) {
    NormLaunch norm;
    norm.x = x, norm.gain = gain, norm.out = out, norm.rows = 1, norm.n = n;
    return norm;
  }
  RopeLaunch Rope(float* x, int32_t heads) { return {x, cosines_, sines_, 1, heads, 4, 2, true}; }

  std::vector<Node> Projections(bool norms, bool clamps) {
    std::vector<Node> nodes;
    if (norms) nodes.push_back(Norm(q_, gain_, q_, 8)), nodes.push_back(Norm(k_, other_, k_, 4));
    for (const auto& [x, size] : {std::pair<float*, int64_t>{q_, 8}, {k_, 4}, {v_, 4}}) {
      if (clamps) nodes.push_back(ClampNode{x, size, 7.0f});
    }
    nodes.push_back(Rope(q_, 2)), nodes.push_back(Rope(k_, 1)), nodes.push_back(StoreLaunch{k_, v_, {}, {}, 1});
    nodes.push_back(AttentionLaunch{});
    return nodes;
  }
  // How many nodes they are, once `change` has been made to node `at`.
  template <typename T, typename Change>
  size_t CountWith(std::vector<Node> nodes, size_t at, Change&& change) {
    change(std::get<T>(nodes.at(at)));
    FinishLaunch finish;
    return ProjectionsAt(nodes, &finish);
  }

  // A product, added to the rows, their norm into the place of the product, the gate, the selection.
  std::vector<Node> Output() {
    LinearLaunch product, gate;
    product.x = q_, product.out = out_, product.rows = 1;
    gate.x = out_, gate.out = logits_, gate.rows = 1;
    SelectLaunch select;
    select.logits = logits_, select.rows = 1;
    return {product, AddNode{out_, nullptr, hidden_, 1, 4}, Norm(hidden_, gain_, out_, 4), gate, select};
  }
  template <typename T, typename Change>
  bool FoundWith(size_t at, Change&& change) {
    std::vector<Node> nodes = Output();
    change(std::get<T>(nodes.at(at)));
    OutputToSelection found;
    return OutputToSelectionAt(nodes, &found);
  }

  float q_[8] = {}, k_[4] = {}, v_[4] = {}, gain_[8] = {}, cosines_[1] = {}, sines_[1] = {}, out_[4] = {}, hidden_[4] = {}, logits_[4] = {};
  float other_[8] = {};
};

TEST_F(NodePatterns, ProjectionsWithAllThatModelsHave) {
  FinishLaunch f;
  ASSERT_EQ(ProjectionsAt(Projections(true, true), &f), 8u);
  ASSERT_TRUE(f.q_norm && f.k_norm);
  EXPECT_EQ(f.q_norm->x, q_);
  EXPECT_EQ(f.q_norm->gain, gain_);
  EXPECT_EQ(f.q_norm->n, 8);
  EXPECT_EQ(f.k_norm->x, k_);
  EXPECT_EQ(f.k_norm->gain, other_);
  EXPECT_EQ(f.limit, 7.0f);
  EXPECT_EQ(f.q_rope.x, q_);
  EXPECT_EQ(f.q_rope.heads, 2);
  EXPECT_EQ(f.k_rope.x, k_);
  EXPECT_EQ(f.k_rope.heads, 1);
  EXPECT_EQ(f.store.k, k_);
  EXPECT_EQ(f.store.v, v_);
}

TEST_F(NodePatterns, ProjectionsNeedNoNormsAndNoClamps) {
  FinishLaunch f;
  f.limit = 3, f.q_norm = NormLaunch{};  // of a run before: nothing of it stays
  ASSERT_EQ(ProjectionsAt(Projections(false, true), &f), 6u);
  EXPECT_FALSE(f.q_norm || f.k_norm);
  EXPECT_EQ(f.limit, 7.0f);
  ASSERT_EQ(ProjectionsAt(Projections(true, false), &f), 5u);
  EXPECT_TRUE(f.q_norm && f.k_norm);
  EXPECT_EQ(f.limit, 0.0f);
  ASSERT_EQ(ProjectionsAt(Projections(false, false), &f), 3u);
  EXPECT_FALSE(f.q_norm || f.k_norm);
  EXPECT_EQ(f.limit, 0.0f);
  EXPECT_EQ(f.q_rope.x, q_);
  EXPECT_EQ(f.store.v, v_);
}

TEST_F(NodePatterns, NormsOfProjectionsAreInPlaceAndOfWhatTurns) {
  const std::vector<Node> nodes = Projections(true, false);
  EXPECT_EQ(CountWith<NormLaunch>(nodes, 0, [](NormLaunch&) {}), 5u);
  EXPECT_EQ(CountWith<NormLaunch>(nodes, 0, [&](NormLaunch& n) { n.out = out_; }), 0u);
  EXPECT_EQ(CountWith<NormLaunch>(nodes, 1, [&](NormLaunch& n) { n.out = out_; }), 0u);
  EXPECT_EQ(CountWith<NormLaunch>(nodes, 0, [&](NormLaunch& n) { n.add = out_; }), 0u);
  EXPECT_EQ(CountWith<NormLaunch>(nodes, 1, [&](NormLaunch& n) { n.add = out_; }), 0u);
  EXPECT_EQ(CountWith<NormLaunch>(nodes, 0, [&](NormLaunch& n) { n.x = n.out = v_; }), 0u);
  EXPECT_EQ(CountWith<NormLaunch>(nodes, 1, [&](NormLaunch& n) { n.x = n.out = v_; }), 0u);
  std::vector<Node> one = nodes;
  one.erase(one.begin() + 1);
  FinishLaunch f;
  EXPECT_EQ(ProjectionsAt(one, &f), 0u) << "a norm of q alone";
}

TEST_F(NodePatterns, ClampsOfProjectionsAreOfQThenKThenV) {
  const std::vector<Node> nodes = Projections(false, true);
  FinishLaunch f;
  for (const auto& [a, b] : {std::pair<size_t, size_t>{0, 1}, {0, 2}, {1, 2}}) {
    std::vector<Node> swapped = nodes;
    std::swap(swapped[a], swapped[b]);
    EXPECT_EQ(ProjectionsAt(swapped, &f), 0u) << a << " and " << b;
  }
  for (size_t left_out = 0; left_out < 3; ++left_out) {
    std::vector<Node> fewer = nodes;
    fewer.erase(fewer.begin() + static_cast<ptrdiff_t>(left_out));
    EXPECT_EQ(ProjectionsAt(fewer, &f), 0u) << left_out;
  }
}

TEST_F(NodePatterns, ProjectionsTurnByTheSameAnglesAndAreWhatIsStored) {
  const std::vector<Node> nodes = Projections(false, false);
  EXPECT_EQ(CountWith<RopeLaunch>(nodes, 1, [&](RopeLaunch& r) { r.cosines = other_; }), 0u);
  EXPECT_EQ(CountWith<RopeLaunch>(nodes, 0, [&](RopeLaunch& r) { r.rope_dim = 4; }), 0u);
  EXPECT_EQ(CountWith<StoreLaunch>(nodes, 2, [&](StoreLaunch& s) { s.k = v_; }), 0u);
  // Without clamps any v will do; with them it is the one that was clamped.
  EXPECT_EQ(CountWith<StoreLaunch>(nodes, 2, [&](StoreLaunch& s) { s.v = other_; }), 3u);
  EXPECT_EQ(CountWith<StoreLaunch>(Projections(false, true), 5, [&](StoreLaunch& s) { s.v = other_; }), 0u);
  EXPECT_EQ(CountWith<StoreLaunch>(Projections(true, true), 7, [&](StoreLaunch& s) { s.k = other_; }), 0u);
}

TEST_F(NodePatterns, ProjectionsThatEndEarlyAreNone) {
  const std::vector<Node> nodes = Projections(true, true);
  FinishLaunch f;
  for (size_t count = 0; count < 8; ++count) EXPECT_EQ(ProjectionsAt(std::span(nodes).first(count), &f), 0u) << count;
  EXPECT_EQ(ProjectionsAt(std::span(nodes).subspan(1), &f), 0u) << "begins with the norm of k";
}

TEST_F(NodePatterns, OutputToSelection) {
  const std::vector<Node> nodes = Output();
  ASSERT_EQ(nodes.size(), kOutputToSelection);
  OutputToSelection found;
  ASSERT_TRUE(OutputToSelectionAt(nodes, &found));
  EXPECT_EQ(found.output, std::get_if<LinearLaunch>(&nodes[0]));
  EXPECT_EQ(found.add, std::get_if<AddNode>(&nodes[1]));
  EXPECT_EQ(found.norm, std::get_if<NormLaunch>(&nodes[2]));
  EXPECT_EQ(found.gate, std::get_if<LinearLaunch>(&nodes[3]));
  EXPECT_EQ(found.select, std::get_if<SelectLaunch>(&nodes[4]));
  for (size_t count = 0; count < nodes.size(); ++count) EXPECT_FALSE(OutputToSelectionAt(std::span(nodes).first(count), &found)) << count;
}

TEST_F(NodePatterns, OutputToSelectionIsOneChain) {
  EXPECT_TRUE(FoundWith<AddNode>(1, [](AddNode&) {}));
  EXPECT_FALSE(FoundWith<AddNode>(1, [&](AddNode& a) { a.gate = other_; }));
  EXPECT_FALSE(FoundWith<AddNode>(1, [&](AddNode& a) { a.x = other_; }));
  EXPECT_FALSE(FoundWith<AddNode>(1, [&](AddNode& a) { a.out = other_; })) << "the norm is of other rows";
  EXPECT_FALSE(FoundWith<NormLaunch>(2, [&](NormLaunch& n) { n.out = other_; })) << "what the product gave would stay";
  EXPECT_FALSE(FoundWith<LinearLaunch>(3, [&](LinearLaunch& l) { l.x = other_; }));
  EXPECT_FALSE(FoundWith<LinearLaunch>(3, [&](LinearLaunch& l) { l.out = other_; }));
  EXPECT_FALSE(FoundWith<SelectLaunch>(4, [&](SelectLaunch& s) { s.logits = other_; }));
}

// Products of a norm's rows, projections, attention and a product into the norm's place: nothing else reads the norm.
TEST_F(NodePatterns, WhatOnlyLinearsRead) {
  const NormLaunch norm = Norm(hidden_, gain_, out_, 4);
  const auto nodes = [&](bool norms) {
    std::vector<Node> all;
    for (float* to : {q_, k_, v_}) {
      LinearLaunch linear;
      linear.x = out_, linear.out = to, linear.rows = 1;
      all.push_back(linear);
    }
    const std::vector<Node> projections = Projections(norms, false);
    all.insert(all.end(), projections.begin(), projections.end());
    std::get<AttentionLaunch>(all.back()).q = q_, std::get<AttentionLaunch>(all.back()).out = other_;
    LinearLaunch output;
    output.x = other_, output.out = out_, output.rows = 1, output.weight.rows = 4;
    all.push_back(output);
    return all;
  };
  const auto with = [&]<typename T>(size_t at, auto&& change, T) {
    std::vector<Node> all = nodes(false);
    change(std::get<T>(all.at(at)));
    return OnlyLinearsRead(norm, all);
  };
  EXPECT_TRUE(OnlyLinearsRead(norm, nodes(false)));
  EXPECT_TRUE(OnlyLinearsRead(norm, nodes(true)));
  const std::vector<Node> all = nodes(false);
  ASSERT_EQ(all.size(), 8u);
  for (size_t count = 0; count < all.size(); ++count) EXPECT_FALSE(OnlyLinearsRead(norm, std::span(all).first(count))) << count;
  EXPECT_FALSE(OnlyLinearsRead(norm, std::span(all).subspan(3))) << "no product reads it";
  EXPECT_FALSE(with(0, [&](LinearLaunch& l) { l.x = hidden_; }, LinearLaunch{}));
  EXPECT_FALSE(with(5, [&](StoreLaunch& s) { s.v = out_; }, StoreLaunch{}));
  EXPECT_FALSE(with(6, [&](AttentionLaunch& a) { a.q = out_; }, AttentionLaunch{}));
  EXPECT_FALSE(with(7, [&](LinearLaunch& l) { l.x = out_; }, LinearLaunch{}));
  EXPECT_FALSE(with(7, [&](LinearLaunch& l) { l.out = other_; }, LinearLaunch{}));
  EXPECT_FALSE(with(7, [&](LinearLaunch& l) { l.rows = 2; }, LinearLaunch{}));
  EXPECT_FALSE(with(7, [&](LinearLaunch& l) { l.weight.rows = 3; }, LinearLaunch{}));
  EXPECT_FALSE(with(7, [&](LinearLaunch& l) { l.adds = true; }, LinearLaunch{}));
}

}  // namespace
}  // namespace thermoe::cuda
