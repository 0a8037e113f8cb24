// SPDX-License-Identifier: Apache-2.0
// Launches of decode steps that do what several others do: the norm, the gate and the selection; products that add to what is there.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "kernels/cuda/select.h"
#include "kernels/cuda/stream_rows.h"
#include "kernels/on_device.h"
#include "kernels/op_cases.h"

namespace thermoe::cuda {
namespace {

using kernels::kUnit, kernels::RandomFloats;

class CudaDecodeLaunches : public DeviceTest {};

// What a gate writes, and its selection.
struct Gated {
  Gated(int32_t rows, int32_t of_experts, int32_t of_slots, int32_t hidden, const SelectRules& by, const std::vector<kernels::RowKind>& of_kinds)
      : experts(of_experts), slots(of_slots), normed(int64_t{rows} * hidden), logits(rows * experts), weight(rows * slots), halves(int64_t{rows} * hidden),
        expert(rows * slots), order(rows * slots), job_count(1), expert_slots(experts), planes(rows * slots), jobs(2 * experts), counts(1),
        kinds(of_kinds), rules(std::vector<SelectRules>{by}),
        scratch(SelectScratch(rows)), done(std::vector<uint32_t>(1, 0)), passed(std::vector<uint32_t>(kGatePassed, 0)) {
    select.logits = logits.data(), select.kinds = kinds.data(), select.rules = rules.data(), select.rows = rows, select.experts = experts;
    select.slots = slots, select.expert = expert.data(), select.weight = weight.data(), select.planes = planes.data(), select.jobs = jobs.data();
    select.job_count = job_count.data(), select.order = order.data(), select.counts = counts.data(), select.expert_slots = expert_slots.data();
    select.scratch = scratch.data(), select.done = done.data(), select.passed = passed.data();
  }
  Gated(int32_t rows, int32_t of_experts, int32_t of_slots, int32_t hidden)
      : Gated(rows, of_experts, of_slots, hidden, Neutral(of_slots), std::vector<kernels::RowKind>(static_cast<size_t>(rows), kernels::RowKind::kDecode)) {}
  static SelectRules Neutral(int32_t slots) {
    SelectRules rules;
    rules.guaranteed = rules.most = rules.full = slots;
    return rules;
  }

  int32_t experts, slots;
  OnDevice<float> normed, logits, weight;
  OnDevice<uint16_t> halves;
  OnDevice<int32_t> expert, order, job_count, expert_slots;
  OnDevice<Planes> planes;
  OnDevice<Job> jobs;
  OnDevice<SelectCounts> counts;
  OnDevice<kernels::RowKind> kinds;
  OnDevice<SelectRules> rules;
  OnDevice<std::byte> scratch;
  OnDevice<uint32_t> done, passed;
  SelectLaunch select;
};

// bound: of each logit, in both.
void ExpectSameSelection(const Gated& a, const Gated& b, double bound) {
  const std::vector<float> weights = a.weight.Read(), others = b.weight.Read();
  for (size_t i = 0; i < weights.size(); ++i) {
    // exp of a difference of two logits that may each be twice `bound` apart; exp, sums and quotients round on their own.
    ASSERT_LE(std::fabs(weights[i] - others[i]), (4 * bound + 32 * kUnit) * std::fabs(weights[i])) << i;
  }
  const SelectCounts counts = a.counts.Read()[0], other_counts = b.counts.Read()[0];
  EXPECT_TRUE(counts.distinct == other_counts.distinct && counts.slots_full == other_counts.slots_full && counts.slots_dropped == other_counts.slots_dropped);
  EXPECT_EQ(a.expert.Read(), b.expert.Read());
  EXPECT_EQ(a.planes.Read(), b.planes.Read());
  EXPECT_EQ(a.order.Read(), b.order.Read());
  EXPECT_EQ(a.expert_slots.Read(), b.expert_slots.Read());
  const std::vector<int32_t> jobs = a.job_count.Read();
  ASSERT_EQ(jobs, b.job_count.Read());
  ASSERT_TRUE(jobs[0] > 0 && jobs[0] <= 2 * a.experts);
  EXPECT_EQ(std::memcmp(a.jobs.Read().data(), b.jobs.Read().data(), static_cast<size_t>(jobs[0]) * sizeof(Job)), 0);
  EXPECT_EQ(a.done.Read()[0], 0u);
  EXPECT_EQ(b.done.Read()[0], 0u);
  EXPECT_EQ(a.passed.Read(), std::vector<uint32_t>(kGatePassed, 0));
  EXPECT_EQ(b.passed.Read(), std::vector<uint32_t>(kGatePassed, 0));
}

// A gate and its rows, whose logits are so far apart that rounding does not change what is chosen.
struct GateInputs {
  static constexpr double kApart = 0x1p-8, kEpsilon = 1e-5f;

  GateInputs(Random& random, int32_t of_rows, int32_t of_experts, int32_t of_hidden)
      : rows(of_rows), experts(of_experts), hidden(of_hidden), slots(std::min(8, experts / 2)),
        weights(RandomFloats(random, int64_t{experts} * hidden, 1 / std::sqrt(hidden))), gain(RandomFloats(random, hidden)) {
    std::fill_n(weights.begin() + int64_t{experts / 2} * hidden, hidden, 0.0f);  // a logit of 0 is none that has not come
    const std::vector<double> in_double(weights.begin(), weights.end());
    while (x.size() < static_cast<size_t>(rows) * static_cast<size_t>(hidden)) AddRow(in_double, RandomFloats(random, hidden, 3));
  }
  void AddRow(const std::vector<double>& w, const std::vector<float>& row) {
    double squares = 0;
    for (const double value : row) squares += value * value;
    std::vector<double> turned, sums, bounds;
    for (size_t i = 0; i < row.size(); ++i) turned.push_back(row[i] / std::sqrt(squares / hidden + kEpsilon) * static_cast<double>(gain[i]));
    for (int32_t e = 0; e < experts; ++e) {
      const kernels::DotSum dot = kernels::DotInDouble(w, e, turned.data(), hidden);
      sums.push_back(dot.sum);
      // The sum, the norm (relative: its sum halved by the root, six more roundings) and the product of gain and weight.
      bounds.push_back(kernels::SumBound(hidden, 1.5 * dot.magnitude) + 8 * kUnit * dot.magnitude);
    }
    std::vector<double> sorted = sums;
    std::sort(sorted.rbegin(), sorted.rend());
    for (size_t i = 0; i < static_cast<size_t>(slots); ++i) {
      if (sorted[i] - sorted[i + 1] < kApart) return;
    }
    EXPECT_LT(2 * *std::max_element(bounds.begin(), bounds.end()), kApart);
    x.insert(x.end(), row.begin(), row.end());
    logits.want.insert(logits.want.end(), sums.begin(), sums.end());
    logits.bound.insert(logits.bound.end(), bounds.begin(), bounds.end());
    for (const double want : turned) {
      normed.want.push_back(want);
      normed.bound.push_back(kernels::SumBound(hidden, 0.5 * std::fabs(want)) + 6 * kUnit * std::fabs(want));
    }
  }

  int32_t rows, experts, hidden, slots;
  std::vector<float> weights, gain, x;
  kernels::OpCase normed, logits;
};

TEST_F(CudaDecodeLaunches, NormGateAndSelectIsWhatItsPartsAre) {
  Random random(2);
  for (const int32_t hidden : {256, 1100, 2048, 4096}) {
    for (const int32_t experts : {8, 64, 128, 200}) {
      const GateInputs in(random, 32, experts, hidden);
      const OnDevice<float> x(in.x), gain(in.gain), weights(in.weights);
      for (const int32_t rows : {1, 2, 3, 5, 8, 9, 12, 16, 17, 20, 27, 32}) {
        if (!share_.Takes()) continue;
        const std::string name = kernels::Shape({rows, hidden, experts});
        SCOPED_TRACE(name);
        const auto first = [&](kernels::OpCase all, int64_t cols) {
          all.name = name, all.want.resize(static_cast<size_t>(rows * cols)), all.bound.resize(all.want.size());
          return all;
        };
        const kernels::OpCase normed = first(in.normed, hidden), logits = first(in.logits, experts);
        const Gated plain(rows, experts, in.slots, hidden), one(rows, experts, in.slots, hidden);
        const auto launches = [&](const Gated& to) {
          NormLaunch norm;
          norm.x = x.data(), norm.gain = gain.data(), norm.out = to.normed.data(), norm.rows = rows, norm.n = hidden, norm.epsilon = GateInputs::kEpsilon;
          LinearLaunch gate;
          gate.weight = View(DType::kF32, experts, hidden, reinterpret_cast<const std::byte*>(weights.data()));
          gate.x = to.normed.data(), gate.out = to.logits.data(), gate.rows = rows;
          return std::pair(norm, gate);
        };
        const auto [plain_norm, plain_gate] = launches(plain);
        RmsNorm(plain_norm, stream_);
        ASSERT_TRUE(GateAndSelect(plain_gate, plain.select, stream_));
        auto [norm, gate] = launches(one);
        const bool halves = hidden % kTileCols == 0;
        norm.halves = halves ? one.halves.halves() : nullptr;
        ASSERT_TRUE(NormGateAndSelect(norm, gate, one.select, stream_));
        for (const Gated* of : {&plain, &one}) {
          const std::string who = of == &plain ? "launches of their own" : "one launch";
          ExpectWithinBounds(normed, who, of->normed.Read());
          ExpectWithinBounds(logits, who, of->logits.Read());
        }
        ExpectSameSelection(plain, one, *std::max_element(logits.bound.begin(), logits.bound.end()));
        if (halves) ExpectHalvesOf(one.normed.Read(), one.halves.Read(), name);
        if (HasFailure()) return;
      }
    }
  }
}

TEST_F(CudaDecodeLaunches, GateSelectsAsSelectionDoes) {
  Random random(4);
  constexpr int32_t kHidden = 256;
  for (const int32_t experts : {20, 64, 128, 200}) {
    constexpr int32_t kSlots = 8;
    const OnDevice<float> x(RandomFloats(random, 32 * kHidden, 3)), weights(RandomFloats(random, int64_t{experts} * kHidden, 1 / std::sqrt(kHidden)));
    const OnDevice<float> bias(RandomFloats(random, experts, 0.2f));
    std::vector<uint8_t> caps(static_cast<size_t>(experts));
    for (size_t e = 0; e < caps.size(); ++e) caps[e] = static_cast<uint8_t>(e % 3 == 0 ? Planes::kHi : Planes::kBoth);
    const OnDevice<uint8_t> plane_cap(caps);
    for (const int32_t rows : {1, 3, 8, 9, 16, 17, 25, 32}) {
      for (int knobs = 0; knobs < 8; ++knobs) {
        if (!share_.Takes()) continue;
        SCOPED_TRACE(kernels::Shape({rows, experts}) + ", knobs " + std::to_string(knobs));
        SelectRules rules = Gated::Neutral(kSlots);
        if (knobs % 2 != 0) rules.full = 2, rules.has_cap = 1, rules.has_bias = 1;
        if (knobs / 2 % 2 != 0) rules.most = 6, rules.guaranteed = 3, rules.drop_below = 0.08f;
        if (knobs / 4 != 0) rules.soft_batch = 0.5f;
        std::vector<kernels::RowKind> kinds(static_cast<size_t>(rows), kernels::RowKind::kDecode);
        if (rows > 1) kinds[1] = kernels::RowKind::kPadding, kinds.back() = kernels::RowKind::kPrefill;
        Gated one(rows, experts, kSlots, kHidden, rules, kinds), alone(rows, experts, kSlots, kHidden, rules, kinds);
        for (Gated* of : {&one, &alone}) of->select.bias = bias.data(), of->select.plane_cap = plane_cap.data();
        LinearLaunch gate;
        gate.weight = View(DType::kF32, experts, kHidden, reinterpret_cast<const std::byte*>(weights.data()));
        gate.x = x.data(), gate.out = one.logits.data(), gate.rows = rows;
        alone.select.logits = one.logits.data();
        for (int again = 0; again < 2; ++again) ASSERT_TRUE(GateAndSelect(gate, one.select, stream_));
        Select(alone.select, stream_);
        ExpectSameSelection(alone, one, 0);
        if (HasFailure()) return;
      }
    }
  }
}

TEST_F(CudaDecodeLaunches, StreamedRowsAddToWhatIsThere) {
  if (!IsHopper()) GTEST_SKIP() << "products of streamed rows are Hopper's alone";
  Random random(3);
  const auto check = [&](DType type, int32_t out, int32_t cols, int32_t rows) {
    if (!share_.Takes()) return;
    const std::string name = std::string(TraitsOf(type).name) + ' ' + kernels::Shape({out, cols}) + ", rows " + std::to_string(rows);
    SCOPED_TRACE(name);
    const std::shared_ptr<kernels::Matrix> m = kernels::RandomMatrix(random, type, out, cols);
    std::vector<std::byte> packed(static_cast<size_t>(PackedBytes(type, out, cols)));
    Pack(m->view, packed.data());
    const OnDevice<std::byte> weights(packed), scratch(static_cast<int64_t>(StreamedLinearScratch(rows, cols)));
    const std::vector<float> before = RandomFloats(random, int64_t{rows} * out, 10), bias = RandomFloats(random, out);
    const OnDevice<float> x(RandomFloats(random, int64_t{rows} * cols)), of_bias(bias), plain(int64_t{rows} * out), added(before);
    LinearLaunch l;
    l.weight = View(type, out, cols, weights.data());
    l.x = x.data(), l.bias = rows == 8 ? of_bias.data() : nullptr, l.out = plain.data(), l.rows = rows, l.scratch = scratch.data();
    for (int again = 0; again < share_.Times(20); ++again) ASSERT_TRUE(LinearOfStreamedRows(std::span(&l, 1), stream_));
    l.out = added.data(), l.adds = true;
    ASSERT_TRUE(LinearOfStreamedRows(std::span(&l, 1), stream_));
    // The same product, added once: no more than the one rounding that the host has, too.
    std::vector<float> want = plain.Read();
    EXPECT_NE(want, std::vector<float>(want.size(), want[0]));
    for (size_t i = 0; i < want.size(); ++i) want[i] += before[i];
    ASSERT_EQ(added.Read(), want);
  };
  for (const DType type : {DType::kQ8_0, DType::kQ4_0, DType::kQ4K, DType::kQ5K, DType::kQ6K, DType::kMXFP4, DType::kBF16}) {
    for (const int32_t rows : {1, 8, 20, 33, 64}) check(type, 200, 512, rows);
  }
  // Rings of three and of two stages, of which one of the warps that copy has nothing.
  for (const int32_t rows : {24, 32, 47}) check(DType::kBF16, 4096, 2048, rows);
  // More columns than shared memory has room for beside all rows: parts of 16 rows, of 8 and of fewer.
  for (const auto& [cols, rows] : {std::pair{4096, 32}, {4096, 27}, {4096, 60}, {8192, 19}, {8192, 40}, {16384, 7}}) {
    for (const DType type : {DType::kQ4_0, DType::kQ8_0, DType::kBF16}) check(type, 200, cols, rows);
  }
}

// Rows' experts, drawn of those that there are, each row's distinct: what selection leaves of them.
struct Drawn {
  Drawn(Random& random, const std::vector<int32_t>& there, int32_t rows, int32_t slots) {
    std::vector<std::vector<int32_t>> of(static_cast<size_t>(*std::max_element(there.begin(), there.end())) + 1);
    for (int32_t t = 0; t < rows; ++t) {
      std::vector<int32_t> left = there;
      for (int32_t s = 0; s < slots; ++s) {
        const auto at = left.begin() + static_cast<int64_t>(random.Below(left.size()));
        of[static_cast<size_t>(*at)].push_back(t * slots + s), expert.push_back(*at), left.erase(at);
      }
    }
    for (size_t e = 0; e < of.size(); ++e) {
      if (!of[e].empty()) jobs.push_back({static_cast<int32_t>(e), Planes::kBoth, static_cast<int32_t>(order.size()), static_cast<int32_t>(of[e].size())});
      order.insert(order.end(), of[e].begin(), of[e].end());
    }
  }
  std::vector<int32_t> expert, order;
  std::vector<Job> jobs;
};

// Weights that blocks copy before it is known which experts there are: those of the first experts, which may not be there or have more rows than meet at once.
TEST_F(CudaDecodeLaunches, ExpertsThatAreGuessedGiveTheSame) {
  if (!IsHopper()) GTEST_SKIP() << "experts of streamed rows are Hopper's alone";
  constexpr int32_t kExperts = 36, kHidden = 1024, kWidth = 768, kSlots = 4, kRows = 30;
  Random random(8);
  std::vector<int32_t> all(kExperts);
  for (int32_t e = 0; e < kExperts; ++e) all[static_cast<size_t>(e)] = e;
  const std::vector<std::vector<int32_t>> there = {all, {0, 1, 2, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 33, 34, 35},
                                                   std::vector<int32_t>(all.begin() + 3, all.end()), std::vector<int32_t>(all.begin() + 16, all.end()), {0, 1, 2, 3, 20}};
  for (const DType type : {DType::kQ4_0, DType::kQ8_0}) {
    std::vector<std::unique_ptr<OnDevice<std::byte>>> weights;
    std::vector<DeviceMatrix> views[3];
    for (int32_t i = 0; i < 3 * kExperts; ++i) {
      const int32_t rows = i % 3 < 2 ? kWidth : kHidden, cols = i % 3 < 2 ? kHidden : kWidth;
      std::vector<std::byte> packed(static_cast<size_t>(PackedBytes(type, rows, cols)));
      Pack(kernels::RandomMatrix(random, type, rows, cols)->view, packed.data());
      weights.push_back(std::make_unique<OnDevice<std::byte>>(packed));
      views[i % 3].push_back(View(type, rows, cols, weights.back()->data()));
    }
    const OnDevice<DeviceMatrix> gates(views[0]), ups(views[1]), downs(views[2]);
    const OnDevice<float> x(RandomFloats(random, kRows * kHidden)), weight(RandomFloats(random, kRows * kSlots));
    const OnDevice<std::byte> scratch(static_cast<int64_t>(ExpertFfnScratch(kHidden, kWidth, kSlots, kRows)));
    const OnDevice<uint32_t> met(std::vector<uint32_t>(kExpertCounters, 0));
    for (size_t i = 0; i < there.size(); ++i) {
      if (!share_.Takes()) continue;
      const Drawn drawn(random, there[i], kRows, kSlots);
      const OnDevice<int32_t> expert(drawn.expert), order(drawn.order), job_count(std::vector<int32_t>{static_cast<int32_t>(drawn.jobs.size())});
      const OnDevice<Job> jobs(drawn.jobs);
      const auto run = [&](const int32_t* distinct_before) {
        const OnDevice<float> out(std::vector<float>(kRows * kHidden, 0.5f));
        ExpertFfnLaunch l;
        l.gate = gates.data(), l.up = ups.data(), l.down = downs.data(), l.gate_packing = l.up_packing = l.down_packing = PackingOf(type);
        l.experts = kExperts, l.hidden = kHidden, l.width = kWidth, l.slots = kSlots, l.rows = kRows, l.x = x.data(), l.jobs = jobs.data(), l.job_count = job_count.data();
        l.order = order.data(), l.jobs_room = static_cast<int32_t>(drawn.jobs.size()), l.order_room = kRows * kSlots, l.weight = weight.data(), l.expert = expert.data();
        l.out = out.data(), l.scratch = scratch.data(), l.met = met.data(), l.distinct_before = distinct_before;
        SlotSums sums;
        for (int again = 0; again < share_.Times(3); ++again) {
          EXPECT_TRUE(ExpertsOfStreamedRows(l, &sums, stream_));
          AddSlots(sums, out.data(), kRows, kHidden, stream_);
        }
        return out.Read();
      };
      const std::vector<float> want = run(nullptr);
      EXPECT_NE(want, std::vector<float>(want.size(), 0.5f));
      for (const int32_t before : {kExperts, kExperts / 2}) {  // there is reason to guess, or not
        const OnDevice<int32_t> distinct(std::vector<int32_t>{before});
        ASSERT_EQ(run(distinct.data()), want) << TraitsOf(type).name << ", case " << i << ", before " << before;
      }
    }
  }
}

// v of a Q4_K_M file: those of one type that follow each other are one launch, and give what they give by themselves.
TEST_F(CudaDecodeLaunches, LinearsOfMixedTypesGoByType) {
  Random random(9);
  constexpr int32_t kCols = 512;
  struct Mixed {
    std::vector<DType> types;
    size_t launches;  // on Hopper
  };
  const std::vector<Mixed> mixes = {{{DType::kQ4K, DType::kQ4K, DType::kQ6K}, 2}, {{DType::kQ5K, DType::kQ6K, DType::kQ6K}, 2},
                                    {{DType::kQ8_0, DType::kQ4_0, DType::kQ8_0}, 3}, {{DType::kQ4K, DType::kQ4K, DType::kQ4K}, 1}};
  for (const Mixed& mix : mixes) {
    for (const int32_t rows : {1, 8, 32}) {
      if (!share_.Takes()) continue;
      SCOPED_TRACE("rows " + std::to_string(rows) + ", " + std::string(TraitsOf(mix.types[0]).name) + " and " + std::string(TraitsOf(mix.types[2]).name));
      const std::vector<float> values = RandomFloats(random, rows * kCols);
      const OnDevice<float> x(values);
      const OnDevice<uint16_t> halves(HalvesOf(values));
      const OnDevice<std::byte> scratch(static_cast<int64_t>(LinearScratch(rows, kCols)));
      std::vector<std::unique_ptr<OnDevice<std::byte>>> weights;
      std::vector<std::unique_ptr<OnDevice<float>>> together, alone;
      std::vector<LinearLaunch> launches;
      for (size_t i = 0; i < mix.types.size(); ++i) {
        const DType type = mix.types[i];
        const int32_t out = i == 0 ? 400 : 200;
        std::vector<std::byte> packed(static_cast<size_t>(PackedBytes(type, out, kCols)));
        Pack(kernels::RandomMatrix(random, type, out, kCols)->view, packed.data());
        weights.push_back(std::make_unique<OnDevice<std::byte>>(packed));
        together.push_back(std::make_unique<OnDevice<float>>(rows * out)), alone.push_back(std::make_unique<OnDevice<float>>(rows * out));
        LinearLaunch l;
        l.weight = View(type, out, kCols, weights.back()->data());
        l.x = x.data(), l.halves = halves.halves(), l.out = together.back()->data(), l.rows = rows, l.scratch = scratch.data();
        launches.push_back(l);
      }
      const Captured all(stream_, [&] { ASSERT_EQ(LinearTogether(launches, stream_), cudaSuccess); });
      EXPECT_TRUE(all.launches() == mix.launches || !IsHopper()) << all.launches();
      all.Replay();
      for (size_t begin = 0, end = 0; begin < launches.size(); begin = end) {
        while (end < launches.size() && mix.types[end] == mix.types[begin]) launches[end].out = alone[end]->data(), ++end;
        ASSERT_EQ(LinearTogether(std::span(launches).subspan(begin, end - begin), stream_), cudaSuccess);
      }
      for (size_t i = 0; i < launches.size(); ++i) {
        const std::vector<float> got = together[i]->Read();
        EXPECT_NE(got, std::vector<float>(got.size(), got[0]));
        ASSERT_EQ(got, alone[i]->Read()) << "matrix " << i;
        // Each by itself, which another cut may add up in another order.
        ASSERT_EQ(Linear(launches[i], stream_), cudaSuccess);
        const std::vector<float> single = alone[i]->Read();
        for (size_t at = 0; at < got.size(); ++at) ASSERT_NEAR(got[at], single[at], 1e-3) << "matrix " << i << ", " << at;
      }
    }
  }
}

// With half as many blocks: another cut, and so another order of sums.
TEST_F(CudaDecodeLaunches, StreamedRowsSpareMultiprocessors) {
  if (!IsHopper()) GTEST_SKIP() << "products of streamed rows are Hopper's alone";
  Random random(5);
  constexpr int32_t kOut = 1600, kCols = 512;
  const std::shared_ptr<kernels::Matrix> m = kernels::RandomMatrix(random, DType::kQ8_0, kOut, kCols);
  std::vector<std::byte> packed(static_cast<size_t>(PackedBytes(DType::kQ8_0, kOut, kCols)));
  Pack(m->view, packed.data());
  const OnDevice<std::byte> weights(packed);
  for (const int32_t rows : {1, 8, 20}) {
    if (!share_.Takes()) continue;
    const OnDevice<std::byte> scratch(static_cast<int64_t>(StreamedLinearScratch(rows, kCols)));
    const OnDevice<float> x(RandomFloats(random, rows * kCols)), plain(rows * kOut), spared(rows * kOut);
    LinearLaunch l;
    l.weight = View(DType::kQ8_0, kOut, kCols, weights.data());
    l.x = x.data(), l.out = plain.data(), l.rows = rows, l.scratch = scratch.data();
    ASSERT_TRUE(LinearOfStreamedRows(std::span(&l, 1), stream_));
    l.out = spared.data(), l.spares = true;
    ASSERT_TRUE(LinearOfStreamedRows(std::span(&l, 1), stream_));
    const std::vector<float> want = plain.Read(), got = spared.Read();
    const double most = std::fabs(*std::max_element(want.begin(), want.end(), [](float a, float b) { return std::fabs(a) < std::fabs(b); }));
    EXPECT_GT(most, 0);
    for (size_t i = 0; i < want.size(); ++i) ASSERT_LE(std::fabs(want[i] - got[i]), 2 * kernels::SumBound(kCols, most)) << "rows " << rows << ", " << i;
  }
}

}  // namespace
}  // namespace thermoe::cuda
