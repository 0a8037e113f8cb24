// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/device.h"

#include "base/errors.h"

namespace thermoe::cuda {
namespace {

std::string UuidText(const cudaUUID_t& uuid) {
  std::string text = "GPU";
  for (int i = 0; i < 16; ++i) {
    text += fmt::format("{}{:02x}", i == 0 || i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", static_cast<unsigned char>(uuid.bytes[i]));
  }
  return text;
}

}  // namespace

std::vector<DeviceFacts> Devices() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();  // forget it: no driver is no error
    return {};
  }
  std::vector<DeviceFacts> devices;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, i) != cudaSuccess) continue;
    DeviceFacts facts;
    facts.index = i;
    facts.name = properties.name;
    facts.uuid = UuidText(properties.uuid);
    facts.capability = 10 * properties.major + properties.minor;
    facts.memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
    devices.push_back(std::move(facts));
  }
  return devices;
}

Result<DeviceMemory> DeviceMemory::Allocate(int64_t bytes, const char* what) {
  void* data = nullptr;
  if (cudaMalloc(&data, static_cast<size_t>(bytes)) != cudaSuccess) {
    cudaGetLastError();
    return ResourceExhausted("the GPU cannot give {} MiB for {}; free some of its memory, or use a smaller --ctx or fewer sequences", bytes >> 20,
                             what);
  }
  DeviceMemory memory;
  memory.data_.reset(static_cast<std::byte*>(data));
  return memory;
}

Result<PinnedMemory> PinnedMemory::Allocate(int64_t bytes) {
  void* data = nullptr;
  if (cudaMallocHost(&data, static_cast<size_t>(bytes)) != cudaSuccess) {
    cudaGetLastError();
    return ResourceExhausted("the system cannot give {} MiB of pinned memory for transfers to the GPU; free some memory", bytes >> 20);
  }
  PinnedMemory memory;
  memory.data_.reset(static_cast<std::byte*>(data));
  return memory;
}

Status CudaStatus(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return Status::Ok();
  return {StatusCode::kInternal, fmt::format("the GPU failed while {}: {} ({}); run again, and look at the driver's log (dmesg) if it stays", what,
                  cudaGetErrorString(error), cudaGetErrorName(error))};
}

}  // namespace thermoe::cuda
