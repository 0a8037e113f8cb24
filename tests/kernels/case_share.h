// SPDX-License-Identifier: Apache-2.0
// Which of a test's cases a process runs: all, or, with THERMOE_CASES=k/n in the environment (1 <= k <= n), the kth and every nth after it. For checkers under
// which a test takes many times as long: n processes run all cases between them, one runs a sample of every test (scripts/sanitize-cuda). A share's cases have other
// random numbers than the same cases among all.
#pragma once

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>

namespace thermoe {

class CaseShare {
 public:
  CaseShare() {
    const char* text = std::getenv("THERMOE_CASES");
    if (text == nullptr) return;
    char behind = 0;
    if (std::sscanf(text, "%d/%d%c", &first_, &of_, &behind) != 2 || first_ < 1 || first_ > of_) {
      ADD_FAILURE() << "THERMOE_CASES=" << text << ": want k/n, 1 <= k <= n";
      first_ = of_ = 1;
    }
  }
  // Asked once for each case, before anything is made for it.
  bool Takes() { return number_++ % of_ == first_ - 1; }
  bool all() const { return of_ == 1; }
  // How often to launch what is launched `times` times to meet more turns of time: once where a checker follows every access anyway.
  int Times(int times) const { return all() ? times : 1; }

 private:
  int first_ = 1, of_ = 1, number_ = 0;
};

}  // namespace thermoe
