// SPDX-License-Identifier: Apache-2.0
// Every gradient of the reference against central differences of the forward operation. The loss is a fixed random
// combination of the forward result, summed in double. With steps of 2^-7 of values of about 1 the forward's roundings
// to float (2^-24 of a result) and the third derivatives (2^-14 / 6) stay below 1e-4 of a gradient.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <numeric>

#include "kernels/attention_cases.h"
#include "kernels/expert_cases.h"
#include "kernels/op_cases.h"
#include "kernels/op_table.h"
#include "kernels/select.h"

namespace thermoe::kernels {
namespace {

constexpr double kTolerance = 1e-3;

const Ops& Reference() {
  static const std::unique_ptr<Ops> ops = MakeReferenceOps();
  return *ops;
}

double Weighted(const std::vector<float>& values, const std::vector<float>& weights) {
  return std::inner_product(values.begin(), values.end(), weights.begin(), 0.0, std::plus<>(),
                            [](float a, float b) { return static_cast<double>(a) * b; });
}

MutRows View(std::vector<float>& values, int64_t rows) {
  return {values.data(), rows, static_cast<int64_t>(values.size()) / rows};
}

// `gradient` is that of loss() with respect to *x: over up to 70 or so elements their distance is below kTolerance of its
// length.
void ExpectGradient(const std::string& what, const std::function<double()>& loss, std::vector<float>* x,
                    const std::vector<float>& gradient, double step = 0x1p-7) {
  ASSERT_EQ(gradient.size(), x->size()) << what;
  double squares = 0, wrong = 0;
  for (size_t i = 0; i < x->size(); i += x->size() / 70 * 2 + 1) {
    const float at = (*x)[i];
    const auto above = static_cast<float>(at + step), below = static_cast<float>(at - step);
    (*x)[i] = above;
    const double more = loss();
    (*x)[i] = below;
    const double less = loss();
    (*x)[i] = at;
    const double numeric = (more - less) / (static_cast<double>(above) - below);
    squares += numeric * numeric;
    wrong += (gradient[i] - numeric) * (gradient[i] - numeric);
  }
  EXPECT_GT(squares, 0) << what;
  EXPECT_LT(std::sqrt(wrong), kTolerance * std::sqrt(squares)) << what;
}

TEST(Gradient, Linear) {
  Random random(31);
  for (const DType type : kAllTypes) {
    for (const Layout layout : {Layout::kRows, Layout::kInterleaved}) {
      const int64_t rows = layout == Layout::kInterleaved ? 32 : 19, tokens = 3;
      const int64_t cols = TraitsOf(type).block_elements > 1 ? WholeBlocks(type, 64) : 37;
      if (layout == Layout::kInterleaved && !CanInterleave(type, rows, cols)) continue;
      const std::shared_ptr<Matrix> m = RandomMatrix(random, type, rows, cols, layout);
      std::vector<float> x = RandomFloats(random, tokens * cols);
      const std::vector<float> dy = RandomFloats(random, tokens * rows);
      std::vector<float> dx(x.size(), 0.0f);
      Reference().LinearBackward({{dy.data(), tokens, rows}, m->view, View(dx, tokens)});
      ExpectGradient(
          std::string(TraitsOf(type).name),
          [&] {
            std::vector<float> out(dy.size());
            Reference().Linear({View(x, tokens), m->view, {}, View(out, tokens)});
            return Weighted(out, dy);
          },
          &x, dx);
      const std::vector<float> once = dx;
      Reference().LinearBackward({{dy.data(), tokens, rows}, m->view, View(dx, tokens)});  // it adds
      for (size_t i = 0; i < dx.size(); ++i) EXPECT_NEAR(dx[i], 2 * once[i], 1e-5 + 1e-5 * std::fabs(once[i]));
    }
  }
}

TEST(Gradient, RmsNorm) {
  Random random(32);
  constexpr int64_t kRows = 3, kCols = 29;
  std::vector<float> x = RandomFloats(random, kRows * kCols), dx(x.size(), 0.0f);
  const std::vector<float> gain = RandomFloats(random, kCols), dy = RandomFloats(random, kRows * kCols);
  Reference().RmsNormBackward({View(x, kRows), gain, 0.5f, {dy.data(), kRows, kCols}, View(dx, kRows)});
  ExpectGradient(
      "RmsNorm",
      [&] {
        std::vector<float> out(x.size());
        Reference().RmsNorm({View(x, kRows), gain, 0.5f, View(out, kRows)});
        return Weighted(out, dy);
      },
      &x, dx);
}

TEST(Gradient, Gain) {
  Random random(33);
  constexpr int64_t kRows = 5, kCols = 13;
  std::vector<float> x = RandomFloats(random, kRows * kCols), gain = RandomFloats(random, kCols, 0.3);
  const std::vector<float> dy = RandomFloats(random, kRows * kCols);
  std::vector<float> dx = dy, dgain(kCols, 0.0f);
  Reference().GainBackward({gain, View(x, kRows), View(dx, kRows), dgain});
  const auto loss = [&] {
    std::vector<float> out = x;
    Reference().Gain({gain, View(out, kRows)});
    return Weighted(out, dy);
  };
  ExpectGradient("x", loss, &x, dx);
  ExpectGradient("gain", loss, &gain, dgain);
  // A model without this group passes dy on; the gain's gradient is that of zeros.
  std::vector<float> same = dy, at_zero(kCols, 0.0f);
  Reference().GainBackward({{}, View(x, kRows), View(same, kRows), at_zero});
  EXPECT_EQ(same, dy);
  EXPECT_EQ(at_zero, dgain);
}

TEST(Gradient, AddRow) {
  Random random(34);
  constexpr int64_t kRows = 6, kCols = 17;
  std::vector<float> row = RandomFloats(random, kCols), dx(kCols, 0.0f);
  const std::vector<float> before = RandomFloats(random, kRows * kCols), dy = RandomFloats(random, kRows * kCols);
  Reference().SumRows({{dy.data(), kRows, kCols}, dx});
  ExpectGradient(
      "row",
      [&] {
        std::vector<float> out = before;
        Reference().AddRow({row, View(out, kRows)});
        return Weighted(out, dy);
      },
      &row, dx);
}

TEST(Gradient, LowRank) {
  Random random(35);
  constexpr int64_t kTokens = 5, kIn = 11, kOut = 14, kRank = 3;
  std::vector<float> x = RandomFloats(random, kTokens * kIn), a = RandomFloats(random, kRank * kIn),
                     b = RandomFloats(random, kRank * kOut), inner(kTokens * kRank);
  const std::vector<float> dy = RandomFloats(random, kTokens * kOut);
  const auto loss = [&] {
    std::vector<float> out(dy.size());
    Reference().LowRank({View(x, kTokens), View(a, kRank), View(b, kRank), View(inner, kTokens), View(out, kTokens)});
    return Weighted(out, dy);
  };
  loss();
  std::vector<float> dinner(inner.size()), dx(x.size(), 0.0f), da(a.size(), 0.0f), db(b.size(), 0.0f);
  Reference().LowRankBackward({View(x, kTokens),
                               View(a, kRank),
                               View(b, kRank),
                               View(inner, kTokens),
                               {dy.data(), kTokens, kOut},
                               View(dinner, kTokens),
                               View(dx, kTokens),
                               View(da, kRank),
                               View(db, kRank)});
  ExpectGradient("x", loss, &x, dx);
  ExpectGradient("a", loss, &a, da);
  ExpectGradient("b", loss, &b, db);
}

TEST(Gradient, ScaleSlots) {
  Random random(36);
  constexpr int64_t kTokens = 9, kSlots = 3, kExperts = 4;
  std::vector<float> weight = RandomFloats(random, kTokens * kSlots), log_scale = RandomFloats(random, kExperts, 0.3);
  std::vector<int32_t> expert;
  for (int64_t i = 0; i < kTokens * kSlots; ++i) expert.push_back(static_cast<int32_t>(i % 5) - 1);
  const std::vector<float> dscaled = RandomFloats(random, kTokens * kSlots);
  std::vector<float> dweight = dscaled, dlog_scale(kExperts, 0.0f);
  const Rows<const int32_t> experts{expert.data(), kTokens, kSlots};
  Reference().ScaleSlotsBackward({log_scale, experts, View(weight, kTokens), View(dweight, kTokens), dlog_scale});
  const auto loss = [&] {
    std::vector<float> out = weight;
    Reference().ScaleSlots({log_scale, experts, View(out, kTokens)});
    return Weighted(out, dscaled);
  };
  ExpectGradient("weight", loss, &weight, dweight);
  ExpectGradient("log scale", loss, &log_scale, dlog_scale);
}

TEST(Gradient, ClampStopsOutside) {
  std::vector<float> dx = {1, 2, 3, 4};
  const std::vector<float> x = {-2.5f, 0.5f, 2.0f, 3.0f};
  Reference().ClampBackward({{x.data(), 2, 2}, 2.0f, View(dx, 2)});
  EXPECT_EQ(dx, (std::vector<float>{0, 2, 3, 0}));
}

// Query, keys and values of a segment after others of its sequence.
TEST(Gradient, Attention) {
  Random random(37);
  for (const AttentionShape& shape :
       {AttentionShape{4, 2, 6, {{13, 9}}}, AttentionShape{2, 2, 5, {{0, 4}}}, AttentionShape{3, 1, 7, {{33, 2}}}}) {
    const std::shared_ptr<AttentionFixture> f = MakeAttention(random, shape);
    const int64_t tokens = f->tokens(), kv_cols = int64_t{shape.kv_heads} * shape.head_dim;
    const std::vector<float> dout = RandomFloats(random, tokens * f->q_cols());
    std::vector<float> out = RunAttention(Reference(), *f);
    std::vector<float> k(static_cast<size_t>(tokens * kv_cols)), v(k.size());
    for (size_t t = 0; t < f->rows.size(); ++t) {
      for (int64_t i = 0; i < kv_cols; ++i) {
        const KvRow& row = f->rows[t];
        const int64_t at = f->cache().offset(row.blocks[row.position / kKvBlock],
                                             static_cast<int32_t>(i / shape.head_dim), row.position % kKvBlock) +
                           i % shape.head_dim;
        k[t * static_cast<size_t>(kv_cols) + static_cast<size_t>(i)] = f->keys[static_cast<size_t>(at)];
        v[t * static_cast<size_t>(kv_cols) + static_cast<size_t>(i)] = f->values[static_cast<size_t>(at)];
      }
    }
    std::vector<float> dq(f->q.size(), kPoison), dk(k.size(), kPoison), dv(v.size(), kPoison);
    Reference().AttentionBackward({View(f->q, tokens),
                                   f->rows,
                                   f->cache(),
                                   shape.heads,
                                   f->scale,
                                   View(out, tokens),
                                   {dout.data(), tokens, f->q_cols()},
                                   View(dq, tokens),
                                   View(dk, tokens),
                                   View(dv, tokens)});
    const auto loss = [&] {
      Reference().StoreKv({View(k, tokens), View(v, tokens), f->rows, f->cache()});
      return Weighted(RunAttention(Reference(), *f), dout);
    };
    ExpectGradient("q " + shape.text(), loss, &f->q, dq);
    ExpectGradient("k " + shape.text(), loss, &k, dk);
    ExpectGradient("v " + shape.text(), loss, &v, dv);
  }
}

// Experts, slots' weights and what goes in, on every type; kept gates and ups are what ExpertInner computes.
TEST(Gradient, Experts) {
  Random random(38);
  for (const DType type : kAllTypes) {
    const int64_t hidden = WholeBlocks(type, 32), width = WholeBlocks(type, 64);
    const std::shared_ptr<ExpertFixture> f = MakeExperts(random, {type, 4, hidden, width, 3, 2});
    const ExpertShape& s = f->shape;
    const int64_t slots = s.tokens * s.slots;
    const std::vector<float> dout = RandomFloats(random, s.tokens * hidden);
    std::vector<float> inner(static_cast<size_t>(slots * width)), slot_out(static_cast<size_t>(slots * hidden));
    std::vector<float> gate(inner.size(), 7.0f), up(inner.size(), 7.0f), kept_gate(inner.size(), 7.0f),
        kept_up = kept_gate;
    const auto forward = [&] {
      std::vector<float> out = f->before;
      Reference().ExpertFfn({View(f->x, s.tokens), f->experts, &f->selection.view, View(inner, slots),
                             View(slot_out, slots), View(out, s.tokens), View(kept_gate, slots), View(kept_up, slots),
                             0, s.tokens});
      return Weighted(out, dout);
    };
    forward();
    Reference().ExpertInner({View(f->x, s.tokens), f->experts, &f->selection.view, View(gate, slots), View(up, slots)});
    EXPECT_EQ(gate, kept_gate);
    EXPECT_EQ(up, kept_up);
    std::vector<float> slot_dx(slot_out.size(), kPoison), dx(f->x.size(), 0.0f),
        dweight(static_cast<size_t>(slots), kPoison);
    Reference().ExpertFfnBackward({f->experts,
                                   &f->selection.view,
                                   View(gate, slots),
                                   View(up, slots),
                                   {dout.data(), s.tokens, hidden},
                                   View(slot_dx, slots),
                                   View(dx, s.tokens),
                                   View(dweight, s.tokens)});
    const std::string name(TraitsOf(type).name);
    ExpectGradient(name + " x", forward, &f->x, dx, 0x1p-9);
    for (size_t i = 0; i < dweight.size(); ++i) {
      if (f->selection.expert[i] < 0) {
        EXPECT_EQ(dweight[i], 0.0f) << name;
      }
    }
    ExpectGradient(name + " weight", forward, &f->selection.weight, dweight);
  }
}

TEST(Gradient, SwiGluAndGatedAdd) {
  Random random(39);
  constexpr int64_t kRows = 4, kCols = 9;
  std::vector<float> gate = RandomFloats(random, kRows * kCols, 2), up = RandomFloats(random, kRows * kCols);
  const std::vector<float> dout = RandomFloats(random, kRows * kCols), before = RandomFloats(random, kRows * kCols);
  std::vector<float> dgate = gate, dup = up;
  Reference().SwiGluBackward({{dout.data(), kRows, kCols}, View(dgate, kRows), View(dup, kRows)});
  const auto swiglu = [&] {
    std::vector<float> out(gate.size());
    Reference().SwiGlu({View(gate, kRows), View(up, kRows), View(out, kRows)});
    return Weighted(out, dout);
  };
  ExpectGradient("gate", swiglu, &gate, dgate);
  ExpectGradient("up", swiglu, &up, dup);

  std::vector<float> scale = RandomFloats(random, kRows), dscale(kRows, kPoison), dx(up.size(), kPoison);
  Reference().AddBackward(
      {View(up, kRows), View(scale, kRows), {dout.data(), kRows, kCols}, View(dx, kRows), View(dscale, kRows)});
  const auto add = [&] {
    std::vector<float> out = before;
    Reference().Add({View(up, kRows), View(scale, kRows), View(out, kRows)});
    return Weighted(out, dout);
  };
  ExpectGradient("x", add, &up, dx);
  ExpectGradient("scale", add, &scale, dscale);
}

// What Select decides for some logits, and its weights with that choice held fixed as a formula in double.
struct Choice {
  std::vector<float> scores, weight;
  std::vector<int32_t> expert, order;
  std::vector<Planes> planes;
  std::vector<Selection::Job> jobs;
  LayerRecord record;
  Selection view;
};

void Decide(ConstRows logits, const GateOptions& options, int32_t slots, const LayerSteering& steering,
            const std::vector<RowKind>& kinds, Choice* c) {
  const int64_t tokens = logits.rows;
  const auto at = static_cast<size_t>(tokens * slots);
  c->scores.resize(static_cast<size_t>(logits.size()));
  c->expert.resize(at);
  c->weight.resize(at);
  c->planes.resize(at);
  c->order.resize(at);
  c->jobs.resize(static_cast<size_t>(2 * logits.cols));
  c->view.slots = slots;
  c->view.scores = View(c->scores, tokens);
  c->view.expert = {c->expert.data(), tokens, slots};
  c->view.weight = View(c->weight, tokens);
  c->view.planes = {c->planes.data(), tokens, slots};
  c->view.jobs = c->jobs;
  c->view.order = c->order;
  c->view.record = &c->record;
  Reference().Select({logits, options, slots, false, &steering, kinds, &c->view});
}

double FixedChoiceLoss(ConstRows logits, bool normalise, const Choice& c, const Choice& plain,
                       const std::vector<float>& dweight) {
  double loss = 0;
  const int32_t slots = c.view.slots;
  for (int64_t t = 0; t < logits.rows; ++t) {
    std::vector<double> s(logits.row(t), logits.row(t) + logits.cols);
    double total = 0, mass = 0, plain_mass = 0;
    for (double& z : s) total += z = std::exp(z);
    const auto score = [&](const Choice& of, int32_t k) {
      const int32_t e = of.view.expert.row(t)[k];
      return e < 0 ? 0.0 : s[static_cast<size_t>(e)] / total;
    };
    for (int32_t k = 0; k < slots; ++k) mass += score(c, k);
    for (int32_t k = 0; k < slots; ++k) plain_mass += score(plain, k);
    for (int32_t k = 0; k < slots && mass > 0; ++k) {
      loss += score(c, k) * (normalise ? 1 : plain_mass) / mass * dweight[static_cast<size_t>(t * slots + k)];
    }
  }
  return loss;
}

TEST(Gradient, Select) {
  Random random(40);
  constexpr int64_t kTokens = 6, kExperts = 11;
  constexpr int32_t kSlots = 4;
  const std::vector<RowKind> kinds = {RowKind::kPrefill, RowKind::kPadding, RowKind::kDecode,
                                      RowKind::kPrefill, RowKind::kDecode,  RowKind::kDecode};
  LayerSteering fewer;
  fewer.max_slots = 3;
  LayerSteering biased;
  biased.selection_bias = RandomFloats(random, kExperts, 0.3);
  biased.drop_below_frac = 0.4f;
  for (const bool normalise : {true, false}) {
    for (const LayerSteering& steering : {LayerSteering{}, fewer, biased}) {
      std::vector<float> logits = RandomFloats(random, kTokens * kExperts);
      const GateOptions options{Scoring::kSoftmax, normalise};
      Choice chosen, plain;
      Decide(View(logits, kTokens), options, kSlots, steering, kinds, &chosen);
      Decide(View(logits, kTokens), options, kSlots, {}, kinds, &plain);
      const std::vector<float> dweight = RandomFloats(random, kTokens * kSlots);
      EXPECT_NEAR(FixedChoiceLoss(View(logits, kTokens), normalise, chosen, plain, dweight),
                  Weighted(chosen.weight, dweight), 1e-5);
      std::vector<float> dlogits(logits.size(), kPoison);
      Reference().SelectBackward({View(logits, kTokens),
                                  options,
                                  &chosen.view,
                                  View(chosen.weight, kTokens),
                                  {dweight.data(), kTokens, kSlots},
                                  View(dlogits, kTokens)});
      ExpectGradient(
          normalise ? "normalised" : "plain mass",
          [&] { return FixedChoiceLoss(View(logits, kTokens), normalise, chosen, plain, dweight); }, &logits, dlogits);
    }
  }
}

TEST(Gradient, Loss) {
  Random random(41);
  constexpr int64_t kRows = 4, kVocab = 23;
  for (const LossKind kind : {LossKind::kNll, LossKind::kEntropy}) {
    std::vector<float> logits = RandomFloats(random, kRows * kVocab, 2);
    const std::vector<int32_t> targets = {22, -1, 0, 7};
    const std::vector<float> scale = {0.5f, 3.0f, 0.25f, 1.0f};
    std::vector<float> loss(kRows, kPoison);
    std::vector<float> gradient = logits;
    Reference().LossBackward({kind, targets, scale, View(gradient, kRows), loss});
    EXPECT_EQ(loss[1], 0.0f);
    ExpectGradient(
        kind == LossKind::kNll ? "nll" : "entropy",
        [&] {
          double sum = 0;
          for (size_t t = 0; t < kRows; ++t) {
            if (targets[t] < 0) continue;
            const float* z = logits.data() + t * kVocab;
            double total = 0, entropy = 0;
            for (int64_t i = 0; i < kVocab; ++i) total += std::exp(z[i]);
            for (int64_t i = 0; i < kVocab; ++i) entropy -= std::exp(z[i]) / total * (z[i] - std::log(total));
            const double want = kind == LossKind::kNll ? std::log(total) - z[targets[t]] : entropy;
            sum += scale[t] * want;
          }
          return sum;
        },
        &logits, gradient);
    for (size_t t : {0, 2, 3}) {
      double total = 0, entropy = 0;
      const float* z = logits.data() + t * kVocab;
      for (int64_t i = 0; i < kVocab; ++i) total += std::exp(z[i]);
      for (int64_t i = 0; i < kVocab; ++i) entropy -= std::exp(z[i]) / total * (z[i] - std::log(total));
      EXPECT_NEAR(loss[t], kind == LossKind::kNll ? std::log(total) - z[targets[t]] : entropy, 1e-5);
    }
  }
}

// The groups that a backward pass makes for itself are those of Select; a record is not needed.
TEST(Gradient, DispatchOfPartOfASelection) {
  Random random(42);
  const std::shared_ptr<ExpertFixture> f = MakeExperts(random, {DType::kNested8, 17, 32, 32, 5, 3});
  Selection made = f->selection.view;
  std::vector<Selection::Job> jobs(10);
  std::vector<int32_t> order(f->selection.expert.size(), -7);
  made.jobs = jobs;
  made.order = order;
  made.job_count = -1;
  DispatchSelection(5, &made);
  ASSERT_EQ(made.job_count, f->selection.view.job_count);
  for (int32_t j = 0; j < made.job_count; ++j) {
    const Selection::Job &got = jobs[static_cast<size_t>(j)], &want = f->selection.jobs[static_cast<size_t>(j)];
    EXPECT_EQ(got.expert, want.expert);
    EXPECT_EQ(got.planes, want.planes);
    EXPECT_EQ(got.first, want.first);
    EXPECT_EQ(got.count, want.count);
  }
  EXPECT_TRUE(std::equal(f->selection.order.begin(), f->selection.order.end(), order.begin()));
}

}  // namespace
}  // namespace thermoe::kernels
