// SPDX-License-Identifier: Apache-2.0
#include "interrupt.h"

#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>

namespace thermoe {
namespace {

std::atomic<int> g_interrupts = 0;
std::atomic<void (*)()> g_last = nullptr;
static_assert(std::atomic<int>::is_always_lock_free && std::atomic<void (*)()>::is_always_lock_free);  // a handler's
pthread_t g_waits;  // the thread that installed the handlers

void OnInterrupt(int) {
  // While the one that waits blocks the signal another thread may get it, which would wake nobody: it is handed on.
  if (HandedOn(g_waits, SIGINT)) return;
  if (++g_interrupts < 2) return;
  if (void (*last)() = g_last; last != nullptr) last();
  _exit(130);
}

}  // namespace

void InstallSignalHandlers() {
  g_waits = pthread_self();
  struct sigaction action {};
  action.sa_handler = OnInterrupt;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  sigaction(SIGINT, &action, nullptr);
  signal(SIGPIPE, SIG_DFL);
}

bool HandedOn(pthread_t to, int signal_number) {
  return pthread_equal(pthread_self(), to) == 0 && pthread_kill(to, signal_number) == 0;
}
void BeforeSecondInterrupt(void (*last)()) { g_last = last; }
bool Interrupted() { return g_interrupts > 0; }
void RequestInterrupt() {
  int none = 0;
  g_interrupts.compare_exchange_strong(none, 1);
}
void ClearInterrupt() { g_interrupts = 0; }
bool WaitForInput(int fd) {
  // With the signal blocked up to ppoll, none can slip in between the question and the wait.
  sigset_t interrupt, before;
  sigemptyset(&interrupt);
  sigaddset(&interrupt, SIGINT);
  sigprocmask(SIG_BLOCK, &interrupt, &before);
  pollfd input{fd, POLLIN, 0};
  while (!Interrupted() && ppoll(&input, 1, nullptr, &before) <= 0) {
  }
  sigprocmask(SIG_SETMASK, &before, nullptr);
  return !Interrupted();
}

Status InterruptedStatus() { return {StatusCode::kCancelled, "interrupted"}; }

}  // namespace thermoe
