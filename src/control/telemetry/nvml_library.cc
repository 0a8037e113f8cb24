// SPDX-License-Identifier: Apache-2.0
#include "control/telemetry/nvml_library.h"

#include <dlfcn.h>

#include <cstdlib>
#include <initializer_list>

#include "base/errors.h"

namespace thermoe {
namespace {

using Resolve = std::function<void*(const char* symbol)>;

// The first of `symbols` that exists: newer names stand before older ones.
template <typename Function>
void Bind(const Resolve& resolve, Function* function, std::initializer_list<const char*> symbols) {
  for (const char* symbol : symbols) {
    *function = reinterpret_cast<Function>(resolve(symbol));
    if (*function != nullptr) return;
  }
}

}  // namespace

NvmlApi BindNvml(const Resolve& resolve) {
  NvmlApi api;
  Bind(resolve, &api.init, {"nvmlInit_v2", "nvmlInit"});
  Bind(resolve, &api.shutdown, {"nvmlShutdown"});
  Bind(resolve, &api.error_string, {"nvmlErrorString"});
  Bind(resolve, &api.driver_version, {"nvmlSystemGetDriverVersion"});
  Bind(resolve, &api.device_count, {"nvmlDeviceGetCount_v2", "nvmlDeviceGetCount"});
  Bind(resolve, &api.device_by_index, {"nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetHandleByIndex"});
  Bind(resolve, &api.name, {"nvmlDeviceGetName"});
  Bind(resolve, &api.uuid, {"nvmlDeviceGetUUID"});
  Bind(resolve, &api.total_energy_mj, {"nvmlDeviceGetTotalEnergyConsumption"});
  Bind(resolve, &api.power_average_mw, {"nvmlDeviceGetPowerUsage"});
  Bind(resolve, &api.power_limit_mw, {"nvmlDeviceGetEnforcedPowerLimit"});
  Bind(resolve, &api.field_values, {"nvmlDeviceGetFieldValues"});
  Bind(resolve, &api.temperature_c, {"nvmlDeviceGetTemperature"});
  Bind(resolve, &api.temperature_threshold_c, {"nvmlDeviceGetTemperatureThreshold"});
  Bind(resolve, &api.margin_temperature, {"nvmlDeviceGetMarginTemperature"});
  Bind(resolve, &api.utilization, {"nvmlDeviceGetUtilizationRates"});
  Bind(resolve, &api.clock_mhz, {"nvmlDeviceGetClockInfo"});
  Bind(resolve, &api.max_clock_mhz, {"nvmlDeviceGetMaxClockInfo"});
  Bind(resolve, &api.clock_reasons,
       {"nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"});
  return api;
}

Result<NvmlLibrary> OpenNvml(const std::string& path) {
  const char* from_environment = std::getenv("THERMOE_NVML");
  const std::string chosen = !path.empty() ? path : from_environment != nullptr ? from_environment : "";
  void* handle = nullptr;
  std::string loaded = chosen;
  if (!chosen.empty()) {
    handle = dlopen(chosen.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
      const char* reason = dlerror();
      return NotFound("{}: cannot be loaded ({}); give THERMOE_NVML the path of a libnvidia-ml.so.1", chosen,
                      reason != nullptr ? reason : "no reason given");
    }
  } else {
    for (const char* name : {"libnvidia-ml.so.1", "libnvidia-ml.so"}) {
      loaded = name;
      handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
      if (handle != nullptr) break;
    }
    if (handle == nullptr) {
      return NotFound(
          "libnvidia-ml.so.1 was not found; install the NVIDIA driver, or in a container give it the GPU "
          "(--gpus all)");
    }
  }
  NvmlLibrary library{loaded, BindNvml([handle](const char* symbol) { return dlsym(handle, symbol); })};
  if (library.api.init == nullptr || library.api.device_by_index == nullptr) {
    return NotFound("{}: has no {}; it is not NVIDIA's management library, install the driver again", loaded,
                    library.api.init == nullptr ? "nvmlInit_v2" : "nvmlDeviceGetHandleByIndex_v2");
  }
  return library;
}

std::string NvmlErrorText(const NvmlApi& api, NvmlReturn code) {
  const char* text = api.error_string != nullptr ? api.error_string(code) : nullptr;
  if (text != nullptr && *text != '\0') return text;
  return fmt::format("NVML error {}", static_cast<int>(code));
}

}  // namespace thermoe
