// SPDX-License-Identifier: Apache-2.0
// What a step begins and ends with, and what passes from the gate to the experts word by word.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/stream_rows.h"
#include "kernels/on_device.h"
#include "kernels/op_cases.h"

namespace thermoe::cuda {
namespace {

using kernels::RandomFloats;

class CudaStepLaunches : public DeviceTest {};

TEST_F(CudaStepLaunches, InputsComeToTheirPlaces) {
  if (!share_.Takes()) return;
  Random random(1);
  const PinnedMemory memory = Pinned(static_cast<int64_t>(sizeof(StepInputs)) + kStepInputBytes);
  auto* inputs = memory.as<StepInputs>();
  auto* data = reinterpret_cast<uint8_t*>(inputs + 1);
  const OnDevice<std::byte> copied(static_cast<int64_t>(sizeof(StepInputs)) + kStepInputBytes);
  const OnDevice<uint32_t> launches(std::vector<uint32_t>(1, 0));
  uint32_t number = 0;
  // Sizes within a quad, of it, beyond it; together less, and more, than the threads load at once; none at all.
  for (const std::vector<int32_t>& sizes :
       {std::vector<int32_t>{4}, {1, 16, 17, 4, 260}, {4, 8, 4096, 3000, 1}, {8192, 16, 5000}, std::vector<int32_t>(kMostPieces, 36), {}}) {
    for (const bool ahead : {false, true}) {  // there is a copy on the device, of this launch or of another
      constexpr int32_t kRoom = 9000;
      OnDevice<uint8_t> places(int64_t{kRoom / 16 * 16} * kMostPieces);
      *inputs = {};
      std::vector<uint8_t> want(static_cast<size_t>(kRoom / 16 * 16) * kMostPieces, 0xff);
      for (const int32_t size : sizes) {
        const auto at = static_cast<size_t>(inputs->count) * static_cast<size_t>(kRoom / 16 * 16);
        inputs->pieces[inputs->count++] = {reinterpret_cast<std::byte*>(places.data() + at), inputs->bytes, size};
        for (int32_t i = 0; i < size; ++i) want[at + static_cast<size_t>(i)] = data[inputs->bytes + i] = static_cast<uint8_t>(random.Below(255));
        inputs->bytes += (size + 15) / 16 * 16;
      }
      ASSERT_LE(inputs->bytes, kStepInputBytes);
      inputs->number = ++number;
      if (ahead) {
        ASSERT_EQ(cudaMemcpy(copied.data(), inputs, sizeof(StepInputs) + static_cast<size_t>(inputs->bytes), cudaMemcpyDefault), cudaSuccess);
        std::memset(data, 0x55, static_cast<size_t>(inputs->bytes));  // nobody looks there
      }
      TakeInputs({inputs, reinterpret_cast<const StepInputs*>(copied.data()), launches.data()}, stream_);
      ASSERT_EQ(places.Read(), want) << sizes.size() << " pieces";
    }
  }
}

// With the embedding, of which a row takes a token that only the device knows.
TEST_F(CudaStepLaunches, AnglesAreTheHosts) {
  if (!share_.Takes()) return;
  constexpr int32_t kHalf = 48, kRows = 5;
  const int32_t positions[kRows] = {0, 1, 4095, 131071, 77};
  std::vector<KvRow> rows;
  for (const int32_t position : positions) rows.push_back({nullptr, position});
  std::vector<float> frequency, cosines(kRows * kHalf), sines(kRows * kHalf);
  for (int i = 0; i < kHalf; ++i) frequency.push_back(static_cast<float>(std::pow(1e4, -i / static_cast<double>(kHalf))));
  kernels::Residency().Angles({rows, frequency, {cosines.data(), kRows, kHalf}, {sines.data(), kRows, kHalf}});
  const OnDevice<int32_t> at(std::vector<int32_t>(positions, positions + kRows)), ids({1, kernels::kLargestBefore, 1, 1, 1}), largest({0, 1, 0, 0, 0});
  const OnDevice<float> inverse(frequency), table(RandomFloats(*std::make_unique<Random>(3), 2 * 300)), out(kRows * 300), alone(kRows * kHalf);
  const OnDevice<float> c(kRows * kHalf), s(kRows * kHalf), alone_s(kRows * kHalf);
  AnglesLaunch angles{at.data(), inverse.data(), c.data(), s.data(), kRows, kHalf};
  Embed({DType::kF32, reinterpret_cast<const std::byte*>(table.data()), 300, 1200, ids.data(), out.data(), kRows, largest.data(), angles}, stream_);
  angles.cosines = alone.data(), angles.sines = alone_s.data();
  Angles(angles, stream_);
  const std::vector<float> got_c = c.Read(), got_s = s.Read(), rows_out = out.Read(), all = table.Read();
  for (size_t i = 0; i < cosines.size(); ++i) {
    ASSERT_NEAR(got_c[i], cosines[i], 4e-7) << i;  // two units in the last place of the device's functions, one of the host's
    ASSERT_NEAR(got_s[i], sines[i], 4e-7) << i;
  }
  EXPECT_EQ(alone.Read(), got_c);
  EXPECT_EQ(alone_s.Read(), got_s);
  for (size_t i = 0; i < rows_out.size(); ++i) ASSERT_EQ(rows_out[i], all[300 + i % 300]);
}

// Launch after launch of other numbers of rows, each of which tells the host when it and what goes with it are there.
TEST_F(CudaStepLaunches, SummariesTellTheHost) {
  Random random(2);
  constexpr int64_t kMost = 32, kVocab = 3001, kAlso = 1000;
  const OnDevice<float> logits(RandomFloats(random, kMost * kVocab, 4));
  const std::vector<float> host = logits.Read();
  const OnDevice<int32_t> asked(std::vector<int32_t>(kMost, 7)), also(std::vector<int32_t>(kAlso, 5));
  const OnDevice<std::byte> scratch(SummaryScratch(kMost));
  const OnDevice<uint32_t> done(std::vector<uint32_t>(kMost + 1, 0)), launches(std::vector<uint32_t>(1, 0));
  const OnDevice<int32_t> largest(std::vector<int32_t>(kMost, -1));
  const PinnedMemory told = Pinned(4), out = Pinned(kMost * static_cast<int64_t>(sizeof(kernels::LogitSummary))), copied = Pinned(kAlso * 4);
  uint32_t number = 0;
  for (const int64_t rows : {1, 8, 32, 3, 1, 31}) {
    if (!share_.Takes()) continue;
    SCOPED_TRACE(rows);
    SummariseLaunch l{logits.data(), asked.data(), rows, kVocab, out.as<kernels::LogitSummary>(), scratch.data(), done.data(), launches.data(),
                      told.as<uint32_t>(), largest.data()};
    std::memset(out.data(), 0, kMost * sizeof(kernels::LogitSummary));
    std::memset(copied.data(), 0, kAlso * 4);
    if (rows != 3) l.also = {copied.data(), reinterpret_cast<const std::byte*>(also.data()), kAlso * 4};
    Summarise(l, stream_);
    const volatile uint32_t* now = told.as<uint32_t>();
    ++number;
    while (*now != number && cudaStreamQuery(stream_) == cudaErrorNotReady) {}
    ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    ASSERT_EQ(*now, number);
    for (int64_t r = 0; r < rows; ++r) {
      const float* row = host.data() + r * kVocab;
      const kernels::LogitSummary& summary = out.as<kernels::LogitSummary>()[r];
      ASSERT_EQ(summary.best, std::max_element(row, row + kVocab) - row);
      ASSERT_EQ(summary.asked_logit, row[7]);
      ASSERT_EQ(largest.Read()[static_cast<size_t>(r)], summary.best);
      double sum = 0;
      for (int64_t i = 0; i < kVocab; ++i) sum += std::exp(static_cast<double>(row[i]));
      ASSERT_NEAR(summary.log_sum_exp, std::log(sum), 1e-5);
    }
    const std::vector<int32_t> went(copied.as<int32_t>(), copied.as<int32_t>() + kAlso);
    ASSERT_EQ(went, std::vector<int32_t>(kAlso, rows != 3 ? 5 : 0));
    ASSERT_EQ(done.Read(), std::vector<uint32_t>(kMost + 1, 0));
  }
}

// One row of which no block's part comes at once: parts of 2,344 logits, of which 2,048 and then the others.
TEST_F(CudaStepLaunches, SummariesOfAVeryWideRow) {
  Random random(4);
  constexpr int64_t kVocab = 600000, kPart = (kVocab + 255) / 256, kAtOnce = 2048;
  static_assert(kPart > kAtOnce);
  constexpr int32_t kAsked = 3 * kPart + kAtOnce + 1;
  const std::vector<float> plain = RandomFloats(random, kVocab, 4);
  const OnDevice<int32_t> asked(std::vector<int32_t>(1, kAsked));
  const OnDevice<std::byte> scratch(SummaryScratch(1));
  const OnDevice<uint32_t> done(std::vector<uint32_t>(2, 0)), launches(std::vector<uint32_t>(1, 0));
  const OnDevice<int32_t> largest(std::vector<int32_t>(1, 0));
  const PinnedMemory told = Pinned(4), out = Pinned(static_cast<int64_t>(sizeof(kernels::LogitSummary)));
  uint32_t number = 0;
  const auto summary_of = [&](const std::vector<float>& row) {
    const OnDevice<float> logits(row);
    Summarise({logits.data(), asked.data(), 1, kVocab, out.as<kernels::LogitSummary>(), scratch.data(), done.data(), launches.data(), told.as<uint32_t>(), largest.data()}, stream_);
    EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    EXPECT_EQ(*told.as<uint32_t>(), ++number);
    EXPECT_EQ(done.Read(), std::vector<uint32_t>(2, 0));
    return *out.as<kernels::LogitSummary>();
  };
  // Where the largest are: in what comes first and what comes later of a part, at their borders, in two of them, in two parts, asked for.
  const std::vector<std::vector<int64_t>> places = {{}, {0}, {kAtOnce - 1}, {kAtOnce}, {kPart - 1}, {kPart}, {5 * kPart + kAtOnce + 100}, {kVocab - 1}, {kAsked},
                                                    {100, kAtOnce + 52}, {kAtOnce + 52, kAtOnce + 200}, {kAtOnce + 52, 128 * kPart}, {7, 8, kVocab - 1}};
  for (const float most : {21.0f, 30.0f}) {
    for (const std::vector<int64_t>& at : places) {
      if (!share_.Takes()) continue;
      SCOPED_TRACE(std::to_string(most) + " at " + std::to_string(at.empty() ? -1 : at[0]) + ", of " + std::to_string(at.size()));
      std::vector<float> row = plain;
      for (float& logit : row) logit = std::min(logit, 20.0f);
      for (const int64_t i : at) row[static_cast<size_t>(i)] = most;
      double sum = 0;
      for (const float logit : row) sum += std::exp(static_cast<double>(logit));
      const int64_t best = std::max_element(row.begin(), row.end()) - row.begin();  // the first of equals
      const kernels::LogitSummary got = summary_of(row);
      EXPECT_EQ(got.best, best);
      EXPECT_EQ(got.best_logit, row[static_cast<size_t>(best)]);
      EXPECT_EQ(got.asked_logit, row[kAsked]);
      EXPECT_NEAR(got.log_sum_exp, std::log(sum), 1e-5);
      EXPECT_TRUE(got.finite);
    }
  }
  for (const int64_t bad : {int64_t{0}, kAtOnce, 9 * kPart + kAtOnce + 3, kVocab - 1}) {
    if (!share_.Takes()) continue;
    SCOPED_TRACE("no number at " + std::to_string(bad));
    std::vector<float> row = plain;
    row[static_cast<size_t>(bad)] = NAN, row[kAtOnce + 9] = 30;
    const kernels::LogitSummary got = summary_of(row);
    EXPECT_FALSE(got.finite);
    EXPECT_EQ(got.best, kAtOnce + 9);  // the largest that is a number
    EXPECT_EQ(got.best_logit, 30);
  }
}

// A gate and experts of one layer, and what runs of them write.
struct GateAndExperts {
  static constexpr int32_t kExperts = 12, kHidden = 512, kWidth = 256, kSlots = 6;

  GateAndExperts(Random& random, DType type)
      : gate(RandomFloats(random, kExperts * kHidden, 1 / std::sqrt(static_cast<float>(kHidden)))),
        x(RandomFloats(random, kRowsOfX * kHidden, 2)), gain(std::vector<float>(kHidden, 1.0f)) {
    for (const auto& [views, rows, cols] : {std::tuple(&gates, kWidth, kHidden), {&ups, kWidth, kHidden}, {&downs, kHidden, kWidth}}) {
      for (int32_t e = 0; e < kExperts; ++e) {
        const std::shared_ptr<kernels::Matrix> m = kernels::RandomMatrix(random, type, rows, cols);
        std::vector<std::byte> packed(static_cast<size_t>(PackedBytes(type, rows, cols)));
        Pack(m->view, packed.data());
        weights.push_back(std::make_unique<OnDevice<std::byte>>(packed));
        views->push_back(View(type, rows, cols, weights.back()->data()));
      }
    }
  }
  static constexpr int32_t kRowsOfX = 24;
  OnDevice<float> gate, x, gain;
  std::vector<std::unique_ptr<OnDevice<std::byte>>> weights;
  std::vector<DeviceMatrix> gates, ups, downs;
};

struct LayerRun {
  static constexpr int32_t kExperts = GateAndExperts::kExperts, kHidden = GateAndExperts::kHidden, kSlots = GateAndExperts::kSlots;

  LayerRun(const GateAndExperts& of, DType type, const SelectRules& by)
      : layer(of), packing(PackingOf(type)), nested(type == DType::kNested8), rules(std::vector<SelectRules>{by}), gates(of.gates), ups(of.ups), downs(of.downs) {}

  // Row t of x. together: in one run, so that picks pass.
  std::vector<float> Of(int32_t t, bool together, cudaStream_t stream) {
    const OnDevice<float> residual(std::vector<float>(kHidden, 0.25f));
    LinearLaunch gate;
    gate.weight = View(DType::kF32, kExperts, kHidden, reinterpret_cast<const std::byte*>(layer.gate.data()));
    gate.x = normed.data(), gate.out = logits.data(), gate.rows = 1;
    SelectLaunch select;
    select.logits = logits.data(), select.kinds = kinds.data(), select.rules = rules.data(), select.rows = 1, select.experts = kExperts;
    select.slots = kSlots, select.expert = expert.data(), select.weight = weight.data(), select.planes = planes.data(), select.jobs = jobs.data();
    select.job_count = job_count.data(), select.order = order.data(), select.counts = counts.data(), select.expert_slots = expert_slots.data();
    select.scratch = select_scratch.data(), select.done = done.data(), select.passed = gate_passed.data();
    ExpertFfnLaunch l;
    l.gate = gates.data(), l.up = ups.data(), l.down = downs.data();
    l.gate_packing = l.up_packing = l.down_packing = packing, l.may_read_hi = nested;
    l.experts = kExperts, l.hidden = kHidden, l.width = GateAndExperts::kWidth, l.slots = kSlots, l.rows = 1;
    l.x = normed.data(), l.jobs = jobs.data(), l.job_count = job_count.data(), l.order = order.data(), l.jobs_room = 2 * kExperts, l.order_room = kSlots;
    l.weight = weight.data(), l.expert = expert.data(), l.out = residual.data(), l.scratch = scratch.data(), l.met = met.data(), l.passed = passed.data();
    NormLaunch before{layer.x.data() + int64_t{t} * kHidden, layer.gain.data(), normed.data(), 1, kHidden, 1e-5f, nullptr, {}};
    NormLaunch after{residual.data(), layer.gain.data(), out.data(), 1, kHidden, 1e-5f, nullptr, {}};
    const LaunchRoom room{halves.halves(), kHidden, nullptr};
    const std::vector<Node> nodes = {before, gate, select, l, after};
    for (size_t i = 0; i < nodes.size(); i += together ? nodes.size() : i == 1 ? 2 : 1) {  // the gate goes with its selection
      EXPECT_EQ(Launch(std::span(nodes).subspan(i, together ? nodes.size() : i == 1 ? 2 : 1), room, stream), cudaSuccess);
    }
    return out.Read();
  }

  const GateAndExperts& layer;
  Packing packing;
  bool nested;
  OnDevice<SelectRules> rules;
  OnDevice<DeviceMatrix> gates, ups, downs;
  OnDevice<float> normed{kHidden}, logits{kExperts}, weight{kSlots}, out{kHidden};
  OnDevice<uint16_t> halves{kHidden};
  OnDevice<int32_t> expert{kSlots}, order{kSlots}, job_count{1}, expert_slots{kExperts};
  OnDevice<Planes> planes{kSlots};
  OnDevice<Job> jobs{2 * kExperts};
  OnDevice<SelectCounts> counts{1};
  OnDevice<kernels::RowKind> kinds{std::vector<kernels::RowKind>(1, kernels::RowKind::kDecode)};
  OnDevice<std::byte> select_scratch{SelectScratch(1)}, scratch{static_cast<int64_t>(ExpertFfnScratch(kHidden, GateAndExperts::kWidth, kSlots, 1))};
  OnDevice<uint32_t> done{std::vector<uint32_t>(1, 0)}, gate_passed{std::vector<uint32_t>(kGatePassed, 0)};
  OnDevice<uint32_t> met{std::vector<uint32_t>(kExpertCounters, 0)};
  OnDevice<uint64_t> passed{std::vector<uint64_t>(kPassedWords, 0)};
};

TEST_F(CudaStepLaunches, ExpertsTakeWhatTheGatePicks) {
  if (!IsHopper()) GTEST_SKIP() << "experts of streamed rows are Hopper's alone";
  Random random(6);
  for (const DType type : {DType::kQ4_0, DType::kNested8, DType::kMXFP4}) {
    const GateAndExperts layer(random, type);
    for (int knobs = 0; knobs < 3; ++knobs) {
      if (!share_.Takes()) continue;
      SCOPED_TRACE(std::string(TraitsOf(type).name) + ", knobs " + std::to_string(knobs));
      SelectRules rules;
      rules.guaranteed = rules.most = rules.full = LayerRun::kSlots;
      if (knobs == 1) rules.full = 2, rules.most = 4;
      if (knobs == 2) rules.full = 0, rules.drop_below = 0.3f;  // some slots are empty
      LayerRun together(layer, type, rules), apart(layer, type, rules);
      for (int32_t t = 0; t < GateAndExperts::kRowsOfX; ++t) {
        const std::vector<float> want = apart.Of(t, false, stream_), got = together.Of(t, true, stream_);
        ASSERT_EQ(together.expert.Read(), apart.expert.Read());
        ASSERT_EQ(got, want) << "row " << t;
        // Words of this launch, which is counted, and of these experts.
        const std::vector<uint64_t> words = together.passed.Read();
        ASSERT_EQ(words[0], static_cast<uint64_t>(t) + 1);
        const std::vector<int32_t> expert = together.expert.Read();
        for (int s = 0; s < LayerRun::kSlots; ++s) {
          const uint64_t word = words[static_cast<size_t>(kPicksFirst + s)], pick = word & 0xffff;
          ASSERT_EQ(word >> 16, words[0]);
          ASSERT_EQ(expert[static_cast<size_t>(s)] < 0 ? 0xffff / 2 : static_cast<uint64_t>(expert[static_cast<size_t>(s)]), pick / 2);
        }
        for (int s = 0; s < LayerRun::kSlots; ++s) ASSERT_EQ(apart.passed.Read()[static_cast<size_t>(kPicksFirst + s)], 0u);
      }
    }
  }
}

}  // namespace
}  // namespace thermoe::cuda
