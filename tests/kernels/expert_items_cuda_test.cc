// SPDX-License-Identifier: Apache-2.0
// Experts of prefill, whose rows go in items of up to 32, 64 and 128 (prefill_multiply.cuh): what a row gets is the same in each, to the bit, and what double arithmetic gives.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "kernels/cuda/prefill.h"
#include "kernels/packed_expert.h"

namespace thermoe::cuda {
namespace {

using kernels::RandomFloats;

constexpr int32_t kHidden = 256, kWidth = 512;
constexpr std::array<int32_t, 15> kCounts = {1, 32, 33, 64, 65, 127, 128, 129, 160, 161, 192, 193, 256, 257, 450};

struct Case {
  const char* name;
  DType type;
  std::array<Planes, 2> planes;  // of experts in turn
};
constexpr std::array<Case, 8> kCases = {{{"Q4_0", DType::kQ4_0, {Planes::kBoth, Planes::kBoth}},
                                         {"Q4_K", DType::kQ4K, {Planes::kBoth, Planes::kBoth}},
                                         {"MXFP4", DType::kMXFP4, {Planes::kBoth, Planes::kBoth}},
                                         {"Q5_K", DType::kQ5K, {Planes::kBoth, Planes::kBoth}},
                                         {"Q6_K", DType::kQ6K, {Planes::kBoth, Planes::kBoth}},
                                         {"Q8_0", DType::kQ8_0, {Planes::kBoth, Planes::kBoth}},
                                         {"nested", DType::kNested8, {Planes::kBoth, Planes::kHi}},
                                         {"bf16", DType::kBF16, {Planes::kBoth, Planes::kBoth}}}};

class CudaExpertItems : public DeviceTest {};

TEST_F(CudaExpertItems, OfAnyWidthGiveTheSame) {
  if (!IsHopper()) GTEST_SKIP() << "prefill's kernels are Hopper's alone";
  Random random(40);
  int32_t all = 0;
  for (const int32_t count : kCounts) all += count;
  for (const Case& c : kCases) {
    if (!share_.Takes()) continue;
    SCOPED_TRACE(c.name);
    const std::array<PackedExpert, 2> experts = {PackedExpert(random, c.type, kHidden, kWidth), PackedExpert(random, c.type, kHidden, kWidth)};
    const std::vector<float> rows = RandomFloats(random, int64_t{all} * kHidden), weights = RandomFloats(random, all);
    const OnDevice<float> x(rows), weight(weights);
    const OnDevice<std::byte> scratch(static_cast<int64_t>(ExpertFfnScratch(kHidden, kWidth, 1, all)));
    // The rows one after the other, so many to a job of an expert of its own, which has one of both experts' matrices; in jobs of at most `most`.
    const auto run = [&](int32_t most) {
      std::vector<Job> jobs;
      std::vector<int32_t> expert, order;
      std::array<std::vector<DeviceMatrix>, 3> views;
      for (size_t i = 0; i < kCounts.size(); ++i) {
        for (int32_t begin = 0; begin < kCounts[i]; begin += most) {
          const auto number = static_cast<int32_t>(jobs.size()), count = std::min(most, kCounts[i] - begin);
          jobs.push_back({number, c.planes[i % 2], static_cast<int32_t>(order.size()), count});
          for (size_t m = 0; m < 3; ++m) views[m].push_back(experts[i % 2].views[m]);
          for (int32_t row = 0; row < count; ++row) order.push_back(static_cast<int32_t>(order.size())), expert.push_back(number);
        }
      }
      const OnDevice<DeviceMatrix> gates(views[0]), ups(views[1]), downs(views[2]);
      const OnDevice<Job> on_device_jobs(jobs);
      const OnDevice<int32_t> job_count(std::vector<int32_t>{static_cast<int32_t>(jobs.size())}), on_device_expert(expert), on_device_order(order);
      const OnDevice<float> out(std::vector<float>(rows.size(), 0.0f));
      ExpertFfnLaunch l;
      l.gate = gates.data(), l.up = ups.data(), l.down = downs.data(), l.gate_packing = l.up_packing = l.down_packing = PackingOf(c.type);
      l.may_read_hi = c.type == DType::kNested8;
      l.experts = static_cast<int32_t>(jobs.size()), l.hidden = kHidden, l.width = kWidth, l.slots = 1, l.rows = all, l.x = x.data(), l.jobs = on_device_jobs.data();
      l.job_count = job_count.data(), l.order = on_device_order.data(), l.jobs_room = l.experts, l.order_room = all, l.weight = weight.data(), l.expert = on_device_expert.data();
      l.out = out.data(), l.scratch = scratch.data();
      EXPECT_TRUE(PrefillsExperts(l));
      EXPECT_EQ(ExpertFfn(l, stream_), cudaSuccess);
      return out.Read();
    };
    const std::vector<float> got = run(all), narrow = run(32);
    int32_t begin = 0;
    for (size_t i = 0; i < kCounts.size(); begin += kCounts[i++]) {
      const auto first = static_cast<ptrdiff_t>(begin) * kHidden, last = first + static_cast<ptrdiff_t>(kCounts[i]) * kHidden;
      ASSERT_TRUE(std::equal(got.begin() + first, got.begin() + last, narrow.begin() + first)) << kCounts[i] << " rows";
      for (const int32_t row : {begin, begin + kCounts[i] / 2, begin + kCounts[i] - 1}) {
        const auto at = static_cast<ptrdiff_t>(row) * kHidden;
        const std::vector<double> want = experts[i % 2].Of(c.planes[i % 2], std::vector<double>(rows.begin() + at, rows.begin() + at + kHidden));
        double off = 0, of = 0;
        for (size_t d = 0; d < want.size(); ++d) {
          const double value = want[d] * weights[static_cast<size_t>(row)], error = got[static_cast<size_t>(at) + d] - value;
          off += error * error, of += value * value;
        }
        ASSERT_GT(of, 0);
        ASSERT_LT(std::sqrt(off / of), 2e-3) << "row " << row - begin << " of " << kCounts[i];  // halves: 2^-11 a weight, an activation, an inner value and what a slot gives
      }
    }
  }
}

}  // namespace
}  // namespace thermoe::cuda
