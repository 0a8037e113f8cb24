// SPDX-License-Identifier: Apache-2.0
// Every operator new of a test program that links count_allocations.cc is counted.
#pragma once

#include <cstdint>

namespace thermoe::testing {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kCountsAllocations = false;  // the sanitizers have an operator new of their own
#else
inline constexpr bool kCountsAllocations = true;
#endif

int64_t Allocations();             // since the program began
void CountThisThread(bool count);  // whether allocations of the calling thread count; they do unless told otherwise

}  // namespace thermoe::testing
