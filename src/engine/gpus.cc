// SPDX-License-Identifier: Apache-2.0
#include "engine/gpus.h"

#include <algorithm>

#include "base/errors.h"
#include "kernels/dispatch.h"

namespace thermoe {

Gpus FindGpus(const std::string& wish) {
  Gpus gpus;
  gpus.wish = kernels::CudaBuilt();
  if (!gpus.wish.ok()) return gpus;
  const std::vector<cuda::DeviceFacts> devices = kernels::CudaDevices();
  for (const cuda::DeviceFacts& device : devices) {
    gpus.all.push_back({device.index, device.name, device.uuid, device.capability / 10.0, device.memory_bytes});
  }
  const Result<cuda::DeviceFacts> chosen = cuda::ChooseDevice(devices, kernels::WishedDevice(wish));
  gpus.wish = chosen.status();
  if (chosen.ok()) gpus.chosen = chosen->index;
  return gpus;
}

bool NamesGpu(const std::string& wish, const std::string& name) { return cuda::IsPartOfName(kernels::WishedDevice(wish), name); }

Result<std::string> SensorsOf(const std::string& wish) {
  if (kernels::WishedDevice(wish).empty()) return std::string("auto");
  const Gpus gpus = FindGpus(wish);
  if (gpus.all.empty()) {
    if (wish.empty()) return std::string("auto");  // the variable is for --backend cuda
    return Unsupported("device \"{}\" (--device): no CUDA device is here (or no driver for it); leave --device out, or name sensors by --telemetry", wish);
  }
  if (!gpus.wish.ok()) return gpus.wish;
  const auto chosen = std::find_if(gpus.all.begin(), gpus.all.end(), [&](const Gpu& gpu) { return gpu.number == gpus.chosen; });
  return "nvml:" + chosen->uuid;
}

}  // namespace thermoe
