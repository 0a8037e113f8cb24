// SPDX-License-Identifier: Apache-2.0
// Which of several CUDA devices. Plain C++.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "thermoe/status.h"

namespace thermoe::cuda {

struct DeviceFacts {
  int index = 0;            // CUDA's own number, which CUDA_VISIBLE_DEVICES changes
  std::string name;         // "NVIDIA H100 80GB HBM3"
  std::string uuid;         // "GPU-8c6c0c4e-...", as nvidia-smi -L shows it
  int capability = 0;       // 90: sm_90
  int64_t memory_bytes = 0;
};

// `wish`: a number; a UUID or its beginning; a part of a name that only one has; "": the first. Errors: kUnsupported where there is no
// device, kInvalidArgument for a wish that none or several fit, with those there are.
Result<DeviceFacts> ChooseDevice(std::span<const DeviceFacts> devices, std::string_view wish);

// Whether a wish is a part of a GPU's name, in capitals or not; a number is none.
bool IsPartOfName(std::string_view wish, std::string_view name);
// How an engine on that GPU calls itself.
std::string EngineName(std::string_view device_name);

}  // namespace thermoe::cuda
