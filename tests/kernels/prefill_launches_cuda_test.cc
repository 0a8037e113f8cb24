// SPDX-License-Identifier: Apache-2.0
// Launches of steps of many rows that do what several others do: sums, norms and halves of them between products, and what is done to q, k and v.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>

#include "kernels/cuda/launches.h"
#include "kernels/cuda/node_patterns.h"
#include "kernels/cuda/prefill_norm.h"
#include "kernels/cuda/project.h"
#include "kernels/cuda/unpacked.h"
#include "kernels/on_device.h"
#include "kernels/op_cases.h"

namespace thermoe::cuda {
namespace {

using kernels::kHalfUnit, kernels::kUnit, kernels::RandomFloats;

class CudaPrefillLaunches : public DeviceTest {};

// Rows as halves in memory of their own.
struct OwnHalfRows {
  OwnHalfRows(int32_t of_rows, int32_t of_cols) : rows(of_rows), cols(of_cols), memory(static_cast<int64_t>(HalfRowsBytes(rows, cols))), at(HalfRowsAt(memory.data(), rows, cols)) {}
  // What lies before `taken`'s end, without the gaps between parts.
  std::vector<std::byte> Read() const {
    const std::vector<std::byte> all = memory.Read();
    std::vector<std::byte> read;
    const auto add = [&](const void* part, size_t bytes) {
      const auto first = all.begin() + (static_cast<const std::byte*>(part) - memory.data());
      read.insert(read.end(), first, first + static_cast<ptrdiff_t>(bytes));
    };
    add(at.halves, static_cast<size_t>(rows) * static_cast<size_t>(at.stride) * sizeof(__half));
    add(at.unscale, static_cast<size_t>(rows) * sizeof(float));
    add(at.taken, kMostTogether * sizeof(int32_t));
    return read;
  }
  int32_t rows, cols;
  OnDevice<std::byte> memory;
  HalfRows at;
};

// Slots of rows as halves, some of them empty, and rows with what they give added in the same order.
struct GivenSlots {
  GivenSlots(Random& random, int32_t rows, int32_t of_slots, int32_t n, const std::vector<float>& x)
      : count(of_slots), sums(x), expert(static_cast<size_t>(rows * count), -1), halves(static_cast<size_t>(rows) * static_cast<size_t>(count * n), 0x7e00) {
    for (int32_t t = 0; t < rows; ++t) {
      const auto filled = static_cast<int32_t>(random.Below(static_cast<uint64_t>(count) + 1));
      for (int32_t k = 0; k < filled; ++k) {
        expert[static_cast<size_t>(t * count + k)] = k;
        const std::vector<float> given = RandomFloats(random, n);
        for (int32_t i = 0; i < n; ++i) {
          uint16_t& half = halves[static_cast<size_t>((int64_t{t} * count + k) * n + i)];
          half = FloatToHalf(given[static_cast<size_t>(i)]);
          sums[static_cast<size_t>(int64_t{t} * n + i)] += HalfToFloat(half);
        }
      }
    }
  }
  int32_t count;
  std::vector<float> sums;
  std::vector<int32_t> expert;
  std::vector<uint16_t> halves;
};

// To the bit what the sum, RmsNorm and the rows' conversion are one after the other.
TEST_F(CudaPrefillLaunches, NormsAreTheirParts) {
  Random random(1);
  for (const int32_t n : {264, 512, 1032, 1152, 2048, 2880, 4088, 4096}) {
    for (const int32_t slots : {-1, 0, 1, 7, 8, 20}) {  // -1: nothing is added; 0: floats are
      if (!share_.Takes()) continue;
      SCOPED_TRACE(std::to_string(n) + " columns, slots " + std::to_string(slots));
      const int32_t rows = 7;
      std::vector<float> x = RandomFloats(random, int64_t{rows} * n, 3);
      std::fill_n(x.begin() + n, n, 0.0f);
      x[static_cast<size_t>(2 * n + 5)] = 3e30f, x[static_cast<size_t>(3 * n)] = NAN;
      const std::vector<float> gain = RandomFloats(random, n), add = RandomFloats(random, int64_t{rows} * n);
      const GivenSlots given(random, rows, std::max(slots, 1), n, x);
      std::vector<float> sums = slots > 0 ? given.sums : x;
      if (slots == 0) std::transform(x.begin(), x.end(), add.begin(), sums.begin(), [](float a, float b) { return a + b; });
      const OnDevice<float> on_gain(gain), on_add(add), on_sums(sums), want(int64_t{rows} * n);
      const OnDevice<int32_t> expert(given.expert);
      const OnDevice<uint16_t> halves(given.halves);
      const OwnHalfRows want_halves(rows, n);
      RmsNorm({on_sums.data(), on_gain.data(), want.data(), rows, n, 1e-5f, nullptr, {}}, stream_);
      ASSERT_EQ(RowsToHalves(want.data(), rows, n, want_halves.at, stream_), cudaSuccess);
      for (const bool keeps : {true, false}) {
        const OnDevice<float> on_x(x), out(int64_t{rows} * n);
        const OwnHalfRows got_halves(rows, n);
        PrefillNormLaunch l;
        l.norm = {on_x.data(), on_gain.data(), keeps ? out.data() : nullptr, rows, n, 1e-5f, slots == 0 ? on_add.data() : nullptr, {}};
        if (slots > 0) l.slots = {halves.halves(), expert.data(), slots};
        l.halves = got_halves.at;
        ASSERT_TRUE(NormsForPrefill(l.norm));
        PrefillNorm(l, stream_);
        // Row 3 is no number, whose bits may differ.
        const auto same = [&](const OnDevice<float>& a, const OnDevice<float>& b) {
          const std::vector<float> one = a.Read(), other = b.Read();
          for (size_t i = 0; i < one.size(); ++i) {
            if (one[i] != other[i] && (i / static_cast<size_t>(n) != 3 || !std::isnan(one[i]) || !std::isnan(other[i]))) return false;
          }
          return true;
        };
        if (keeps) {
          ASSERT_TRUE(same(out, want));
        }
        ASSERT_TRUE(same(on_x, on_sums));
        ASSERT_EQ(got_halves.Read(), want_halves.Read());
      }
    }
  }
  PrefillNormLaunch narrow;
  for (const int32_t n : {64, 256, 300, 4104}) {
    narrow.norm.n = n;
    EXPECT_FALSE(NormsForPrefill(narrow.norm)) << n;
  }
}

// Tiles of every size that rows and weights need, with tails of all; a row's sums are the same to the bit whatever other rows there are.
TEST_F(CudaPrefillLaunches, ProductsOfSplitColumns) {
  Random random(2);
  const std::vector<std::tuple<int32_t, int32_t, int32_t>> shapes = {
      {33, 60, 16}, {70, 64, 320}, {530, 64, 272}, {1100, 60, 2048}, {1100, 1, 48}, {2300, 64, 304}, {4100, 128, 64}, {4096, 100, 512}, {40, 5000, 96}};
  for (const auto& [rows, weights, n] : shapes) {
    if (!share_.Takes()) continue;
    SCOPED_TRACE(std::to_string(rows) + " rows, " + std::to_string(weights) + " weights, " + std::to_string(n) + " columns");
    const std::vector<float> x = RandomFloats(random, int64_t{rows} * n), w = RandomFloats(random, int64_t{weights} * n), bias = RandomFloats(random, weights);
    const OnDevice<float> on_x(x), on_w(w), on_bias(bias);
    const auto product = [&](int32_t first, int32_t count, bool with_bias) {
      const OnDevice<float> out(int64_t{count} * weights);
      LinearLaunch l;
      l.weight = View(DType::kF32, weights, n, reinterpret_cast<const std::byte*>(on_w.data()));
      l.x = on_x.data() + int64_t{first} * n, l.out = out.data(), l.rows = count, l.bias = with_bias ? on_bias.data() : nullptr;
      EXPECT_TRUE(LinearOfSplitColumns(l, stream_));
      return out.Read();
    };
    const std::vector<float> all = product(0, rows, true), plain = product(0, rows, false);
    const std::vector<double> in_double(w.begin(), w.end());
    for (int32_t t = 0; t < rows; t += rows > 100 ? 1 + t % 13 : 1) {
      for (int32_t r = 0; r < weights; r += weights > 128 ? 7 : 1) {
        const kernels::DotSum dot = kernels::DotInDouble(in_double, r, x.data() + int64_t{t} * n, n);
        const auto at = static_cast<size_t>(int64_t{t} * weights + r);
        // Two roundings for each of up to n / 16 + 16 products one after the other in a part, then 16 parts and the bias.
        const double b = bias[static_cast<size_t>(r)], bound = (n / 16.0 + 16 + 17) * kUnit * (dot.magnitude + std::fabs(b));
        ASSERT_LE(std::fabs(all[at] - (dot.sum + b)), bound) << t << ", " << r;
        ASSERT_LE(std::fabs(plain[at] - dot.sum), bound) << t << ", " << r;
      }
    }
    for (const auto& [first, count] : {std::pair<int32_t, int32_t>{0, 1}, {rows - 33, 33}, {rows / 2, std::min(rows / 2, 700)}}) {
      const std::vector<float> some = product(first, count, true);
      ASSERT_EQ(std::memcmp(some.data(), all.data() + int64_t{first} * weights, some.size() * sizeof(float)), 0) << first << ", " << count;
    }
  }
  LinearLaunch odd;
  odd.weight.cols = 40;
  EXPECT_FALSE(LinearOfSplitColumns(odd, stream_));
}

// One tile of rows and several, weights of one block and of several, all with tails; a row's sums are the same to the bit whatever other rows there are.
TEST_F(CudaPrefillLaunches, ProductsOfSplitFloats) {
  if (!IsHopper()) GTEST_SKIP() << "these products are Hopper's alone";
  constexpr int32_t kMany = 2048;
  Random random(5);
  const std::vector<std::tuple<int32_t, int32_t, int32_t>> shapes = {{33, 60, 256},  {64, 64, 2048}, {129, 128, 2048}, {100, 100, 768}, {255, 64, 2048},
                                                                     {70, 17, 1280}, {256, 256, 512}, {150, 64, 4096}, {40, 1000, 256}, {250, 128, 512},
                                                                     {2048, 64, 2048}, {2100, 128, 2048}, {2051, 60, 256}, {2060, 200, 512}, {2050, 17, 1280}};
  for (const auto& [rows, weights, n] : shapes) {
    if (!share_.Takes()) continue;
    SCOPED_TRACE(std::to_string(rows) + " rows, " + std::to_string(weights) + " weights, " + std::to_string(n) + " columns");
    std::vector<float> x = RandomFloats(random, int64_t{rows} * n);
    const std::vector<float> w = RandomFloats(random, int64_t{weights} * n), bias = RandomFloats(random, weights);
    for (int32_t c = 0; c < n; ++c) x[static_cast<size_t>(n + c)] *= c % 2 == 0 ? 0x1p-40f : 0x1p40f;  // a row of small and of large numbers
    const OnDevice<float> on_x(x), on_w(w), on_bias(bias);
    const auto product = [&](int32_t first, int32_t count, bool with_bias, bool in_floats = false) {
      const OnDevice<float> out(int64_t{count + 1} * weights);
      LinearLaunch l;
      l.weight = View(DType::kF32, weights, n, reinterpret_cast<const std::byte*>(on_w.data()));
      l.x = on_x.data() + int64_t{first} * n, l.out = out.data(), l.rows = count, l.bias = with_bias ? on_bias.data() : nullptr;
      for (int again = 0; again < share_.Times(2); ++again) {
        EXPECT_TRUE(in_floats ? LinearOfSplitColumns(l, stream_) : rows < kMany ? LinearOfTf32(l, stream_) : LinearOfManyTf32(l, stream_));
      }
      std::vector<float> read = out.Read();
      for (size_t i = static_cast<size_t>(int64_t{count} * weights); i < read.size(); ++i) EXPECT_TRUE(std::isnan(read[i])) << "behind the last row";
      read.resize(static_cast<size_t>(int64_t{count} * weights));
      return read;
    };
    const std::vector<float> all = product(0, rows, true), plain = product(0, rows, false), floats = product(0, rows, false, true);
    const std::vector<double> in_double(w.begin(), w.end());
    double errors = 0, of_floats = 0;
    for (int32_t t = 0; t < rows; t += rows > 100 ? 1 + t % 13 : 1) {
      for (int32_t r = 0; r < weights; r += weights > 128 ? 7 : 1) {
        const kernels::DotSum dot = kernels::DotInDouble(in_double, r, x.data() + int64_t{t} * n, n);
        const auto at = static_cast<size_t>(int64_t{t} * weights + r);
        // Of a factor 2^-21 is left out, of a product 2^-22 more: 20 units. Of 32 columns four sums, each cut off where the largest of its terms has its last two
        // places; then what these come to, one after the other, up to eight parts and the bias.
        const double b = bias[static_cast<size_t>(r)], bound = (20 + 4 * 4 + n / (rows < kMany ? 256.0 : 64.0) + 12) * kUnit * (dot.magnitude + std::fabs(b));
        ASSERT_LE(std::fabs(all[at] - (dot.sum + b)), bound) << t << ", " << r;
        ASSERT_LE(std::fabs(plain[at] - dot.sum), bound) << t << ", " << r;
        if (t == 1) continue;
        errors += std::pow(plain[at] - dot.sum, 2), of_floats += std::pow(floats[at] - dot.sum, 2);
      }
    }
    // Of few columns floats' products are more exact than TF32's; of as many as models have, sums are as exact.
    std::printf("[          ] %d x %d x %d: errors are %.2f times those of floats\n", rows, weights, n, std::sqrt(errors / of_floats));
    EXPECT_LE(std::sqrt(errors / of_floats), n < 1024 ? 4.0 : 2.0) << "by the root of mean squares";
    const auto least = rows < kMany ? 33 : kMany;  // that are multiplied so
    for (const auto& [first, count] : {std::pair<int32_t, int32_t>{0, rows < kMany ? 1 : kMany}, {rows - least, least}, {rows / 2, rows < kMany ? rows / 2 : 0}}) {
      if (count == 0) continue;
      const std::vector<float> some = product(first, count, true);
      ASSERT_EQ(std::memcmp(some.data(), all.data() + int64_t{first} * weights, some.size() * sizeof(float)), 0) << first << ", " << count;
    }
  }
  const OnDevice<float> some(64 * 8192), out(40 * 64);
  LinearLaunch good;
  good.weight = View(DType::kF32, 64, 2048, reinterpret_cast<const std::byte*>(some.data()));
  good.x = some.data(), good.out = out.data(), good.rows = 40;
  EXPECT_TRUE(LinearOfTf32(good, stream_));
  for (const int32_t cols : {2048 + 128, 8192}) {  // not whole parts; more than a block has room for
    LinearLaunch other = good;
    other.weight.cols = cols;
    EXPECT_FALSE(LinearOfTf32(other, stream_)) << cols;
  }
  for (const int32_t weights : {16, 1025}) {
    LinearLaunch other = good;
    other.weight.rows = weights;
    EXPECT_FALSE(LinearOfTf32(other, stream_)) << weights;
  }
  EXPECT_FALSE(LinearOfManyTf32(good, stream_)) << "too few rows";
  for (const auto& [weights, cols, wgmma] : {std::tuple{16, 256, true}, {1025, 256, true}, {64, 256 + 64, true}, {128, 256 + 32, true}, {64, 256, false}}) {
    LinearLaunch other = good;  // refused before anything is launched
    other.rows = kMany, other.weight.rows = weights, other.weight.cols = cols, other.wgmma = wgmma;
    EXPECT_FALSE(LinearOfManyTf32(other, stream_)) << weights << " weights, " << cols << " columns";
  }
  LinearLaunch more = good;
  more.rows = 257;
  EXPECT_FALSE(LinearOfTf32(more, stream_));
  good.wgmma = false;
  EXPECT_FALSE(LinearOfTf32(good, stream_));
}

// q, k and v of rows of several sequences.
struct Projections {
  Projections(Random& random, int32_t of_dim, int32_t of_heads, int32_t of_kv_heads, int of_norm)
      : dim(of_dim), heads(of_heads), kv_heads(of_kv_heads), norm(of_norm), q(RandomFloats(random, int64_t{kRows} * heads * dim, 2)),
        k(RandomFloats(random, int64_t{kRows} * kv_heads * dim, 2)), v(RandomFloats(random, int64_t{kRows} * kv_heads * dim, 2)),
        q_gain(RandomFloats(random, Normed(heads))), k_gain(RandomFloats(random, Normed(kv_heads))) {
    std::vector<float> angles = RandomFloats(random, kRows * dim / 2, 30), c, s;
    for (const float angle : angles) c.push_back(std::cos(angle)), s.push_back(std::sin(angle));
    cosines = std::make_unique<OnDevice<float>>(c), sines = std::make_unique<OnDevice<float>>(s);
    std::vector<int32_t> words;
    for (int32_t t = 0; t < kRows; ++t) words.push_back(t % 3);
    for (int32_t t = 0; t < kRows; ++t) words.push_back(t / 3 * 5 % 47);
    for (int32_t i = 0; i < 9; ++i) words.push_back((i * 4 + 2) % 9);  // tables of three blocks
    places = std::make_unique<OnDevice<int32_t>>(words);
  }
  int32_t Normed(int32_t of_heads) const { return norm == 0 ? 0 : norm == 1 ? dim : of_heads * dim; }

  static constexpr int32_t kRows = 37;
  int32_t dim, heads, kv_heads;
  int norm;  // 0: none, 1: heads, 2: all together
  OnDevice<float> q, k, v, q_gain, k_gain;
  std::unique_ptr<OnDevice<float>> cosines, sines;
  std::unique_ptr<OnDevice<int32_t>> places;
};

struct Finished {
  std::vector<float> q;
  std::vector<uint16_t> keys, values;
};

// together: as one launch; else norms, clamps, rope and store one after the other.
Finished Finish(const Projections& p, float limit, bool together, cudaStream_t stream) {
  const int64_t cells = int64_t{9} * p.kv_heads * 16 * p.dim;
  const OnDevice<float> q(p.q.Read()), k(p.k.Read()), v(p.v.Read());
  const OnDevice<uint16_t> keys(cells), values(cells);
  const auto norm = [&](float* x, const float* gain, int32_t heads) {
    const int32_t n = p.Normed(heads);
    return NormLaunch{x, gain, x, int64_t{Projections::kRows} * heads * p.dim / n, n, 1e-5f, nullptr, {}};
  };
  const auto rope = [&](float* x, int32_t heads) { return RopeLaunch{x, p.cosines->data(), p.sines->data(), Projections::kRows, heads, p.dim, p.dim, true}; };
  const int32_t* words = p.places->data();
  FinishLaunch f;
  if (p.norm != 0) f.q_norm = norm(q.data(), p.q_gain.data(), p.heads), f.k_norm = norm(k.data(), p.k_gain.data(), p.kv_heads);
  f.limit = limit;
  f.q_rope = rope(q.data(), p.heads), f.k_rope = rope(k.data(), p.kv_heads);
  f.store = {k.data(), v.data(), {words, words + Projections::kRows, words + 2 * Projections::kRows, 3}, {keys.halves(), values.halves(), p.kv_heads, p.dim}, Projections::kRows};
  if (together) {
    EXPECT_TRUE(FinishProjections(f, stream));
  } else {
    if (f.q_norm) RmsNorm(*f.q_norm, stream), RmsNorm(*f.k_norm, stream);
    if (limit > 0) {
      for (const auto* part : {&q, &k, &v}) Clamp(part->data(), static_cast<int64_t>(part->Read().size()), limit, stream);
    }
    Rope(f.q_rope, stream), Rope(f.k_rope, stream), StoreKv(f.store, stream);
  }
  return {q.Read(), keys.Read(), values.Read()};
}

TEST_F(CudaPrefillLaunches, ProjectionsAreFinishedAsByTheirParts) {
  Random random(3);
  int exact = 0;
  for (const auto& [dim, heads, kv_heads] : {std::tuple<int32_t, int32_t, int32_t>{128, 16, 16}, {128, 32, 4}, {128, 5, 1}, {64, 10, 2}, {64, 32, 32}, {64, 64, 8}, {64, 6, 3}, {96, 4, 2}}) {
    for (int norm = 0; norm < 3; ++norm) {
      for (const float limit : {0.0f, 0.9f}) {
        if (!share_.Takes()) continue;
        SCOPED_TRACE(std::to_string(heads) + "/" + std::to_string(kv_heads) + " heads of " + std::to_string(dim) + ", norm " + std::to_string(norm) + ", limit " + std::to_string(limit));
        const Projections p(random, dim, heads, kv_heads, norm);
        const Finished want = Finish(p, limit, false, stream_), got = Finish(p, limit, true, stream_);
        EXPECT_EQ(got.values, want.values);
        if (norm == 0 || (norm == 1 && kv_heads > 1)) {  // sums of squares in the same order
          EXPECT_EQ(got.q, want.q);
          EXPECT_EQ(got.keys, want.keys);
          ++exact;
          continue;
        }
        float most = 0;
        for (const float value : want.q) most = std::max(most, std::fabs(value));
        for (const uint16_t key : want.keys) most = key == 0xffff ? most : std::max(most, std::fabs(HalfToFloat(key)));
        const double bound = 2 * kernels::SumBound(heads * dim, most);  // of two columns that turn together
        for (size_t i = 0; i < want.q.size(); ++i) ASSERT_LE(std::fabs(want.q[i] - got.q[i]), bound) << i;
        for (size_t i = 0; i < want.keys.size(); ++i) {
          const double key = HalfToFloat(want.keys[i]);
          if (want.keys[i] == 0xffff) ASSERT_EQ(got.keys[i], 0xffff) << i;  // not written
          else ASSERT_LE(std::fabs(key - HalfToFloat(got.keys[i])), 2 * kHalfUnit * std::fabs(key) + 0x1p-24 + bound) << i;
        }
      }
    }
  }
  EXPECT_TRUE(exact == 30 || !share_.all());
}

// From what attention gave to the next layer's q, k and v: weights, and what a run of the launches writes.
struct LayerWeights {
  LayerWeights(Random& random, DType of_type, int32_t of_hidden)
      : type(of_type), hidden(of_hidden), router(RandomFloats(random, kExperts * hidden, 1 / std::sqrt(static_cast<float>(hidden)))), gain(RandomFloats(random, hidden)) {
    for (auto* views : {&gates, &ups, &downs}) {
      for (int32_t e = 0; e < kExperts; ++e) views->push_back(views == &downs ? Matrix(random, hidden, kWidth) : Matrix(random, kWidth, hidden));
    }
    for (const int32_t width : kWidths) projections.push_back(Matrix(random, width, hidden));
  }
  DeviceMatrix Matrix(Random& random, int32_t rows, int32_t cols) {
    const std::shared_ptr<kernels::Matrix> m = kernels::RandomMatrix(random, type, rows, cols);
    std::vector<std::byte> packed(static_cast<size_t>(PackedBytes(type, rows, cols)));
    Pack(m->view, packed.data());
    memory.push_back(std::make_unique<OnDevice<std::byte>>(packed));
    return View(type, rows, cols, memory.back()->data());
  }
  static constexpr int32_t kExperts = 12, kWidth = 256, kSlots = 6, kWidths[] = {384, 128, 100};  // q, k, v

  DType type;
  int32_t hidden;
  OnDevice<float> router, gain;
  std::vector<std::unique_ptr<OnDevice<std::byte>>> memory;
  std::vector<DeviceMatrix> gates, ups, downs, projections;
};

struct LayerRun {
  static constexpr int32_t kExperts = LayerWeights::kExperts, kSlots = LayerWeights::kSlots;

  LayerRun(const LayerWeights& of, const std::vector<float>& rows_in, const std::vector<float>& given, const SelectRules& by)
      : w(of), rows(static_cast<int32_t>(rows_in.size()) / w.hidden), x(rows_in), normed(given), kinds(Kinds()), rules(std::vector<SelectRules>{by}) {}

  std::vector<kernels::RowKind> Kinds() const {
    std::vector<kernels::RowKind> all(static_cast<size_t>(rows), kernels::RowKind::kPrefill);
    for (size_t t = 0; t < all.size(); ++t) all[t] = t < 5 ? kernels::RowKind::kDecode : t + 3 >= all.size() ? kernels::RowKind::kPadding : all[t];
    return all;
  }
  std::vector<Node> Nodes() const {
    LinearLaunch gate;
    gate.weight = View(DType::kF32, kExperts, w.hidden, reinterpret_cast<const std::byte*>(w.router.data()));
    gate.x = normed.data(), gate.out = logits.data(), gate.rows = rows, gate.scratch = scratch.data();
    SelectLaunch select;
    select.logits = logits.data(), select.kinds = kinds.data(), select.rules = rules.data(), select.rows = rows, select.experts = kExperts, select.slots = kSlots;
    select.expert = expert.data(), select.weight = weight.data(), select.planes = planes.data(), select.jobs = jobs.data(), select.job_count = job_count.data();
    select.order = order.data(), select.counts = counts.data(), select.expert_slots = expert_slots.data(), select.scratch = scratch.data(), select.done = done.data();
    select.passed = gate_passed.data(), select.counted = counted.data();
    ExpertFfnLaunch l;
    l.gate = gates.data(), l.up = ups.data(), l.down = downs.data();
    l.gate_packing = l.up_packing = l.down_packing = PackingOf(w.type), l.may_read_hi = w.type == DType::kNested8;
    l.experts = kExperts, l.hidden = w.hidden, l.width = LayerWeights::kWidth, l.slots = kSlots, l.rows = rows, l.x = normed.data();
    l.jobs = jobs.data(), l.job_count = job_count.data(), l.order = order.data(), l.jobs_room = 2 * kExperts, l.order_room = rows * kSlots;
    l.weight = weight.data(), l.expert = expert.data(), l.out = x.data(), l.scratch = scratch.data(), l.met = met.data(), l.passed = passed.data();
    const NormLaunch norm{x.data(), w.gain.data(), normed.data(), rows, w.hidden, 1e-5f, nullptr, {}};
    std::vector<Node> nodes = {AddNode{normed.data(), nullptr, x.data(), rows, w.hidden}, norm, gate, select, l, norm};
    int64_t at = 0;
    for (const DeviceMatrix& matrix : w.projections) {
      LinearLaunch linear;
      linear.weight = matrix, linear.x = normed.data(), linear.out = out.data() + at, linear.rows = rows, linear.scratch = scratch.data(), linear.unpacked = unpacked.data();
      nodes.push_back(linear), at += int64_t{rows} * matrix.rows;
    }
    return nodes;
  }

  const LayerWeights& w;
  int32_t rows;
  OnDevice<float> x, normed;  // normed: first what attention gave
  OnDevice<kernels::RowKind> kinds;
  OnDevice<SelectRules> rules;
  OnDevice<DeviceMatrix> gates{w.gates}, ups{w.ups}, downs{w.downs};
  OnDevice<float> logits{rows * kExperts}, weight{rows * kSlots}, out{int64_t{rows} * (384 + 128 + 100)};
  OnDevice<int32_t> expert{rows * kSlots}, order{rows * kSlots}, job_count{1}, expert_slots{kExperts};
  OnDevice<Planes> planes{rows * kSlots};
  OnDevice<Job> jobs{2 * kExperts};
  OnDevice<SelectCounts> counts{1};
  OnDevice<std::byte> scratch{static_cast<int64_t>(
      std::max({ExpertFfnScratch(w.hidden, LayerWeights::kWidth, kSlots, rows), LinearScratch(rows, w.hidden), static_cast<size_t>(SelectScratch(rows))}))};
  OnDevice<std::byte> unpacked{static_cast<int64_t>(UnpackedRoom(rows))};
  OnDevice<uint32_t> done{std::vector<uint32_t>(1, 0)}, gate_passed{std::vector<uint32_t>(kGatePassed, 0)}, met{std::vector<uint32_t>(kExpertCounters, 0)};
  OnDevice<uint64_t> passed{std::vector<uint64_t>(kPassedWords, 0)}, counted{std::vector<uint64_t>(kSelectCounted, 0)};
};

// To the bit what each launch gives alone; among others of slots that are empty, of half planes, of rows that are padding, of widths that leave tails.
TEST_F(CudaPrefillLaunches, LayersAreTheirParts) {
  if (!IsHopper()) GTEST_SKIP() << "prefill's products are Hopper's alone";
  Random random(4);
  for (const DType type : {DType::kQ8_0, DType::kQ4_0, DType::kNested8, DType::kBF16}) {
    for (const int32_t hidden : {512, 288, 4128}) {
      if (hidden > 4096 && type != DType::kQ8_0) continue;  // norms of their own, whatever the type
      const LayerWeights weights(random, type, hidden);
      for (const int32_t rows : {66, 200, 700}) {
        if (!share_.Takes()) continue;
        SCOPED_TRACE(std::string(TraitsOf(type).name) + ", " + std::to_string(hidden) + " columns, " + std::to_string(rows) + " rows");
        SelectRules rules;
        rules.guaranteed = rules.most = rules.full = LayerRun::kSlots;
        if (rows == 200) rules.full = 2, rules.most = 5, rules.drop_below = 0.3f;
        const std::vector<float> x = RandomFloats(random, int64_t{rows} * hidden, 2), given = RandomFloats(random, int64_t{rows} * hidden);
        const LayerRun together(weights, x, given, rules), apart(weights, x, given, rules);
        const std::vector<Node> nodes = together.Nodes(), alone = apart.Nodes();
        if (hidden <= 4096) {
          EXPECT_EQ(PrefillReaderOf(std::get<NormLaunch>(nodes[1]), std::span(nodes).subspan(2)).node, NodeAt<ExpertFfnLaunch>(nodes, 4));
          LinearLaunch products[kMostTogether];
          ASSERT_EQ(LinearsAt(std::span(nodes).subspan(6), products), 3u);
          const bool prefill = PrefillsTogether(std::span(products).first(3));
          EXPECT_TRUE(prefill || rows <= 128);
          EXPECT_EQ(PrefillReaderOf(std::get<NormLaunch>(nodes[5]), std::span(nodes).subspan(6)).node, prefill ? NodeAt<LinearLaunch>(nodes, 6) : nullptr);
        }
        ASSERT_EQ(Launch(nodes, {}, stream_), cudaSuccess);
        for (size_t i = 0; i < alone.size(); i += i < 6 ? 1 : 3) {  // q, k and v together: a matrix alone may have its columns in parts
          ASSERT_EQ(Launch(std::span(alone).subspan(i, i < 6 ? 1 : 3), {}, stream_), cudaSuccess);
        }
        ASSERT_EQ(together.logits.Read(), apart.logits.Read());
        ASSERT_EQ(together.expert.Read(), apart.expert.Read());
        ASSERT_EQ(together.x.Read(), apart.x.Read());
        ASSERT_EQ(together.normed.Read(), apart.normed.Read());
        ASSERT_EQ(together.out.Read(), apart.out.Read());
      }
    }
  }
}

}  // namespace
}  // namespace thermoe::cuda
