// SPDX-License-Identifier: Apache-2.0
// What one step computes: rows of several sequences side by side.
#pragma once

#include <cstdint>
#include <vector>

#include "forward/deltas.h"
#include "kernels/ops.h"
#include "runtime/kv_cache.h"

namespace thermoe {

class Recall;

// One token at one position of one sequence.
struct BatchRow {
  int32_t token = 0;
  const KvSequence* sequence = nullptr;  // its blocks cover `position`
  int32_t position = 0;
  kernels::RowKind kind = kernels::RowKind::kPrefill;
  bool wants_logits = false;
  const Deltas* deltas = nullptr;  // of the row's session; null: the base model
  int32_t target = -1;             // the next token, where the row is learnt from; -1: not
  int32_t asked = -1;              // the token whose log-probability the sink wants; -1: none
  Recall* recall = nullptr;        // of the row's session; null: all experts are computed
  int32_t passed = -1;             // position at which `recall` knows the row from an earlier pass; -1: it passes for the first time
};

struct Batch {
  std::vector<BatchRow> rows;  // [T]
};

}  // namespace thermoe
