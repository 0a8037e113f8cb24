// SPDX-License-Identifier: Apache-2.0
// Gather: how long steps may take so that requests overlap more. A step reads the weights once for all its rows, so at
// a given rate of requests slower steps mean more rows a step and fewer bytes a token, as far as a latency target
// allows.
//
// That holds where requests come whether or not others are done. Where each follows upon another's end, slower steps
// only make everybody wait: such arrivals are told apart by the decode row that goes missing as they come.
#pragma once

#include <cstdint>

#include "control/router/step_input.h"

namespace thermoe {

class Gather {
 public:
  // `passed_s`: since the step before ended.
  void Observe(const StepInput& step, double passed_s);
  // From a step's start to the next one's; 0: as fast as it goes. `most_rows`: sequences that run at a time.
  double Period(double latency_target_s, int32_t most_rows) const;

 private:
  double demand_tokens_per_s() const;
  double free_frac() const;

  int32_t rows_ = 0, queued_ = 0;  // of the last step
  bool prompts_ = false, fewer_ = false;
  // Of arrivals while others run, and of all steps: how often a row has just ended. No arrival was free at first.
  double upon_end_frac_ = 1, end_frac_ = 0;
  double prompt_rate_ = 0;                    // prompt rows a second, running mean
  double prompt_rows_ = 0, decode_rows_ = 0;  // of the last minute
};

}  // namespace thermoe
