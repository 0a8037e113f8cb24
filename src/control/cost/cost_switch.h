// SPDX-License-Identifier: Apache-2.0
// Where another kernel takes over: a backend may do launches of experts of more than so many slots another way, which is
// faster at once than the slowest of what came before.
#pragma once

#include <vector>

#include "control/cost/cost_table.h"

namespace thermoe {

// Logarithms of slots, rising. A kernel's latency never falls where a launch grows; where most of the falls that the points
// have are between smaller and larger launches than these, another kernel begins. `tables`: of experts (x: experts, y: slots
// of each) that the same kernels do.
std::vector<double> SwitchesOf(const std::vector<const CostTable*>& tables);

// One table for each kernel.
std::vector<CostTable> CutAt(const std::vector<double>& switches, const CostTable& table);

}  // namespace thermoe
