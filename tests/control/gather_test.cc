// SPDX-License-Identifier: Apache-2.0
// Steps are stretched where requests come of themselves and overlap, and nowhere else.
#include "control/router/gather.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/random.h"

namespace thermoe {
namespace {

constexpr int kMost = 16;
constexpr double kTarget_s = 0.02;

// Requests of 100 prompt rows and some 100 generated tokens, steps of 1 ms, and what Gather asks for between them.
class Server {
 public:
  // Arrivals a second; 0: `users` who each ask again as soon as they are answered.
  Server(double rate, int users) : rate_(rate), users_(users) {
    for (int i = 0; i < users; ++i) waiting_.push_back(Length());
    next_s_ = rate > 0 ? Wait() : 1e9;
  }

  void Run(double seconds) {
    const double end_s = now_s_ + seconds;
    rows_ = steps_ = 0;
    while (now_s_ < end_s) Step();
  }
  double mean_rows() const { return rows_ / std::max(1.0, steps_); }
  double period_s() const { return gather_.Period(kTarget_s, kMost); }
  int queued() const { return static_cast<int>(waiting_.size()); }

 private:
  int Length() { return 50 + static_cast<int>(random_.Below(100)); }
  double Wait() { return -std::log(1 - random_.Uniform()) / rate_; }

  void Step() {
    while (next_s_ <= now_s_) waiting_.push_back(Length()), next_s_ += Wait();
    if (running_.empty() && waiting_.empty()) now_s_ = next_s_;
    while (next_s_ <= now_s_) waiting_.push_back(Length()), next_s_ += Wait();
    StepInput step;
    step.start_s = now_s_;
    step.decode_tokens = static_cast<int32_t>(running_.size());
    for (; !waiting_.empty() && running_.size() < kMost; waiting_.erase(waiting_.begin())) {
      running_.push_back(waiting_.front() + 1);
      step.prefill_tokens += 100;
    }
    step.queued = queued();
    now_s_ = step.end_s = now_s_ + 0.001;
    for (int& left : running_) --left;
    const auto ended = static_cast<int>(std::erase(running_, 0));
    for (int i = 0; users_ > 0 && i < ended; ++i) waiting_.push_back(Length());
    gather_.Observe(step, now_s_ - last_s_);
    last_s_ = now_s_;
    if (step.decode_tokens > 0) rows_ += step.decode_tokens, ++steps_;
    now_s_ += std::max(0.0, period_s() - 0.001);
  }

  double rate_;
  int users_;
  Random random_{7};
  Gather gather_;
  std::vector<int> waiting_, running_;
  double now_s_ = 0, last_s_ = 0, next_s_ = 0, rows_ = 0, steps_ = 0;
};

TEST(Gather, StepsWaitForRequestsThatOverlap) {
  Server server(6, 0);
  server.Run(20);
  server.Run(20);
  EXPECT_GT(server.mean_rows(), 6);  // at full speed 0.6 of the time one
  EXPECT_LE(server.period_s(), 0.8 * kTarget_s);
}

TEST(Gather, AHighRateIsNotHeldBack) {
  for (const double rate : {30.0, 60.0, 100.0}) {
    Server server(rate, 0);
    server.Run(30);
    server.Run(30);
    EXPECT_LE(server.queued(), kMost) << rate;
    EXPECT_GT(server.mean_rows(), 7) << rate;
  }
}

TEST(Gather, NobodyWaitsWhereEachAsksAgainWhenAnswered) {
  for (const int users : {1, 2, 5, 16, 30}) {
    Server server(0, users);
    server.Run(20);
    EXPECT_EQ(server.period_s(), 0) << users;
  }
}

TEST(Gather, NothingWithoutATargetOrRoom) {
  Gather gather;
  EXPECT_EQ(gather.Period(kTarget_s, kMost), 0);  // nothing was seen
  Random random(3);
  StepInput step;
  for (int i = 0; i < 2000; ++i) {  // prompts at every fifth step, and never one row fewer
    step.start_s = i * 0.01, step.end_s = step.start_s + 0.001;
    step.prefill_tokens = i % 5 == 0 ? 64 : 0;
    step.decode_tokens = 4;
    gather.Observe(step, 0.01);
  }
  EXPECT_GT(gather.Period(kTarget_s, kMost), 0);
  EXPECT_EQ(gather.Period(0, kMost), 0);
  EXPECT_EQ(gather.Period(kTarget_s, 1), 0);
  EXPECT_EQ(gather.Period(kTarget_s, 4), 0);
  step.queued = 1;
  gather.Observe(step, 0.01);
  EXPECT_EQ(gather.Period(kTarget_s, kMost), 0);
}

}  // namespace
}  // namespace thermoe
