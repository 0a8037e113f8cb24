// SPDX-License-Identifier: Apache-2.0
#include "kernels/select.h"

#include <algorithm>
#include <bitset>
#include <cmath>
#include <optional>

#include "base/check.h"

namespace thermoe::kernels {
namespace {

// A token's choice in selection order: the best by score first, then by rank (score + selection bias).
struct Choice {
  int32_t expert[kMaxSlots];
  int count = 0;
};

using ExpertSet = std::bitset<kMaxExperts>;

// The knobs of a layer with the neutral values resolved.
struct Rules {
  const float* bias = nullptr;        // [E] or null
  const uint8_t* plane_cap = nullptr;  // [E] or null
  int guaranteed = 0, most = 0, full = 0;
  float drop_below = 0, soft_batch = 0;
};

int Resolve(int value, int all) { return value == kAllSlots ? all : std::min(value, all); }

Rules ResolveRules(const SelectArgs& args) {
  Rules rules;
  rules.guaranteed = rules.most = rules.full = args.slots;
  if (args.steering == nullptr) return rules;
  const LayerSteering& steering = *args.steering;
  if (!steering.selection_bias.empty()) rules.bias = steering.selection_bias.data();
  rules.guaranteed = std::max(1, Resolve(steering.guaranteed_slots, args.slots));
  rules.most = std::max(1, Resolve(steering.max_slots, args.slots));
  rules.drop_below = steering.drop_below_frac;
  rules.soft_batch = steering.soft_batch;
  if (args.nested) {
    if (!steering.plane_cap.empty()) rules.plane_cap = steering.plane_cap.data();
    rules.full = Resolve(steering.full_slots, args.slots);
  }
  return rules;
}

void Softmax(const float* logits, int64_t n, float* out) {
  float most = logits[0];
  for (int64_t i = 1; i < n; ++i) most = std::max(most, logits[i]);
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += out[i] = std::exp(logits[i] - most);
  for (int64_t i = 0; i < n; ++i) out[i] /= sum;
}

// The expert of `allowed` outside `held` with the best score + bias; ties go to the lower index. -1: none.
int Best(const float* scores, const float* bias, int64_t experts, const ExpertSet& held, const ExpertSet* allowed) {
  int best = -1;
  float best_rank = 0;
  for (int64_t e = 0; e < experts; ++e) {
    if (held[static_cast<size_t>(e)] || (allowed != nullptr && !(*allowed)[static_cast<size_t>(e)])) continue;
    const float rank = bias == nullptr ? scores[e] : scores[e] + bias[e];
    // A rank that is not a number loses to one that is, so hostile weights cannot leave a token without experts.
    if (best < 0 || rank > best_rank || (std::isnan(best_rank) && !std::isnan(rank))) {
      best = static_cast<int>(e);
      best_rank = rank;
    }
  }
  return best;
}

// Extends `choice` to `target` slots by rank.
void Extend(const float* scores, const float* bias, int64_t experts, int target, const ExpertSet* allowed, Choice* choice) {
  ExpertSet held;
  for (int i = 0; i < choice->count; ++i) held.set(static_cast<size_t>(choice->expert[i]));
  if (choice->count == 0 && target > 0) {  // the top-1 by score itself is always kept
    const int first = Best(scores, nullptr, experts, held, nullptr);
    choice->expert[choice->count++] = first;
    held.set(static_cast<size_t>(first));
  }
  while (choice->count < target) {
    const int next = Best(scores, bias, experts, held, allowed);
    if (next < 0) return;
    choice->expert[choice->count++] = next;
    held.set(static_cast<size_t>(next));
  }
}

// Sum of the K best scores, added in falling order: what the plain model would keep.
float PlainMass(const float* scores, int64_t experts, int slots) {
  Choice plain;
  Extend(scores, nullptr, experts, slots, nullptr, &plain);
  float mass = 0;
  for (int i = 0; i < plain.count; ++i) mass += scores[plain.expert[i]];
  return mass;
}

// Falling scores, ties by rising index. Insertion: at most kMaxSlots, mostly in order already, no allocation.
void SortByScore(const float* scores, int count, int32_t* experts) {
  const auto before = [&](int32_t a, int32_t b) { return scores[a] > scores[b] || (scores[a] == scores[b] && a < b); };
  for (int i = 1; i < count; ++i) {
    for (int j = i; j > 0 && before(experts[j], experts[j - 1]); --j) std::swap(experts[j], experts[j - 1]);
  }
}

// What the soft batch-aware rule adds to the ranks of one decode row. Ranking by log s + beta / 2 * log2(1 + n) is ranking
// by s times a gain, so it is a bias of s * (gain - 1) of this row, and the selection bias comes on top.
class SoftBatch {
 public:
  explicit SoftBatch(const SelectArgs& args, const Rules& rules) : args_(args), rules_(rules) {
    for (int64_t t = 0; t < args.logits.rows; ++t) {
      if (args.kinds[static_cast<size_t>(t)] != RowKind::kDecode) continue;
      const Choice plain = PlainChoice(t);
      for (int i = 0; i < plain.count; ++i) ++holders_[plain.expert[i]];
    }
    for (int64_t e = 0; e < args.logits.cols; ++e) gain_[e] = Gain(holders_[e]);
  }

  // [E], valid until the next call.
  const float* BiasOf(int64_t t) {
    const float* scores = args_.out->scores.row(t);
    for (int64_t e = 0; e < args_.logits.cols; ++e) bias_[e] = scores[e] * (gain_[e] - 1);
    const Choice plain = PlainChoice(t);  // a row is no other token to itself
    for (int i = 0; i < plain.count; ++i) {
      const int e = plain.expert[i];
      bias_[e] = scores[e] * (Gain(holders_[e] - 1) - 1);
    }
    if (rules_.bias != nullptr) {
      for (int64_t e = 0; e < args_.logits.cols; ++e) bias_[e] += rules_.bias[e];
    }
    return bias_;
  }

 private:
  Choice PlainChoice(int64_t t) const {
    Choice choice;
    Extend(args_.out->scores.row(t), rules_.bias, args_.logits.cols, args_.slots, nullptr, &choice);
    return choice;
  }
  float Gain(int32_t others) const { return std::exp(rules_.soft_batch / 2 * std::log2(1.0f + static_cast<float>(others))); }

  const SelectArgs& args_;
  const Rules& rules_;
  int32_t holders_[kMaxExperts] = {};  // decode rows whose plain choice has the expert
  float gain_[kMaxExperts];            // for rows that do not hold it themselves
  float bias_[kMaxExperts];
};

// Turns a choice into row t of the selection: order by weight, drop, weigh, choose planes.
void Weigh(const SelectArgs& args, const Rules& rules, int64_t t, Choice choice) {
  Selection& out = *args.out;
  LayerRecord& record = *out.record;
  const float* scores = out.scores.row(t);
  int kept = std::min(choice.count, rules.most);
  SortByScore(scores, kept, choice.expert);
  const float least = rules.drop_below * scores[choice.expert[0]];
  while (kept > 1 && scores[choice.expert[kept - 1]] < least) --kept;
  float mass = 0;
  for (int i = 0; i < kept; ++i) mass += scores[choice.expert[i]];
  const float plain = PlainMass(scores, args.logits.cols, args.slots);
  for (int i = 0; i < args.slots; ++i) {
    const int64_t at = t * args.slots + i;
    if (i >= kept) {
      out.expert.data[at] = -1;
      out.weight.data[at] = 0;
      out.planes.data[at] = Planes::kBoth;
      continue;
    }
    const int e = choice.expert[i];
    const bool full = i < rules.full && (rules.plane_cap == nullptr || rules.plane_cap[e] > 1);
    out.expert.data[at] = e;
    out.weight.data[at] = args.options.normalise ? scores[e] / mass : scores[e] * (plain / mass);
    out.planes.data[at] = full ? Planes::kBoth : Planes::kHi;
    ++(full ? record.slots_full : record.slots_hi);
    ++record.expert_slots[static_cast<size_t>(e)];
  }
  record.slots_dropped += args.slots - kept;
  record.gate_mass_lost += 1.0 - static_cast<double>(mass) / static_cast<double>(plain);
}

void CountDistinct(const Selection& selection) {
  LayerRecord& record = *selection.record;
  for (const Selection::Job& job : selection.jobs.first(static_cast<size_t>(selection.job_count))) {
    ++(job.planes == Planes::kBoth ? record.distinct_full_experts : record.distinct_hi_experts);
  }
  for (const int32_t count : record.expert_slots) record.distinct_experts += count > 0;
}

void ResetRecord(int64_t experts, LayerRecord* record) {
  record->expert_slots.assign(static_cast<size_t>(experts), 0);
  record->distinct_experts = record->distinct_full_experts = record->distinct_hi_experts = 0;
  record->slots_full = record->slots_hi = record->slots_dropped = 0;
  record->gate_mass_lost = 0;
}

}  // namespace

// A counting sort, so tokens rise inside a group.
void DispatchSelection(int64_t experts, Selection* selection) {
  Selection& out = *selection;
  THERMOE_CHECK(experts <= kMaxExperts);
  const int64_t slots = out.expert.size();
  const auto group = [&](int64_t at) { return 2 * out.expert.data[at] + (out.planes.data[at] == Planes::kHi ? 1 : 0); };
  int32_t start[2 * kMaxExperts] = {};
  for (int64_t at = 0; at < slots; ++at) {
    if (out.expert.data[at] >= 0) ++start[group(at)];
  }
  out.job_count = 0;
  int32_t total = 0;
  for (int32_t g = 0; g < 2 * experts; ++g) {
    const int32_t count = start[g];
    start[g] = total;
    total += count;
    if (count == 0) continue;
    out.jobs[static_cast<size_t>(out.job_count++)] = {g / 2, g % 2 == 0 ? Planes::kBoth : Planes::kHi, start[g], count};
  }
  for (int64_t at = 0; at < slots; ++at) {
    if (out.expert.data[at] >= 0) out.order[static_cast<size_t>(start[group(at)]++)] = static_cast<int32_t>(at);
  }
}

void SelectExperts(const SelectArgs& args) {
  Selection& out = *args.out;
  const int64_t tokens = args.logits.rows, experts = args.logits.cols;
  THERMOE_CHECK(experts <= kMaxExperts && args.slots <= kMaxSlots && args.slots <= experts);
  THERMOE_CHECK(static_cast<int64_t>(args.kinds.size()) == tokens && out.scores.cols == experts);
  THERMOE_CHECK(out.expert.rows == tokens && out.expert.cols == args.slots);
  const Rules rules = ResolveRules(args);
  ResetRecord(experts, out.record);
  // Padding rows score nothing and select nothing.
  for (int64_t t = 0; t < tokens; ++t) {
    if (args.kinds[static_cast<size_t>(t)] != RowKind::kPadding) Softmax(args.logits.row(t), experts, out.scores.row(t));
  }
  const auto batch_aware = [&](int64_t t) {
    return rules.guaranteed < args.slots && args.kinds[static_cast<size_t>(t)] == RowKind::kDecode;
  };
  ExpertSet held_by_batch;  // U: every expert that is guaranteed to some decode row
  for (int64_t t = 0; t < tokens; ++t) {
    if (!batch_aware(t)) continue;
    Choice guaranteed;
    Extend(out.scores.row(t), rules.bias, experts, rules.guaranteed, nullptr, &guaranteed);
    for (int i = 0; i < guaranteed.count; ++i) held_by_batch.set(static_cast<size_t>(guaranteed.expert[i]));
  }
  std::optional<SoftBatch> soft;
  if (rules.soft_batch > 0) soft.emplace(args, rules);
  for (int64_t t = 0; t < tokens; ++t) {
    Choice choice;
    if (args.kinds[static_cast<size_t>(t)] == RowKind::kPadding) {
      std::fill_n(out.expert.row(t), args.slots, -1);
      std::fill_n(out.weight.row(t), args.slots, 0.0f);
      std::fill_n(out.planes.row(t), args.slots, Planes::kBoth);
      continue;
    }
    if (batch_aware(t)) Extend(out.scores.row(t), rules.bias, experts, rules.guaranteed, nullptr, &choice);
    const float* bias = soft && args.kinds[static_cast<size_t>(t)] == RowKind::kDecode ? soft->BiasOf(t) : rules.bias;
    Extend(out.scores.row(t), bias, experts, args.slots, batch_aware(t) ? &held_by_batch : nullptr, &choice);
    Weigh(args, rules, t, choice);
  }
  DispatchSelection(experts, &out);
  CountDistinct(out);
}

}  // namespace thermoe::kernels
