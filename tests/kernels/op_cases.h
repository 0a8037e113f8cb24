// SPDX-License-Identifier: Apache-2.0
// The cases of the operation table. Each restates its operation as a formula in double, apart from any backend.
#pragma once

#include <cstring>
#include <iterator>
#include <string>

#include "kernels/op_table.h"

namespace thermoe::kernels {

inline constexpr DType kAllTypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0,  DType::kQ4_0,  DType::kQ5_0,   DType::kQ5_1,
                                      DType::kQ4K, DType::kQ5K, DType::kQ6K,  DType::kIQ4NL, DType::kMXFP4, DType::kNested8};
static_assert(std::size(kAllTypes) == kDTypes);

inline std::string Shape(std::initializer_list<int64_t> sizes) {
  std::string text;
  for (const int64_t size : sizes) text.append(text.empty() ? "" : "x").append(std::to_string(size));
  return text;
}

inline OpCase RmsNormCase(Random& random, int64_t rows, int64_t n, bool in_place) {
  OpCase c;
  c.name = "RmsNorm " + Shape({rows, n}) + (in_place ? " in place" : "");
  c.inputs = {{"x", RandomFloats(random, rows * n, 3)}, {"gain", RandomFloats(random, n)}};
  const std::vector<float> x = c.inputs[0].second, gain = c.inputs[1].second;
  const float epsilon = 1e-5f;
  for (int64_t t = 0; t < rows; ++t) {
    double squares = 0;
    for (int64_t i = 0; i < n; ++i) squares += std::pow(static_cast<double>(x[static_cast<size_t>(t * n + i)]), 2);
    for (int64_t i = 0; i < n; ++i) {
      const double want = x[static_cast<size_t>(t * n + i)] / std::sqrt(squares / static_cast<double>(n) + epsilon) *
                          gain[static_cast<size_t>(i)];
      c.want.push_back(want);
      // All terms are positive, so their sum's bound is relative, halved by the root; six more roundings follow.
      c.bound.push_back(SumBound(n, 0.5 * std::fabs(want)) + 6 * kUnit * std::fabs(want));
    }
  }
  c.run = [=](const Ops& ops) {
    std::vector<float> out(x.size(), kPoison);
    if (in_place) out = x;
    ops.RmsNorm({{in_place ? out.data() : x.data(), rows, n}, gain, epsilon, {out.data(), rows, n}});
    return out;
  };
  return c;
}

inline OpCase LinearCase(Random& random, DType type, int64_t tokens, int64_t out_cols, int64_t in, bool with_bias,
                         double rounding = 0) {
  OpCase c;
  c.name =
      "Linear " + std::string(TraitsOf(type).name) + " " + Shape({tokens, out_cols, in}) + (with_bias ? " bias" : "");
  const std::shared_ptr<Matrix> m = RandomMatrix(random, type, out_cols, in);
  const std::vector<float> x = RandomFloats(random, tokens * in), bias = RandomFloats(random, with_bias ? out_cols : 0);
  c.inputs = {{"x", x}, {"weight", ToFloats(m->both)}, {"bias", bias}};
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t r = 0; r < out_cols; ++r) {
      const DotSum dot = DotInDouble(m->both, r, x.data() + t * in, in);
      const double b = with_bias ? bias[static_cast<size_t>(r)] : 0.0;
      c.want.push_back(dot.sum + b);
      c.bound.push_back(RoundedSumBound(in, dot.magnitude + std::fabs(b), rounding));
    }
  }
  c.run = [=](const Ops& ops) {
    std::vector<float> out(static_cast<size_t>(tokens * out_cols), kPoison);
    ops.Linear({{x.data(), tokens, in}, m->view, bias, {out.data(), tokens, out_cols}});
    return out;
  };
  return c;
}

inline OpCase RopeCase(Random& random, RopeKind kind, int64_t tokens, int32_t heads, int32_t head_dim,
                       int32_t rope_dim) {
  OpCase c;
  const bool halves = kind == RopeKind::kHalves;
  const int64_t cols = int64_t{heads} * head_dim, half = rope_dim / 2;
  c.name = std::string("Rope ") + (halves ? "halves " : "interleaved ") + Shape({tokens, heads, head_dim, rope_dim});
  const std::vector<float> x = RandomFloats(random, tokens * cols);
  std::vector<float> cosines, sines;
  for (int64_t i = 0; i < tokens * half; ++i) {
    const double angle = random.Uniform() * 100;
    cosines.push_back(static_cast<float>(std::cos(angle)));
    sines.push_back(static_cast<float>(std::sin(angle)));
  }
  c.inputs = {{"x", x}, {"cosines", cosines}, {"sines", sines}};
  c.want.assign(x.begin(), x.end());
  c.bound.assign(x.size(), 0.0);  // elements that do not turn stay as they are
  for (int64_t h = 0; h < tokens * heads; ++h) {
    for (int64_t i = 0; i < half; ++i) {
      const auto a = static_cast<size_t>(h * head_dim + (halves ? i : 2 * i));
      const auto b = static_cast<size_t>(h * head_dim + (halves ? i + half : 2 * i + 1));
      const double cosine = cosines[static_cast<size_t>(h / heads * half + i)];
      const double sine = sines[static_cast<size_t>(h / heads * half + i)];
      c.want[a] = x[a] * cosine - x[b] * sine;
      c.want[b] = x[b] * cosine + x[a] * sine;
      // Two products and a sum.
      c.bound[a] = 2 * kUnit * (std::fabs(x[a] * cosine) + std::fabs(x[b] * sine));
      c.bound[b] = 2 * kUnit * (std::fabs(x[b] * cosine) + std::fabs(x[a] * sine));
    }
  }
  c.run = [=](const Ops& ops) {
    std::vector<float> out = x;
    ops.Rope({{out.data(), tokens, cols},
              head_dim,
              rope_dim,
              kind,
              {cosines.data(), tokens, half},
              {sines.data(), tokens, half}});
    return out;
  };
  return c;
}

inline OpCase SwiGluCase(Random& random, int64_t rows, int64_t n, double scale) {
  OpCase c;
  c.name = "SwiGlu " + Shape({rows, n}) + " gates of " + std::to_string(scale);
  const std::vector<float> gate = RandomFloats(random, rows * n, scale), up = RandomFloats(random, rows * n);
  c.inputs = {{"gate", gate}, {"up", up}};
  for (size_t i = 0; i < gate.size(); ++i) {
    c.want.push_back(gate[i] / (1.0 + std::exp(-static_cast<double>(gate[i]))) * up[i]);
    c.bound.push_back(SwiGluBound(c.want.back(), up[i]));
  }
  c.run = [=](const Ops& ops) {
    std::vector<float> out = gate;  // in place, as the contract allows
    ops.SwiGlu({{out.data(), rows, n}, {up.data(), rows, n}, {out.data(), rows, n}});
    std::vector<float> apart(out.size(), kPoison);
    ops.SwiGlu({{gate.data(), rows, n}, {up.data(), rows, n}, {apart.data(), rows, n}});
    EXPECT_EQ(std::memcmp(out.data(), apart.data(), out.size() * sizeof(float)), 0);
    return apart;
  };
  return c;
}

inline OpCase AddCase(Random& random, int64_t rows, int64_t n, bool gated) {
  OpCase c;
  c.name = "Add " + Shape({rows, n}) + (gated ? " gated" : "");
  const std::vector<float> x = RandomFloats(random, rows * n), before = RandomFloats(random, rows * n);
  const std::vector<float> gate = RandomFloats(random, gated ? rows : 0, 2);
  c.inputs = {{"x", x}, {"out", before}, {"gate", gate}};
  for (size_t i = 0; i < x.size(); ++i) {
    const double scale = gated ? 1 / (1 + std::exp(-static_cast<double>(gate[i / static_cast<size_t>(n)]))) : 1.0;
    c.want.push_back(before[i] + scale * x[i]);
    // The scale (8 u as in SwiGlu), its product and the sum.
    c.bound.push_back(kUnit * (std::fabs(c.want.back()) + 10 * std::fabs(scale * x[i])));
  }
  c.run = [=](const Ops& ops) {
    std::vector<float> out = before;
    ops.Add({{x.data(), rows, n}, {gated ? gate.data() : nullptr, rows, 1}, {out.data(), rows, n}});
    return out;
  };
  return c;
}

inline OpCase ClampCase(Random& random, int64_t rows, int64_t n, float limit) {
  OpCase c;
  c.name = "Clamp " + Shape({rows, n}) + " to " + std::to_string(limit);
  const std::vector<float> x = RandomFloats(random, rows * n, 2);
  c.inputs = {{"x", x}};
  for (const float value : x) c.want.push_back(std::min(std::max<double>(value, -limit), static_cast<double>(limit)));
  c.bound.assign(c.want.size(), 0.0);  // exact
  c.run = [=](const Ops& ops) {
    std::vector<float> out = x;
    ops.Clamp({out.data(), rows, n}, limit);
    return out;
  };
  return c;
}

inline OpCase EmbedCase(Random& random, DType type, int64_t vocab, int64_t cols, int64_t tokens) {
  OpCase c;
  c.name = "Embed " + std::string(TraitsOf(type).name) + " " + Shape({tokens, vocab, cols});
  const std::shared_ptr<Matrix> m = RandomMatrix(random, type, vocab, cols);
  c.inputs = {{"table", ToFloats(m->both)}};
  std::vector<int32_t> ids;
  for (int64_t t = 0; t < tokens; ++t) {
    ids.push_back(static_cast<int32_t>(random.Below(static_cast<uint64_t>(vocab))));
    for (int64_t i = 0; i < cols; ++i) c.want.push_back(m->both[static_cast<size_t>(ids.back() * cols + i)]);
  }
  c.bound.assign(c.want.size(), 0.0);  // exact
  c.run = [=](const Ops& ops) {
    std::vector<float> out(static_cast<size_t>(tokens * cols), kPoison);
    ops.Embed(m->view, ids, {out.data(), tokens, cols});
    return out;
  };
  return c;
}

}  // namespace thermoe::kernels
