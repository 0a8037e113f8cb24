// SPDX-License-Identifier: Apache-2.0
// Operations replayed to be measured compute what they are; on host backends and, where there is a device, as a graph there.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/dispatch.h"
#include "runtime/threads.h"

namespace thermoe::kernels {
namespace {

void ExpectMeasures(std::unique_ptr<Ops> ops) {
  constexpr int64_t kRows = 3, kCols = 64;
  std::vector<float> x(kRows * kCols), gain(kCols, 2.0f), out(kRows * kCols), sum(kRows * kCols);
  for (size_t i = 0; i < x.size(); ++i) x[i] = 0.1f * static_cast<float>(i % 17) - 0.5f;
  for (std::vector<float>* values : {&x, &gain, &out, &sum}) {
    ops->Adopt(std::as_writable_bytes(std::span(*values)));
    ops->Publish(std::as_bytes(std::span(*values)));
  }
  const std::unique_ptr<MeasuredStep> step = ops->Measure([&] {
    ops->RmsNorm({{x.data(), kRows, kCols}, gain, 1e-5f, {out.data(), kRows, kCols}});
    ops->Add({{out.data(), kRows, kCols}, {}, {sum.data(), kRows, kCols}});
  });
  std::vector<float> before(sum.size());
  if (ops->on_device()) ops->Fetch(std::as_writable_bytes(std::span(sum)));
  before = sum;
  EXPECT_GT(step->Run(5), 0);
  if (ops->on_device()) {
    ops->Fetch(std::as_writable_bytes(std::span(out)));
    ops->Fetch(std::as_writable_bytes(std::span(sum)));
  }
  for (int64_t r = 0; r < kRows; ++r) {
    double squares = 0;
    for (int64_t c = 0; c < kCols; ++c) squares += x[static_cast<size_t>(r * kCols + c)] * x[static_cast<size_t>(r * kCols + c)];
    for (int64_t c = 0; c < kCols; ++c) {
      const auto i = static_cast<size_t>(r * kCols + c);
      EXPECT_NEAR(out[i], 2 * x[i] / std::sqrt(squares / kCols + 1e-5), 1e-5) << ops->name() << " " << i;
      EXPECT_NEAR(sum[i] - before[i], 5 * out[i], 1e-4) << ops->name() << " " << i;
    }
  }
  EXPECT_TRUE(ops->Health().ok()) << ops->Health().message();
}

TEST(Measure, DoesWhatIsRecordedSoManyTimes) {
  ThreadPool threads(1);
  ExpectMeasures(MakeReferenceOps());
  ExpectMeasures(std::move(MakeCpuOps(&threads)).value());
}

TEST(Measure, AsAGraphCuda) {
  ThreadPool threads(1);
  Result<std::unique_ptr<Ops>> ops = MakeCudaOps(&threads);
  if (!ops.ok()) GTEST_SKIP() << ops.status().message();
  ExpectMeasures(std::move(ops).value());
}

}  // namespace
}  // namespace thermoe::kernels
