// SPDX-License-Identifier: Apache-2.0
// What Hopper alone does of many rows: linears of 17 to 32 rows by warpgroups, attention of prefill, and norms that only q, k and v read.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>

#include "kernels/attention_cases.h"
#include "kernels/cuda/attend_many.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/node_patterns.h"
#include "kernels/cuda/prefill.h"
#include "kernels/cuda/stream_rows.h"
#include "kernels/cuda/unpacked.h"
#include "kernels/on_device.h"
#include "kernels/op_cases.h"
#include "kernels/repeated_rows.h"

namespace thermoe::cuda {
namespace {

using kernels::kHalfUnit, kernels::RandomFloats;

constexpr int32_t kWideRows = 32;  // the most that warpgroups take

class CudaWideLinears : public HopperTest {};
class CudaAttendMany : public HopperTest {};
class CudaNormsForLinears : public HopperTest {};

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Such rows, and what they give with rows of activations.
struct WideCase {
  WideCase(Random& random, DType type, int32_t of_cols) : cols(of_cols), x(RandomFloats(random, kWideRows * cols)), weights(random, type, cols) {
    for (int32_t t = 0; t < kWideRows; ++t) {
      for (int32_t r = 0; r < RepeatedRows::kDistinct; ++r) dots.push_back(kernels::DotInDouble(weights.exact, r, x.data() + int64_t{t} * cols, cols));
    }
    const auto norms = [&]<typename T>(const std::vector<T>& of, std::vector<double>* to) {
      for (size_t at = 0; at < of.size(); at += static_cast<size_t>(cols)) {
        double squares = 0;
        for (size_t i = at; i < at + static_cast<size_t>(cols); ++i) squares += static_cast<double>(of[i]) * of[i];
        to->push_back(std::sqrt(squares));
      }
    };
    norms(weights.exact, &weight_norms), norms(x, &x_norms);
  }

  int32_t cols;
  std::vector<float> x;                       // [kWideRows, cols]
  RepeatedRows weights;
  std::vector<kernels::DotSum> dots;          // [kWideRows, kDistinct]
  std::vector<double> weight_norms, x_norms;  // of rows
};

struct WideMatrix {
  WideMatrix(const WideCase& of, Random& random, int32_t of_rows, int32_t of_first, bool with_bias, bool with_adds)
      : c(of), rows(of_rows), first(of_first), adds(with_adds), bias(RandomFloats(random, with_bias ? rows : 0)),
        before(RandomFloats(random, with_adds ? int64_t{kWideRows} * rows : 0, 5)), packed(of.weights.Packed(rows, first)), on_bias(bias) {}

  // [x_rows, rows]; one row more must stay as it is.
  std::vector<float> Room(int32_t x_rows) const {
    std::vector<float> room(static_cast<size_t>(x_rows + 1) * static_cast<size_t>(rows), kernels::kPoison);
    if (adds) std::copy(before.begin(), before.begin() + int64_t{x_rows} * rows, room.begin());
    return room;
  }
  // Both factors are rounded to halves: in parts of the size that norms make likely, 2e-4 to 3e-4 by the root of mean squares, 1.3e-3 at most of so many outputs;
  // where scales are halves, too, some more. Of a row of activations at most 1e-3, as bench/gpu_matrix_check.cu has it; of each output 5e-3.
  void ExpectProducts(const std::vector<float>& out, int32_t x_rows) const {
    const auto width = static_cast<size_t>(rows), count = static_cast<size_t>(x_rows) * width;
    for (size_t t = 0; t < static_cast<size_t>(x_rows); ++t) {
      double squares = 0;
      for (size_t r = 0; r < width; ++r) {
        const size_t of = (static_cast<size_t>(first) + r) % RepeatedRows::kDistinct;
        const kernels::DotSum& dot = c.dots[t * RepeatedRows::kDistinct + of];
        const double more = (bias.empty() ? 0.0 : bias[r]) + (adds ? before[t * width + r] : 0.0);
        const double error = out[t * width + r] - (dot.sum + more);
        const double likely = c.weight_norms[of] * c.x_norms[t] / std::sqrt(c.cols);
        ASSERT_LE(std::fabs(error), 5e-3 * likely + kernels::SumBound(c.cols, dot.magnitude + std::fabs(more))) << "row " << t << ", output " << r;
        squares += error / likely * (error / likely);
      }
      ASSERT_LE(std::sqrt(squares / static_cast<double>(width)), 1e-3) << "row " << t;
    }
    for (size_t i = count; i < out.size(); ++i) ASSERT_TRUE(std::isnan(out[i])) << "behind the last row, " << i - count;
  }

  const WideCase& c;
  int32_t rows, first;
  bool adds;
  std::vector<float> bias, before;
  OnDevice<std::byte> packed;
  OnDevice<float> on_bias;
};

// Of these matrices together; `most`: what kWideRows rows gave, to the bit what fewer give, or empty and filled then.
void ExpectWide(const std::vector<const WideMatrix*>& matrices, int32_t x_rows, std::vector<std::vector<float>>* most, cudaStream_t stream) {
  const WideCase& c = matrices.front()->c;
  const OnDevice<float> x(std::vector<float>(c.x.begin(), c.x.begin() + int64_t{x_rows} * c.cols));
  const OnDevice<std::byte> scratch(static_cast<int64_t>(StreamedLinearScratch(x_rows, c.cols)));
  std::vector<OnDevice<float>> outs;
  std::vector<LinearLaunch> launches;
  for (const WideMatrix* m : matrices) {
    outs.emplace_back(m->Room(x_rows));
    LinearLaunch l;
    l.weight = View(c.weights.type, m->rows, c.cols, m->packed.data());
    l.x = x.data(), l.out = outs.back().data(), l.rows = x_rows, l.scratch = scratch.data();
    l.bias = m->bias.empty() ? nullptr : m->on_bias.data(), l.adds = m->adds;
    launches.push_back(l);
  }
  ASSERT_TRUE(LinearOfStreamedRows(launches, stream));
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  for (size_t i = 0; i < matrices.size(); ++i) {
    SCOPED_TRACE("matrix " + std::to_string(i) + " of " + std::to_string(matrices.size()) + (matrices[i]->adds ? ", added" : ""));
    std::vector<float> out = outs[i].Read();
    matrices[i]->ExpectProducts(out, x_rows);
    out.resize(static_cast<size_t>(x_rows) * static_cast<size_t>(matrices[i]->rows));
    if (x_rows == kWideRows) most->push_back(out);
    else ASSERT_TRUE(SameBits(out, {(*most)[i].begin(), (*most)[i].begin() + static_cast<ptrdiff_t>(out.size())})) << "not what " << kWideRows << " rows give";
  }
}

// Where warpgroups multiply: every packing, one tile of columns to many, whole and half warpgroups' tails, eights of rows that are full or hold one row.
TEST_F(CudaWideLinears, AreProductsInDouble) {
  constexpr int32_t kLone = 4300, kQ = 4096 + 64 * 5, kK = 256, kV = 100;
  ASSERT_GT(2 * ((kLone + 63) / 64), HopperMultiprocessors()) << "too few rows of weights for warpgroups";
  Random random(1);
  for (const DType type : {DType::kQ8_0, DType::kNested8, DType::kQ4_0, DType::kQ4K, DType::kQ5_1, DType::kQ5K, DType::kQ6K, DType::kMXFP4, DType::kBF16, DType::kF16}) {
    for (const int32_t cols : {64, 128, 512, 2048}) {
      if (cols % TraitsOf(type).block_elements != 0 || !share_.Takes()) continue;
      const WideCase c(random, type, cols);
      const WideMatrix lone(c, random, kLone, 0, true, false), adding(c, random, kLone, 50, false, true);
      const WideMatrix q(c, random, kQ, 13, false, false), k(c, random, kK, 31, true, false), v(c, random, kV, 62, false, false);
      std::vector<std::vector<float>> most[3];
      for (const int32_t rows : {32, 25, 24, 17}) {
        SCOPED_TRACE(std::string(TraitsOf(type).name) + ", " + std::to_string(cols) + " columns, " + std::to_string(rows) + " rows");
        ExpectWide({&lone}, rows, &most[0], stream_);
        ExpectWide({&q, &k, &v}, rows, &most[1], stream_);
        ExpectWide({&adding}, rows, &most[2], stream_);
        if (HasFailure()) return;
      }
    }
  }
}

// Neighbouring rows of one sequence.
struct ManyRun {
  int32_t sequence, first, count;
};

// Sequences in a cache, and rows that attend to them.
struct ManyCase {
  // The first rows are of sequences that have one row each: not these kernels'. Items of 128 rows have rows of several sequences.
  static constexpr int32_t kSingle = 3, kRows = 303, kSequences = 3, kHeads = 64, kKvHeads = 8, kStride = 700 / kKvBlock + 1;

  ManyCase(Random& random, int32_t of_dim)
      : dim(of_dim), fixture(kernels::MakeAttention(random, {kHeads, kKvHeads, dim, {{699, 1}, {299, 1}, {89, 1}}, kHalfUnit / 2 + kernels::SumBound(dim, 1)})),
        host_q(RandomFloats(random, int64_t{kRows} * kHeads * dim, 1.5)), q(host_q), keys(Rounded(&fixture->keys)), values(Rounded(&fixture->values)) {}

  // Places that no row may see hold what would show.
  static std::vector<uint16_t> Rounded(std::vector<float>* floats) {
    std::vector<uint16_t> halves;
    for (float& value : *floats) halves.push_back(FloatToHalf(std::isfinite(value) ? value : 1000.0f)), value = HalfToFloat(halves.back());
    return halves;
  }
  // A row table's words; sequence s has table (s + turn) % kSequences.
  std::vector<int32_t> Words(const std::vector<ManyRun>& runs, int32_t turn) const {
    std::vector<int32_t> words(2 * kRows + kSequences * kStride, 0);
    int32_t t = 0;
    for (const ManyRun& run : runs) {
      for (int32_t i = 0; i < run.count; ++i, ++t) words.at(static_cast<size_t>(t)) = (run.sequence + turn) % kSequences, words.at(static_cast<size_t>(kRows + t)) = run.first + i;
    }
    EXPECT_EQ(t, kRows);
    for (int32_t s = 0; s < kSequences; ++s) {
      const std::vector<int32_t>& table = fixture->tables[static_cast<size_t>(s)];
      std::copy(table.begin(), table.end(), words.begin() + 2 * kRows + (s + turn) % kSequences * kStride);
    }
    return words;
  }
  AttentionLaunch Launch(const int32_t* words, float* out, uint32_t* taken) const {
    AttentionLaunch l;
    l.q = q.data(), l.rows = {words, words + kRows, words + 2 * kRows, kStride}, l.cache = {keys.halves(), values.halves(), kKvHeads, dim};
    l.heads = kHeads, l.scale = fixture->scale, l.out = out, l.count = kRows, l.single = kSingle, l.longest = kStride * kKvBlock, l.taken = taken;
    return l;
  }
  // The formula for some rows and heads. Weights of softmax below the least normal half are off by 2^-25 of the largest.
  void ExpectFormula(const std::vector<ManyRun>& runs, const std::vector<float>& out) const {
    kernels::AttentionFixture f = *fixture;
    f.q = host_q, f.rows.clear();
    for (const ManyRun& run : runs) {
      for (int32_t i = 0; i < run.count; ++i) f.rows.push_back({f.tables[static_cast<size_t>(run.sequence)].data(), run.first + i});
    }
    kernels::OpCase want;
    want.name = "dim " + std::to_string(dim);
    std::vector<float> got;
    for (size_t row = kSingle; row < kRows; row += row < kRows - 18 ? 17 : 1) {
      for (int32_t h = 0; h < kHeads; h += 9) {
        kernels::AttendInDouble(f, row, h, &want);
        const auto first = out.begin() + (static_cast<ptrdiff_t>(row) * kHeads + h) * dim;
        got.insert(got.end(), first, first + dim);
        for (size_t i = got.size() - static_cast<size_t>(dim); i < got.size(); ++i) want.bound[i] += 0x1p-25 * 8 * (f.rows[row].position + 1);
      }
    }
    ExpectWithinBounds(want, "attention of many rows", got);
  }

  int32_t dim;
  std::shared_ptr<kernels::AttentionFixture> fixture;
  std::vector<float> host_q;
  OnDevice<float> q;
  OnDevice<uint16_t> keys, values;
};

const std::vector<ManyRun> kRunsBefore = {{1, 5, 1}, {0, 3, 1}, {2, 8, 1}, {0, 500, 200}, {1, 0, 70}, {2, 60, 30}};
const std::vector<ManyRun> kRunsAfter = {{2, 7, 1}, {1, 33, 1}, {0, 690, 1}, {2, 0, 90}, {0, 17, 140}, {1, 230, 70}};

// A captured launch reads places when it is replayed, and leaves the counters as a launch does.
TEST_F(CudaAttendMany, ReplaysGiveWhatLaunchesGive) {
  Random random(2);
  for (const int32_t dim : {64, 128}) {
    if (!share_.Takes()) continue;
    SCOPED_TRACE(dim);
    const ManyCase c(random, dim);
    const std::vector<uint32_t> zeros(2, 0);
    const OnDevice<uint32_t> taken(zeros);
    const auto direct = [&](const std::vector<int32_t>& words) {
      const OnDevice<int32_t> places(words);
      const OnDevice<float> out(int64_t{ManyCase::kRows} * ManyCase::kHeads * dim);
      EXPECT_TRUE(AttendMany(c.Launch(places.data(), out.data(), taken.data()), nullptr, stream_));
      EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
      EXPECT_EQ(taken.Read(), zeros);
      return out.Read();
    };
    const std::vector<int32_t> words[] = {c.Words(kRunsBefore, 0), c.Words(kRunsAfter, 1)};
    const std::vector<float> want[] = {direct(words[0]), direct(words[1])};
    c.ExpectFormula(kRunsBefore, want[0]), c.ExpectFormula(kRunsAfter, want[1]);
    for (int32_t i = 0; i < ManyCase::kSingle * ManyCase::kHeads * dim; ++i) ASSERT_TRUE(std::isnan(want[0][static_cast<size_t>(i)])) << "a single row's, " << i;

    const OnDevice<int32_t> places(words[0]);
    const OnDevice<float> out(static_cast<int64_t>(want[0].size()));
    const Captured captured(stream_, [&] { EXPECT_TRUE(AttendMany(c.Launch(places.data(), out.data(), taken.data()), nullptr, stream_)); });
    for (const int which : {1, 0, 1, 1}) {
      EXPECT_EQ(cudaMemcpy(places.data(), words[which].data(), words[which].size() * sizeof(int32_t), cudaMemcpyHostToDevice), cudaSuccess);
      EXPECT_EQ(cudaMemset(out.data(), 0xff, want[which].size() * sizeof(float)), cudaSuccess);
      EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
      captured.Replay();
      EXPECT_TRUE(SameBits(out.Read(), want[which])) << which;
      EXPECT_EQ(taken.Read(), zeros);
    }
  }
}

// Instead of floats: these as halves, of single rows none.
TEST_F(CudaAttendMany, LeavesHalvesInstead) {
  Random random(7);
  for (const int32_t dim : {64, 128}) {
    if (!share_.Takes()) continue;
    SCOPED_TRACE(dim);
    const ManyCase c(random, dim);
    const int32_t cols = ManyCase::kHeads * dim;
    const OnDevice<int32_t> places(c.Words(kRunsBefore, 0));
    const OnDevice<float> out(int64_t{ManyCase::kRows} * cols), untouched(int64_t{ManyCase::kRows} * cols);
    const OnDevice<uint32_t> taken(std::vector<uint32_t>(2, 0));
    const OnDevice<uint16_t> halves(int64_t{WholeHalfRows(ManyCase::kRows)} * cols);
    const OnDevice<float> unscale(ManyCase::kRows);
    const OnDevice<int32_t> counts(static_cast<int64_t>(kMostTogether));
    const HalfRows to{halves.data(), cols, unscale.data(), counts.data()};
    AttentionLaunch l = c.Launch(places.data(), untouched.data(), taken.data());
    EXPECT_FALSE(AttendMany(l, &to, stream_)) << "single rows";
    l.single = 0;
    ASSERT_TRUE(AttendMany(l, &to, stream_));
    l.out = out.data();
    ASSERT_TRUE(AttendMany(l, nullptr, stream_));
    const std::vector<float> want = out.Read(), left = untouched.Read();
    EXPECT_TRUE(std::all_of(left.begin(), left.end(), [](float value) { return std::isnan(value); }));
    const std::vector<uint16_t> got = halves.Read();
    for (size_t i = 0; i < want.size(); ++i) ASSERT_EQ(got[i], FloatToHalf(want[i])) << i;
    EXPECT_EQ(unscale.Read(), std::vector<float>(ManyCase::kRows, 1.0f));
    EXPECT_EQ(counts.Read(), std::vector<int32_t>(kMostTogether, 0));
  }
}

TEST_F(CudaAttendMany, LeavesOthersAlone) {
  if (!share_.Takes()) return;
  Random random(3);
  const ManyCase c(random, 128);
  const OnDevice<int32_t> places(c.Words(kRunsBefore, 0));
  const OnDevice<float> out(int64_t{ManyCase::kRows} * ManyCase::kHeads * 128);
  const OnDevice<uint32_t> taken(std::vector<uint32_t>(2, 0));
  const AttentionLaunch good = c.Launch(places.data(), out.data(), taken.data());
  AttentionLaunch uncounted = good, plain = good;
  uncounted.taken = nullptr, plain.wgmma = false;
  EXPECT_FALSE(AttendMany(uncounted, nullptr, stream_));
  EXPECT_FALSE(AttendMany(plain, nullptr, stream_));
  for (const int32_t dim : {32, 96}) {
    AttentionLaunch other = good;
    other.cache.head_dim = dim;
    EXPECT_FALSE(AttendMany(other, nullptr, stream_)) << dim;
  }
  const std::vector<float> untouched = out.Read();
  EXPECT_TRUE(std::all_of(untouched.begin(), untouched.end(), [](float value) { return std::isnan(value); }));
  EXPECT_TRUE(AttendMany(good, nullptr, stream_));
  const std::vector<float> written = out.Read();
  EXPECT_TRUE(std::none_of(written.begin() + ManyCase::kSingle * ManyCase::kHeads * 128, written.end(), [](float value) { return std::isnan(value); }));
}

// From what experts gave to what attention gives: weights, and what a run of the launches writes.
struct BlockWeights {
  static constexpr int32_t kDim = 64, kHeads = 10, kKvHeads = 2, kWidth = kHeads * kDim, kKvWidth = kKvHeads * kDim;

  BlockWeights(Random& random, DType of_type, int32_t of_hidden)
      : type(of_type), hidden(of_hidden), gain(RandomFloats(random, hidden)), q(Packed(random, kWidth, hidden)), k(Packed(random, kKvWidth, hidden)),
        v(Packed(random, kKvWidth, hidden)), output(Packed(random, hidden, kWidth)) {}
  std::vector<std::byte> Packed(Random& random, int32_t rows, int32_t cols) const {
    const std::shared_ptr<kernels::Matrix> m = kernels::RandomMatrix(random, type, rows, cols);
    std::vector<std::byte> packed(static_cast<size_t>(PackedBytes(type, rows, cols)));
    Pack(m->view, packed.data());
    return packed;
  }
  DType type;
  int32_t hidden;
  OnDevice<float> gain;
  OnDevice<std::byte> q, k, v, output;
};

struct BlockRun {
  using W = BlockWeights;

  BlockRun(const BlockWeights& of, const std::vector<float>& rows_in, const std::vector<float>& to_add, const std::vector<float>& angles)
      : w(of), rows(static_cast<int32_t>(rows_in.size()) / w.hidden), x(rows_in), added(to_add), cosines(Of(angles, [](float a) { return std::cos(a); })),
        sines(Of(angles, [](float a) { return std::sin(a); })), places(Places()) {}

  template <typename F>
  static std::vector<float> Of(const std::vector<float>& angles, F&& f) {
    std::vector<float> all(angles.size());
    std::transform(angles.begin(), angles.end(), all.begin(), f);
    return all;
  }
  int32_t Blocks() const { return (rows + kKvBlock - 1) / kKvBlock; }
  // A third of the rows begin one sequence, the others another, whose blocks take turns.
  std::vector<int32_t> Places() const {
    std::vector<int32_t> words;
    for (int32_t t = 0; t < rows; ++t) words.push_back(t < rows / 3 ? 0 : 1);
    for (int32_t t = 0; t < rows; ++t) words.push_back(t < rows / 3 ? t : t - rows / 3);
    for (int32_t b = 0; b < 2 * Blocks(); ++b) words.push_back(b % Blocks() * 2 + b / Blocks());
    return words;
  }
  // add: with what comes to the rows before their norm. unread: AttentionLaunch's.
  std::vector<Node> Nodes(bool add, bool unread = false) const {
    const RowTable table{places.data(), places.data() + rows, places.data() + 2 * rows, Blocks()};
    const HalfKv cache{keys.halves(), values.halves(), W::kKvHeads, W::kDim};
    const auto linear = [&](const OnDevice<std::byte>& weight, const float* from, int32_t in, float* to, int32_t width) {
      LinearLaunch l;
      l.weight = View(w.type, width, in, weight.data()), l.x = from, l.out = to, l.rows = rows, l.scratch = scratch.data(), l.unpacked = unpacked.data();
      return l;
    };
    const auto rope = [&](float* of, int32_t heads) { return RopeLaunch{of, cosines.data(), sines.data(), rows, heads, W::kDim, W::kDim, true}; };
    AttentionLaunch attention;
    attention.q = q.data(), attention.rows = table, attention.cache = cache, attention.heads = W::kHeads, attention.scale = 0.125f, attention.out = attended.data();
    attention.count = rows, attention.longest = Blocks() * kKvBlock, attention.taken = taken.data(), attention.unread = unread;
    std::vector<Node> nodes;
    if (add) nodes.push_back(AddNode{added.data(), nullptr, x.data(), rows, w.hidden});
    nodes.push_back(NormLaunch{x.data(), w.gain.data(), normed.data(), rows, w.hidden, 1e-5f, nullptr, {}});
    nodes.push_back(linear(w.q, normed.data(), w.hidden, q.data(), W::kWidth));
    nodes.push_back(linear(w.k, normed.data(), w.hidden, k.data(), W::kKvWidth));
    nodes.push_back(linear(w.v, normed.data(), w.hidden, v.data(), W::kKvWidth));
    nodes.push_back(rope(q.data(), W::kHeads)), nodes.push_back(rope(k.data(), W::kKvHeads));
    nodes.push_back(StoreLaunch{k.data(), v.data(), table, cache, rows});
    nodes.push_back(attention);
    nodes.push_back(linear(w.output, attended.data(), W::kWidth, normed.data(), w.hidden));
    return nodes;
  }

  const BlockWeights& w;
  int32_t rows;
  OnDevice<float> x, added, cosines, sines;
  OnDevice<int32_t> places;
  OnDevice<float> normed{int64_t{rows} * w.hidden}, q{int64_t{rows} * W::kWidth}, k{int64_t{rows} * W::kKvWidth}, v{int64_t{rows} * W::kKvWidth};
  OnDevice<float> attended{int64_t{rows} * W::kWidth};
  OnDevice<uint16_t> keys{std::vector<uint16_t>(static_cast<size_t>(2 * Blocks() * kKvBlock * W::kKvWidth), 0)}, values{keys.Read()};
  OnDevice<std::byte> scratch{static_cast<int64_t>(LinearScratch(rows, std::max(w.hidden, int32_t{W::kWidth})))};
  OnDevice<std::byte> unpacked{static_cast<int64_t>(UnpackedRoom(rows))};
  OnDevice<uint32_t> taken{std::vector<uint32_t>(2, 0)};
};

// Floats of the norm are then never written, and what lies in their place is no number: none of it may come into q, k or v.
TEST_F(CudaNormsForLinears, NobodyReadsTheirFloats) {
  Random random(4);
  for (const DType type : {DType::kQ8_0, DType::kQ4_0, DType::kNested8, DType::kBF16}) {
    for (const int32_t hidden : {512, 288}) {
      const BlockWeights weights(random, type, hidden);
      for (const int32_t rows : {200, 700}) {
        if (!share_.Takes()) continue;
        const std::vector<float> x = RandomFloats(random, int64_t{rows} * hidden, 2), added = RandomFloats(random, int64_t{rows} * hidden);
        const std::vector<float> angles = RandomFloats(random, rows * BlockWeights::kDim / 2, 30);
        for (const bool add : {false, true}) {
          SCOPED_TRACE(std::string(TraitsOf(type).name) + ", " + std::to_string(hidden) + " columns, " + std::to_string(rows) + " rows" + (add ? ", added to" : ""));
          const BlockRun together(weights, x, added, angles), apart(weights, x, added, angles);
          const std::vector<Node> nodes = together.Nodes(add), alone = apart.Nodes(add);
          const size_t norm = add ? 1 : 0, linears = norm + 1;
          const std::span<const Node> following = std::span(nodes).subspan(linears);
          ASSERT_TRUE(OnlyLinearsRead(std::get<NormLaunch>(nodes[norm]), following));
          ASSERT_EQ(PrefillReaderOf(std::get<NormLaunch>(nodes[norm]), following).node, NodeAt<LinearLaunch>(nodes, linears));
          ASSERT_EQ(Launch(nodes, {}, stream_), cudaSuccess);
          for (size_t i = 0; i < alone.size(); i += i == linears ? 3 : 1) {  // q, k and v together: a matrix alone may have its columns in parts
            ASSERT_EQ(Launch(std::span(alone).subspan(i, i == linears ? 3 : 1), {}, stream_), cudaSuccess);
          }
          EXPECT_EQ(together.x.Read(), apart.x.Read());
          EXPECT_EQ(together.q.Read(), apart.q.Read());
          EXPECT_EQ(together.keys.Read(), apart.keys.Read());
          EXPECT_EQ(together.values.Read(), apart.values.Read());
          EXPECT_EQ(together.attended.Read(), apart.attended.Read());
          EXPECT_EQ(together.normed.Read(), apart.normed.Read());  // the product after attention
          if (HasFailure()) return;
        }
      }
    }
  }
}

// Attention whose floats nobody reads writes halves alone, and the product after it gives the same but for what a power of two in front saves of the smallest.
TEST_F(CudaNormsForLinears, AttentionLeavesHalves) {
  Random random(6);
  for (const DType type : {DType::kQ8_0, DType::kQ4_0, DType::kBF16}) {
    constexpr int32_t kHidden = 512;
    const BlockWeights weights(random, type, kHidden);
    for (const int32_t rows : {40, 200, 700}) {
      if (!share_.Takes()) continue;
      SCOPED_TRACE(std::string(TraitsOf(type).name) + ", " + std::to_string(rows) + " rows");
      const std::vector<float> x = RandomFloats(random, int64_t{rows} * kHidden, 2), angles = RandomFloats(random, rows * BlockWeights::kDim / 2, 30);
      const BlockRun halves(weights, x, {}, angles), floats(weights, x, {}, angles);
      const std::vector<Node> nodes = halves.Nodes(false, true);
      const LinearLaunch output = std::get<LinearLaunch>(nodes.back());
      ASSERT_EQ(Launch(nodes, {}, stream_), cudaSuccess);
      ASSERT_EQ(Launch(floats.Nodes(false), {}, stream_), cudaSuccess);
      const std::vector<float> left = halves.attended.Read(), want = floats.normed.Read(), got = halves.normed.Read();
      if (PrefillsTogether(std::span(&output, 1))) {
        EXPECT_TRUE(std::all_of(left.begin(), left.end(), [](float value) { return std::isnan(value); }));
      } else {
        EXPECT_LE(rows, 40);
        EXPECT_EQ(left, floats.attended.Read());
      }
      double most = 0;
      for (const float value : want) most = std::max(most, std::fabs(static_cast<double>(value)));
      EXPECT_GT(most, 0);
      for (size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(got[i], want[i], 1e-5 * most) << i;
    }
  }
}

}  // namespace
}  // namespace thermoe::cuda
