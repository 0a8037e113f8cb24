// SPDX-License-Identifier: Apache-2.0
#include "kernels/residency.h"

#include <chrono>
#include <cmath>
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

void Residency::Angles(const AnglesArgs& args) const {
  const auto half = static_cast<int64_t>(args.inverse_frequency.size());
  for (int64_t t = 0; t < args.cosines.rows; ++t) {
    const auto position = static_cast<float>(args.rows[static_cast<size_t>(t)].position);
    for (int64_t i = 0; i < half; ++i) {
      const float angle = position * args.inverse_frequency[static_cast<size_t>(i)];
      args.cosines.row(t)[i] = std::cos(angle);
      args.sines.row(t)[i] = std::sin(angle);
    }
  }
}

std::unique_ptr<MeasuredStep> Residency::Measure(std::function<void()> record) const {
  return std::make_unique<MeasuredCalls>(std::move(record));
}

}  // namespace thermoe::kernels
