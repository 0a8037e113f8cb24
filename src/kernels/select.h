// SPDX-License-Identifier: Apache-2.0
// Selection of experts on the host: scores, slots, weights, planes and dispatch lists, as docs/selection.md says.
// Both host backends call it: it is a few thousand operations a token, and one implementation cannot disagree.
#pragma once

#include "kernels/ops.h"

namespace thermoe::kernels {

// Fills *args.out. E <= kMaxExperts, K <= min(E, kMaxSlots).
void SelectExperts(const SelectArgs& args);

// Fills jobs, job_count and order from expert and planes (all their rows); touches no record.
void DispatchSelection(int64_t experts, Selection* selection);

// Fills rows [first, first + rows) of args.dlogits.
void SelectExpertsBackward(const SelectBackwardArgs& args, int64_t first, int64_t rows);

}  // namespace thermoe::kernels
