// SPDX-License-Identifier: Apache-2.0
// The grid of PlanProfile.
#include <algorithm>
#include <cmath>
#include <set>

#include "base/random.h"
#include "control/cost/profiler.h"

namespace thermoe {
namespace {

// Half octaves; the sizes between them test the model. Blocks of rows that kernels do together (2, 4, 8) make corners
// there, and forking, which sets in somewhere near 100 rows, a drop.
const std::vector<int64_t> kRows = {1,  2,  3,  4,  5,  6,   8,   10,  12,  16,  20,
                                    24, 32, 48, 64, 96, 112, 128, 160, 192, 224, 256};
const std::vector<int64_t> kHeldOutRows = {7, 9, 11, 14, 18, 28, 40, 56, 80, 104, 120, 144, 176, 208, 240};
const std::vector<int64_t> kQuickRows = {1, 2, 4, 8, 32, 128};
const std::vector<int64_t> kQuickHeldOutRows = {3, 16, 64};
constexpr int64_t kMostPositions = 8192;  // of all rows' keys in a decode point

class Planner {
 public:
  Planner(const ModelShape& model, bool quick) : model_(model), quick_(quick) {}

  std::vector<PlannedPoint> Make() {
    AddRowOperations(quick_ ? kQuickRows : kRows, false);
    AddRowOperations(quick_ ? kQuickHeldOutRows : kHeldOutRows, true);
    AddPrefill();
    AddDecode();
    AddExperts();
    AddBackward();
    AddUpdates();
    AddAdapter();
    // Neighbours in a table are measured minutes apart: what disturbs the machine for a while does not bend a whole
    // curve.
    Random random(1);
    for (size_t i = points_.size(); i > 1; --i) std::swap(points_[i - 1], points_[random.Below(i)]);
    return std::move(points_);
  }

 private:
  void Add(const OperationShape& shape, bool held_out) {
    if (seen_.insert(TextOf(shape)).second) points_.push_back({shape, held_out});
  }

  // Whatever a step of that many rows launches, in the engine's own list.
  void AddRowOperations(const std::vector<int64_t>& sizes, bool held_out) {
    for (const int64_t rows : sizes) {
      StepShape step;
      step.decode_tokens = rows;
      step.decode_positions = rows;
      step.logit_rows = std::min(rows, kLogitRows);
      for (const PlannedOperation& operation : OperationsOfStep(model_, step)) {
        if (!IsExpert(operation.shape.family) && !IsAttention(operation.shape.family)) Add(operation.shape, held_out);
      }
    }
  }

  OperationShape Attention(Family family, int64_t rows, int64_t positions, int64_t distinct) const {
    OperationShape shape;
    shape.family = family;
    shape.matrix = {DType::kF32, model_.config.heads, model_.config.head_dim, false};
    shape.kv_heads = model_.config.kv_heads;
    shape.tokens = rows;
    shape.positions = positions;
    shape.distinct_positions = distinct;
    return shape;
  }

  // A prompt's chunk of `rows` after `past` positions.
  void AddPrefill(int64_t rows, int64_t past, bool held_out) {
    if (past + rows > model_.config.context) return;
    Add(Attention(Family::kAttentionPrefill, rows, rows * past + rows * (rows + 1) / 2, past + rows), held_out);
  }
  void AddPrefill() {
    const std::vector<int64_t> rows =
        quick_ ? std::vector<int64_t>{1, 8, 64, 256} : std::vector<int64_t>{1, 2, 4, 8, 16, 32, 64, 128, 256};
    for (const int64_t t : rows) {
      for (const int64_t times : {0, 1, 3, 7, 15}) {
        if (!quick_ || times % 7 == 0) AddPrefill(t, t * times, false);
      }
    }
    for (const auto& [t, past] : std::vector<std::pair<int64_t, int64_t>>{{24, 0},
                                                                          {48, 100},
                                                                          {96, 0},
                                                                          {96, 150},
                                                                          {192, 0},
                                                                          {192, 256},
                                                                          {40, 200},
                                                                          {12, 60},
                                                                          {160, 64},
                                                                          {80, 0},
                                                                          {224, 100},
                                                                          {6, 40}}) {
      AddPrefill(t, past, true);
    }
    Random random(3);
    for (int i = 0; i < (quick_ ? 0 : 20); ++i) {
      const auto t = static_cast<int64_t>(2 * std::exp2(7 * random.Uniform()));
      AddPrefill(t, static_cast<int64_t>(random.Below(static_cast<uint64_t>(8 * t))), true);
    }
  }

  void AddDecode(int64_t rows, int64_t context, bool held_out) {
    if (context > model_.config.context || rows * context > kMostPositions) return;
    Add(Attention(Family::kAttentionDecode, rows, rows * context, rows * context), held_out);
  }
  void AddDecode() {
    const std::vector<int64_t> rows =
        quick_ ? std::vector<int64_t>{1, 8, 32} : std::vector<int64_t>{1, 2, 4, 8, 16, 32};
    const std::vector<int64_t> contexts =
        quick_ ? std::vector<int64_t>{1, 64, 1024}
               : std::vector<int64_t>{1, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096};
    for (const int64_t b : rows) {
      for (const int64_t c : contexts) AddDecode(b, c, false);
    }
    for (const auto& [b, c] : std::vector<std::pair<int64_t, int64_t>>{{1, 80},
                                                                       {1, 200},
                                                                       {1, 400},
                                                                       {3, 100},
                                                                       {6, 50},
                                                                       {6, 180},
                                                                       {12, 20},
                                                                       {12, 90},
                                                                       {12, 300},
                                                                       {24, 40},
                                                                       {24, 150},
                                                                       {5, 700}}) {
      AddDecode(b, c, true);
    }
    Random random(4);
    for (int i = 0; i < (quick_ ? 0 : 20); ++i) {
      const auto b = static_cast<int64_t>(std::exp2(5 * random.Uniform()));
      AddDecode(b, static_cast<int64_t>(8 * std::exp2(8 * random.Uniform())), true);
    }
  }

  // Full jobs first; an expert is in both counts where they are more than `experts`.
  OperationShape Experts(const LayerShape& layer, int64_t experts, int64_t full, int64_t hi, int64_t slots_full,
                         int64_t slots_hi) const {
    OperationShape shape;
    shape.family = !model_.nested ? Family::kExpertNative
                   : slots_hi > 0 ? Family::kExpertNestedHi
                                  : Family::kExpertNestedBoth;
    shape.matrix = layer.expert_gate;
    shape.down_type = layer.expert_down.type;
    const int64_t slots = model_.config.slots;
    shape.tokens = (slots_full + slots_hi + slots - 1) / slots;
    shape.experts = experts;
    shape.experts_full = full;
    shape.experts_hi = hi;
    shape.slots_full = slots_full;
    shape.slots_hi = slots_hi;
    return shape;
  }
  void AddPure(const LayerShape& layer, int64_t experts, int64_t slots, bool held_out) {
    Add(Experts(layer, experts, experts, 0, slots, 0), held_out);
    if (model_.nested) Add(Experts(layer, experts, 0, experts, 0, slots), held_out);
  }
  void AddExperts() {
    const int64_t all = model_.config.experts, k = model_.config.slots, most_slots = (quick_ ? 64 : 256) * k;
    std::set<int64_t> counts = {all};
    for (int64_t d = 1; d < all; d *= 2) {
      counts.insert(d);
      if (!quick_ && d >= 2 && 3 * d / 2 < all) counts.insert(3 * d / 2);
    }
    for (const LayerShape& layer : model_.layers) {
      for (const int64_t d : counts) {
        for (const int64_t each :
             quick_ ? std::vector<int64_t>{1, 4, 16} : std::vector<int64_t>{1, 2, 3, 4, 6, 8, 12, 16, 32, 64}) {
          if (d * each <= most_slots) AddPure(layer, d, d * each, false);
        }
      }
    }
    Random random(2);
    const LayerShape& layer = model_.layers.front();
    for (int i = 0; i < (quick_ ? 6 : 24); ++i) {
      const auto d = static_cast<int64_t>(1 + random.Below(static_cast<uint64_t>(all)));
      const auto slots = static_cast<int64_t>(static_cast<double>(d) * std::exp2(5 * random.Uniform()));
      if (slots <= most_slots) AddPure(layer, d, slots, true);
      if (!model_.nested) continue;
      // Steps whose best slots read both planes, the rest hi.
      const auto full = static_cast<int64_t>(1 + random.Below(static_cast<uint64_t>(d)));
      const int64_t hi = std::max<int64_t>(d - full / 2, 1),
                    slots_full = full * (1 + static_cast<int64_t>(random.Below(4)));
      const int64_t slots_hi = hi * (1 + static_cast<int64_t>(random.Below(4)));
      if (slots_full + slots_hi <= most_slots)
        Add(Experts(layer, std::max(d, std::max(full, hi)), full, hi, slots_full, slots_hi), true);
    }
  }

  void AddOf(Family family, const MatrixShape& matrix, int64_t tokens, bool held_out) {
    OperationShape shape;
    shape.family = family;
    shape.matrix = matrix;
    shape.tokens = tokens;
    Add(shape, held_out);
  }
  // What test-time training launches for a segment of so many rows; tiers take some of it.
  void AddBackward(int64_t rows, bool held_out) {
    const ModelConfig& config = model_.config;
    const auto wide = [](int64_t width) { return MatrixShape{DType::kF32, 1, width, false}; };
    const MatrixShape slots{DType::kF32, config.slots, config.experts, false};
    for (const LayerShape& layer : model_.layers) {
      for (const MatrixShape& matrix : {layer.q, layer.k, layer.v, layer.o}) {
        AddOf(Family::kLinearBackward, matrix, rows, held_out);
        AddOf(Family::kLowRank, {DType::kF32, matrix.rows, matrix.cols, false}, rows, held_out);
        AddOf(Family::kLowRankBackward, {DType::kF32, matrix.rows, matrix.cols, false}, rows, held_out);
      }
      AddOf(Family::kLinearBackward, layer.gate, rows, held_out);
      if (layer.q_norm > 0)
        AddOf(Family::kNormBackward, wide(layer.q_norm), rows * layer.q.rows / layer.q_norm, held_out);
      if (layer.k_norm > 0)
        AddOf(Family::kNormBackward, wide(layer.k_norm), rows * layer.k.rows / layer.k_norm, held_out);
      if (config.attention.clip_qkv > 0) AddOf(Family::kClampBackward, wide(layer.q.rows), rows, held_out);
      if (layer.shared_gate_proj.rows == 0) continue;
      for (const MatrixShape& matrix : {layer.shared_gate_proj, layer.shared_up, layer.shared_down}) {
        AddOf(Family::kLinearBackward, matrix, rows, held_out);
      }
      AddOf(Family::kSwiGluBackward, wide(config.shared_width), rows, held_out);
      if (layer.shared_gate.rows == 0) continue;
      AddOf(Family::kLinearBackward, layer.shared_gate, rows, held_out);
      AddOf(Family::kAddBackward, wide(config.hidden), rows, held_out);
    }
    for (const Family family :
         {Family::kAddRow, Family::kGain, Family::kNormBackward, Family::kGainBackward, Family::kSumRows, Family::kRowChange}) {
      AddOf(family, wide(config.hidden), rows, held_out);
    }
    for (const Family family : {Family::kScaleSlots, Family::kSelectBackward, Family::kScaleSlotsBackward}) {
      AddOf(family, slots, rows, held_out);
    }
    AddOf(Family::kLossBackward, wide(config.vocab), std::min(rows, kLogitRows), held_out);
    AddOf(Family::kLinearBackward, model_.output, std::min(rows, kLogitRows), held_out);
    AddOf(Family::kSumRows, wide(config.vocab), std::min(rows, kLogitRows), held_out);
    for (const Family family : {Family::kLowRank, Family::kLowRankBackward}) {
      AddOf(family, {DType::kF32, config.vocab, config.hidden, false}, std::min(rows, kLogitRows), held_out);
    }
    for (const int64_t past : {int64_t{0}, 2 * rows}) {
      if (past + rows > config.context) continue;
      Add(Attention(Family::kAttentionBackward, rows, rows * past + rows * (rows + 1) / 2, past + rows), held_out);
    }
    AddExpertsBackward(rows, held_out);
  }
  void AddExpertsBackward(int64_t rows, bool held_out) {
    const int64_t experts = model_.config.experts, each = rows * model_.config.slots / experts;
    if (each == 0) return;
    for (const LayerShape& layer : model_.layers) {
      for (const bool full : {true, false}) {
        if (!full && !model_.nested) continue;
        OperationShape shape = full ? Experts(layer, experts, experts, 0, each * experts, 0)
                                    : Experts(layer, experts, 0, experts, 0, each * experts);
        shape.family = full ? Family::kExpertInner : Family::kExpertInnerHi;
        Add(shape, held_out);
        shape.family = full ? Family::kExpertBackward : Family::kExpertBackwardHi;
        Add(shape, held_out);
      }
    }
  }
  // From the output's bias alone to all deltas of a large model.
  void AddUpdates() {
    for (const int64_t parameters : {1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22}) {
      AddOf(Family::kAdam, {DType::kF32, 1, 1, false}, parameters, false);
    }
    for (const int64_t parameters : {3 << 14, 3 << 18})
      AddOf(Family::kAdam, {DType::kF32, 1, 1, false}, parameters, true);
  }
  void AddBackward() {
    for (const int64_t rows : quick_ ? std::vector<int64_t>{16, 64} : std::vector<int64_t>{8, 16, 32, 64, 128, 256}) {
      AddBackward(rows, false);
    }
    for (const int64_t rows : quick_ ? std::vector<int64_t>{32} : std::vector<int64_t>{24, 96}) AddBackward(rows, true);
  }

  // Where a token takes every expert there is no adapter.
  void AddAdapter() {
    if (model_.config.slots >= model_.config.experts) return;
    const MatrixShape matrix{DType::kF32, model_.config.layers, model_.config.experts, false};
    for (const int64_t rows : {2, 4, 8}) AddOf(Family::kAdapterTick, matrix, rows, false);
    AddOf(Family::kAdapterTick, matrix, 6, true);
  }

  const ModelShape& model_;
  bool quick_;
  std::set<std::string> seen_;
  std::vector<PlannedPoint> points_;
};

}  // namespace

std::vector<PlannedPoint> PlanProfile(const ModelShape& model, bool quick) { return Planner(model, quick).Make(); }

}  // namespace thermoe
