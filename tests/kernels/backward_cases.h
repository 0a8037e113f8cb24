// SPDX-License-Identifier: Apache-2.0
// Cases of the backward operations. What they want is the reference's result, which gradient_test.cc holds to central
// differences; the bounds are derived here.
#pragma once

#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/attention_cases.h"
#include "kernels/expert_cases.h"
#include "kernels/op_cases.h"
#include "kernels/op_table.h"

namespace thermoe::kernels {

inline MutRows ViewOf(std::vector<float>& values, int64_t rows) {
  return {values.data(), rows, rows == 0 ? 0 : static_cast<int64_t>(values.size()) / rows};
}
inline ConstRows ViewOf(const std::vector<float>& values, int64_t rows) {
  return {values.data(), rows, rows == 0 ? 0 : static_cast<int64_t>(values.size()) / rows};
}
inline void Append(const std::vector<float>& more, std::vector<float>* to) {
  to->insert(to->end(), more.begin(), more.end());
}

inline void WantReference(OpCase* c) {
  static const std::unique_ptr<Ops> reference = MakeReferenceOps();
  const std::vector<float> want = c->run(*reference);
  c->want.assign(want.begin(), want.end());
}

// Bounds for results that pass through several roundings: `share` of the root mean square of each row, which holds
// a row that stands out as well as rows of small values. Rounding errors are independent, so that six standard
// deviations of the relative error of a row's norm bound an element's.
inline void BoundByRows(int64_t cols, double share, OpCase* c) {
  for (size_t at = c->bound.size(); at < c->want.size(); at += static_cast<size_t>(cols)) {
    const auto begin = c->want.begin() + static_cast<int64_t>(at);
    const double squares = std::inner_product(begin, begin + cols, begin, 0.0);
    c->bound.insert(c->bound.end(), static_cast<size_t>(cols),
                    share * std::sqrt(squares / static_cast<double>(cols)) + 1e-30);
  }
}
// Words (kernels/cpu/kernel_table.h) are within 2^-12 of the largest value of a chunk, which is some 2 to 4 times its
// root mean square: a product's norm is right to 5e-4 or so, and six standard deviations of up to three such products
// are 5e-3.
inline constexpr double kWordShare = 5e-3, kFloatShare = 2e-5;

// One product: |error| <= sum over rows of |dy's error| |w| + |dy| |w's error| and the roundings of a chain of
// additions. Words: dy is within 1 / 8190 of the largest of 128 rows, a weight within 1.5 / 4095 of the bound of its
// 128 rows and 32 columns, which is at most 2.5 times the largest weight there (codes that do not use their range;
// minimums).
class LinearBackwardBounds {
 public:
  explicit LinearBackwardBounds(const Matrix& m)
      : m_(m), largest_(static_cast<size_t>((Rows() + 127) / 128 * Blocks())) {
    for (int64_t r = 0; r < Rows(); ++r) {
      for (int64_t i = 0; i < Cols(); ++i) {
        double& largest = largest_[static_cast<size_t>(r / 128 * Blocks() + i / 32)];
        largest = std::max(largest, std::fabs(m.both[static_cast<size_t>(r * Cols() + i)]));
      }
    }
  }
  double Of(const float* dy, int64_t column, double before) const {
    double error = 0, magnitude = std::fabs(before);
    for (int64_t chunk = 0; chunk < Rows(); chunk += 128) {
      const int64_t last = std::min(chunk + 128, Rows());
      double largest_dy = 0;
      for (int64_t r = chunk; r < last; ++r) largest_dy = std::max(largest_dy, std::fabs(static_cast<double>(dy[r])));
      const double dy_error = largest_dy / 8190;
      const double w_error = 1.5 * 2.5 * largest_[static_cast<size_t>(chunk / 128 * Blocks() + column / 32)] / 4095;
      for (int64_t r = chunk; r < last; ++r) {
        const double w = std::fabs(m_.both[static_cast<size_t>(r * Cols() + column)]);
        const double d = std::fabs(static_cast<double>(dy[r]));
        magnitude += w * d;
        error += dy_error * (w + w_error) + d * w_error;
      }
    }
    return (m_.view.interleaved() ? error : 0) + static_cast<double>(Rows() + 4) * kUnit * magnitude;
  }

 private:
  int64_t Rows() const { return m_.view.rows; }
  int64_t Cols() const { return m_.view.cols; }
  int64_t Blocks() const { return (Cols() + 31) / 32; }

  const Matrix& m_;
  std::vector<double> largest_;  // magnitudes of 128 rows and 32 columns
};

inline OpCase LinearBackwardCase(Random& random, DType type, Layout layout, int64_t tokens, int64_t rows,
                                 int64_t cols) {
  OpCase c;
  c.name = "LinearBackward " + std::string(TraitsOf(type).name) +
           (layout == Layout::kInterleaved ? " interleaved " : " ") + Shape({tokens, rows, cols});
  const std::shared_ptr<Matrix> m = RandomMatrix(random, type, rows, cols, layout);
  std::vector<float> dy = RandomFloats(random, tokens * rows);
  for (size_t i = 0; i < dy.size(); i += 7) dy[i] *= 10;  // chunks are not alike
  const std::vector<float> before = RandomFloats(random, tokens * cols);
  c.inputs = {{"dy", dy}, {"weight", ToFloats(m->both)}, {"dx", before}};
  c.run = [=](const Ops& ops) {
    std::vector<float> dx = before;
    ops.LinearBackward({ViewOf(dy, tokens), m->view, ViewOf(dx, tokens)});
    return dx;
  };
  WantReference(&c);
  const LinearBackwardBounds bounds(*m);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < cols; ++i) {
      c.bound.push_back(bounds.Of(dy.data() + t * rows, i, before[static_cast<size_t>(t * cols + i)]));
    }
  }
  return c;
}

// dx, then dweight, of a fixture with inner activations of its own.
struct ExpertBackwardFixture {
  std::shared_ptr<ExpertFixture> experts;
  std::vector<float> gate, up, dout, before;
};

inline ExpertBackwardFixture MakeExpertBackward(Random& random, const ExpertShape& shape) {
  ExpertBackwardFixture f;
  f.experts = MakeExperts(random, shape);
  const int64_t slots = shape.tokens * shape.slots;
  f.gate = RandomFloats(random, slots * shape.width, 2);
  f.up = RandomFloats(random, slots * shape.width);
  f.dout = RandomFloats(random, shape.tokens * shape.hidden);
  f.before = RandomFloats(random, shape.tokens * shape.hidden, 0.01);
  return f;
}

inline std::vector<float> RunExpertBackward(const Ops& ops, const ExpertBackwardFixture& f) {
  const ExpertShape& s = f.experts->shape;
  const int64_t slots = s.tokens * s.slots;
  std::vector<float> gate = f.gate, up = f.up, slot_dx(static_cast<size_t>(slots * s.hidden), kPoison), dx = f.before;
  std::vector<float> dweight(static_cast<size_t>(slots), kPoison);
  ops.ExpertFfnBackward({f.experts->experts, &f.experts->selection.view, ViewOf(gate, slots), ViewOf(up, slots),
                         ViewOf(f.dout, s.tokens), ViewOf(slot_dx, slots), ViewOf(dx, s.tokens),
                         ViewOf(dweight, s.tokens)});
  Append(dweight, &dx);
  return dx;
}

inline OpCase ExpertBackwardCase(Random& random, const ExpertShape& shape) {
  OpCase c;
  c.name = "ExpertFfnBackward " + std::string(TraitsOf(shape.type).name) +
           (shape.layout == Layout::kInterleaved ? " interleaved" : "") + " T=" + std::to_string(shape.tokens) +
           " D=" + std::to_string(shape.hidden) + " F=" + std::to_string(shape.width) +
           " E=" + std::to_string(shape.experts) + " K=" + std::to_string(shape.slots);
  const ExpertBackwardFixture f = MakeExpertBackward(random, shape);
  c.inputs = {{"gate", f.gate}, {"up", f.up}, {"dout", f.dout}};
  c.run = [f](const Ops& ops) { return RunExpertBackward(ops, f); };
  WantReference(&c);
  const double share = shape.layout == Layout::kInterleaved ? kWordShare : kFloatShare;
  const std::vector<double> want = c.want;
  c.want.resize(static_cast<size_t>(shape.tokens * shape.hidden));
  BoundByRows(shape.hidden, share, &c);
  c.want = want;
  // A weight's gradient sums `width` products of gradients that sum `hidden` products of values of about 1.
  c.bound.resize(want.size(), share * std::sqrt(static_cast<double>(shape.hidden * shape.width)));
  return c;
}

inline OpCase RmsNormBackwardCase(Random& random, int64_t rows, int64_t n) {
  OpCase c;
  c.name = "RmsNormBackward " + Shape({rows, n});
  const std::vector<float> x = RandomFloats(random, rows * n, 3), gain = RandomFloats(random, n),
                           dy = RandomFloats(random, rows * n), before = RandomFloats(random, rows * n);
  c.inputs = {{"x", x}, {"gain", gain}, {"dy", dy}};
  c.run = [=](const Ops& ops) {
    std::vector<float> dx = before;
    ops.RmsNormBackward({ViewOf(x, rows), gain, 1e-5f, ViewOf(dy, rows), ViewOf(dx, rows)});
    return dx;
  };
  WantReference(&c);
  for (int64_t t = 0; t < rows; ++t) {
    double squares = 0, along = 0;
    const auto at = [&](int64_t i) { return static_cast<size_t>(t * n + i); };
    for (int64_t i = 0; i < n; ++i) {
      squares += std::pow(static_cast<double>(x[at(i)]), 2);
      along += std::fabs(static_cast<double>(x[at(i)]) * gain[static_cast<size_t>(i)] * dy[at(i)]);
    }
    const double r = 1 / std::sqrt(squares / static_cast<double>(n) + 1e-5);
    for (int64_t i = 0; i < n; ++i) {
      const double first = std::fabs(r * gain[static_cast<size_t>(i)] * dy[at(i)]);
      const double second = std::fabs(x[at(i)]) * r * r * r * along / static_cast<double>(n);
      c.bound.push_back(SumBound(n, first + 2 * second) + 8 * kUnit * (first + second + std::fabs(before[at(i)])));
    }
  }
  return c;
}

inline OpCase SwiGluBackwardCase(Random& random, int64_t rows, int64_t n, double scale) {
  OpCase c;
  c.name = "SwiGluBackward " + Shape({rows, n}) + " gates of " + std::to_string(scale);
  const std::vector<float> gate = RandomFloats(random, rows * n, scale), up = RandomFloats(random, rows * n),
                           dout = RandomFloats(random, rows * n);
  c.inputs = {{"gate", gate}, {"up", up}, {"dout", dout}};
  c.run = [=](const Ops& ops) {
    std::vector<float> dgate = gate, dup = up;
    ops.SwiGluBackward({ViewOf(dout, rows), ViewOf(dgate, rows), ViewOf(dup, rows)});
    Append(dup, &dgate);
    return dgate;
  };
  WantReference(&c);
  // exp (4 u), a quotient and some products each; the two terms of the derivative may cancel. 1 - s loses what exp
  // lost.
  for (size_t i = 0; i < gate.size(); ++i) {
    const double g = gate[i], s = 1 / (1 + std::exp(-g));
    c.bound.push_back(16 * kUnit * std::fabs(dout[i] * up[i]) * (s + std::fabs(g * s)) + 1e-34 * (1 + std::fabs(g)));
  }
  for (size_t i = 0; i < gate.size(); ++i)
    c.bound.push_back(16 * kUnit * std::fabs(c.want[gate.size() + i]) + 1e-34 * (1 + std::fabs(gate[i])));
  return c;
}

inline OpCase LossCase(Random& random, LossKind kind, int64_t rows, int64_t vocab, double spread) {
  OpCase c;
  c.name = std::string(kind == LossKind::kNll ? "LossBackward nll " : "LossBackward entropy ") + Shape({rows, vocab}) +
           " logits of " + std::to_string(spread);
  const std::vector<float> logits = RandomFloats(random, rows * vocab, spread), scale = RandomFloats(random, rows);
  std::vector<int32_t> targets;
  for (int64_t t = 0; t < rows; ++t) {
    targets.push_back(t % 3 == 1   ? -1
                      : t % 3 == 2 ? static_cast<int32_t>(vocab) - 1
                                   : static_cast<int32_t>(random.Below(static_cast<uint64_t>(vocab))));
  }
  c.inputs = {{"logits", logits}, {"scale", scale}};
  c.run = [=](const Ops& ops) {
    std::vector<float> gradient = logits, loss(static_cast<size_t>(rows), kPoison);
    ops.LossBackward({kind, targets, scale, ViewOf(gradient, rows), loss});
    Append(loss, &gradient);
    return gradient;
  };
  WantReference(&c);
  // Sums of positive terms in lanes of 8 at least; z - largest of up to `range` rounds by u of it, which exp keeps as a
  // relative error; the entropy's gradient is -p (log p + H).
  const double range = 12 * spread + std::log(static_cast<double>(vocab)),
               relative = (static_cast<double>(vocab) / 8 + 2 * range + 24) * kUnit;
  for (int64_t t = 0; t < rows; ++t) {
    const auto begin = logits.begin() + t * vocab;
    const double largest = *std::max_element(begin, begin + vocab);
    const double factor = std::fabs(scale[static_cast<size_t>(t)]);
    const bool nll = kind == LossKind::kNll;
    for (int64_t i = 0; i < vocab; ++i) {
      const double want = std::fabs(c.want[static_cast<size_t>(t * vocab + i)]);
      const double p = nll ? 0 : factor * std::exp(begin[i] - largest);
      const bool at_target = nll && targets[static_cast<size_t>(t)] == i;
      c.bound.push_back(relative * (want + (at_target ? 2 * factor : 0) + p * range) + 1e-37);
    }
  }
  for (int64_t t = 0; t < rows; ++t) c.bound.push_back(relative * (1 + range));
  return c;
}

inline OpCase AdamCase(Random& random, int64_t n, double damping) {
  OpCase c;
  c.name = "Adam " + Shape({n}) + " damping " + std::to_string(damping);
  const std::vector<float> gradient = RandomFloats(random, n), before_m = RandomFloats(random, n), before_x = RandomFloats(random, n);
  std::vector<float> before_v = RandomFloats(random, n);
  for (float& v : before_v) v *= v;
  c.inputs = {{"gradient", gradient}, {"m", before_m}, {"x", before_x}};
  c.run = [=](const Ops& ops) {
    std::vector<float> m = before_m, v = before_v, x = before_x;
    const AdamArgs args{gradient, 0.4f, 0.3f, 0.9f, 0.02f, 1.7f, 1e-3f, static_cast<float>(damping), m, v, x};
    ops.Adam({&args, 1});
    Append(v, &m);
    Append(x, &m);
    return m;
  };
  WantReference(&c);
  // A few roundings of values of about 1; steps are at most 0.02 * 4 / 1e-3, and the sum of n squares has n roundings.
  for (size_t i = 0; i < c.want.size(); ++i) {
    const bool value = i >= 2 * gradient.size();
    const double step = value ? std::fabs(c.want[i] - before_x[i - 2 * gradient.size()]) : 0;
    c.bound.push_back(kUnit * (8 * (std::fabs(c.want[i]) + 2) + (static_cast<double>(n) + 16) * step));
  }
  return c;
}

inline OpCase AttentionBackwardCase(Random& random, const AttentionShape& shape) {
  OpCase c;
  c.name = "AttentionBackward " + shape.text();
  const std::shared_ptr<AttentionFixture> f = MakeAttention(random, shape);
  static const std::unique_ptr<Ops> reference = MakeReferenceOps();
  const std::vector<float> dout = RandomFloats(random, f->tokens() * f->q_cols()), out = RunAttention(*reference, *f);
  c.inputs = {{"q", f->q}, {"dout", dout}, {"out", out}};
  const int64_t kv_cols = int64_t{shape.kv_heads} * shape.head_dim, tokens = f->tokens();
  c.run = [=](const Ops& ops) {
    std::vector<float> dq(f->q.size(), kPoison), dk(static_cast<size_t>(tokens * kv_cols), kPoison), dv(dk);
    ops.AttentionBackward({ViewOf(f->q, tokens), f->rows, f->cache(), shape.heads, f->scale, ViewOf(out, tokens),
                           ViewOf(dout, tokens), ViewOf(dq, tokens), ViewOf(dk, tokens), ViewOf(dv, tokens)});
    Append(dk, &dq);
    Append(dv, &dq);
    return dq;
  };
  WantReference(&c);
  // Scores of size 2 or so carry errors of some 20 u (SumBound), which a probability keeps as a relative error;
  // differences dout . v - dout . out cancel by at most the root of head_dim. All of it is below 1e-5 of a typical
  // element; heads of one row may be small beside each other, so rows are heads.
  BoundByRows(shape.head_dim, 1e-3, &c);
  return c;
}

inline OpCase LowRankCase(Random& random, int64_t tokens, int64_t in, int64_t out_cols, int64_t rank, bool want_dx) {
  OpCase c;
  c.name = "LowRank and LowRankBackward " + Shape({tokens, in, out_cols, rank}) + (want_dx ? "" : " no dx");
  const std::vector<float> x = RandomFloats(random, tokens * in), a = RandomFloats(random, rank * in),
                           b = RandomFloats(random, rank * out_cols), dy = RandomFloats(random, tokens * out_cols),
                           before_out = RandomFloats(random, tokens * out_cols),
                           before_dx = RandomFloats(random, tokens * in), before_a = RandomFloats(random, rank * in),
                           before_b = RandomFloats(random, rank * out_cols);
  c.inputs = {{"x", x}, {"a", a}, {"b", b}, {"dy", dy}};
  c.run = [=](const Ops& ops) {
    std::vector<float> out = before_out, dx = before_dx, da = before_a, db = before_b;
    std::vector<float> inner(static_cast<size_t>(tokens * rank), kPoison), dinner(inner);
    ops.LowRank({ViewOf(x, tokens), ViewOf(a, rank), ViewOf(b, rank), ViewOf(inner, tokens), ViewOf(out, tokens)});
    const MutRows dx_rows = want_dx ? ViewOf(dx, tokens) : MutRows{};
    ops.LowRankBackward({ViewOf(x, tokens), ViewOf(a, rank), ViewOf(b, rank), ViewOf(inner, tokens), ViewOf(dy, tokens),
                         ViewOf(dinner, tokens), dx_rows, ViewOf(da, rank), ViewOf(db, rank)});
    for (const std::vector<float>* more : {&inner, &dinner, &dx, &da, &db}) Append(*more, &out);
    return out;
  };
  WantReference(&c);
  // Chains of up to `tokens` additions over sums of `in` or `out` terms: each is within (in + out + tokens + rank) u of
  // the sum of magnitudes, itself below the root of the terms' number times a typical result.
  const double terms = static_cast<double>(in + out_cols + tokens + rank);
  c.bound.assign(c.want.size(), 0.0);
  double most = 0;
  for (const double want : c.want) most = std::max(most, std::fabs(want));
  for (double& bound : c.bound) bound = terms * kUnit * most;
  return c;
}

inline OpCase RowDeltasCase(Random& random, int64_t rows, int64_t n) {
  OpCase c;
  c.name = "AddRow, Gain, GainBackward, SumRows, AddBackward, ClampBackward, RowChange " + Shape({rows, n});
  const std::vector<float> x = RandomFloats(random, rows * n), y = RandomFloats(random, rows * n),
                           gain = RandomFloats(random, n), before = RandomFloats(random, n),
                           scale = RandomFloats(random, rows);
  c.inputs = {{"x", x}, {"y", y}, {"gain", gain}};
  c.run = [=](const Ops& ops) {
    std::vector<float> sum = x, product = x, dy = y, dgain = before, total = before, dx(x.size(), kPoison), same = y;
    std::vector<float> dscale(static_cast<size_t>(rows), kPoison), clamped = y, no_gain = before;
    std::vector<float> change(static_cast<size_t>(rows), kPoison);
    ops.AddRow({gain, ViewOf(sum, rows)});
    ops.Gain({gain, ViewOf(product, rows)});
    ops.GainBackward({gain, ViewOf(x, rows), ViewOf(dy, rows), dgain});
    ops.GainBackward({{}, ViewOf(x, rows), ViewOf(same, rows), no_gain});
    ops.SumRows({ViewOf(x, rows), total});
    ops.AddBackward({ViewOf(x, rows), ViewOf(scale, rows), ViewOf(y, rows), ViewOf(dx, rows), ViewOf(dscale, rows)});
    ops.ClampBackward({ViewOf(x, rows), 0.7f, ViewOf(clamped, rows)});
    ops.RowChange({ViewOf(x, rows), ViewOf(y, rows), change});
    std::vector<float> all;
    for (const std::vector<float>* more :
         {&sum, &product, &dy, &same, &dx, &clamped, &dgain, &no_gain, &total, &dscale, &change})
      Append(*more, &all);
    return all;
  };
  WantReference(&c);
  // Elements: a few roundings. Sums over rows and over columns: a rounding a term at most, of magnitudes of at most 4.
  for (size_t i = 0; i < 6 * x.size(); ++i) c.bound.push_back(8 * kUnit * (std::fabs(c.want[i]) + 4));
  const double terms = static_cast<double>(rows + n + 8);
  const size_t changes = c.want.size() - static_cast<size_t>(rows);
  while (c.bound.size() < changes) c.bound.push_back(terms * kUnit * 4 * std::sqrt(terms));
  // Two sums of squares and their quotient: positive terms, a rounding each and three inside.
  while (c.bound.size() < c.want.size()) c.bound.push_back(2 * terms * kUnit * c.want[c.bound.size()]);
  return c;
}

inline OpCase SlotWeightsCase(Random& random, int64_t tokens, int64_t experts, int32_t slots, bool normalise) {
  OpCase c;
  c.name = std::string("ScaleSlots, SelectBackward, ScaleSlotsBackward ") + Shape({tokens, experts, slots}) +
           (normalise ? " normalised" : "");
  const std::vector<float> logits = RandomFloats(random, tokens * experts, 2),
                           weight = RandomFloats(random, tokens * slots),
                           dweight = RandomFloats(random, tokens * slots),
                           log_scale = RandomFloats(random, experts, 0.2);
  auto selection = std::make_shared<OwnedSelection>();
  for (int64_t t = 0; t < tokens; ++t) {
    for (int32_t k = 0; k < slots; ++k) {
      const bool kept = t % 4 != 1 && (k == 0 || k < static_cast<int32_t>(t) % (slots + 1));
      selection->expert.push_back(kept ? static_cast<int32_t>((t * 3 + k) % experts) : -1);
      selection->planes.push_back(Planes::kBoth);
    }
  }
  selection->weight = weight;
  selection->Group(tokens, slots);
  c.inputs = {{"logits", logits}, {"weight", weight}, {"dweight", dweight}};
  c.run = [=](const Ops& ops) {
    std::vector<float> scaled = weight, dlogits(logits.size(), kPoison), before = dweight,
                       dlog_scale(log_scale.size(), 0.5f);
    ops.ScaleSlots({log_scale, selection->view.expert, ViewOf(scaled, tokens)});
    ops.ScaleSlotsBackward(
        {log_scale, selection->view.expert, ViewOf(weight, tokens), ViewOf(before, tokens), dlog_scale});
    ops.SelectBackward({ViewOf(logits, tokens),
                        {Scoring::kSoftmax, normalise},
                        &selection->view,
                        ViewOf(weight, tokens),
                        ViewOf(before, tokens),
                        ViewOf(dlogits, tokens)});
    for (const std::vector<float>* more : {&before, &dlog_scale, &dlogits}) Append(*more, &scaled);
    return scaled;
  };
  WantReference(&c);
  double most = 1;
  for (const double want : c.want) most = std::max(most, std::fabs(want));
  c.bound.assign(c.want.size(),
                 static_cast<double>(tokens + 16) * kUnit * most);  // a chain of one addition a slot of an expert
  return c;
}

}  // namespace thermoe::kernels
