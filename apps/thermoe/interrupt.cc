// SPDX-License-Identifier: Apache-2.0
#include "interrupt.h"

#include <signal.h>
#include <unistd.h>

namespace thermoe {
namespace {

volatile sig_atomic_t g_interrupts = 0;

void OnInterrupt(int) {
  g_interrupts = g_interrupts + 1;
  if (g_interrupts >= 2) _exit(130);
}

}  // namespace

void InstallSignalHandlers() {
  struct sigaction action {};
  action.sa_handler = OnInterrupt;
  sigemptyset(&action.sa_mask);
  action.sa_flags = 0;  // no SA_RESTART: a read of the keyboard returns, so that the interactive mode can leave
  sigaction(SIGINT, &action, nullptr);
  signal(SIGPIPE, SIG_DFL);
}

bool Interrupted() { return g_interrupts > 0; }
void ClearInterrupt() { g_interrupts = 0; }
Status InterruptedStatus() { return {StatusCode::kCancelled, "interrupted"}; }

}  // namespace thermoe
