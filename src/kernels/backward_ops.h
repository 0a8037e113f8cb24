// SPDX-License-Identifier: Apache-2.0
// Arguments of the operations that test-time training adds (docs/test-time-training.md): those that apply a session's
// deltas in the forward pass, and input gradients of every forward operation. Part of the contract of kernels/ops.h, whose
// letters and rules hold here too: row-major, contiguous, an output row depends only on its own inputs.
//
// In a backward pass T are the rows of one segment: neighbouring positions of one sequence. "+=" adds to what is there;
// "=" sets. dX is the gradient of the loss with respect to X.
#pragma once

#include <cstdint>
#include <span>

#include "base/views.h"
#include "model/config.h"
#include "model/weights.h"
#include "runtime/kv_layout.h"

namespace thermoe::kernels {

struct Selection;

// --- Deltas in the forward pass. ---

struct AddRowArgs {
  std::span<const float> x;  // [n]
  MutRows out;               // [T, n]: every row += x
};

struct GainArgs {
  std::span<const float> gain;  // [n]
  MutRows x;                    // [T, n]: every row *= 1 + gain
};

// y += (x a^T) b: a low-rank change of a projection. rank <= kMaxRank.
inline constexpr int kMaxRank = 64;
struct LowRankArgs {
  ConstRows x;      // [T, in]
  ConstRows a;      // [rank, in]
  ConstRows b;      // [rank, out]
  MutRows inner;    // [T, rank] = x a^T
  MutRows out;      // [T, out] += inner b
};

struct ScaleSlotsArgs {
  std::span<const float> log_scale;  // [E]
  Rows<const int32_t> expert;        // [T, K], -1: empty
  MutRows weight;                    // [T, K] *= exp(log_scale[expert])
};

// How much rows have changed since they passed before.
struct RowChangeArgs {
  ConstRows x;              // [T, n]
  ConstRows old;            // [T, n]
  std::span<float> change;  // [T] = sum (x - old)^2 / (sum old^2 + 1e-30)
};

// --- Backward. ---

struct LinearBackwardArgs {
  ConstRows dy;         // [T, out]
  WeightMatrix weight;  // [out, in]; nested types by both planes
  MutRows dx;           // [T, in] += dy weight
};

struct RmsNormBackwardArgs {
  ConstRows x;                  // [rows, n] as the forward operation had it
  std::span<const float> gain;  // [n]
  float epsilon = 0;
  ConstRows dy;                 // [rows, n]
  MutRows dx;                   // [rows, n] +=; may alias neither x nor dy
};

struct GainBackwardArgs {
  std::span<const float> gain;  // [n]; empty: zeros, as in the forward pass of a model without this group
  ConstRows x;                  // [T, n] before the gain
  MutRows dy;                   // [T, n] *= 1 + gain: becomes the gradient with respect to x
  std::span<float> dgain;       // [n] += sum over rows of x * dy (dy as it came); empty: not wanted
};

struct SumRowsArgs {
  ConstRows x;           // [T, n]
  std::span<float> out;  // [n] += sum over rows, rows in rising order
};

struct LowRankBackwardArgs {
  ConstRows x, a, b;  // as LowRankArgs
  ConstRows inner;    // [T, rank] = x a^T
  ConstRows dy;       // [T, out]
  MutRows dinner;     // scratch [T, rank] = dy b^T
  MutRows dx;         // [T, in] += dinner a; data null: not wanted
  MutRows da;         // [rank, in] += dinner^T x
  MutRows db;         // [rank, out] += inner^T dy
};

// Rope's own gradient is Rope with the sines negated.

struct ClampBackwardArgs {
  ConstRows x;      // as it was before the clamp
  float limit = 0;
  MutRows dx;       // in place: 0 where |x| > limit
};

struct AttentionBackwardArgs {
  ConstRows q;                  // [T, heads * head_dim] as the forward operation had it
  std::span<const KvRow> rows;  // [T] one sequence, positions rows[0].position + t
  KvLayer cache;                // keys and values of positions 0..rows[T-1].position
  int32_t heads = 0;
  float scale = 0;
  ConstRows out;                // [T, heads * head_dim] the forward result
  ConstRows dout;               // [T, heads * head_dim]
  MutRows dq;                   // [T, heads * head_dim] =
  // Keys and values of earlier positions are constants: gradients of the T positions only.
  MutRows dk, dv;               // [T, kv_heads * head_dim] =
};

// What ExpertFfn had before SwiGLU, where it was not kept (ExpertFfnArgs::keep_gate).
struct ExpertInnerArgs {
  ConstRows x;                            // [T, D]
  std::span<const FfnWeights> experts;    // [E]
  const Selection* selection = nullptr;
  MutRows gate, up;                       // [T * K, F] by token * K + slot = gate x, up x; rows of empty slots stay as they are
};

struct ExpertFfnBackwardArgs {
  std::span<const FfnWeights> experts;    // [E] read by the planes that the selection says
  const Selection* selection = nullptr;   // of these T rows: expert, weight, planes, jobs, order
  // [T * K, F] by token * K + slot, as ExpertInner gives them. Overwritten: scratch afterwards.
  MutRows gate, up;
  ConstRows dout;                         // [T, D] gradient of the weighted sum of the slots
  MutRows slot_dx;                        // scratch [T * K, D]
  MutRows dx;                             // [T, D] += by slot order
  MutRows dweight;                        // [T, K] = of the slots' weights; 0 for empty slots
};

// Gradient of the gate's logits, the choice of experts held fixed (docs/selection.md gives the weights).
struct SelectBackwardArgs {
  ConstRows logits;                // [T, E] as Select had them
  GateOptions options;
  const Selection* selection = nullptr;  // expert [T, K]: the kept slots
  ConstRows weight;                // [T, K] as Select gave them (before ScaleSlots)
  ConstRows dweight;               // [T, K]
  MutRows dlogits;                 // [T, E] =
};

struct ScaleSlotsBackwardArgs {
  std::span<const float> log_scale;  // [E]
  Rows<const int32_t> expert;        // [T, K]
  ConstRows weight;                  // [T, K] before the scale
  MutRows dweight;                   // [T, K] in: of the scaled weights; out: of those before
  std::span<float> dlog_scale;       // [E] +=
};

struct SwiGluBackwardArgs {
  ConstRows dout;     // [T, F]
  MutRows gate, up;   // [T, F] in: before SwiGLU; out: their gradients
};

// out += sigmoid(gate) * x (the shared expert), or out += x where gate is empty.
struct AddBackwardArgs {
  ConstRows x;      // [T, D]
  ConstRows gate;   // [T, 1] or empty
  ConstRows dout;   // [T, D]
  MutRows dx;       // [T, D] = (not called where gate is empty: dx is dout)
  MutRows dgate;    // [T, 1] =
};

// A step of Adam on one tensor. With g = gradient * share, m += (1 - beta1) (g - m) and v += (1 - beta2) (g^2 - v):
//   x -= rate * m / (sqrt(v * square) + floor), floor = epsilon + damping * sqrt(mean of v * square over all n)
struct AdamArgs {
  std::span<const float> gradient;  // [n]
  float share = 1;
  float beta1 = 0, beta2 = 0, rate = 0, square = 1, epsilon = 0, damping = 0;
  std::span<float> m, v, x;         // [n]
};

enum class LossKind : uint8_t {
  kNll,      // -log p[target]
  kEntropy,  // -sum p log p
};

struct LossBackwardArgs {
  LossKind kind = LossKind::kNll;
  std::span<const int32_t> targets;  // [T]; kNll: -1: the row takes no part. kEntropy: -1 likewise, others are ignored
  std::span<const float> scale;      // [T] the row's share of the loss (1 / rows, say)
  MutRows logits;                    // [T, V] in: logits; out: scale * gradient; rows that take no part: zeros
  std::span<float> loss;             // [T] = the row's loss in nats, unscaled; 0 where it takes no part
};

}  // namespace thermoe::kernels
