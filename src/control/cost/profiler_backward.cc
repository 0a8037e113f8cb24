// SPDX-License-Identifier: Apache-2.0
// How the operations of test-time training, and the hardware adapter's tick, are run. Those that change their input in
// place are given what keeps it bounded.
#include <cmath>

#include "base/random.h"
#include "control/cost/profiler.h"
#include "control/router/ttha_adapter.h"

namespace thermoe {

Profiler::Call Profiler::BackwardRowCall(const OperationShape& shape) {
  const int64_t rows = shape.tokens, width = shape.matrix.cols;
  const auto n = static_cast<size_t>(width);
  const MutRows in{in_.data(), rows, width}, out{out_.data(), rows, width}, third{third_.data(), rows, width};
  fourth_.assign(n, 0.0f);
  switch (shape.family) {
    case Family::kAddRow: return [=, this](size_t) { ops_->AddRow({std::span(fourth_).first(n), out}); };
    case Family::kGain: return [=, this](size_t) { ops_->Gain({std::span(fourth_).first(n), out}); };
    case Family::kNormBackward:
      return [=, this](size_t) { ops_->RmsNormBackward({in, std::span(ones_).first(n), 1e-5f, third, out}); };
    case Family::kGainBackward:
      weight_gradient_.assign(n, 0.0f);
      return [=, this](size_t) { ops_->GainBackward({std::span(fourth_).first(n), in, out, weight_gradient_}); };
    case Family::kSumRows: return [=, this](size_t) { ops_->SumRows({in, std::span(fourth_).first(n)}); };
    case Family::kRowChange:
      weight_gradient_.assign(static_cast<size_t>(rows), 0.0f);
      return [=, this](size_t) { ops_->RowChange({in, third, weight_gradient_}); };
    case Family::kClampBackward: return [=, this](size_t) { ops_->ClampBackward({in, 2.0f, out}); };
    case Family::kSwiGluBackward: return [=, this](size_t) { ops_->SwiGluBackward({in, third, out}); };
    case Family::kAddBackward: {
      fourth_.assign(static_cast<size_t>(2 * rows), 0.1f);
      const MutRows gate{fourth_.data(), rows, 1}, dgate{fourth_.data() + rows, rows, 1};
      return [=, this](size_t) { ops_->AddBackward({in, gate, third, out, dgate}); };
    }
    case Family::kLossBackward:
      targets_.assign(static_cast<size_t>(rows), 0);
      fourth_.assign(static_cast<size_t>(rows), 1.0f);
      weight_gradient_.assign(static_cast<size_t>(rows), 0.0f);
      return [=, this](size_t) {
        ops_->LossBackward({kernels::LossKind::kNll, targets_, fourth_, out, weight_gradient_});
      };
    default: return {};
  }
}

Profiler::Call Profiler::LinearBackwardCall(const OperationShape& shape) {
  std::vector<const WeightMatrix*> matrices;
  for (const LayerWeights& layer : target_.weights->layers) {
    for (const WeightMatrix* matrix : {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.shared.gate,
                                       &layer.shared.up, &layer.shared.down, &layer.shared_gate}) {
      if (!matrix->empty() && ShapeOf(*matrix) == shape.matrix) matrices.push_back(matrix);
    }
  }
  if (matrices.empty() && ShapeOf(target_.weights->output) == shape.matrix)
    matrices.push_back(&target_.weights->output);
  if (matrices.empty()) return {};
  const ConstRows dy{in_.data(), shape.tokens, shape.matrix.rows};
  const MutRows dx{out_.data(), shape.tokens, shape.matrix.cols};
  return [=, this](size_t turn) { ops_->LinearBackward({dy, *matrices[turn % matrices.size()], dx}); };
}

// low_rank_: a, b, da, db, then inner and dinner.
Profiler::Call Profiler::LowRankCall(const OperationShape& shape) {
  const int64_t rows = shape.tokens, in = shape.matrix.cols, out = shape.matrix.rows;
  low_rank_.assign(static_cast<size_t>(2 * kProfiledRank * (in + out + rows)), 0.01f);
  const MutRows a{low_rank_.data(), kProfiledRank, in}, b{a.data + a.size(), kProfiledRank, out};
  const MutRows da{b.data + b.size(), kProfiledRank, in}, db{da.data + da.size(), kProfiledRank, out};
  const MutRows inner{db.data + db.size(), rows, kProfiledRank}, dinner{inner.data + inner.size(), rows, kProfiledRank};
  const ConstRows x{in_.data(), rows, in};
  if (shape.family == Family::kLowRank) {
    const MutRows y{out_.data(), rows, out};
    return [=, this](size_t) { ops_->LowRank({x, a, b, inner, y}); };
  }
  const ConstRows dy{third_.data(), rows, out};
  const MutRows dx{out_.data(), rows, in};
  return [=, this](size_t) { ops_->LowRankBackward({x, a, b, inner, dy, dinner, dx, da, db}); };
}

// Every row keeps all its slots, of neighbouring experts.
Profiler::Call Profiler::SlotWeightCall(const OperationShape& shape) {
  const int64_t rows = shape.tokens, slots = shape.matrix.rows, experts = shape.matrix.cols;
  PlaceSlots(shape);
  for (int64_t at = 0; at < rows * slots; ++at) {
    slot_expert_[static_cast<size_t>(at)] = static_cast<int32_t>((at / slots + at % slots) % experts);
  }
  fourth_.assign(static_cast<size_t>(2 * experts), 0.0f);
  weight_gradient_.assign(static_cast<size_t>(rows * slots), 0.5f);
  const std::span<const float> log_scale = std::span(fourth_).first(static_cast<size_t>(experts));
  const std::span<float> dlog_scale = std::span(fourth_).last(static_cast<size_t>(experts));
  const MutRows weight{slot_weight_.data(), rows, slots}, dweight{weight_gradient_.data(), rows, slots};
  if (shape.family == Family::kScaleSlots) {
    return [=, this](size_t) { ops_->ScaleSlots({log_scale, selection_.expert, weight}); };
  }
  if (shape.family == Family::kScaleSlotsBackward) {
    return [=, this](size_t) { ops_->ScaleSlotsBackward({log_scale, selection_.expert, weight, dweight, dlog_scale}); };
  }
  const ConstRows logits{in_.data(), rows, experts};
  const MutRows dlogits{out_.data(), rows, experts};
  return [=, this](size_t) {
    ops_->SelectBackward({logits, target_.config->gate, &selection_, weight, dweight, dlogits});
  };
}

// With the jobs that ExpertCall has placed.
Profiler::Call Profiler::ExpertBackwardCall(const OperationShape& shape, std::vector<int32_t> layers) {
  const int64_t all = shape.tokens * target_.config->slots, width = target_.config->expert_width;
  const int64_t hidden = target_.config->hidden;
  inner_.assign(static_cast<size_t>(all * width), 0.5f);
  fourth_.assign(static_cast<size_t>(all * width), 0.5f);
  weight_gradient_.resize(static_cast<size_t>(all));
  const ConstRows x{in_.data(), shape.tokens, hidden};
  const MutRows gate{inner_.data(), all, width}, up{fourth_.data(), all, width};
  if (shape.family == Family::kExpertInner || shape.family == Family::kExpertInnerHi) {
    return [=, this](size_t turn) {
      ops_->ExpertInner({x, target_.experts->layer(layers[turn % layers.size()]), &selection_, gate, up});
    };
  }
  const MutRows slot_dx{slot_out_.data(), all, hidden}, dx{out_.data(), shape.tokens, hidden};
  const MutRows dweight{weight_gradient_.data(), shape.tokens, target_.config->slots};
  return [=, this](size_t turn) {
    ops_->ExpertFfnBackward(
        {target_.experts->layer(layers[turn % layers.size()]), &selection_, gate, up, x, slot_dx, dx, dweight});
  };
}

// On moments that stand for those of many steps: values hardly move.
Profiler::Call Profiler::AdamCall(int64_t parameters) {
  const auto n = static_cast<size_t>(parameters);
  adam_.assign(4 * n, 1e-3f);
  const std::span<float> all = adam_;
  kernels::AdamArgs args;
  args.beta1 = 0.15f, args.beta2 = 0.99f, args.rate = 1e-9f, args.epsilon = 1e-8f;
  args.gradient = all.first(n), args.m = all.subspan(n, n), args.v = all.subspan(2 * n, n),
  args.x = all.subspan(3 * n, n);
  return [=, this](size_t) { ops_->Adam({&args, 1}); };
}

// Under a power limit that presses, with half of the rows new at each tick, as in the loop.
Profiler::Call Profiler::AdapterCall(const OperationShape& shape) {
  struct Loop {
    TthaAdapter adapter;
    StepRecord record;
    TthaObserved observed;
  };
  const auto layers = static_cast<int32_t>(shape.matrix.rows), experts = static_cast<int32_t>(shape.matrix.cols);
  TthaOptions options;
  options.shape = {layers, experts, target_.config->slots, static_cast<int32_t>(shape.tokens)};
  auto loop = std::make_shared<Loop>(Loop{TthaAdapter(options), {}, {}});
  Random random(8);
  loop->record.tokens = loop->record.decode_tokens = 8;
  loop->record.layers.resize(static_cast<size_t>(layers));
  for (LayerRecord& layer : loop->record.layers) {
    layer.expert_slots.assign(static_cast<size_t>(experts), 1);
    for (int64_t i = 0; i < (shape.tokens + 1) / 2 * experts; ++i) {
      layer.gate_logits.push_back(static_cast<float>(random.Normal()));
    }
  }
  loop->observed.record = &loop->record;
  loop->observed.machine = {50, 5, 0.001, 0.0005, 10, 0, 40, 0.2, 0};
  loop->observed.limits.reference_tokens_per_s = 40000;
  loop->observed.multipliers.power = 1;
  return [loop](size_t) {
    loop->adapter.Observe(loop->record);
    loop->adapter.UpdateTtha(loop->observed);
  };
}

Profiler::Call Profiler::BackwardCall(const OperationShape& shape) {
  switch (shape.family) {
    case Family::kAdapterTick: return AdapterCall(shape);
    case Family::kAdam: return AdamCall(shape.tokens);
    case Family::kLinearBackward: return LinearBackwardCall(shape);
    case Family::kLowRank:
    case Family::kLowRankBackward: return LowRankCall(shape);
    case Family::kScaleSlots:
    case Family::kScaleSlotsBackward:
    case Family::kSelectBackward: return SlotWeightCall(shape);
    default: return BackwardRowCall(shape);
  }
}

}  // namespace thermoe
