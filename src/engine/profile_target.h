// SPDX-License-Identifier: Apache-2.0
// A model's parts as the profiler needs them.
#pragma once

#include <memory>

#include "control/cost/profiler.h"
#include "thermoe/model.h"

namespace thermoe {

// Keeps nothing alive: `model` must outlive the profiler.
ProfileTarget ProfileTargetOf(const Model& model);

}  // namespace thermoe
