// SPDX-License-Identifier: Apache-2.0
// How fast this machine reads memory: the roof over decode.
#pragma once

namespace thermoe {

// Cores that this process may use.
int UsableThreads();
// Best of several passes of `threads` threads that each sum their part of a buffer of 512 MiB, GB/s (1e9 bytes).
double MeasureReadGbps(int threads);

}  // namespace thermoe
