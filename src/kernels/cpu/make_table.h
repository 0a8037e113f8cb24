// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cpu/attention_tile.h"
#include "kernels/cpu/dot.h"
#include "kernels/cpu/int_dot.h"
#include "kernels/cpu/int_transposed.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/rows_backward.h"
#include "kernels/cpu/transposed.h"

namespace thermoe::kernels::cpu {

template <class Isa, class Int>
constexpr KernelTable MakeTable() {
  KernelTable table;
  table.name = Isa::kName;
  table.dot = Dot<Isa>;
  table.int_dot = IntDot<Isa, Int>;
  table.quantise_row = QuantiseRow<Int>;
  table.rms_norm = RmsNormRow<Isa>;
  table.swiglu = SwiGluRow<Isa>;
  table.add_scaled = AddScaledRow<Isa>;
  table.add_weighted = AddWeightedRows<Isa>;
  table.rope = RopeRow<Isa>;
  table.attention_tile = AttentionTile<Isa>;
  table.add_product = AddProduct<Isa>;
  table.transposed = Transposed<Isa>;
  table.int_transposed = IntTransposed<Isa, Int>;
  table.quantise_words = QuantiseWords<Isa, Int>;
  table.rms_norm_backward = RmsNormBackwardRow<Isa>;
  table.swiglu_backward = SwiGluBackwardRow<Isa>;
  table.loss_backward = LossBackwardRow<Isa>;
  table.softmax_backward = SoftmaxBackwardRow<Isa>;
  table.adam_moments = AdamMoments<Isa>;
  table.adam_values = AdamValues<Isa>;
  return table;
}

}  // namespace thermoe::kernels::cpu
