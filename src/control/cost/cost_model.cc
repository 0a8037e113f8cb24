// SPDX-License-Identifier: Apache-2.0
#include "control/cost/cost_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <utility>

#include "control/cost/cost_rounds.h"
#include "control/cost/cost_switch.h"
#include "runtime/kv_layout.h"

namespace thermoe {
namespace {

// Uncertainty, one standard deviation, relative. A point that is alone cannot know its own bias: at least kPointFrac.
// Between points it grows with the distance (in octaves) to the nearest; beyond the edge faster, for no second point
// holds it.
constexpr double kPointFrac = 0.02;
constexpr double kPerOctaveInside = 0.05;
constexpr double kPerOctaveOutside = 0.25;
constexpr double kRooflineKnownFamily = 0.5;  // the family was measured at other matrices
constexpr double kRooflineFrac = 1.0;
constexpr double kLogOctave = 0.6931471805599453;

bool IsMixed(const OperationShape& shape) {
  return IsExpert(shape.family) && shape.slots_full > 0 && shape.slots_hi > 0;
}

double LogOf(double value) { return std::log(std::max(value, 1e-3)); }

double Median(std::vector<double> values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

Family FamilyLike(Family family, bool full) {
  switch (family) {
    case Family::kExpertInner:
    case Family::kExpertInnerHi: return full ? Family::kExpertInner : Family::kExpertInnerHi;
    case Family::kExpertBackward:
    case Family::kExpertBackwardHi: return full ? Family::kExpertBackward : Family::kExpertBackwardHi;
    case Family::kExpertNative: return family;
    default: return full ? Family::kExpertNestedBoth : Family::kExpertNestedHi;
  }
}

// A call of as many jobs as `shape`'s full and hi ones together, all of them like its full ones, or its hi ones.
OperationShape AllLike(const OperationShape& shape, bool full) {
  OperationShape all = shape;
  const int64_t jobs = shape.experts_full + shape.experts_hi;
  const int64_t own_jobs = std::max<int64_t>(full ? shape.experts_full : shape.experts_hi, 1);
  const auto slots = static_cast<int64_t>(std::llround(static_cast<double>(full ? shape.slots_full : shape.slots_hi) *
                                                       static_cast<double>(jobs) / static_cast<double>(own_jobs)));
  all.family = FamilyLike(shape.family, full);
  all.experts = jobs;
  all.experts_full = full ? jobs : 0;
  all.experts_hi = full ? 0 : jobs;
  all.slots_full = full ? slots : 0;
  all.slots_hi = full ? 0 : slots;
  return all;
}

// Where an expert of both kinds is read once: its hi slots go with the full ones.
OperationShape ReadOnce(const OperationShape& shape) {
  OperationShape once = shape;
  const int64_t shared = std::clamp<int64_t>(shape.experts_full + shape.experts_hi - shape.experts, 0, std::min(shape.experts_full, shape.experts_hi));
  const auto moved = static_cast<int64_t>(
      std::llround(static_cast<double>(shape.slots_hi) * static_cast<double>(shared) / static_cast<double>(std::max<int64_t>(shape.experts_hi, 1))));
  once.experts_hi -= shared;
  once.slots_full += moved, once.slots_hi -= moved;
  return once;
}

}  // namespace

const char* PredictionBasisName(PredictionBasis basis) {
  switch (basis) {
    case PredictionBasis::kGrid: return "grid";
    case PredictionBasis::kOutside: return "outside";
    case PredictionBasis::kRoofline: return "roofline";
  }
  return "roofline";
}

Stage StageOf(Family family) {
  switch (family) {
    case Family::kEmbed: return Stage::kEmbed;
    case Family::kLinearGate:
    case Family::kSelect: return Stage::kGate;
    case Family::kExpertNative:
    case Family::kExpertNestedBoth:
    case Family::kExpertNestedHi:
    case Family::kLinearShared:
    case Family::kSwiGlu: return Stage::kExperts;
    case Family::kLinearOutput: return Stage::kLogits;
    case Family::kSample: return Stage::kSample;
    case Family::kNorm:
    case Family::kLinearQ:
    case Family::kLinearK:
    case Family::kLinearV:
    case Family::kLinearO:
    case Family::kRope:
    case Family::kStoreKv:
    case Family::kAttentionPrefill:
    case Family::kAttentionDecode:
    case Family::kClamp:
    case Family::kAdd: return Stage::kAttention;
    case Family::kAddRow:
    case Family::kGain:
    case Family::kLowRank:
    case Family::kScaleSlots:
    case Family::kLinearBackward:
    case Family::kNormBackward:
    case Family::kGainBackward:
    case Family::kSumRows:
    case Family::kLowRankBackward:
    case Family::kClampBackward:
    case Family::kAttentionBackward:
    case Family::kSelectBackward:
    case Family::kScaleSlotsBackward:
    case Family::kSwiGluBackward:
    case Family::kAddBackward:
    case Family::kLossBackward:
    case Family::kRowChange:
    case Family::kExpertInner:
    case Family::kExpertInnerHi:
    case Family::kExpertBackward:
    case Family::kExpertBackwardHi:
    case Family::kAdam:
    case Family::kAdapterTick: break;  // outside of steps' stages
  }
  return Stage::kNone;
}

KernelCostModel::Key KernelCostModel::KeyOf(const OperationShape& shape) {
  return {shape.family,      shape.matrix.type, shape.down_type, shape.matrix.interleaved,
          shape.matrix.rows, shape.matrix.cols, shape.kv_heads,  shape.rope_dim};
}

// Experts: how many, and slots of each. Decode attention: rows, and positions of each: whole blocks of keys once there
// is more than one, for a block is computed as a whole. Prefill: rows, and positions over those of a prompt without a
// past, which makes latency a product of powers of both. All others: rows.
CostCoords KernelCostModel::CoordsOf(const OperationShape& shape) {
  const auto tokens = static_cast<double>(shape.tokens);
  if (IsExpert(shape.family)) {
    const double experts = static_cast<double>(std::max<int64_t>(shape.experts_full + shape.experts_hi, 1));
    return {LogOf(experts), LogOf(static_cast<double>(shape.slots_full + shape.slots_hi) / experts)};
  }
  const auto positions = static_cast<double>(shape.positions);
  if (shape.family == Family::kAttentionDecode) {
    const double each = positions / std::max(tokens, 1.0);
    return {LogOf(tokens), LogOf(each <= kKvBlock ? each : kKvBlock * std::ceil(each / kKvBlock))};
  }
  if (IsAttention(shape.family)) return {LogOf(tokens), LogOf(positions / std::max(tokens * (tokens + 1) / 2, 1.0))};
  return {0, LogOf(tokens)};
}

KernelCostModel::KernelCostModel(std::vector<CostPoint> points, const EnergyPrices& prices) : prices_(prices) {
  std::erase_if(points, [](const CostPoint& point) {
    return point.held_out || !std::isfinite(point.latency_us) || point.latency_us <= 0;
  });
  std::vector<CostPoint> mixed;
  std::copy_if(points.begin(), points.end(), std::back_inserter(mixed), [](const CostPoint& point) { return IsMixed(point.shape); });
  std::erase_if(points, [](const CostPoint& point) { return IsMixed(point.shape); });
  points_ = points.size();
  if (points.empty()) return;
  std::map<Key, std::map<double, std::map<double, CostNode>>> grids;
  double bytes_per_us = 0, other_bytes_per_us = 0, flops_per_us = 0, least_us = points.front().latency_us;
  for (const CostPoint& point : points) {
    const CostCoords at = CoordsOf(point.shape);
    const double spread = std::isfinite(point.spread_frac) ? std::clamp(point.spread_frac, 0.0, 1.0) : 1.0;
    const bool has_energy = point.energy_j && std::isfinite(*point.energy_j) && *point.energy_j > 0;
    grids[KeyOf(point.shape)][at[0]][at[1]] = {at[1], std::log(point.latency_us), spread,
                                               has_energy ? *point.energy_j / (point.latency_us * 1e-6) : 0};
    const kernels::OpCost cost = CostOf(point.shape);
    // Rows may be in a cache, and keys and values asked for before the time begins that attention takes.
    double& most = ReadsWeights(point.shape.family) ? bytes_per_us : other_bytes_per_us;
    most = std::max(most, BytesOf(cost) / point.latency_us);
    flops_per_us = std::max(flops_per_us, cost.flops / point.latency_us);
    least_us = std::min(least_us, point.latency_us);
  }
  if (bytes_per_us == 0) bytes_per_us = other_bytes_per_us;
  if (bytes_per_us > 0) roof_bytes_per_us_ = bytes_per_us;
  if (flops_per_us > 0) roof_flops_per_us_ = flops_per_us;
  call_us_ = least_us;
  std::map<Key, CostTable> measured;
  for (const auto& [key, grid] : grids) {
    for (const auto& [x, nodes] : grid) {
      CostLine line;
      line.x = x;
      for (const auto& [y, node] : nodes) line.nodes.push_back(node);
      measured[key].lines.push_back(std::move(line));
    }
  }
  MakeTables(std::move(measured));
  std::array<std::vector<double>, kFamilies> ratios;
  for (const CostPoint& point : points) {
    ratios[static_cast<size_t>(point.shape.family)].push_back(point.latency_us / RooflineUs(point.shape));
  }
  for (size_t f = 0; f < ratios.size(); ++f) slowness_[f] = Median(std::move(ratios[f]));
  LearnMixing(mixed);
}

void KernelCostModel::MakeTables(std::map<Key, CostTable> measured) {
  // Both precisions of experts are done by the same kernels.
  std::map<Key, std::vector<CostTable*>> alike;
  for (auto& [key, table] : measured) {
    FillWatts(&table);
    Key kernels = key;
    std::get<Family>(kernels) = FamilyLike(std::get<Family>(key), true);
    if (IsExpert(std::get<Family>(key))) alike[kernels].push_back(&table);
  }
  std::map<const CostTable*, std::vector<double>> switches;
  for (const auto& [key, tables] : alike) {
    const std::vector<double> found = SwitchesOf({tables.begin(), tables.end()});
    for (const CostTable* table : tables) switches[table] = found;
  }
  for (const auto& [key, table] : measured) {
    std::vector<CostTable> pieces = CutAt(switches[&table], table);
    for (CostTable& piece : pieces) {
      MakeMonotone(&piece);
      if (piece.lines.size() == 1) piece.rows_of_round = RowsOfRound(piece.lines.front());
    }
    tables_[key] = std::move(pieces);
  }
}

void KernelCostModel::LearnMixing(const std::vector<CostPoint>& mixed) {
  double watts = 0;
  const auto us_of = [&](const CostPoint& point, double apart_frac, double once_factor) {
    apart_frac_ = apart_frac, once_factor_ = once_factor;
    return Plain(point.shape, &watts).latency_us;
  };
  std::vector<double> apart, once;
  for (const CostPoint& point : mixed) {
    const double together_us = us_of(point, 0, 0), apart_us = us_of(point, 1, 0);
    if (std::abs(apart_us - together_us) > 0.02 * together_us) apart.push_back((point.latency_us - together_us) / (apart_us - together_us));
    once.push_back(point.latency_us / us_of(point, 0, 1));
  }
  const double apart_frac = std::clamp(Median(std::move(apart)), 0.0, 1.0), once_factor = std::clamp(Median(std::move(once)), 1.0, 2.0);
  const auto error = [&](double of_apart, double of_once) {
    std::vector<double> errors;
    for (const CostPoint& point : mixed) errors.push_back(std::abs(std::log(us_of(point, of_apart, of_once) / point.latency_us)));
    return Median(std::move(errors));
  };
  const bool reads_once = !mixed.empty() && error(0, once_factor) < error(apart_frac, 0);
  apart_frac_ = reads_once ? 0 : apart_frac, once_factor_ = reads_once ? once_factor : 0;
}

double KernelCostModel::RooflineUs(const OperationShape& shape) const {
  const kernels::OpCost cost = CostOf(shape);
  return call_us_ + std::max(BytesOf(cost) / roof_bytes_per_us_, cost.flops / roof_flops_per_us_);
}

CostPrediction KernelCostModel::Single(const OperationShape& shape, double* watts) const {
  CostPrediction prediction;
  if (const auto table = tables_.find(KeyOf(shape)); table != tables_.end()) {
    const CostReading reading = ReadPieces(table->second, CoordsOf(shape));
    const double octaves = reading.distance / kLogOctave;
    prediction.basis = reading.outside ? PredictionBasis::kOutside : PredictionBasis::kGrid;
    prediction.latency_us = std::exp(reading.log_latency);
    prediction.uncertainty_frac = std::hypot(std::max(reading.spread_frac, kPointFrac),
                                             (reading.outside ? kPerOctaveOutside : kPerOctaveInside) * octaves);
    *watts = reading.watts;
    return prediction;
  }
  const double slowness = slowness_[static_cast<size_t>(shape.family)];
  prediction.basis = PredictionBasis::kRoofline;
  prediction.latency_us = RooflineUs(shape) * std::max(slowness, 1.0);
  prediction.uncertainty_frac = slowness > 0 ? kRooflineKnownFamily : kRooflineFrac;
  *watts = 0;
  return prediction;
}

CostPrediction KernelCostModel::Plain(const OperationShape& shape, double* watts) const {
  *watts = 0;
  if (!IsExpert(shape.family)) return Single(shape, watts);
  if (!IsMixed(shape)) {
    CostPrediction one = Single(AllLike(shape, shape.slots_full > 0), watts);
    if (shape.family == Family::kExpertNative || shape.slots_full == 0) return one;
    // Both planes are more bytes than one: where noise says that they are faster, they are taken to be as fast.
    OperationShape hi = AllLike(shape, true);
    hi.family = FamilyLike(shape.family, false);
    std::swap(hi.experts_full, hi.experts_hi);
    std::swap(hi.slots_full, hi.slots_hi);
    if (tables_.contains(KeyOf(hi))) {
      double hi_w = 0;
      one.latency_us = std::max(one.latency_us, Single(hi, &hi_w).latency_us);
    }
    return one;
  }
  const bool once = once_factor_ > 0;
  const OperationShape read = once ? ReadOnce(shape) : shape;
  CostPrediction sum = IsMixed(read) ? Mixed(read, watts) : Single(AllLike(read, true), watts);
  if (once) sum.latency_us *= once_factor_;
  sum.uncertainty_frac = std::max({sum.uncertainty_frac, kPerOctaveInside, kPointFrac});
  return sum;
}

CostPrediction KernelCostModel::Mixed(const OperationShape& shape, double* watts) const {
  // Jobs of both kinds share a call, its forks and its threads: each kind costs its share of a call of as many jobs
  // like its own. Where they were measured together and were slower than that, somewhere between this and calls of their own.
  double full_w = 0, hi_w = 0;
  const CostPrediction full = Single(AllLike(shape, true), &full_w), hi = Single(AllLike(shape, false), &hi_w);
  const double share =
      static_cast<double>(shape.experts_full) / static_cast<double>(shape.experts_full + shape.experts_hi);
  double full_us = share * full.latency_us, hi_us = (1 - share) * hi.latency_us;
  if (apart_frac_ > 0) {
    OperationShape full_alone = shape, hi_alone = shape;
    full_alone.experts = shape.experts_full, full_alone.experts_hi = full_alone.slots_hi = 0, full_alone.family = FamilyLike(shape.family, true);
    hi_alone.experts = shape.experts_hi, hi_alone.experts_full = hi_alone.slots_full = 0;
    full_us += apart_frac_ * (Single(full_alone, &full_w).latency_us - full_us);
    hi_us += apart_frac_ * (Single(hi_alone, &hi_w).latency_us - hi_us);
  }
  CostPrediction sum;
  sum.basis = std::max(full.basis, hi.basis);
  sum.latency_us = full_us + hi_us;
  sum.uncertainty_frac = std::hypot(full.uncertainty_frac * full_us, hi.uncertainty_frac * hi_us) / sum.latency_us;
  if (full_w > 0 && hi_w > 0) *watts = (full_w * full_us + hi_w * hi_us) / sum.latency_us;
  return sum;
}

// The five costs that follow from latency.
void KernelCostModel::Finish(const OperationShape& shape, double watts, const Snapshot* now,
                             CostPrediction* prediction) const {
  const kernels::OpCost cost = CostOf(shape);
  const double bytes = BytesOf(cost), seconds = prediction->latency_us * 1e-6;
  prediction->memory_bytes = bytes;
  prediction->energy_measured = watts > 0;
  const double work_j = bytes * prices_.j_per_byte + cost.flops * prices_.j_per_flop;
  if (watts > 0) {
    prediction->energy_j = watts * seconds;
  } else if (now != nullptr && now->power_w && *now->power_w > 0) {
    prediction->energy_j = *now->power_w * seconds;
  } else {
    prediction->energy_j = prices_.idle_w * seconds + work_j;
  }
  prediction->temp_rise_c = std::max(0.0, prediction->energy_j - prices_.idle_w * seconds) / prices_.die_j_per_c;
  if (prediction->latency_us > 0) {
    prediction->compute_utilisation_frac = std::min(1.0, cost.flops / prediction->latency_us / roof_flops_per_us_);
    prediction->memory_utilisation_frac = std::min(1.0, bytes / prediction->latency_us / roof_bytes_per_us_);
  }
}

CostPrediction KernelCostModel::Predict(const OperationShape& shape, const Snapshot* now) const {
  double watts = 0;
  CostPrediction prediction = Plain(shape, &watts);
  if (const Stage stage = StageOf(shape.family); stage != Stage::kNone)
    prediction.latency_us *= correction(stage).factor();
  Finish(shape, watts, now, &prediction);
  return prediction;
}

std::array<double, kStages> KernelCostModel::PlainStages(std::span<const PlannedOperation> plan) const {
  std::array<double, kStages> stages = {};
  for (const PlannedOperation& operation : plan) {
    double watts = 0;
    stages[static_cast<size_t>(operation.stage)] += Plain(operation.shape, &watts).latency_us;
  }
  return stages;
}

StepPrediction KernelCostModel::PredictStep(const ModelShape& model, const StepShape& step, const Snapshot* now) const {
  const std::vector<PlannedOperation> plan = OperationsOfStep(model, step);
  const std::array<double, kStages> plain = PlainStages(plan);
  StepPrediction result;
  std::array<double, kStages> scale = {};
  for (size_t s = 0; s < kStages; ++s) {
    if (plain[s] <= 0) continue;
    result.stage_us[s] = corrections_[s].Apply(plain[s]);
    scale[s] = result.stage_us[s] / plain[s];
  }
  CostPrediction& total = result.total;
  total.energy_measured = true;
  double flops = 0;
  // Errors of equal calls in different layers are the same error: they add up instead of averaging out.
  for (const PlannedOperation& operation : plan) {
    double watts = 0;
    CostPrediction one = Plain(operation.shape, &watts);
    one.latency_us *= scale[static_cast<size_t>(operation.stage)];
    Finish(operation.shape, watts, now, &one);
    total.latency_us += one.latency_us;
    total.energy_j += one.energy_j;
    total.energy_measured = total.energy_measured && one.energy_measured;
    total.temp_rise_c += one.temp_rise_c;
    total.memory_bytes += one.memory_bytes;
    total.uncertainty_frac += one.uncertainty_frac * one.latency_us;
    total.basis = std::max(total.basis, one.basis);
    flops += CostOf(operation.shape).flops;
  }
  if (total.latency_us > 0) {
    total.uncertainty_frac /= total.latency_us;
    total.compute_utilisation_frac = std::min(1.0, flops / total.latency_us / roof_flops_per_us_);
    total.memory_utilisation_frac = std::min(1.0, total.memory_bytes / total.latency_us / roof_bytes_per_us_);
  }
  return result;
}

std::optional<LearntStep> KernelCostModel::Learn(const ModelShape& model, const StepRecord& record) {
  if (record.tokens <= 0 || record.tokens != record.prefill_tokens + record.decode_tokens || record.logit_rows < 0 ||
      record.layers.size() != model.layers.size() || !std::isfinite(record.kv_bytes) || record.kv_bytes < 0) {
    return std::nullopt;
  }
  const StageTimes& times = record.times;
  const double measured[kStages] = {times.embed_us,   times.attention_us, times.gate_us,
                                    times.experts_us, times.logits_us,    times.sample_us};
  StepShapeFrom(record, model, &learnt_step_);
  OperationsOfStep(model, learnt_step_, &learnt_plan_);
  const std::array<double, kStages> plain = PlainStages(learnt_plan_);
  double plain_us = 0, known_us = 0;
  for (size_t s = 0; s < kStages; ++s) plain_us += plain[s], known_us += measured[s];
  // Of a step on a device only the whole is known: its stages are taken to be off alike.
  const bool whole = known_us == 0 && times.total_us > 0 && plain_us > 0;
  LearntStep step;
  for (size_t s = 0; s < kStages; ++s) {
    if (plain[s] <= 0) continue;
    const double took_us = whole ? times.total_us * plain[s] / plain_us : measured[s];
    const double corrected_us = corrections_[s].Apply(plain[s]);
    if (!corrections_[s].Learn(plain[s], took_us)) continue;
    step.measured_us += took_us;
    step.corrected_us += corrected_us;
    step.plain_us += plain[s];
  }
  if (step.measured_us <= 0) return std::nullopt;
  return step;
}

std::string KernelCostModel::Describe() const {
  std::string text =
      fmt::format("{} points; the most that one reached: {:.1f} GB/s, {:.1f} GFLOP/s; the shortest call {:.2f} us\n",
                  points_, peak_gbps(), peak_gflops(), call_us_);
  for (const auto& [key, pieces] : tables_) {
    const auto& [family, type, down, interleaved, rows, cols, kv_heads, rope] = key;
    text += fmt::format("\n{} {} {}x{}\n", InfoOf(family).name, TraitsOf(type).name, rows, cols);
    for (const CostTable& table : pieces) {
      if (&table != &pieces.front()) text += "  another kernel\n";
      if (table.rows_of_round > 0) text += fmt::format("  rounds of {:.0f} rows\n", table.rows_of_round);
      for (const CostLine& line : table.lines) {
        text += table.lines.size() > 1
                    ? fmt::format("  {} {:.0f}:", IsExpert(family) ? "experts" : "rows", std::exp(line.x))
                    : " ";
        for (const CostNode& node : line.nodes)
          text += fmt::format(" {:.4g}: {:.4g} us", std::exp(node.y), std::exp(node.log_latency));
        text += '\n';
      }
    }
  }
  text += '\n';
  for (const FamilyInfo& info : Families()) {
    if (points_ > 0 && slowness_[static_cast<size_t>(info.family)] <= 0) {
      text += fmt::format("{}: not measured; roofline\n", info.name);
    }
  }
  return text;
}

namespace {

CostErrors ErrorsFrom(std::vector<double> errors) {
  CostErrors result;
  result.points = static_cast<int>(errors.size());
  if (errors.empty()) return result;
  std::sort(errors.begin(), errors.end());
  result.median_frac = errors[errors.size() / 2];
  result.p95_frac = errors[std::min(errors.size() - 1, errors.size() * 95 / 100)];
  return result;
}

}  // namespace

CostErrors ErrorsOf(const KernelCostModel& model, const std::vector<CostPoint>& held_out) {
  std::vector<double> errors;
  for (const CostPoint& point : held_out) {
    if (point.latency_us > 0) errors.push_back(std::abs(model.Predict(point.shape).latency_us / point.latency_us - 1));
  }
  return ErrorsFrom(std::move(errors));
}

CostErrors EnergyErrorsOf(const KernelCostModel& model, const std::vector<CostPoint>& held_out) {
  std::vector<double> errors;
  for (const CostPoint& point : held_out) {
    if (!point.energy_j || *point.energy_j <= 0) continue;
    if (const CostPrediction predicted = model.Predict(point.shape); predicted.energy_measured) {
      errors.push_back(std::abs(predicted.energy_j / *point.energy_j - 1));
    }
  }
  return ErrorsFrom(std::move(errors));
}

}  // namespace thermoe
