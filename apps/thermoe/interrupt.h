// SPDX-License-Identifier: Apache-2.0
// Ctrl-C: the first asks the work to stop at its next step, the second ends the process at once (exit code 130).
#pragma once

#include "thermoe/status.h"

namespace thermoe {

// Also restores the default SIGPIPE, so that `thermoe ... | head` ends as quietly as any Unix tool even when
// the parent process ignored that signal.
void InstallSignalHandlers();

bool Interrupted();
// The interactive mode handled it and goes on.
void ClearInterrupt();

Status InterruptedStatus();

}  // namespace thermoe
