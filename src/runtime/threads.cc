// SPDX-License-Identifier: Apache-2.0
#include "runtime/threads.h"

#include <sched.h>

#include <system_error>

#include "base/check.h"

namespace thermoe {
namespace {

// Spins before sleeping: a decode step forks some hundred times within a millisecond or so, so the next fork comes
// within microseconds while a step runs. 2,000 pauses are 20 to 60 us, about what a futex wake-up costs.
constexpr int kSpins = 2000;

inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

int UsableCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    if (const int count = CPU_COUNT(&set); count > 0) return count;
  }
  const unsigned count = std::thread::hardware_concurrency();
  return count > 0 ? static_cast<int>(count) : 1;
}

ThreadPool::ThreadPool(int threads) : shares_(static_cast<size_t>(threads > 0 ? threads : UsableCores())) {
  const auto size = static_cast<int>(shares_.size());
  workers_.reserve(static_cast<size_t>(size - 1));
  try {
    for (int i = 1; i < size; ++i) workers_.emplace_back([this, i] { Work(i); });
  } catch (const std::system_error&) {
    // The machine gives no more threads: the team is as large as it got (size() says so).
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true, std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::TakeTasks(int thread) {
  const int team = size();
  for (int i = 0; i < team; ++i) {
    Share& share = shares_[static_cast<size_t>((thread + i) % team)];
    for (;;) {
      const int64_t task = share.next.fetch_add(1, std::memory_order_relaxed);
      if (task >= share.end) break;
      function_(context_, task, thread);
    }
  }
}

void ThreadPool::Run(int64_t tasks, Function function, void* context) {
  if (workers_.empty() || tasks <= 1) {
    for (int64_t task = 0; task < tasks; ++task) function(context, task, 0);
    return;
  }
  THERMOE_CHECK(working_.load(std::memory_order_relaxed) == 0);
  function_ = function;
  context_ = context;
  const int64_t team = size();
  for (int64_t t = 0; t < team; ++t) {
    Share& share = shares_[static_cast<size_t>(t)];
    share.next.store(tasks * t / team, std::memory_order_relaxed);
    share.end = tasks * (t + 1) / team;
  }
  working_.store(static_cast<int32_t>(workers_.size()), std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  TakeTasks(0);
  for (int spins = 0;;) {
    const int32_t working = working_.load(std::memory_order_acquire);
    if (working == 0) return;
    if (++spins < kSpins) {
      Pause();
    } else {
      working_.wait(working, std::memory_order_acquire);
    }
  }
}

void ThreadPool::Work(int thread) {
  uint32_t seen = 0;
  for (;;) {
    for (int spins = 0; epoch_.load(std::memory_order_acquire) == seen;) {
      if (++spins < kSpins) {
        Pause();
      } else {
        epoch_.wait(seen, std::memory_order_acquire);
      }
    }
    ++seen;
    if (stop_.load(std::memory_order_relaxed)) return;
    TakeTasks(thread);
    if (working_.fetch_sub(1, std::memory_order_acq_rel) == 1) working_.notify_one();
  }
}

}  // namespace thermoe
