// SPDX-License-Identifier: Apache-2.0
#include "control/telemetry/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <vector>

#include "control/telemetry_testing.h"

namespace thermoe {
namespace {

// Every field of a snapshot is the same number, so that a torn copy shows.
Snapshot AllOf(double number) {
  Snapshot snapshot;
  snapshot.state = SourceState::kOk;
  snapshot.time_s = number;
  snapshot.temp_c = snapshot.memory_temp_c = snapshot.temp_margin_c = number;
  snapshot.power_w = snapshot.power_instant_w = snapshot.energy_j = number;
  snapshot.utilisation_frac = snapshot.memory_utilisation_frac = number;
  snapshot.clock_mhz = snapshot.memory_clock_mhz = number;
  snapshot.throttle = static_cast<uint32_t>(number);
  snapshot.power_limit_w = snapshot.temp_slowdown_c = snapshot.temp_shutdown_c = number;
  snapshot.memory_temp_limit_c = snapshot.clock_limit_mhz = number;
  return snapshot;
}
bool Whole(const Snapshot& snapshot) {
  const double number = snapshot.time_s;
  return snapshot.state == SourceState::kOk && snapshot.temp_c == number && snapshot.memory_temp_c == number &&
         snapshot.power_w == number && snapshot.power_instant_w == number && snapshot.energy_j == number &&
         snapshot.clock_mhz == number && snapshot.throttle == static_cast<uint32_t>(number) &&
         snapshot.power_limit_w == number && snapshot.memory_temp_limit_c == number && snapshot.clock_limit_mhz == number;
}

class CountingSource : public TelemetrySource {
 public:
  explicit CountingSource(std::function<void()> before = {}) : before_(std::move(before)) {}
  std::string name() const override { return "counting"; }
  Snapshot Read() override {
    if (before_) before_();
    last_working = working_;
    return AllOf(++count_);
  }
  std::vector<SensorReport> Report() override { return {}; }
  void SetWorking(bool working) override { working_ = working; }

  std::atomic<bool> last_working{false};

 private:
  std::function<void()> before_;
  double count_ = 0;
  bool working_ = false;
};

void WaitFor(const std::function<bool()>& condition) {
  for (int i = 0; i < 20'000 && !condition(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  EXPECT_TRUE(condition());
}

TEST(SnapshotBoard, ReadersNeverSeeTornSnapshots) {
  SnapshotBoard board;
  EXPECT_EQ(board.Newest().snapshot.state, SourceState::kLost);
  board.Publish({0, AllOf(0)});
  std::atomic<bool> stop{false};
  std::atomic<int> torn{0}, back{0};
  std::atomic<uint64_t> reads{0};
  std::vector<std::thread> readers;
  for (int i = 0; i < 3; ++i) {
    readers.emplace_back([&] {
      double last = -1;
      while (!stop) {
        const PublishedSnapshot newest = board.Newest();
        if (!Whole(newest.snapshot) || newest.read_s != newest.snapshot.time_s) ++torn;
        if (newest.read_s < last) ++back;
        last = newest.read_s;
        ++reads;
      }
    });
  }
  for (int i = 1; i <= 200'000 || reads < 1000; ++i) board.Publish({static_cast<double>(i), AllOf(i)});
  stop = true;
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(torn, 0);
  EXPECT_EQ(back, 0);
}

TEST(TelemetrySampler, PublishesWhatTheSourceSays) {
  auto source = std::make_unique<CountingSource>();
  CountingSource* const counting = source.get();
  TelemetrySampler sampler(std::move(source), {.period_s = 0.001, .clock = SteadySeconds});
  EXPECT_EQ(sampler.Latest().state, SourceState::kLost);  // none was made
  sampler.Start();
  sampler.Start();
  WaitFor([&] { return sampler.readings() >= 10; });
  const Snapshot first = sampler.Latest();
  EXPECT_TRUE(Whole(first));
  WaitFor([&] { return sampler.Latest().time_s > first.time_s; });
  sampler.SetWorking(true);
  WaitFor([&] { return counting->last_working.load(); });
  sampler.Stop();
  sampler.Stop();
  const uint64_t readings = sampler.readings();
  EXPECT_EQ(sampler.Latest(SteadySeconds() + 0.31).state, SourceState::kLost);
  sampler.Start();  // again
  WaitFor([&] { return sampler.readings() > readings; });
}

TEST(TelemetrySampler, AnOldSnapshotIsLost) {
  VirtualClock clock;
  TelemetrySampler sampler(std::make_unique<CountingSource>(), {.period_s = 60, .clock = clock.clock()});
  sampler.Start();
  WaitFor([&] { return sampler.readings() == 1; });
  EXPECT_TRUE(Whole(sampler.Latest(clock.now_s)));
  EXPECT_TRUE(Whole(sampler.Latest(clock.now_s + 0.299)));
  for (const double now_s : {clock.now_s + 0.301, clock.now_s + 1e9, clock.now_s - 0.301, double{INFINITY}, std::nan("")}) {
    const Snapshot snapshot = sampler.Latest(now_s);
    EXPECT_EQ(snapshot.state, SourceState::kLost) << now_s;
    EXPECT_TRUE(Sane(snapshot));
  }
}  // and the destructor does not wait for the next minute

TEST(TelemetrySampler, AHangingSourceIsLostAndHoldsNoReaderUp) {
  std::atomic<bool> hang{false}, hanging{false};
  TelemetrySampler sampler(std::make_unique<CountingSource>([&] {
                    while (hang) {
                      hanging = true;
                      std::this_thread::sleep_for(std::chrono::milliseconds(1));
                    }
                  }),
                  {.period_s = 0.001, .clock = SteadySeconds});
  sampler.Start();
  WaitFor([&] { return sampler.readings() > 0; });
  hang = true;
  WaitFor([&] { return hanging.load(); });
  EXPECT_EQ(sampler.Latest(SteadySeconds() + 0.31).state, SourceState::kLost);
  WaitFor([&] { return sampler.Latest().state == SourceState::kLost; });
  hang = false;
  WaitFor([&] { return sampler.Latest().state == SourceState::kOk; });
}

TEST(TelemetrySampler, ManyReadersAndWorkers) {
  TelemetrySampler sampler(std::make_unique<CountingSource>(), {.period_s = 1e-5, .clock = SteadySeconds});
  sampler.Start();
  WaitFor([&] { return sampler.readings() > 0; });
  std::atomic<bool> stop{false};
  std::atomic<int> torn{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      while (!stop) {
        const Snapshot snapshot = sampler.Latest();
        if (snapshot.state != SourceState::kLost && !Whole(snapshot)) ++torn;
        sampler.SetWorking(i % 2 == 0);
      }
    });
  }
  WaitFor([&] { return sampler.readings() > 500; });
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(torn, 0);
}

}  // namespace
}  // namespace thermoe
