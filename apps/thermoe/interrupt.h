// SPDX-License-Identifier: Apache-2.0
// Ctrl-C: the first asks the work to stop at its next step, the second ends the process at once (exit code 130).
#pragma once

#include <pthread.h>

#include "thermoe/status.h"

namespace thermoe {

// Also restores the default SIGPIPE, so that `thermoe ... | head` ends as quietly as any Unix tool even when
// the parent process ignored that signal. On the thread that will wait for input, before there are others.
void InstallSignalHandlers();

// In a handler: whether the signal is that thread's and it has it now; false on that thread itself.
bool HandedOn(pthread_t to, int signal_number);

// What to do before that end, so short that a signal handler may; null: nothing.
void BeforeSecondInterrupt(void (*last)());

bool Interrupted();
// As the first Ctrl-C: a key that asks for the same.
void RequestInterrupt();
// The interactive mode handled it and goes on.
void ClearInterrupt();

// Waits until `fd` can be read (or is at its end); false when Ctrl-C came first, however close.
bool WaitForInput(int fd);

Status InterruptedStatus();

}  // namespace thermoe
