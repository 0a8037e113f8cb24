// SPDX-License-Identifier: Apache-2.0
#include "runtime/threads.h"

#include <gtest/gtest.h>

#include <atomic>
#include <vector>

namespace thermoe {
namespace {

TEST(ThreadPool, RunsEveryTaskOnceForAnyTeamSize) {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.size(), threads);
    for (const int64_t tasks : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<size_t>(tasks));
      pool.ParallelFor(tasks, [&](int64_t task, int thread) {
        ASSERT_GE(thread, 0);
        ASSERT_LT(thread, threads);
        runs[static_cast<size_t>(task)].fetch_add(1);
      });
      for (const auto& count : runs) EXPECT_EQ(count.load(), 1);
    }
  }
}

TEST(ThreadPool, ManyShortForksKeepTheirOrder) {
  ThreadPool pool(4);
  int64_t sum = 0;  // written between forks only
  std::atomic<int64_t> part{0};
  for (int i = 0; i < 20000; ++i) {
    part = 0;
    pool.ParallelFor(5, [&](int64_t task, int) { part.fetch_add(task, std::memory_order_relaxed); });
    sum += part.load();
  }
  EXPECT_EQ(sum, 20000 * 10);
}

TEST(ThreadPool, ZeroMeansTheCoresOfThisProcess) { EXPECT_EQ(ThreadPool(0).size(), UsableCores()); }

}  // namespace
}  // namespace thermoe
