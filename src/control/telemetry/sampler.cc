// SPDX-License-Identifier: Apache-2.0
#include "control/telemetry/sampler.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "control/telemetry/snapshot_fields.h"

namespace thermoe {

TelemetrySampler::TelemetrySampler(std::unique_ptr<TelemetrySource> source, Options options)
    : source_(std::move(source)), options_(std::move(options)) {}

TelemetrySampler::~TelemetrySampler() { Stop(); }

void TelemetrySampler::Start() {
  if (thread_.joinable()) return;
  stop_ = false;
  thread_ = std::thread([this] { Run(); });
}

void TelemetrySampler::Stop() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void TelemetrySampler::Run() {
  using Steady = std::chrono::steady_clock;
  auto due = Steady::now();
  for (;;) {
    const double read_s = options_.clock();
    source_->SetWorking(working_.load(std::memory_order_relaxed));
    board_.Publish({read_s, source_->Read()});
    readings_.fetch_add(1, std::memory_order_relaxed);
    const std::chrono::duration<double> period_s(std::max(options_.period_s, source_->least_period_s()));
    const auto period = std::chrono::duration_cast<Steady::duration>(period_s);
    due = std::max(due + period, Steady::now());  // a slow reading does not make the next ones hurry
    std::unique_lock lock(mutex_);
    if (wake_.wait_until(lock, due, [this] { return stop_; })) return;
  }
}

Snapshot TelemetrySampler::Latest(double now_s) const {
  const PublishedSnapshot newest = board_.Newest();
  // Also for a time before the reading by as much, as after a clock jumped, and for not-a-number.
  if (!(std::fabs(now_s - newest.read_s) <= kStaleAfter_s)) return LostAt(newest.snapshot.time_s);
  return newest.snapshot;
}

}  // namespace thermoe
