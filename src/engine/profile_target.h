// SPDX-License-Identifier: Apache-2.0
// A model's parts as the profiler needs them.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "control/cost/profile_store.h"
#include "control/cost/profiler.h"
#include "thermoe/model.h"

namespace thermoe {

// Keeps nothing alive: `model` must outlive the profiler.
ProfileTarget ProfileTargetOf(const Model& model);
// Whose points are this model's on this machine, for an engine of that description (Engine::Describe).
// `device_name`: of the device that computes, "": the processor.
ProfileKey ProfileKeyOf(const Model& model, const std::string& engine, const std::string& device_name, bool quick);
// The same of a GPU of that name, which need not be here.
ProfileKey GpuProfileKeyOf(const Model& model, const std::string& device_name, bool quick);
// Points of the full profile, or of the quick one where there is no other; none where nothing was measured. Errors:
// ProfileStore's.
Result<std::vector<CostPoint>> LoadProfile(const std::string& path, const Model& model, const std::string& engine, const std::string& device_name);

}  // namespace thermoe
