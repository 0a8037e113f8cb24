// SPDX-License-Identifier: Apache-2.0
// Programmer errors: a broken precondition inside the library ends the process with file and line.
// What callers, files or the machine can cause is a Status instead.
#pragma once

#include <cstdio>
#include <cstdlib>

#define THERMOE_CHECK(condition)                                                              \
  ((condition) ? (void)0                                                                      \
               : (std::fprintf(stderr, "%s:%d: check failed: %s\n", __FILE__, __LINE__, #condition), \
                  std::abort()))
