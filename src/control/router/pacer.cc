// SPDX-License-Identifier: Apache-2.0
#include "control/router/pacer.h"

#include <algorithm>
#include <cmath>

namespace thermoe {
namespace {

// Bounds as stretches of time at the cap. Credit: what may be drawn above the cap after a quiet stretch; 1 % of the second that the
// cap is a mean over. Debts come in a step's size; beyond two seconds of the cap a model is wrong and paying would stop the machine.
constexpr double kCredit_s = 0.01, kDebt_s = 2;
constexpr double kUnsettledCredit_s = 0.05, kUnsettledDebt_s = 0.5;
constexpr double kSettle = 0.3;  // share of what a counter shows that enters at once: its windows are cut within steps
constexpr double kLeastRoom = 0.02;  // of the cap above idle: a cap at idle power means as slow as kMostPause_s allows

}  // namespace

void Pacer::SetCap(double cap_w) {
  if (!(cap_w > 0)) {
    cap_w_ = debt_j_ = unsettled_j_ = 0;
    return;
  }
  if (cap_w_ <= 0) debt_j_ = unsettled_j_ = 0;
  cap_w_ = cap_w;
}

double Pacer::AfterStep(double drawn_j, double passed_s, double idle_w) {
  if (cap_w_ <= 0 || !(drawn_j >= 0) || !(passed_s >= 0)) return 0;
  debt_j_ = std::clamp(debt_j_ + drawn_j - cap_w_ * passed_s, -kCredit_s * cap_w_, kDebt_s * cap_w_);
  if (debt_j_ <= 0) return 0;
  return std::min(debt_j_ / std::max(cap_w_ - idle_w, kLeastRoom * cap_w_), kMostPause_s);
}

void Pacer::Correct(double missing_j) {
  if (cap_w_ <= 0 || !std::isfinite(missing_j)) return;
  unsettled_j_ = std::clamp(unsettled_j_ + missing_j, -kUnsettledCredit_s * cap_w_, kUnsettledDebt_s * cap_w_);
  const double settle_j = kSettle * unsettled_j_;
  unsettled_j_ -= settle_j;
  debt_j_ = std::clamp(debt_j_ + settle_j, -kCredit_s * cap_w_, kDebt_s * cap_w_);
}

}  // namespace thermoe
