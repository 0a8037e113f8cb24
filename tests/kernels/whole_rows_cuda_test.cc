// SPDX-License-Identifier: Apache-2.0
// Experts of one or two rows, which are multiplied as whole numbers (whole_product.cuh), beside those of three, which are multiplied as halves, and what double arithmetic gives.
#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "kernels/cuda/rows.h"
#include "kernels/cuda/stream_rows.h"
#include "kernels/packed_expert.h"

namespace thermoe::cuda {
namespace {

using kernels::RandomFloats;

class CudaWholeRows : public DeviceTest {};

constexpr int32_t kExperts = 3;
using Row = std::vector<double>;
using ExpertPlanes = std::array<Planes, kExperts>;

// Experts of a type.
struct Experts {
  Experts(Random& random, DType of_type, int32_t of_hidden, int32_t of_width) : type(of_type), hidden(of_hidden), width(of_width) {
    for (int32_t e = 0; e < kExperts; ++e) {
      experts.emplace_back(random, type, hidden, width);
      for (size_t i = 0; i < views.size(); ++i) views[i].push_back(experts.back().views[i]);
    }
  }
  // Of all experts.
  Row Sum(const ExpertPlanes& planes, const Row& x) const {
    Row sum(x.size());
    for (size_t e = 0; e < experts.size(); ++e) {
      const Row out = experts[e].Of(planes[e], x);
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += out[i];
    }
    return sum;
  }
  DType type;
  int32_t hidden, width;
  std::vector<PackedExpert> experts;
  std::array<std::vector<DeviceMatrix>, 3> views;
};

// Rows all of which go to all experts, so that an expert has as many as there are. passes: inner values go word by word.
std::vector<float> RunExperts(const Experts& experts, const ExpertPlanes& planes, bool passes, const std::vector<float>& rows, cudaStream_t stream) {
  const auto count = static_cast<int32_t>(rows.size()) / experts.hidden;
  std::vector<int32_t> expert, order;
  std::vector<Job> jobs;
  for (int32_t e = 0; e < kExperts; ++e) {
    jobs.push_back({e, planes[static_cast<size_t>(e)], e * count, count});
    for (int32_t t = 0; t < count; ++t) order.push_back(t * kExperts + e);
  }
  for (int32_t slot = 0; slot < count * kExperts; ++slot) expert.push_back(slot % kExperts);
  const OnDevice<DeviceMatrix> gates(experts.views[0]), ups(experts.views[1]), downs(experts.views[2]);
  const OnDevice<float> x(rows), weight(std::vector<float>(expert.size(), 1.0f)), out(std::vector<float>(rows.size(), 0.0f));
  const OnDevice<std::byte> scratch(static_cast<int64_t>(ExpertFfnScratch(experts.hidden, experts.width, kExperts, count)));
  const OnDevice<uint32_t> met(std::vector<uint32_t>(kExpertCounters, 0));
  const OnDevice<uint64_t> passed(std::vector<uint64_t>(static_cast<size_t>(kPassedWords), 0));
  const OnDevice<int32_t> on_device_expert(expert), on_device_order(order), job_count(std::vector<int32_t>{kExperts});
  const OnDevice<Job> on_device_jobs(jobs);
  ExpertFfnLaunch l;
  l.gate = gates.data(), l.up = ups.data(), l.down = downs.data(), l.gate_packing = l.up_packing = l.down_packing = PackingOf(experts.type);
  l.may_read_hi = experts.type == DType::kNested8;
  l.experts = kExperts, l.hidden = experts.hidden, l.width = experts.width, l.slots = kExperts, l.rows = count, l.x = x.data(), l.jobs = on_device_jobs.data();
  l.job_count = job_count.data(), l.order = on_device_order.data(), l.jobs_room = kExperts, l.order_room = count * kExperts, l.weight = weight.data();
  l.expert = on_device_expert.data(), l.out = out.data(), l.scratch = scratch.data(), l.met = met.data();
  l.passed = passes ? passed.data() : nullptr;
  SlotSums sums;
  EXPECT_TRUE(ExpertsOfStreamedRows(l, &sums, stream));
  AddSlots(sums, out.data(), count, experts.hidden, stream);
  return out.Read();
}

// Root of the mean square of what a row is off by, over that of the row.
double Off(const std::vector<float>& rows, size_t row, const Row& want) {
  double squares = 0, all = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double off = static_cast<double>(rows[row * want.size() + i]) - want[i];
    squares += off * off, all += want[i] * want[i];
  }
  return std::sqrt(squares / all);
}

// Of what makes units coarse: in every 32 columns one value 100 times the others, or next to nothing in some; and what units do not touch.
std::vector<float> RowOf(Random& random, int kind, int32_t columns) {
  std::vector<float> row = RandomFloats(random, columns);
  for (int32_t c = 0; c < columns; ++c) {
    float& value = row[static_cast<size_t>(c)];
    if (kind == 1) value *= c % 32 == c / 32 % 32 ? 2.0f : 0.02f;
    if (kind == 2) value *= c / 32 % 3 == 0 ? 1e-6f : c / 32 % 3 == 1 ? 0.0f : 2.0f;
    value = HalfToFloat(FloatToHalf(value));
  }
  return row;
}

struct Case {
  const char* name;
  DType type;
  ExpertPlanes planes;
  bool passes;
  size_t whole = 2;  // rows of an expert, at most, that are whole numbers
};
constexpr ExpertPlanes kAllBoth = {Planes::kBoth, Planes::kBoth, Planes::kBoth}, kAllHi = {Planes::kHi, Planes::kHi, Planes::kHi}, kSomeHi = {Planes::kBoth, Planes::kHi, Planes::kBoth};
constexpr std::array<Case, 12> kCases = {{{"nested", DType::kNested8, kAllBoth, false},
                                          {"nested, passed", DType::kNested8, kAllBoth, true},
                                          {"hi planes", DType::kNested8, kAllHi, false},
                                          {"hi planes, passed", DType::kNested8, kAllHi, true},
                                          {"nested, one of hi planes", DType::kNested8, kSomeHi, false},
                                          {"nested, one of hi planes, passed", DType::kNested8, kSomeHi, true, 1},
                                          {"Q8_0", DType::kQ8_0, kAllBoth, false},
                                          {"Q8_0, passed", DType::kQ8_0, kAllBoth, true},
                                          {"Q4_0", DType::kQ4_0, kAllBoth, false},
                                          {"Q4_0, passed", DType::kQ4_0, kAllBoth, true},
                                          {"Q4_K", DType::kQ4K, kAllBoth, false},
                                          {"Q4_K, passed", DType::kQ4K, kAllBoth, true}}};

TEST_F(CudaWholeRows, AreAsCloseAsHalves) {
  if (!IsHopper()) GTEST_SKIP() << "experts of streamed rows are Hopper's alone";
  Random random(31);
  for (const Case& c : kCases) {
    // Column tiles by twos and by fours in a stage, some of them without a partner.
    for (const auto& [hidden, width] : {std::pair{768, 512}, {1280, 256}, {2304, 768}}) {
      if (!share_.Takes()) continue;
      const Experts experts(random, c.type, hidden, width);
      const auto run = [&](const std::vector<float>& rows) { return RunExperts(experts, c.planes, c.passes, rows, stream_); };
      // One kind where a checker follows every access: they differ in values alone.
      for (int kind = 0; kind < (share_.all() ? 3 : 1); ++kind) {
        const std::string what = std::string(c.name) + ", " + std::to_string(hidden) + " x " + std::to_string(width) + ", kind " + std::to_string(kind);
        const std::vector<float> row = RowOf(random, kind, hidden);
        std::vector<float> two = row, three;
        for (const float value : row) two.push_back(-0.5f * value);
        three = two;
        three.insert(three.end(), row.begin(), row.end());
        const Row want = experts.Sum(c.planes, Row(row.begin(), row.end())), other = experts.Sum(c.planes, Row(two.begin() + hidden, two.end()));
        const std::vector<float> alone = run(row), of_two = run(two), halves = run(three);
        // The halves' own is what inner values lose as halves; a whole number's unit is 2^-13 of the greatest, as large as that loss where this is 100 times the others.
        const double most = (kind == 1 ? 4 : 1.5) * std::max(Off(halves, 0, want), Off(halves, 1, other));
        ASSERT_GT(most, 0) << what;
        ASSERT_LT(most, 3e-3) << what;
        EXPECT_LE(Off(alone, 0, want), most) << what;
        EXPECT_LE(Off(of_two, 0, want), most) << what;
        EXPECT_LE(Off(of_two, 1, other), most) << what;
      }
      // What is less than half a unit of a whole number is nothing there, and something among halves. So much for first products: of the same inner values second ones give the same.
      for (size_t rows = 1; rows <= 3; ++rows) {
        std::vector<float> greatest(rows * static_cast<size_t>(hidden), 0.0f), all(greatest.size(), 0x1p-14f);
        for (size_t i = 7; i < all.size(); i += 32) greatest[i] = all[i] = 2;
        EXPECT_EQ(run(all) == run(greatest), rows <= c.whole) << c.name << ", rows " << rows << ", " << hidden << " x " << width;
      }
    }
  }
}

}  // namespace
}  // namespace thermoe::cuda
