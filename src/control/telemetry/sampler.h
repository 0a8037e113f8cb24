// SPDX-License-Identifier: Apache-2.0
// The thread that reads a source, so that no step waits for a sensor.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>

#include "control/telemetry/clock.h"
#include "control/telemetry/snapshot_board.h"
#include "control/telemetry/source.h"

namespace thermoe {

class TelemetrySampler {
 public:
  struct Options {
    double period_s = 0.025;  // a quarter of what NVML's energy counter takes to change; the source may ask for more
    Clock clock = SteadySeconds;  // what Latest() is compared with; called by two threads
  };
  explicit TelemetrySampler(std::unique_ptr<TelemetrySource> source) : TelemetrySampler(std::move(source), Options()) {}
  TelemetrySampler(std::unique_ptr<TelemetrySource> source, Options options);
  // Waits for a reading in progress, as Stop() does.
  ~TelemetrySampler();
  TelemetrySampler(const TelemetrySampler&) = delete;
  TelemetrySampler& operator=(const TelemetrySampler&) = delete;

  // Both do nothing if it is so already. Not from two threads at once.
  void Start();
  void Stop();

  // The newest snapshot; from any thread, without waiting or allocating. Lost, with every field unknown, if its reading
  // began more than kStaleAfter_s from now or none was made.
  Snapshot Latest(double now_s) const;
  Snapshot Latest() const { return Latest(options_.clock()); }
  // The newest snapshot whatever its age, and when its reading began by the clock; as Latest, from any thread.
  PublishedSnapshot Newest() const { return board_.Newest(); }

  // Passed on to the source before its next reading; from any thread.
  void SetWorking(bool working) { working_.store(working, std::memory_order_relaxed); }
  uint64_t readings() const { return readings_.load(std::memory_order_relaxed); }
  // Only while stopped.
  TelemetrySource& source() { return *source_; }

 private:
  void Run();

  const std::unique_ptr<TelemetrySource> source_;
  const Options options_;
  SnapshotBoard board_;
  std::atomic<bool> working_{false};
  std::atomic<uint64_t> readings_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stop_ = false;  // under mutex_
  std::thread thread_;
};

}  // namespace thermoe
