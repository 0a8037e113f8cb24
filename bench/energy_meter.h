// SPDX-License-Identifier: Apache-2.0
// Watts of the whole card while something is replayed, by its energy counter.
#pragma once

#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include "control/telemetry/nvml_library.h"
#include "kernels/cuda/device.h"

namespace thermoe::bench {

class EnergyMeter {
 public:
  // Of device 0. Says why on stderr and does not measure where there is no counter.
  EnergyMeter() {
    if (const std::string why = Find(); !why.empty()) std::fprintf(stderr, "gpu_matrix: joules are not measured: %s\n", why.c_str());
  }

  bool there() const { return read_ != nullptr; }
  struct Reading {
    double watts = 0, us = 0;  // us: of one call of `replay`; both 0 where there is no counter
  };
  // replay() queues work of a few milliseconds and returns once the work that it queued the time before is done, so that the device is never idle.
  // The counter changes every 100 ms; the span lies between two changes, about `seconds` apart.
  template <typename Replay>
  Reading Watch(double seconds, const Replay& replay) const {
    if (read_ == nullptr) return {};
    const double start = Now();
    unsigned long long from_mj = 0, before_mj = Counter();
    double from = 0;
    int replays = 0;
    for (;;) {
      replay();
      ++replays;
      const unsigned long long mj = Counter();
      const double now = Now();
      if (now - start > 30) return {};
      if (mj <= before_mj) continue;  // the same, or not read
      before_mj = mj;
      if (from_mj == 0 && now - start > kSettleSeconds) {
        from_mj = mj, from = now, replays = 0;
      } else if (from_mj != 0 && now - from >= seconds) {
        return {static_cast<double>(mj - from_mj) * 1e-3 / (now - from), (now - from) * 1e6 / replays};
      }
    }
  }

 private:
  static constexpr double kSettleSeconds = 0.3;  // power has risen by then (die and memory go on warming)
  // Empty, or why there is no counter.
  std::string Find() {
    Result<NvmlLibrary> library = OpenNvml();
    if (!library.ok()) return library.status().message();
    const std::vector<cuda::DeviceFacts> devices = cuda::Devices();
    const NvmlApi& api = library->api;
    if (devices.empty() || api.init() != NvmlReturn::kSuccess || api.device_count == nullptr || api.uuid == nullptr || api.total_energy_mj == nullptr) {
      return "there is no device, or its NVML has no energy counter";
    }
    unsigned count = 0;
    api.device_count(&count);
    for (unsigned i = 0; i < count; ++i) {
      NvmlDevice device = nullptr;
      char uuid[96] = {};
      if (api.device_by_index(i, &device) != NvmlReturn::kSuccess || api.uuid(device, uuid, sizeof(uuid)) != NvmlReturn::kSuccess) continue;
      if (uuid == devices[0].uuid) read_ = api.total_energy_mj, device_ = device;
    }
    return read_ != nullptr ? "" : "NVML does not know the device";
  }
  static double Now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }
  unsigned long long Counter() const {
    unsigned long long mj = 0;
    return read_(device_, &mj) == NvmlReturn::kSuccess ? mj : 0;
  }

  decltype(NvmlApi::total_energy_mj) read_ = nullptr;
  NvmlDevice device_ = nullptr;
};

}  // namespace thermoe::bench
