// SPDX-License-Identifier: Apache-2.0
// Joules on a real card, where there is one that counts them: what requests and idleness are given is what the card's
// own counter says.
#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <optional>
#include <thread>
#include <vector>

#include "control/telemetry/find_sources.h"
#include "kernels/dispatch.h"
#include "runtime/threads.h"
#include "support/fixtures.h"

namespace thermoe::testing {
namespace {

using Clock = std::chrono::steady_clock;
double Since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Requests side by side, round after round without a pause; the joules that they were given once the counter has moved
// past the last.
double Serve(Engine* engine, double seconds) {
  constexpr int kTogether = 8;
  std::vector<RequestId> ids;
  std::vector<Event> events;
  for (const Clock::time_point start = Clock::now(); Since(start) < seconds;) {
    for (int i = 0; i < kTogether; ++i) {
      Request request;
      for (int t = 0; t < 30; ++t) request.prompt.push_back(3 + (t * 7919 + i * 104729) % 8000);
      request.max_new_tokens = 150 + 5 * i;
      request.ignore_end = true;
      ids.push_back(engine->Submit(request).value());
    }
    while (*engine->Step(&events)) {
    }
  }
  engine->SettleEnergy(0.5);
  double joules = 0;
  for (const RequestId id : ids) {
    const RequestEnergy energy = engine->TakeResult(id)->energy;
    EXPECT_EQ(energy.source, EnergySource::kCounter);
    EXPECT_GT(energy.prefill_j, 0);
    EXPECT_GT(energy.decode_j, energy.prefill_j);
    joules += energy.total_j();
  }
  return joules;
}

TEST(CudaEnergy, RequestsAndIdlenessAreWhatTheCardCounted) {
  ThreadPool threads(1);
  if (const auto ops = kernels::MakeCudaOps(&threads); !ops.ok()) GTEST_SKIP() << ops.status().message();
  EngineOptions options;
  options.backend = "cuda";
  options.telemetry = "auto";
  options.max_sequences = 8;
  const auto engine = MakeEngine(LoadForDevice(EmberPath()), options);
  ASSERT_NE(engine, nullptr);
  const std::string& sensors = engine->telemetry().name;  // "nvml:0 NVIDIA H100": of the card that computes
  if (!sensors.starts_with("nvml:")) GTEST_SKIP() << "no NVML";
  Result<std::unique_ptr<TelemetrySource>> beside = FindSource(sensors.substr(0, sensors.find(' ')));
  if (!beside.ok() || !(*beside)->Read().energy_j) GTEST_SKIP() << "no card that counts its joules";
  ASSERT_TRUE(engine->SetTelemetry("auto").ok());  // from zero
  const Clock::time_point start = Clock::now();
  const double first_j = *(*beside)->Read().energy_j;
  double requests_j = Serve(engine.get(), 3);
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  requests_j += Serve(engine.get(), 3);
  const EnergyTotals totals = engine->energy();
  const std::optional<double> last_j = (*beside)->Read().energy_j;
  const double elapsed_s = Since(start);
  ASSERT_TRUE(last_j);
  const double read_j = *last_j - first_j;
  std::printf(
      "[          ] %.2f s: requests %.1f J, idle with none %.1f, together %.1f; counted %.1f, beside the engine "
      "%.1f\n",
      elapsed_s, requests_j, totals.unassigned_idle_j, requests_j + totals.unassigned_idle_j, totals.counted_j, read_j);
  EXPECT_EQ(totals.source, EnergySource::kCounter);
  // Six seconds of work, half a second of none and what the counter is waited for: a card with nothing to do draws no
  // more than one that works.
  EXPECT_GT(requests_j, 0.7 * read_j);
  EXPECT_GT(totals.unassigned_idle_j, 0.01 * read_j);
  EXPECT_NEAR(requests_j + totals.unassigned_idle_j, totals.total_j(), 1e-3 * read_j);
  EXPECT_NEAR(totals.total_j(), totals.counted_j, 0.02 * read_j);
  EXPECT_NEAR(totals.counted_j, read_j,
              0.2 * read_j / elapsed_s);  // a move of the counter at either end, some 100 ms apart
}

}  // namespace
}  // namespace thermoe::testing
