// SPDX-License-Identifier: Apache-2.0
// The rules of docs/selection.md: by hand one by one, then all together against a restatement in double.
#include "kernels/select.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <set>
#include <vector>

#include "base/random.h"
#include "kernels/dispatch.h"
#include "runtime/threads.h"

namespace thermoe::kernels {
namespace {

struct Step {
  std::vector<float> logits;  // [T, E]
  int64_t tokens = 0, experts = 0;
  int32_t slots = 0;
  bool normalise = true, nested = false;
  std::vector<RowKind> kinds;
};

// What Select wrote, with its storage, which starts as garbage.
struct Chosen {
  std::vector<int32_t> expert, order;
  std::vector<float> weight, scores;
  std::vector<Planes> planes;
  std::vector<Selection::Job> jobs;
  LayerRecord record;
  Selection view;

  explicit Chosen(const Step& s) {
    const auto slots = static_cast<size_t>(s.tokens * s.slots);
    expert.assign(slots, 12345);
    order.assign(slots, 12345);
    weight.assign(slots, std::nanf(""));
    scores.assign(static_cast<size_t>(s.tokens * s.experts), std::nanf(""));
    planes.assign(slots, Planes::kHi);
    jobs.assign(static_cast<size_t>(2 * s.experts), {-7, Planes::kHi, -7, -7});
    record.slots_full = record.slots_hi = record.slots_dropped = record.distinct_experts =
        record.distinct_full_experts = record.distinct_hi_experts = 99;
    record.gate_mass_lost = 99;
    record.expert_slots.assign(3, 99);
    view.slots = s.slots;
    view.scores = {scores.data(), s.tokens, s.experts};
    view.expert = {expert.data(), s.tokens, s.slots};
    view.weight = {weight.data(), s.tokens, s.slots};
    view.planes = {planes.data(), s.tokens, s.slots};
    view.jobs = jobs;
    view.order = order;
    view.record = &record;
  }
  Chosen(const Chosen&) = delete;
};

std::unique_ptr<Chosen> RunSelect(const Step& s, const LayerSteering* steering) {
  auto chosen = std::make_unique<Chosen>(s);
  SelectArgs args;
  args.logits = {s.logits.data(), s.tokens, s.experts};
  args.options.normalise = s.normalise;
  args.slots = s.slots;
  args.nested = s.nested;
  args.steering = steering;
  args.kinds = s.kinds;
  args.out = &chosen->view;
  SelectExperts(args);
  return chosen;
}

// Logits whose softmax is proportional to `shares`.
Step OneStep(const std::vector<std::vector<double>>& shares, int32_t slots, RowKind kind = RowKind::kDecode) {
  Step s;
  s.tokens = static_cast<int64_t>(shares.size());
  s.experts = static_cast<int64_t>(shares[0].size());
  s.slots = slots;
  s.kinds.assign(shares.size(), kind);
  for (const auto& row : shares) {
    for (const double share : row) s.logits.push_back(static_cast<float>(std::log(share)));
  }
  return s;
}

using Experts = std::vector<int32_t>;
void ExpectWeights(const Chosen& chosen, const std::vector<double>& want) {
  ASSERT_EQ(chosen.weight.size(), want.size());
  for (size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(chosen.weight[i], want[i], 1e-6) << i;
}

TEST(Select, PlainTakesTheBestKInOrder) {
  Step s = OneStep({{0.1, 0.4, 0.2, 0.3}}, 2);
  EXPECT_EQ(RunSelect(s, nullptr)->expert, (Experts{1, 3}));
  ExpectWeights(*RunSelect(s, nullptr), {4.0 / 7, 3.0 / 7});
  s.normalise = false;
  ExpectWeights(*RunSelect(s, nullptr), {0.4, 0.3});
}

TEST(Select, TiesGoToTheLowerIndex) {
  const Step s = OneStep({{0.25, 0.25, 0.25, 0.25}}, 3);
  EXPECT_EQ(RunSelect(s, nullptr)->expert, (Experts{0, 1, 2}));
}

TEST(Select, BiasRanksButNeverWeighsNorTouchesTheFirst) {
  const Step s = OneStep({{0.4, 0.3, 0.2, 0.1}}, 2);
  LayerSteering steering;
  steering.selection_bias = {-1.0f, 0, 0, 0.25f};
  const auto chosen = RunSelect(s, &steering);
  EXPECT_EQ(chosen->expert, (Experts{0, 3}));
  ExpectWeights(*chosen, {0.8, 0.2});
}

TEST(Select, WeightsFallEvenWhenBiasReorders) {
  const Step s = OneStep({{0.4, 0.3, 0.2, 0.1}}, 3);
  LayerSteering steering;
  steering.selection_bias = {0, -0.25f, 0, 0.5f};  // ranks: 0 first by score, then 3, then 2
  const auto chosen = RunSelect(s, &steering);
  EXPECT_EQ(chosen->expert, (Experts{0, 2, 3}));
  ExpectWeights(*chosen, {4.0 / 7, 2.0 / 7, 1.0 / 7});
}

TEST(Select, BatchAwareFillsFromTheUnion) {
  const Step s = OneStep({{0.5, 0.3, 0.1, 0.06, 0.04}, {0.04, 0.06, 0.1, 0.3, 0.5}}, 2);
  LayerSteering steering;
  steering.guaranteed_slots = 1;
  const auto chosen = RunSelect(s, &steering);
  EXPECT_EQ(chosen->expert, (Experts{0, 4, 4, 0}));  // beyond each row's own top two
  EXPECT_EQ(chosen->record.distinct_experts, 2);
  ExpectWeights(*chosen, {0.5 / 0.54, 0.04 / 0.54, 0.5 / 0.54, 0.04 / 0.54});
}

TEST(Select, ASmallUnionLeavesSlotsEmpty) {
  const Step s = OneStep({{0.5, 0.3, 0.1, 0.1}}, 3);
  LayerSteering steering;
  steering.guaranteed_slots = 2;
  const auto chosen = RunSelect(s, &steering);
  EXPECT_EQ(chosen->expert, (Experts{0, 1, -1}));
  EXPECT_EQ(chosen->weight[2], 0.0f);
  EXPECT_EQ(chosen->record.slots_dropped, 1);
}

TEST(Select, PrefillAndPaddingStayOutOfTheBatch) {
  Step s = OneStep({{0.5, 0.3, 0.1, 0.1}, {0.1, 0.1, 0.3, 0.5}, {0.1, 0.3, 0.5, 0.1}}, 2);
  s.kinds = {RowKind::kDecode, RowKind::kPrefill, RowKind::kPadding};
  LayerSteering steering;
  steering.guaranteed_slots = 1;
  const auto chosen = RunSelect(s, &steering);
  EXPECT_EQ(chosen->expert, (Experts{0, -1, 3, 2, -1, -1}));
  EXPECT_EQ(chosen->record.slots_dropped, 1) << "a padding row has no slots to drop";
  EXPECT_EQ(chosen->view.job_count, 3);
}

TEST(Select, SoftBatchPrefersWhatOthersHold) {
  // Row 0 holds 0 and 1 plainly, row 1 holds 2 and 0: expert 2 has another holder, 1 has none.
  Step s = OneStep({{0.5, 0.22, 0.2, 0.08}, {0.3, 0.1, 0.5, 0.1}}, 2);
  LayerSteering steering;
  steering.soft_batch = 0.1f;  // a gain of exp(0.05) = 1.051: 0.2 stays below 0.22
  EXPECT_EQ(RunSelect(s, &steering)->expert, (Experts{0, 1, 2, 0}));
  steering.soft_batch = 0.3f;  // exp(0.15) = 1.162
  const auto chosen = RunSelect(s, &steering);
  EXPECT_EQ(chosen->expert, (Experts{0, 2, 2, 0}));
  EXPECT_EQ(chosen->record.distinct_experts, 2);
  ExpectWeights(*chosen, {0.5 / 0.7, 0.2 / 0.7, 0.5 / 0.8, 0.3 / 0.8});  // weighed by the scores themselves
}

TEST(Select, SoftBatchKeepsTheFirstAndLeavesARowAlone) {
  const Step s = OneStep({{0.4, 0.35, 0.25}, {0.1, 0.6, 0.3}, {0.1, 0.6, 0.3}}, 1);
  LayerSteering steering;
  steering.soft_batch = 10;
  EXPECT_EQ(RunSelect(s, &steering)->expert, (Experts{0, 1, 1}));
  Step one = OneStep({{0.4, 0.25, 0.35}}, 2);
  EXPECT_EQ(RunSelect(one, &steering)->expert, (Experts{0, 2})) << "nobody else holds anything";
}

TEST(Select, SoftBatchIsForDecodeRows) {
  Step s = OneStep({{0.5, 0.22, 0.2, 0.08}, {0.3, 0.1, 0.5, 0.1}}, 2);
  LayerSteering steering;
  steering.soft_batch = 1;
  s.kinds = {RowKind::kDecode, RowKind::kPrefill};
  EXPECT_EQ(RunSelect(s, &steering)->expert, (Experts{0, 1, 2, 0}));
  s.kinds = {RowKind::kPrefill, RowKind::kDecode};
  EXPECT_EQ(RunSelect(s, &steering)->expert, (Experts{0, 1, 2, 0}));
}

TEST(Select, DropAndMaxSlots) {
  Step s = OneStep({{0.5, 0.3, 0.15, 0.05}}, 4);
  LayerSteering steering;
  steering.drop_below_frac = 0.29f;
  EXPECT_EQ(RunSelect(s, &steering)->expert, (Experts{0, 1, 2, -1}));
  steering.max_slots = 2;
  EXPECT_EQ(RunSelect(s, &steering)->expert, (Experts{0, 1, -1, -1}));
  steering.drop_below_frac = 2.0f;  // even then the first stays
  EXPECT_EQ(RunSelect(s, &steering)->expert, (Experts{0, -1, -1, -1}));
}

TEST(Select, UnnormalisedWeightsKeepThePlainMass) {
  Step s = OneStep({{0.5, 0.3, 0.15, 0.05}}, 3);
  s.normalise = false;
  LayerSteering steering;
  steering.max_slots = 2;
  const auto chosen = RunSelect(s, &steering);
  ExpectWeights(*chosen, {0.5 * 0.95 / 0.8, 0.3 * 0.95 / 0.8, 0});
  EXPECT_NEAR(chosen->record.gate_mass_lost, 1 - 0.8 / 0.95, 1e-6);
}

TEST(Select, FullSlotsAndPlaneCap) {
  Step s = OneStep({{0.5, 0.3, 0.15, 0.05}}, 4);
  LayerSteering steering;
  steering.full_slots = 3;
  steering.plane_cap = {2, 1, 2, 2};
  EXPECT_EQ(RunSelect(s, &steering)->planes, (std::vector<Planes>(4, Planes::kBoth))) << "native storage has no planes";
  s.nested = true;
  const auto chosen = RunSelect(s, &steering);
  EXPECT_EQ(chosen->planes, (std::vector<Planes>{Planes::kBoth, Planes::kHi, Planes::kBoth, Planes::kHi}));
  EXPECT_EQ(chosen->record.slots_full, 2);
  EXPECT_EQ(chosen->record.slots_hi, 2);
  EXPECT_EQ(chosen->record.distinct_full_experts, 2);
  EXPECT_EQ(chosen->record.distinct_hi_experts, 2);
  EXPECT_EQ(chosen->record.distinct_experts, 4);
}

TEST(Select, JobsGroupByExpertThenPlanesThenToken) {
  Step s = OneStep({{0.6, 0.4}, {0.4, 0.6}, {0.7, 0.3}}, 2);
  s.nested = true;
  LayerSteering steering;
  steering.full_slots = 1;
  const auto chosen = RunSelect(s, &steering);
  ASSERT_EQ(chosen->view.job_count, 4);
  const auto job = [&](size_t i) { return chosen->jobs[i]; };
  EXPECT_TRUE(job(0).expert == 0 && job(0).planes == Planes::kBoth && job(0).first == 0 && job(0).count == 2);
  EXPECT_TRUE(job(1).expert == 0 && job(1).planes == Planes::kHi && job(1).first == 2 && job(1).count == 1);
  EXPECT_TRUE(job(2).expert == 1 && job(2).planes == Planes::kBoth && job(2).first == 3 && job(2).count == 1);
  EXPECT_TRUE(job(3).expert == 1 && job(3).planes == Planes::kHi && job(3).first == 4 && job(3).count == 2);
  EXPECT_EQ(chosen->order, (Experts{0, 4, 3, 2, 1, 5}));
}

// The restatement: lists and sorting where select.cc has loops and bit sets. `margin` is the least difference that a
// decision hung on, ties apart: below float's error the two may differ.
struct Restated {
  std::vector<std::vector<int32_t>> experts;  // per token, by falling score
  std::vector<std::vector<double>> weights;
  std::vector<std::vector<bool>> full;
  double margin = 1e9, mass_lost = 0;

  void Note(double a, double b) {
    if (a != b) margin = std::min(margin, std::fabs(a - b));
  }
};

std::vector<int32_t> SortedBy(const std::vector<double>& key, Restated* r) {
  std::vector<int32_t> ids(key.size());
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
  std::stable_sort(ids.begin(), ids.end(),
                   [&](int32_t a, int32_t b) { return key[static_cast<size_t>(a)] > key[static_cast<size_t>(b)]; });
  for (size_t i = 1; i < ids.size(); ++i)
    r->Note(key[static_cast<size_t>(ids[i - 1])], key[static_cast<size_t>(ids[i])]);
  return ids;
}

// All experts in order of choice: the best by score, then the others by rank.
std::vector<int32_t> ChoiceOrder(const std::vector<double>& score, const LayerSteering& steering, Restated* r) {
  std::vector<double> rank = score;
  for (size_t e = 0; e < steering.selection_bias.size(); ++e) rank[e] += steering.selection_bias[e];
  std::vector<int32_t> order = SortedBy(rank, r);
  const int32_t top = SortedBy(score, r)[0];
  order.erase(std::find(order.begin(), order.end(), top));
  order.insert(order.begin(), top);
  return order;
}

int Or(int value, int all) { return value == kAllSlots ? all : std::min(value, all); }

void RestateToken(const Step& s, const LayerSteering& steering, const std::vector<double>& score,
                  std::vector<int32_t> chosen, Restated* r) {
  const auto at = [&](int32_t e) { return score[static_cast<size_t>(e)]; };
  chosen.resize(std::min(chosen.size(), static_cast<size_t>(Or(steering.max_slots, s.slots))));
  std::sort(chosen.begin(), chosen.end());
  std::stable_sort(chosen.begin(), chosen.end(), [&](int32_t a, int32_t b) { return at(a) > at(b); });
  std::vector<int32_t> kept;
  double mass = 0, plain = 0;
  for (const int32_t e : chosen) {
    const double least = static_cast<double>(steering.drop_below_frac) * at(chosen[0]);
    if (!kept.empty()) r->Note(at(e), least);
    if (!kept.empty() && at(e) < least) continue;
    kept.push_back(e);
    mass += at(e);
  }
  std::vector<double> falling = score;
  std::sort(falling.rbegin(), falling.rend());
  for (int k = 0; k < s.slots; ++k) plain += falling[static_cast<size_t>(k)];
  r->mass_lost += 1 - mass / plain;
  r->experts.push_back(kept);
  r->weights.emplace_back();
  r->full.emplace_back();
  for (size_t i = 0; i < kept.size(); ++i) {
    r->weights.back().push_back(s.normalise ? at(kept[i]) / mass : at(kept[i]) * plain / mass);
    const bool capped = !steering.plane_cap.empty() && steering.plane_cap[static_cast<size_t>(kept[i])] < 2;
    r->full.back().push_back(!s.nested || (static_cast<int>(i) < Or(steering.full_slots, s.slots) && !capped));
  }
}

// The plain order with what comes after the first k0 ordered by the soft rank.
std::vector<int32_t> SoftOrder(const Step& s, const LayerSteering& steering, const std::vector<double>& score,
                               const std::vector<int32_t>& plain, size_t k0, const std::map<int32_t, int>& holders,
                               Restated* r) {
  const size_t fixed = k0 < static_cast<size_t>(s.slots) ? k0 : 1;
  std::vector<double> rank = score;
  for (size_t i = 0; i < plain.size(); ++i) {
    const auto e = static_cast<size_t>(plain[i]);
    const auto found = holders.find(plain[i]);
    const int others = (found == holders.end() ? 0 : found->second) - (i < static_cast<size_t>(s.slots) ? 1 : 0);
    rank[e] *= std::exp(static_cast<double>(steering.soft_batch) / 2 * std::log2(1.0 + others));
    if (!steering.selection_bias.empty()) rank[e] += static_cast<double>(steering.selection_bias[e]);
  }
  std::vector<int32_t> order(plain.begin(), plain.begin() + static_cast<int64_t>(fixed));
  for (const int32_t e : SortedBy(rank, r)) {
    if (std::find(order.begin(), order.begin() + static_cast<int64_t>(fixed), e) == order.begin() + static_cast<int64_t>(fixed))
      order.push_back(e);
  }
  return order;
}

Restated Restate(const Step& s, const LayerSteering& steering) {
  Restated r;
  const auto slots = static_cast<size_t>(s.slots), k0 = static_cast<size_t>(Or(steering.guaranteed_slots, s.slots));
  std::vector<std::vector<double>> scores;
  std::vector<std::vector<int32_t>> orders;
  std::map<int32_t, int> holders;  // decode rows whose plain choice has the expert
  std::set<int32_t> in_batch;
  for (int64_t t = 0; t < s.tokens; ++t) {
    std::vector<double> score;
    double sum = 0;
    for (int64_t e = 0; e < s.experts; ++e)
      score.push_back(std::exp(static_cast<double>(s.logits[static_cast<size_t>(t * s.experts + e)])));
    for (const double value : score) sum += value;
    for (double& value : score) value /= sum;
    orders.push_back(ChoiceOrder(score, steering, &r));
    scores.push_back(score);
    if (s.kinds[static_cast<size_t>(t)] != RowKind::kDecode) continue;
    in_batch.insert(orders.back().begin(), orders.back().begin() + static_cast<int64_t>(k0));
    for (size_t k = 0; k < slots; ++k) ++holders[orders.back()[k]];
  }
  for (size_t t = 0; t < orders.size() && steering.soft_batch > 0; ++t) {
    if (s.kinds[t] == RowKind::kDecode) orders[t] = SoftOrder(s, steering, scores[t], orders[t], k0, holders, &r);
  }
  for (size_t t = 0; t < orders.size(); ++t) {
    std::vector<int32_t> chosen;
    for (const int32_t e : orders[t]) {
      const bool open = s.kinds[t] == RowKind::kPrefill || k0 >= slots || chosen.size() < k0 || in_batch.count(e) > 0;
      if (s.kinds[t] != RowKind::kPadding && chosen.size() < slots && open) chosen.push_back(e);
    }
    if (chosen.empty()) {
      r.experts.emplace_back();
      r.weights.emplace_back();
      r.full.emplace_back();
    } else {
      RestateToken(s, steering, scores[t], chosen, &r);
    }
  }
  return r;
}

Step RandomStep(Random& random) {
  Step s;
  s.tokens = 1 + static_cast<int64_t>(random.Below(12));
  s.experts = 2 + static_cast<int64_t>(random.Below(70));
  s.slots = 1 + static_cast<int32_t>(random.Below(static_cast<uint64_t>(std::min<int64_t>(s.experts, 10))));
  s.normalise = random.Below(2) == 1;
  s.nested = random.Below(2) == 1;
  // Steps of 1/4: many exact ties, and nothing that only looks like one.
  for (int64_t i = 0; i < s.tokens * s.experts; ++i)
    s.logits.push_back(static_cast<float>(std::round(random.Normal() * 6) / 4));
  for (int64_t t = 0; t < s.tokens; ++t)
    s.kinds.push_back(static_cast<RowKind>(random.Below(4) == 0 ? random.Below(3) : 1));
  return s;
}

LayerSteering RandomSteering(Random& random, const Step& s) {
  LayerSteering steering;
  const auto coin = [&] { return random.Below(2) == 1; };
  const auto slots = [&] { return 1 + static_cast<int>(random.Below(static_cast<uint64_t>(s.slots) + 1)); };
  for (int64_t e = 0; e < s.experts; ++e) {
    steering.selection_bias.push_back(static_cast<float>(-0.2 * random.Uniform()));
    steering.plane_cap.push_back(static_cast<uint8_t>(1 + random.Below(2)));
  }
  if (coin()) steering.selection_bias.clear();
  if (coin()) steering.plane_cap.clear();
  if (coin()) steering.guaranteed_slots = slots();
  if (coin()) steering.max_slots = slots();
  if (coin()) steering.full_slots = slots() - 1;
  if (coin()) steering.drop_below_frac = static_cast<float>(random.Uniform());
  if (coin()) steering.soft_batch = static_cast<float>(random.Uniform());
  return steering;
}

void ExpectAgrees(const Step& s, const Restated& want, const Chosen& got) {
  int64_t kept = 0, full = 0;
  for (int64_t t = 0; t < s.tokens; ++t) {
    const auto& experts = want.experts[static_cast<size_t>(t)];
    for (int32_t k = 0; k < s.slots; ++k) {
      const auto at = static_cast<size_t>(t * s.slots + k), i = static_cast<size_t>(k);
      ASSERT_EQ(got.expert[at], i < experts.size() ? experts[i] : -1) << "token " << t << " slot " << k;
      ASSERT_NEAR(got.weight[at], i < experts.size() ? want.weights[static_cast<size_t>(t)][i] : 0.0, 2e-6);
      if (i >= experts.size()) continue;
      ASSERT_EQ(got.planes[at], want.full[static_cast<size_t>(t)][i] ? Planes::kBoth : Planes::kHi);
      ++kept;
      full += want.full[static_cast<size_t>(t)][i];
    }
  }
  EXPECT_EQ(got.record.slots_full, full);
  EXPECT_EQ(got.record.slots_hi, kept - full);
  EXPECT_NEAR(got.record.gate_mass_lost, want.mass_lost, 1e-5);
}

// Jobs partition the kept slots, in the order that ops.h states.
void ExpectJobs(const Step& s, const Chosen& got) {
  std::vector<int32_t> expert_slots(static_cast<size_t>(s.experts), 0);
  std::vector<bool> seen(got.expert.size(), false);
  int32_t next = 0;
  for (int32_t j = 0; j < got.view.job_count; ++j) {
    const Selection::Job& job = got.jobs[static_cast<size_t>(j)];
    ASSERT_EQ(job.first, next);
    ASSERT_GT(job.count, 0);
    if (j > 0) {
      const Selection::Job& last = got.jobs[static_cast<size_t>(j - 1)];
      ASSERT_TRUE(last.expert < job.expert ||
                  (last.expert == job.expert && last.planes == Planes::kBoth && job.planes == Planes::kHi));
    }
    for (int32_t i = job.first; i < job.first + job.count; ++i) {
      const auto at = static_cast<size_t>(got.order[static_cast<size_t>(i)]);
      ASSERT_TRUE(i == job.first || got.order[static_cast<size_t>(i - 1)] < got.order[static_cast<size_t>(i)]);
      ASSERT_TRUE(got.expert[at] == job.expert && got.planes[at] == job.planes && !seen[at]);
      seen[at] = true;
    }
    next += job.count;
    expert_slots[static_cast<size_t>(job.expert)] += job.count;
  }
  const auto kept = std::count_if(got.expert.begin(), got.expert.end(), [](int32_t e) { return e >= 0; });
  EXPECT_EQ(next, kept);
  EXPECT_EQ(got.record.expert_slots, expert_slots);
  EXPECT_EQ(got.record.distinct_experts,
            std::count_if(expert_slots.begin(), expert_slots.end(), [](int32_t n) { return n > 0; }));
  const auto padding = std::count(s.kinds.begin(), s.kinds.end(), RowKind::kPadding);
  EXPECT_EQ(got.record.slots_dropped, (s.tokens - padding) * s.slots - kept);
}

TEST(Select, AgreesWithTheRestatement) {
  Random random(31);
  int compared = 0;
  for (int round = 0; round < 2000; ++round) {
    const Step s = RandomStep(random);
    const LayerSteering steering = round % 4 == 0 ? LayerSteering() : RandomSteering(random, s);
    const Restated want = Restate(s, steering);
    const auto got = RunSelect(s, &steering);
    ExpectJobs(s, *got);
    if (want.margin < 1e-6) continue;
    ++compared;
    ExpectAgrees(s, want, *got);
    if (HasFailure()) {
      ADD_FAILURE() << "round " << round;
      return;
    }
  }
  EXPECT_GT(compared, 1500) << "too many undecidable rounds";
}

TEST(Select, NeutralSteeringIsNoSteeringBitForBit) {
  Random random(32);
  for (int round = 0; round < 300; ++round) {
    Step s = RandomStep(random);
    for (float& logit : s.logits) logit += static_cast<float>(random.Normal());
    LayerSteering spelled_out;  // every neutral value in its other form
    spelled_out.selection_bias.assign(static_cast<size_t>(s.experts), 0.0f);
    spelled_out.plane_cap.assign(static_cast<size_t>(s.experts), 2);
    spelled_out.guaranteed_slots = spelled_out.max_slots = spelled_out.full_slots = s.slots;
    const LayerSteering neutral;
    const auto plain = RunSelect(s, nullptr);
    for (const LayerSteering* steering : {&neutral, static_cast<const LayerSteering*>(&spelled_out)}) {
      const auto steered = RunSelect(s, steering);
      EXPECT_EQ(steered->expert, plain->expert);
      EXPECT_EQ(steered->planes, plain->planes);
      EXPECT_EQ(std::memcmp(steered->weight.data(), plain->weight.data(), plain->weight.size() * sizeof(float)), 0);
      EXPECT_EQ(steered->view.job_count, plain->view.job_count);
      EXPECT_EQ(steered->record.gate_mass_lost, plain->record.gate_mass_lost);
    }
    EXPECT_EQ(plain->record.slots_dropped, 0);
    EXPECT_EQ(plain->record.gate_mass_lost, 0.0);
  }
}

TEST(Select, EveryBackendCallsIt) {
  Random random(33);
  const Step s = RandomStep(random);
  const auto want = RunSelect(s, nullptr);
  ThreadPool threads(2);
  std::vector<std::unique_ptr<Ops>> all;
  all.push_back(MakeReferenceOps());
  for (const std::string& isa : SupportedIsas()) all.push_back(MakeCpuOps(&threads, isa).value());
  for (const auto& ops : all) {
    Chosen got(s);
    SelectArgs args{{s.logits.data(), s.tokens, s.experts}, {}, s.slots, s.nested, nullptr, s.kinds, &got.view};
    args.options.normalise = s.normalise;
    ops->Select(args);
    EXPECT_EQ(got.expert, want->expert) << ops->name();
    EXPECT_EQ(std::memcmp(got.weight.data(), want->weight.data(), want->weight.size() * sizeof(float)), 0)
        << ops->name();
  }
}

// Broken weights must not break the engine.
TEST(Select, NotANumberStillChooses) {
  Step s = OneStep({{0.5, 0.3, 0.2}}, 2);
  s.logits.assign(3, std::nanf(""));
  const auto chosen = RunSelect(s, nullptr);
  for (const int32_t e : chosen->expert) EXPECT_TRUE(e >= -1 && e < 3);
  EXPECT_GE(chosen->expert[0], 0);
}

}  // namespace
}  // namespace thermoe::kernels
