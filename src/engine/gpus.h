// SPDX-License-Identifier: Apache-2.0
// The GPUs that an engine with the cuda backend could use.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "thermoe/status.h"

namespace thermoe {

struct Gpu {
  int number = 0;           // EngineOptions::device may name it by this, ...
  std::string name;         // "NVIDIA H100 80GB HBM3"
  std::string uuid;         // ... by this or its beginning, or by a part of its name
  double capability = 0;    // 9.0
  int64_t memory_bytes = 0;
};

struct Gpus {
  std::vector<Gpu> all;  // none where the build has no CUDA backend or the machine no device
  Status wish;           // why the wish names none of them
  int chosen = -1;       // number of the one that would be used
};
// `wish`: as EngineOptions::device.
Gpus FindGpus(const std::string& wish);
// Whether that, or THERMOE_DEVICE where it is "", is a part of a GPU's name, or nothing: of a GPU that need not be here. A number is none.
bool NamesGpu(const std::string& wish, const std::string& name);

// The telemetry source that shows the GPU named by `wish` or else by THERMOE_DEVICE; "auto" where neither names one. Errors: those of Gpus::wish,
// kUnsupported where `wish` names one and there is none.
Result<std::string> SensorsOf(const std::string& wish);

}  // namespace thermoe
