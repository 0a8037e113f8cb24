// SPDX-License-Identifier: Apache-2.0
// A fixed team of threads for fork-join loops. The caller is a member of the team, so one thread means none is started.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <type_traits>
#include <vector>

namespace thermoe {

class ThreadPool {
 public:
  // threads <= 0: one per core that this process may use. The team is smaller where the machine gives fewer threads.
  explicit ThreadPool(int threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(task, thread) for every task in [0, tasks), each exactly once, on some thread of the team in
  // [0, size()); returns when all are done. A thread takes tasks in rising order from where its share begins. Not reentrant. Does not allocate.
  template <typename Body>
  void ParallelFor(int64_t tasks, Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    Run(tasks, [](void* context, int64_t task, int thread) { (*static_cast<Plain*>(context))(task, thread); },
        const_cast<void*>(static_cast<const void*>(&body)));
  }

 private:
  using Function = void (*)(void* context, int64_t task, int thread);

  void Run(int64_t tasks, Function function, void* context);
  void Work(int thread);
  void TakeTasks(int thread);

  // Neighbouring tasks that one thread works through, so that it streams through neighbouring memory; others help it when they have
  // done their own.
  struct alignas(64) Share {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  std::vector<std::thread> workers_;
  std::vector<Share> shares_;  // of the threads that were asked for; those that did not start have empty ones
  Function function_ = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<uint32_t> epoch_{0};   // rises once per Run; workers wait for it
  alignas(64) std::atomic<int32_t> working_{0};  // workers that have not finished this epoch
  std::atomic<bool> stop_{false};
};

// Cores that this process may use (its affinity mask).
int UsableCores();

}  // namespace thermoe
