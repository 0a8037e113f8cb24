// SPDX-License-Identifier: Apache-2.0
// Watts of the whole card while something is replayed, by its energy counter.
#pragma once

#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "control/telemetry/nvml_source.h"
#include "kernels/cuda/device.h"

namespace thermoe::bench {

class PowerWatch {
 public:
  // Of device 0. Says why on stderr where there is no counter.
  PowerWatch() {
    if (const std::string why = Open(); !why.empty()) std::fprintf(stderr, "gpu_matrix: joules are not measured: %s\n", why.c_str());
  }

  bool there() const { return source_ != nullptr; }
  struct Reading {
    double watts = 0, us = 0;  // us: of one call of `replay`; both 0 where the counter did not change
  };
  // replay() queues more work than a reading takes (some 12 ms) and returns once the work that it queued the time before is done, so that the device is never
  // idle. The counter changes every 100 ms; the span lies between two changes, about `seconds` apart.
  template <typename Replay>
  Reading Watch(double seconds, const Replay& replay) const {
    const double start = SteadySeconds();
    std::optional<double> from_j, last_j = source_->Read().energy_j;
    double from = 0;
    int replays = 0;
    for (double now = start; now - start < kMostSeconds;) {
      replay();
      ++replays;
      const std::optional<double> now_j = source_->Read().energy_j;
      now = SteadySeconds();
      if (!now_j || now_j == last_j) continue;
      last_j = now_j;
      if (!from_j && now - start > kSettleSeconds) {
        from_j = now_j, from = now, replays = 0;
      } else if (from_j && now - from >= seconds) {
        return {(*now_j - *from_j) / (now - from), (now - from) * 1e6 / replays};
      }
    }
    return {};
  }

 private:
  static constexpr double kSettleSeconds = 0.3, kMostSeconds = 30;  // power has risen by then (die and memory go on warming)
  // Empty, or why there is no counter.
  std::string Open() {
    const std::vector<cuda::DeviceFacts> devices = cuda::Devices();
    if (devices.empty()) return "there is no CUDA device";
    Result<NvmlLibrary> library = OpenNvml();
    if (!library.ok()) return library.status().message();
    Result<std::unique_ptr<NvmlSource>> source = NvmlSource::Open(std::move(library).value(), devices[0].uuid);
    if (!source.ok()) return source.status().message();
    if (!(*source)->Read().energy_j) return "NVML has no energy counter of the device";
    source_ = std::move(source).value();
    source_->SetWorking(true);
    return "";
  }

  std::unique_ptr<NvmlSource> source_;
};

}  // namespace thermoe::bench
