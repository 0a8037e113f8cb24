// SPDX-License-Identifier: Apache-2.0
#include "bandwidth.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

namespace thermoe {
namespace {

// Beyond the last-level cache of machines with up to 256 MiB of it.
constexpr size_t kBufferBytes = size_t{512} << 20;
constexpr int kPasses = 5;

// Independent sums keep enough loads in flight that the additions do not wait for each other.
uint64_t Sum(const uint64_t* data, size_t count) {
  constexpr size_t kSums = 8;
  uint64_t sums[kSums] = {};
  for (size_t i = 0; i + kSums <= count; i += kSums) {
    for (size_t j = 0; j < kSums; ++j) sums[j] += data[i + j];
  }
  uint64_t total = 0;
  for (const uint64_t sum : sums) total += sum;
  return total;
}

}  // namespace

int UsableThreads() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

double MeasureReadGbps(int threads) {
  const size_t words = kBufferBytes / sizeof(uint64_t);
  const size_t part = words / static_cast<size_t>(threads);
  const std::unique_ptr<uint64_t[]> buffer(new uint64_t[words]);
  std::vector<uint64_t> sums(static_cast<size_t>(threads));
  double best_s = 0;
  // Pass 0 writes: each thread touches its own pages first, so they lie near it.
  for (int pass = 0; pass <= kPasses; ++pass) {
    const auto start = std::chrono::steady_clock::now();
    std::vector<std::thread> team;
    for (size_t t = 0; t < static_cast<size_t>(threads); ++t) {
      team.emplace_back([&, t] {
        uint64_t* mine = buffer.get() + t * part;
        if (pass == 0) std::fill(mine, mine + part, t + 1);
        sums[t] += Sum(mine, part);
      });
    }
    for (std::thread& thread : team) thread.join();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    if (pass > 0 && (best_s == 0 || seconds.count() < best_s)) best_s = seconds.count();
  }
  volatile uint64_t used = 0;  // or the sums could be optimised away
  for (const uint64_t sum : sums) used = used + sum;
  return static_cast<double>(part * static_cast<size_t>(threads) * sizeof(uint64_t)) / best_s / 1e9;
}

}  // namespace thermoe
