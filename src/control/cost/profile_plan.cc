// SPDX-License-Identifier: Apache-2.0
// The grid of PlanProfile.
#include <algorithm>
#include <cmath>
#include <set>

#include "base/random.h"
#include "control/cost/profiler.h"

namespace thermoe {
namespace {

using Sizes = std::vector<int64_t>;

// The sizes that are measured, and those that test the model.
struct Grid {
  Sizes rows, held_out_rows;
  Sizes prefill_rows, prefill_past;           // a chunk of so many rows after so many times as many positions
  Sizes decode_rows, contexts;
  int64_t most_positions = 0;                 // of all rows' keys in a decode point
  Sizes slots_each;                           // of an expert
  int64_t most_rows_of_experts = 0;
  int held_out_experts = 0, held_out_attention = 0;  // drawn ones
};

// Half octaves. Blocks of rows that kernels do together (2, 4, 8) make corners there, and forking, which sets in somewhere near 100 rows,
// a drop.
const Grid kHost = {.rows = {1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 112, 128, 160, 192, 224, 256},
                    .held_out_rows = {7, 9, 11, 14, 18, 28, 40, 56, 80, 104, 120, 144, 176, 208, 240},
                    .prefill_rows = {1, 2, 4, 8, 16, 32, 64, 128, 256},
                    .prefill_past = {0, 1, 3, 7, 15},
                    .decode_rows = {1, 2, 4, 8, 16, 32},
                    .contexts = {1, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096},
                    .most_positions = 8192,
                    .slots_each = {1, 2, 3, 4, 6, 8, 12, 16, 32, 64},
                    .most_rows_of_experts = 256,
                    .held_out_experts = 24,
                    .held_out_attention = 20};
const Grid kQuickHost = {.rows = {1, 2, 4, 8, 32, 128},
                         .held_out_rows = {3, 16, 64},
                         .prefill_rows = {1, 8, 64, 256},
                         .prefill_past = {0, 7},
                         .decode_rows = {1, 8, 32},
                         .contexts = {1, 64, 1024},
                         .most_positions = 8192,
                         .slots_each = {1, 4, 16},
                         .most_rows_of_experts = 64,
                         .held_out_experts = 6,
                         .held_out_attention = 0};
// On a GPU kernels change at some sizes at once: where a tile of rows (8, 32, 128) is full, where other kernels take over (16, 32, 64, 128 and
// 256 rows, 16 of an expert), where rows take another share of the blocks (48), where a context passes a power of two, where a round of blocks is full (132
// multiprocessors: 2,112 rows of blocks of 16; 1,280 rows of items of 256 rows by 256 of 6,144 rows of weights, two blocks each). Both
// sides of each are in the grid, or are near. Rounds of tiles of 128 rows the model finds by itself (cost_rounds.h).
const Grid kDevice = {.rows = {1,  2,  3,   4,   5,   6,   8,   9,   12,  16,  17,  24,  25,  31,  32,   33,   40,   48,   49,   56,   64,
                               65, 80, 96,  128, 129, 192, 256, 257, 384, 385, 512, 768, 1024, 1280, 1281, 1536, 2048, 2049, 2112, 2113, 3072, 4096},
                      .held_out_rows = {7, 10, 11, 14, 20, 22, 28, 30, 36, 44, 52, 60, 72, 112, 150, 224, 320, 448, 640, 900, 1300, 2500},
                      .prefill_rows = {4, 8, 16, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096},
                      .prefill_past = {0, 1, 3, 7, 15},
                      .decode_rows = {1, 2, 3, 4, 6, 8, 12, 16, 17, 24, 32, 33, 48, 64, 65, 128, 256},
                      .contexts = {1,   16,  32,  64,  96,   128,  129,  192,  256,  257,  320,  384,  512,
                                   513, 640, 768, 1024, 1025, 1536, 2048, 2049, 3072, 4096},
                      .most_positions = 32768,
                      .slots_each = {1, 2, 3, 4, 6, 8, 9, 12, 16, 17, 20, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512},
                      .most_rows_of_experts = 4096,
                      .held_out_experts = 40,
                      .held_out_attention = 30};
const Grid kQuickDevice = {.rows = {1, 4, 8, 16, 32, 33, 64, 65, 128, 256, 512},
                           .held_out_rows = {2, 12, 48, 200},
                           .prefill_rows = {16, 64, 128, 256, 512},
                           .prefill_past = {0, 3},
                           .decode_rows = {1, 4, 8, 32, 64},
                           .contexts = {16, 128, 256, 512, 1024, 2048},
                           .most_positions = 16384,
                           .slots_each = {1, 2, 4, 8, 16, 17, 32, 64},
                           .most_rows_of_experts = 512,
                           .held_out_experts = 8,
                           .held_out_attention = 0};

// Energy takes half a second a point on a device, whose counters are slow: these sizes have it, and some held-out ones.
struct EnergySizes {
  std::set<int64_t> rows, held_out_rows, contexts, slots_each;
  std::set<int64_t> expert_shares;  // of so many, one is in use
};
const EnergySizes kEnergy = {{1, 8, 32, 128, 512, 2048}, {20, 320}, {16, 128, 1024, 4096}, {1, 4, 16, 64, 256}, {1, 2, 8}};
const EnergySizes kQuickEnergy = {{1, 32, 512}, {48}, {128, 1024}, {1, 16}, {1, 8}};

class Planner {
 public:
  Planner(const ModelShape& model, bool quick, bool in_steps)
      : model_(model), quick_(quick), in_steps_(in_steps), grid_(in_steps ? (quick ? kQuickDevice : kDevice) : quick ? kQuickHost : kHost) {}

  std::vector<PlannedPoint> Make() {
    AddRowOperations(grid_.rows, false);
    AddRowOperations(grid_.held_out_rows, true);
    AddPrefill();
    AddDecode();
    AddExperts();
    if (!in_steps_) {
      AddBackward();
      AddUpdates();
      AddAdapter();
    }
    // Neighbours in a table are measured minutes apart: what disturbs the machine for a while does not bend a whole
    // curve.
    Random random(1);
    for (size_t i = points_.size(); i > 1; --i) std::swap(points_[i - 1], points_[random.Below(i)]);
    return std::move(points_);
  }

 private:
  void Add(const OperationShape& shape, bool held_out) {
    if (seen_.insert(TextOf(shape)).second) points_.push_back({shape, held_out, !in_steps_ || NeedsEnergy(shape, held_out)});
  }
  bool NeedsEnergy(const OperationShape& shape, bool held_out) {
    const int64_t tokens = shape.tokens;
    const EnergySizes& sizes = quick_ ? kQuickEnergy : kEnergy;
    if (IsExpert(shape.family)) {
      if (held_out) return ++held_out_experts_ % 4 == 0;
      const int64_t all = model_.config.experts, experts = shape.experts;
      const bool share = all % experts == 0 && (sizes.expert_shares.contains(all / experts) || (!quick_ && experts == 1));
      return share && sizes.slots_each.contains((shape.slots_full + shape.slots_hi) / experts);
    }
    if (IsAttention(shape.family)) {
      if (held_out) return ++held_out_attention_ % 10 == 0;
      const bool context = shape.family == Family::kAttentionDecode ? sizes.contexts.contains(shape.positions / tokens)
                                                                    : shape.distinct_positions == tokens || shape.distinct_positions == 4 * tokens;
      return context && sizes.rows.contains(tokens);
    }
    return (held_out ? sizes.held_out_rows : sizes.rows).contains(tokens);
  }

  // Whatever a step of that many rows launches, in the engine's own list.
  void AddRowOperations(const Sizes& sizes, bool held_out) {
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
    for (const int64_t t : grid_.prefill_rows) {
      for (const int64_t times : grid_.prefill_past) AddPrefill(t, t * times, false);
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
    for (int i = 0; i < grid_.held_out_attention; ++i) {
      const auto t = static_cast<int64_t>((in_steps_ ? 16 : 2) * std::exp2(7 * random.Uniform()));
      AddPrefill(t, static_cast<int64_t>(random.Below(static_cast<uint64_t>(8 * t))), true);
    }
  }

  void AddDecode(int64_t rows, int64_t context, bool held_out) {
    if (context > model_.config.context || rows * context > grid_.most_positions) return;
    Add(Attention(Family::kAttentionDecode, rows, rows * context, rows * context), held_out);
  }
  void AddDecode() {
    for (const int64_t b : grid_.decode_rows) {
      for (const int64_t c : grid_.contexts) AddDecode(b, c, false);
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
    for (int i = 0; i < grid_.held_out_attention; ++i) {
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
    const int64_t all = model_.config.experts, k = model_.config.slots, most_slots = grid_.most_rows_of_experts * k;
    std::set<int64_t> counts = {all};
    for (int64_t d = 1; d < all; d *= 2) {
      counts.insert(d);
      if (!quick_ && d >= 2 && 3 * d / 2 < all) counts.insert(3 * d / 2);
      if (quick_ || !in_steps_ || d < 8) continue;
      for (const int64_t quarters : {5, 7}) {  // where another wave of blocks begins is a step
        if (quarters * d / 4 < all) counts.insert(quarters * d / 4);
      }
    }
    for (const LayerShape& layer : model_.layers) {
      for (const int64_t d : counts) {
        for (const int64_t each : grid_.slots_each) {
          // A step with as many slots of few experts is none that a gate makes.
          if (d * each <= most_slots && (d == all || each <= 64)) AddPure(layer, d, d * each, false);
        }
      }
    }
    Random random(2);
    const LayerShape& layer = model_.layers.front();
    for (int i = 0; i < grid_.held_out_experts; ++i) {
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
        Add(Experts(layer, std::max(d, std::max(full, hi)), full, hi, slots_full, slots_hi), !in_steps_ || i % 3 != 0);
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
  bool quick_, in_steps_;
  const Grid& grid_;
  int held_out_experts_ = 0, held_out_attention_ = 0;
  std::set<std::string> seen_;
  std::vector<PlannedPoint> points_;
};

}  // namespace

std::vector<PlannedPoint> PlanProfile(const ModelShape& model, bool quick, bool in_steps) { return Planner(model, quick, in_steps).Make(); }

}  // namespace thermoe
