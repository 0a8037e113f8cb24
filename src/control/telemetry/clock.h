// SPDX-License-Identifier: Apache-2.0
// Time as the sources see it: a function, so that tests and the plant run in virtual time.
#pragma once

#include <chrono>
#include <functional>
#include <utility>

namespace thermoe {

// Seconds since some fixed moment.
using Clock = std::function<double()>;

inline double SteadySeconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// A clock that cannot be trusted, made into time that never falls: steps backwards count as no time.
class SourceTime {
 public:
  explicit SourceTime(Clock clock) : clock_(std::move(clock)), last_s_(clock_()) {}

  // Moves to now. False if the clock went backwards (or is not a number): intervals across this moment are worth
  // nothing.
  bool Advance() {
    const double now_s = clock_();
    const double step_s = now_s - last_s_;
    if (!(step_s >= 0) || step_s > kMostStep_s) {  // also catches not-a-number and infinity
      if (now_s == now_s && now_s - now_s == 0) last_s_ = now_s;
      return false;
    }
    last_s_ = now_s;
    now_s_ += step_s;
    return true;
  }
  double now_s() const { return now_s_; }  // since construction

 private:
  static constexpr double kMostStep_s = 3e9;  // a century: no wait, but a broken clock

  Clock clock_;
  double last_s_;
  double now_s_ = 0;
};

}  // namespace thermoe
