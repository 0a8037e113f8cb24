// SPDX-License-Identifier: Apache-2.0
// NVML found at run time.
#pragma once

#include <functional>
#include <string>

#include "control/telemetry/nvml_api.h"
#include "thermoe/status.h"

namespace thermoe {

struct NvmlLibrary {
  std::string path;
  NvmlApi api;
};

// Loads `path`, or if empty the file that the environment variable THERMOE_NVML names, else the driver's. The library
// stays loaded until the process ends: drivers may leave threads in it.
// Errors: kNotFound (no such library, or it lacks nvmlInit or the device functions).
Result<NvmlLibrary> OpenNvml(const std::string& path = "");

// Fills the pointers from `resolve`, which answers null for a symbol that is missing.
NvmlApi BindNvml(const std::function<void*(const char* symbol)>& resolve);

// "Not Supported" and the like, by the library's own words where it has them.
std::string NvmlErrorText(const NvmlApi& api, NvmlReturn code);

}  // namespace thermoe
