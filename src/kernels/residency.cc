// SPDX-License-Identifier: Apache-2.0
#include "kernels/residency.h"

#include <chrono>
#include <utility>

namespace thermoe::kernels {
namespace {

class MeasuredCalls final : public MeasuredStep {
 public:
  explicit MeasuredCalls(std::function<void()> calls) : calls_(std::move(calls)) {}
  double Run(int times) override {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < times; ++i) calls_();
    return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count() / times;
  }

 private:
  std::function<void()> calls_;
};

}  // namespace

std::unique_ptr<MeasuredStep> Residency::Measure(std::function<void()> record) const {
  return std::make_unique<MeasuredCalls>(std::move(record));
}

}  // namespace thermoe::kernels
