// SPDX-License-Identifier: Apache-2.0
#include "engine/gpus.h"

#include "kernels/dispatch.h"

namespace thermoe {

Gpus FindGpus(const std::string& wish) {
  const std::vector<cuda::DeviceFacts> devices = kernels::CudaDevices();
  Gpus gpus;
  for (const cuda::DeviceFacts& device : devices) {
    gpus.all.push_back({device.index, device.name, device.uuid, device.capability / 10.0, device.memory_bytes});
  }
  const Result<cuda::DeviceFacts> chosen = cuda::ChooseDevice(devices, kernels::WishedDevice(wish));
  gpus.wish = chosen.status();
  if (chosen.ok()) gpus.chosen = chosen->index;
  return gpus;
}

}  // namespace thermoe
