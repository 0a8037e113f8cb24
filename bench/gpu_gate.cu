// SPDX-License-Identifier: Apache-2.0
// gpu_gate [--json FILE]: times of the gate: scoring, selection, weights and dispatch lists from logits, and of the same with the product before
// it, in one launch or two. Medians of graph replays. Built by `ninja gpu_gate`; that its results are the host's is tests/kernels/cuda_test.cc's.
#include <cstring>
#include <string>

#include "gpu_matrix.h"
#include "kernels/cuda/select.h"

namespace thermoe::bench {
namespace {

constexpr int kGateLaunches = 64;  // of a graph
constexpr int32_t kHidden = 2048;

struct Case {
  const char* name;
  int32_t rows, experts, slots, guaranteed;  // guaranteed < slots: batch-aware
  double aim_us;                             // 0: none
};
constexpr Case kCases[] = {
    {"1 token, 128 experts, top 8", 1, 128, 8, 8, 2},       {"16 tokens, 128 experts, top 8", 16, 128, 8, 8, 0},
    {"16 tokens, 128, top 8, batch-aware 6", 16, 128, 8, 6, 4}, {"32 tokens, 64 experts, top 8", 32, 64, 8, 8, 0},
    {"33 tokens, 64 experts, top 8", 33, 64, 8, 8, 0},      {"64 tokens, 64 experts, top 8", 64, 64, 8, 8, 0},
    {"64 tokens, 128, top 8, batch-aware 6", 64, 128, 8, 6, 0}, {"128 tokens, 64 experts, top 8", 128, 64, 8, 8, 0},
    {"512 tokens, 64 experts, top 8", 512, 64, 8, 8, 0},    {"512 tokens, 128 experts, top 8", 512, 128, 8, 8, 0},  {"4096 tokens, 64 experts, top 8", 4096, 64, 8, 8, 0},
    {"4096 tokens, 128 experts, top 8", 4096, 128, 8, 8, 5},
};

struct Times {
  std::string name;
  double select_us = 0, with_product_us = 0;
  double aim_us = 0;
};

std::vector<float> Normals(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 1.0f);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(random);
  return values;
}

Times TimeGate(const Case& c) {
  const int64_t slots = int64_t{c.rows} * c.slots, scores = int64_t{c.rows} * c.experts;
  const DeviceArray<float> logits(Normals(scores, 1)), x(Normals(int64_t{c.rows} * kHidden, 2)), weights(Normals(int64_t{c.experts} * kHidden, 3));
  const DeviceArray<kernels::RowKind> kinds(std::vector<kernels::RowKind>(static_cast<size_t>(c.rows), kernels::RowKind::kDecode));
  cuda::SelectRules rules;
  rules.guaranteed = c.guaranteed, rules.most = rules.full = c.slots;
  const DeviceArray<cuda::SelectRules> on_device(std::vector<cuda::SelectRules>{rules});
  const DeviceArray<float> bias(std::vector<float>(static_cast<size_t>(c.experts))), weight(static_cast<size_t>(slots));
  const DeviceArray<uint8_t> caps(std::vector<uint8_t>(static_cast<size_t>(c.experts)));
  const DeviceArray<int32_t> expert(static_cast<size_t>(slots)), order(static_cast<size_t>(slots)), expert_slots(static_cast<size_t>(c.experts)), job_count(1);
  const DeviceArray<Planes> planes(static_cast<size_t>(slots));
  const DeviceArray<cuda::Job> jobs(static_cast<size_t>(2 * c.experts));
  const DeviceArray<cuda::SelectCounts> counts(1);
  const DeviceArray<std::byte> scratch(static_cast<size_t>(cuda::SelectScratch(c.rows)));
  const DeviceArray<uint32_t> done(std::vector<uint32_t>(1)), passed(std::vector<uint32_t>(cuda::kGatePassed));
  const DeviceArray<uint64_t> counted(std::vector<uint64_t>(cuda::kSelectCounted));
  cuda::SelectLaunch launch;
  launch.logits = logits.data(), launch.kinds = kinds.data(), launch.rules = on_device.data();
  launch.bias = bias.data(), launch.plane_cap = caps.data();
  launch.rows = c.rows, launch.experts = c.experts, launch.slots = c.slots;
  launch.expert = expert.data(), launch.weight = weight.data(), launch.planes = planes.data();
  launch.jobs = jobs.data(), launch.job_count = job_count.data(), launch.order = order.data();
  launch.counts = counts.data(), launch.expert_slots = expert_slots.data();
  launch.scratch = scratch.data(), launch.done = done.data(), launch.passed = passed.data(), launch.counted = counted.data();
  Times times{c.name, 0, 0, c.aim_us};
  times.select_us = TimeGraph(kGateLaunches, [&](int, cudaStream_t stream) { cuda::Select(launch, stream); });
  cuda::LinearLaunch product;
  product.weight = cuda::View(DType::kF32, c.experts, kHidden, reinterpret_cast<const std::byte*>(weights.data()));
  product.x = x.data(), product.out = logits.data(), product.rows = c.rows;
  times.with_product_us = TimeGraph(kGateLaunches, [&](int, cudaStream_t stream) {
    if (cuda::GateAndSelect(product, launch, stream)) return;
    BENCH_CUDA(cuda::Linear(product, stream));
    cuda::Select(launch, stream);
  });
  return times;
}

void WriteGateJson(const std::string& path, const std::vector<Times>& all) {
  std::FILE* file = std::fopen(path.c_str(), "w");
  if (file == nullptr) return;
  cudaDeviceProp properties;
  BENCH_CUDA(cudaGetDeviceProperties(&properties, 0));
  std::fprintf(file, "{\"device\": \"%s\", \"results\": [\n", properties.name);
  for (size_t i = 0; i < all.size(); ++i) {
    std::fprintf(file, "  {\"name\": \"%s\", \"select_us\": %.3f, \"with_product_us\": %.3f, \"aim_us\": %.1f}%s\n", all[i].name.c_str(), all[i].select_us,
                 all[i].with_product_us, all[i].aim_us, i + 1 < all.size() ? "," : "");
  }
  std::fprintf(file, "]}\n");
  std::fclose(file);
}

}  // namespace
}  // namespace thermoe::bench

int main(int argc, char** argv) {
  std::string json;
  if (argc == 3 && std::strcmp(argv[1], "--json") == 0) json = argv[2];
  if (argc != 1 && json.empty()) {
    std::fprintf(stderr, "usage: gpu_gate [--json FILE]\n");
    return 2;
  }
  std::vector<thermoe::bench::Times> all;
  for (const thermoe::bench::Case& c : thermoe::bench::kCases) {
    all.push_back(thermoe::bench::TimeGate(c));
    const thermoe::bench::Times& t = all.back();
    std::printf("%-40s %7.2f us", t.name.c_str(), t.select_us);
    std::printf("; with the product of 2048 %7.2f us", t.with_product_us);
    if (t.aim_us > 0) std::printf("; aim %.0f us", t.aim_us);
    std::printf("\n");
  }
  if (!json.empty()) thermoe::bench::WriteGateJson(json, all);
  return 0;
}
