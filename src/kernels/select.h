// SPDX-License-Identifier: Apache-2.0
// Selection of experts on the host: scores, slots, weights, planes and dispatch lists, as docs/selection.md says.
// Both host backends call it: it is a few thousand operations a token, and one implementation cannot disagree.
#pragma once

#include "kernels/ops.h"

namespace thermoe::kernels {

// Fills *args.out. E <= kMaxExperts, K <= min(E, kMaxSlots).
void SelectExperts(const SelectArgs& args);

}  // namespace thermoe::kernels
