// SPDX-License-Identifier: Apache-2.0
// Ctrl-C that comes just as the program turns to its input, in a process of several threads.
#include "interrupt.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <thread>

namespace thermoe {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kRounds = 100000;
constexpr int kOver = kRounds + 1;
constexpr auto kMost = std::chrono::seconds(10);  // with less than two cores free little is tried
constexpr int kSpread_ns = 3000;  // from the announcement past the last instruction before the wait

void SpinUntil(Clock::time_point end) {
  while (Clock::now() < end) {
  }
}

// Interrupts a wait for input that never comes, up to kRounds times, each a little later after it was announced; whether
// every one ended its wait. A process's own: it installs signal handlers.
bool EveryInterruptEndsItsWait() {
  InstallSignalHandlers();
  int never[2];
  if (pipe(never) != 0) return false;
  std::atomic<int> announced = 0, ended = 0;
  std::thread other([&] {
    for (int round = 1;; ++round) {
      while (announced < round) {
      }
      if (announced == kOver) return;
      SpinUntil(Clock::now() + std::chrono::nanoseconds(37 * round % kSpread_ns));
      kill(getpid(), SIGINT);
      for (const Clock::time_point end = Clock::now() + kMost; ended < round;) {
        if (Clock::now() > end) _exit(1);
      }
    }
  });
  const Clock::time_point end = Clock::now() + kMost;
  for (int round = 1; round <= kRounds && Clock::now() < end; ++round) {
    announced = round;
    if (WaitForInput(never[0])) _exit(2);
    ClearInterrupt();
    ended = round;
  }
  announced = kOver;
  other.join();
  return true;
}

TEST(InterruptDeathTest, EndsTheWaitForInputHoweverClose) {
  EXPECT_EXIT(_exit(EveryInterruptEndsItsWait() ? 0 : 3), ::testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace thermoe
