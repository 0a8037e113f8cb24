// SPDX-License-Identifier: Apache-2.0
// Pacing: idle between steps so that mean power meets a cap exactly, without rights on the device.
//
// A ledger in joules: what was drawn, less what the cap allows for the time that passed. After each step the pause that settles the
// debt is debt / (cap - idle): feed-forward, with each step's own joules, so that a prefill burst is paid for right after it. What a
// counter then shows to have been drawn beyond the prediction is added bit by bit: the slow, integral part.
#pragma once

namespace thermoe {

class Pacer {
 public:
  static constexpr double kMostPause_s = 0.5;  // at a time; the rest of a debt stays due

  // 0: no cap; nothing is owed and nothing is paused. A first cap starts with an empty ledger.
  void SetCap(double cap_w);
  double cap_w() const { return cap_w_; }

  // `drawn_j` over `passed_s`, which ends now: a step with the pause before it. Returns the pause before the next step.
  double AfterStep(double drawn_j, double passed_s, double idle_w);
  // Over a stretch that ended: joules counted less joules predicted. Positive: more was drawn than was thought.
  void Correct(double missing_j);
  // Sensors came back after some time: what they missed is neither owed nor saved.
  void Forgive() { unsettled_j_ = 0; }

  double debt_j() const { return debt_j_; }
  double unsettled_j() const { return unsettled_j_; }

 private:
  double cap_w_ = 0;
  double debt_j_ = 0;
  double unsettled_j_ = 0;  // counted, not yet in the ledger
};

}  // namespace thermoe
