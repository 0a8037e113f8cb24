// SPDX-License-Identifier: Apache-2.0
// One CUDA device: its memory, its stream, and the first error it met.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/choose_device.h"
#include "thermoe/status.h"

namespace thermoe::cuda {

// Every device that the driver shows; empty where there is no driver or no device.
std::vector<DeviceFacts> Devices();

// Of `count` values.
template <typename T>
constexpr int64_t Bytes(int64_t count) { return count * static_cast<int64_t>(sizeof(T)); }

// Memory of the device, and pinned memory of the host.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  static Result<DeviceMemory> Allocate(int64_t bytes, const char* what);
  std::byte* data() const { return data_.get(); }
  template <typename T>
  T* as() const { return reinterpret_cast<T*>(data_.get()); }

 private:
  struct Free {
    void operator()(std::byte* p) const { cudaFree(p); }
  };
  std::unique_ptr<std::byte, Free> data_;
};

class PinnedMemory {
 public:
  PinnedMemory() = default;
  static Result<PinnedMemory> Allocate(int64_t bytes);
  std::byte* data() const { return data_.get(); }
  template <typename T>
  T* as() const { return reinterpret_cast<T*>(data_.get()); }

 private:
  struct Free {
    void operator()(std::byte* p) const { cudaFreeHost(p); }
  };
  std::unique_ptr<std::byte, Free> data_;
};

// kInternal with what was being done and CUDA's own words.
Status CudaStatus(cudaError_t error, const char* what);

}  // namespace thermoe::cuda
