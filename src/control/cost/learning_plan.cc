// SPDX-License-Identifier: Apache-2.0
#include "control/cost/learning_plan.h"

#include <algorithm>
#include <cmath>

#include "thermoe/ttt.h"

namespace thermoe {
namespace {

// Passes over the parameters beside Adam's: their product with the gradient, off their scale and on it (delta_scale.h).
constexpr int64_t kScalePasses = 3;

class Plan {
 public:
  Plan(const ModelShape& model, const LearningShape& learning, std::vector<OperationShape>* plan)
      : model_(model), config_(model.config), learning_(learning), plan_(*plan) {}

  void Make() {
    OutputStage();
    for (int32_t layer = config_.layers - 1; layer >= learning_.lowest_layer; --layer) {
      rows_ = learning_.rows;
      Experts(model_.layers[static_cast<size_t>(layer)]);
      Attention(model_.layers[static_cast<size_t>(layer)]);
    }
    rows_ = learning_.parameters;
    Add(Family::kAdam, {DType::kF32, 1, 1, false});
    rows_ = kScalePasses * learning_.parameters / config_.hidden;
    Rows(Family::kSumRows, config_.hidden);
  }

 private:
  bool Has(DeltaGroup group) const { return ((learning_.groups >> static_cast<uint32_t>(group)) & 1) != 0; }

  OperationShape& Add(Family family, const MatrixShape& matrix) {
    OperationShape shape;
    shape.family = family;
    shape.matrix = matrix;
    shape.tokens = rows_;
    plan_.push_back(shape);
    return plan_.back();
  }
  void Rows(Family family, int64_t width) { Add(family, {DType::kF32, 1, width, false}); }
  // The product and, where the session has it, the low-rank change of it.
  void Projection(const MatrixShape& matrix, DeltaGroup group) {
    if (Has(group)) LowRank(matrix);
    Add(Family::kLinearBackward, matrix);
  }
  // As many rows at the rank that was measured as have the same FLOPs.
  void LowRank(const MatrixShape& matrix) {
    Add(Family::kLowRankBackward, {DType::kF32, matrix.rows, matrix.cols, false}).tokens =
        std::max<int64_t>(rows_ * learning_.rank / kProfiledRank, 1);
  }
  void Gain(DeltaGroup group) {
    if (!Has(group)) return;
    Rows(Family::kGain, config_.hidden);
    Rows(Family::kGainBackward, config_.hidden);
  }

  void OutputStage() {
    const bool below = learning_.lowest_layer < config_.layers;
    for (int64_t left = learning_.rows, kept = learning_.loss_rows; left > 0; left -= kLogitRows) {
      rows_ = std::min(left, kLogitRows);
      Rows(Family::kLossBackward, config_.vocab);
      rows_ = std::min(kept, kLogitRows);
      kept -= rows_;
      if (rows_ == 0) continue;
      if (Has(DeltaGroup::kOutputBias)) Rows(Family::kSumRows, config_.vocab);
      if (Has(DeltaGroup::kLowRankOutput)) {
        LowRank({DType::kF32, config_.vocab, config_.hidden, false});
      }
      if (!below && !Has(DeltaGroup::kOutputGain) && !Has(DeltaGroup::kHiddenBias)) continue;
      Add(Family::kLinearBackward, model_.output);
      if (Has(DeltaGroup::kHiddenBias)) Rows(Family::kSumRows, config_.hidden);
      Gain(DeltaGroup::kOutputGain);
      if (below) Rows(Family::kNormBackward, config_.hidden);
    }
  }

  void Experts(const LayerShape& layer) {
    const int64_t slots = rows_ * config_.slots;
    if (Has(DeltaGroup::kResidualBias)) Rows(Family::kSumRows, config_.hidden);
    Rows(Family::kNorm, config_.hidden);
    Gain(DeltaGroup::kExpertGain);
    const auto experts = [&](Family family) {
      OperationShape& shape = Add(family, layer.expert_gate);
      shape.down_type = layer.expert_down.type;
      // As many as even routing of so many tokens reaches.
      const double missed =
          std::pow(1 - static_cast<double>(config_.slots) / config_.experts, static_cast<double>(rows_));
      shape.experts = std::max<int64_t>(config_.slots, std::lround(config_.experts * (1 - missed)));
      shape.experts_full = shape.experts;
      shape.slots_full = slots;
    };
    if (!learning_.inner_kept) experts(Family::kExpertInner);
    experts(Family::kExpertBackward);
    if (Has(DeltaGroup::kExpertScale)) {
      Add(Family::kScaleSlotsBackward, {DType::kF32, config_.slots, config_.experts, false});
    }
    Add(Family::kSelectBackward, {DType::kF32, config_.slots, config_.experts, false});
    Projection(layer.gate, DeltaGroup::kLowRankGate);
    if (layer.shared_gate_proj.rows > 0) {
      for (const MatrixShape& matrix : {layer.shared_gate_proj, layer.shared_up, layer.shared_down}) {
        Add(Family::kLinearBackward, matrix);
      }
      Rows(Family::kSwiGluBackward, config_.shared_width);
    }
    Rows(Family::kNormBackward, config_.hidden);
  }

  void Attention(const LayerShape& layer) {
    Projection(layer.o, DeltaGroup::kLowRankO);
    OperationShape& attention = Add(Family::kAttentionBackward, {DType::kF32, config_.heads, config_.head_dim, false});
    attention.kv_heads = config_.kv_heads;
    attention.distinct_positions = learning_.position + rows_;
    attention.positions = rows_ * learning_.position + rows_ * (rows_ + 1) / 2;
    for (const int64_t width : {layer.q.rows, layer.k.rows}) {
      Add(Family::kRope, {DType::kF32, 1, width, false}).rope_dim = config_.attention.rope_dim;
    }
    Rows(Family::kNorm, config_.hidden);
    Gain(DeltaGroup::kAttentionGain);
    Projection(layer.q, DeltaGroup::kLowRankQ);
    Projection(layer.k, DeltaGroup::kLowRankK);
    Projection(layer.v, DeltaGroup::kLowRankV);
    Rows(Family::kNormBackward, config_.hidden);
  }

  const ModelShape& model_;
  const ModelConfig& config_;
  const LearningShape& learning_;
  int64_t rows_ = 0;
  std::vector<OperationShape>& plan_;
};

}  // namespace

std::vector<OperationShape> OperationsOfLearning(const ModelShape& model, const LearningShape& learning) {
  std::vector<OperationShape> plan;
  Plan(model, learning, &plan).Make();
  return plan;
}

}  // namespace thermoe
