// SPDX-License-Identifier: Apache-2.0
// gpu_draw: times of a token drawn of each row of a tile of logits, medians of graph replays, and beside it what the host takes for one row that it has already.
// Built by `ninja gpu_draw`; that the tokens are the host's is tests/kernels/draw_cuda_test.cc's.
#include <chrono>

#include "forward/sample.h"
#include "gpu_matrix.h"
#include "kernels/cuda/sample.h"

namespace thermoe::bench {
namespace {

constexpr int kDrawLaunches = 16;  // of a graph
constexpr int kRecent = 64;

struct Case {
  const char* name;
  SamplingOptions options;
};
std::vector<Case> Cases() {
  SamplingOptions plain;
  plain.temperature = 0.8f;
  std::vector<Case> cases(6, {"temperature", plain});
  cases[1].name = "top-k 40", cases[1].options.top_k = 40;
  cases[2].name = "top-k 5000", cases[2].options.top_k = 5000;
  cases[3].name = "top-p 0.95", cases[3].options.top_p = 0.95f;
  cases[4].name = "penalty", cases[4].options.repetition_penalty = 1.1f;
  cases[5].name = "all", cases[5].options = {0.8f, 40, 0.95f, 0.05f, 1.1f};
  return cases;
}

// Normal, some of them higher: a model that is sure leaves few tokens, one that is not thousands.
std::vector<float> Logits(int64_t rows, int64_t vocab, bool sure) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0.0f, 2.0f);
  std::vector<float> logits(static_cast<size_t>(rows * vocab));
  for (float& logit : logits) logit = normal(random);
  for (int64_t r = 0; r < rows && sure; ++r) {
    for (int i = 0; i < 30; ++i) logits[static_cast<size_t>(r * vocab + random() % vocab)] += 14;
  }
  return logits;
}

double HostUs(const std::vector<float>& logits, int64_t vocab, const SamplingOptions& options, std::span<const int32_t> recent) {
  constexpr int kTimes = 5;
  Sampler sampler(static_cast<int32_t>(vocab));
  Random random(1);
  std::vector<double> times;
  for (int i = 0; i < kTimes; ++i) {
    std::vector<float> row(logits.begin(), logits.begin() + vocab);
    const auto start = std::chrono::steady_clock::now();
    sampler.Sample(row, options, recent, &random);
    times.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count());
  }
  std::nth_element(times.begin(), times.begin() + kTimes / 2, times.end());
  return times[kTimes / 2];
}

void TimeDraws(int64_t vocab, bool sure) {
  constexpr int64_t kMostRows = 32;
  const std::vector<float> host = Logits(kMostRows, vocab, sure);
  const DeviceArray<float> logits(host);
  std::vector<int32_t> recent;
  for (int32_t i = 0; i < kRecent; ++i) recent.push_back(static_cast<int32_t>(i * 131 % vocab));
  const DeviceArray<cuda::SeenLogit> seen(kMostRows * kRecent);
  const DeviceArray<uint32_t> done(std::vector<uint32_t>(1));
  const DeviceArray<int32_t> largest(kernels::kMostAhead);
  struct Pinned {  // of the host, as the backend has them
    cuda::DrawRow draws[kMostRows];
    kernels::DrawnToken out[kMostRows];
    int32_t recent[kMostRows * kRecent];
    uint32_t told;
  }* pinned = nullptr;
  BENCH_CUDA(cudaMallocHost(reinterpret_cast<void**>(&pinned), sizeof(Pinned)));
  for (const Case& c : Cases()) {
    double us[2];
    const int64_t rows[2] = {1, kMostRows};
    for (int64_t r = 0; r < kMostRows; ++r) {
      const SamplingOptions& o = c.options;
      pinned->draws[r] = cuda::MakeDraw({r, o.temperature, o.top_k, o.top_p, o.min_p, o.repetition_penalty, recent, 0.03 * static_cast<double>(r)}, r * kRecent);
      std::copy(recent.begin(), recent.end(), pinned->recent + r * kRecent);
    }
    for (int i = 0; i < 2; ++i) {
      const cuda::DrawLaunch launch{logits.data(), vocab,       pinned->draws, pinned->recent, seen.data(), static_cast<int32_t>(rows[i]),
                                    pinned->out,   done.data(), &pinned->told, 1, largest.data()};
      us[i] = TimeGraph(kDrawLaunches, [&](int, cudaStream_t stream) { cuda::Draw(launch, stream); });
    }
    std::printf("V %6lld, %s, %-12s 1 row %6.1f us, 32 rows %6.1f us; the host, 1 row %8.1f us\n", static_cast<long long>(vocab), sure ? "sure  " : "unsure",
                c.name, us[0], us[1], HostUs(host, vocab, c.options, recent));
  }
  BENCH_CUDA(cudaFreeHost(pinned));
}

}  // namespace
}  // namespace thermoe::bench

int main() {
  for (const int64_t vocab : {50304, 151936}) {
    for (const bool sure : {true, false}) thermoe::bench::TimeDraws(vocab, sure);
  }
  return 0;
}
