// SPDX-License-Identifier: Apache-2.0
// Nucleus sampling: Holtzman et al. 2020, arXiv 1904.09751; min-p: arXiv 2407.01082; penalty: CTRL, arXiv 1909.05858.
#include "forward/sample.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "base/errors.h"

namespace thermoe {
namespace {

// Values side by side in loops that a compiler turns into vectors without changing an addition's order.
constexpr size_t kLanes = 64;

// Not a number if some are not, else the largest.
float Largest(std::span<const float> values) {
  const auto larger = [](float a, float b) { return a <= b || b != b ? b : a; };
  float most[kLanes];
  std::fill_n(most, kLanes, -std::numeric_limits<float>::infinity());
  for (size_t begin = 0; begin < values.size(); begin += kLanes) {
    const size_t n = std::min(kLanes, values.size() - begin);
    for (size_t i = 0; i < n; ++i) most[i] = larger(most[i], values[begin + i]);
  }
  float all = most[0];
  for (const float lane : most) all = larger(all, lane);
  return all;
}

// e^x for x <= 0, within 3e-7 of it, and of -87 below that. The reduction and polynomial of kernels/cpu/vec_math.h.
inline float ExpOfNegative(float x) {
  // As integers numbers below 0 have the order of their magnitudes; a comparison of floats would keep the loop from
  // vectors.
  x = std::bit_cast<float>(std::min(std::bit_cast<uint32_t>(x), std::bit_cast<uint32_t>(-87.0f)));
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number, held in the low bits
  const float shifted = x * 1.44269504088896341f + magic, n = shifted - magic;
  const float r = x - n * 0.693359375f + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(p) + (std::bit_cast<uint32_t>(shifted) << 23));  // times 2^n
}

}  // namespace

Status CheckSampling(const SamplingOptions& options) {
  if (!(options.temperature >= 0 && options.temperature <= 100)) {
    return InvalidArgument("temperature is {}; give 0 (greedy) to 100", options.temperature);
  }
  if (options.top_k < 0) return InvalidArgument("top-k is {}; give 0 (all) or more", options.top_k);
  if (!(options.top_p > 0 && options.top_p <= 1))
    return InvalidArgument("top-p is {}; give more than 0, up to 1", options.top_p);
  if (!(options.min_p >= 0 && options.min_p <= 1)) return InvalidArgument("min-p is {}; give 0 to 1", options.min_p);
  if (!(options.repetition_penalty > 0 && options.repetition_penalty <= 100)) {
    return InvalidArgument("repetition penalty is {}; give more than 0, up to 100 (1: none)",
                           options.repetition_penalty);
  }
  if (options.repetition_window < 0)
    return InvalidArgument("repetition window is {}; give 0 or more", options.repetition_window);
  return Status::Ok();
}

bool AllFinite(std::span<const float> values) {
  constexpr uint32_t kExponent = 0x7f800000;  // all ones: an infinity or not a number
  uint32_t found = 0;
  for (const float value : values) found |= (std::bit_cast<uint32_t>(value) & kExponent) == kExponent ? 1 : 0;
  return found == 0;
}

// 50,304 logits in 54 us; by std::max_element and std::exp it was 185 us, 4 % of a decode step of four Q4_0 layers of
// the OLMoE shape.
float LogSumExp(std::span<const float> logits) {
  const float most = Largest(logits);
  if (!std::isfinite(most)) return most;
  float exps[kLanes];
  double sums[kLanes] = {};
  for (size_t begin = 0; begin < logits.size(); begin += kLanes) {
    const size_t n = std::min(kLanes, logits.size() - begin);
    for (size_t i = 0; i < n; ++i) exps[i] = ExpOfNegative(logits[begin + i] - most);
    for (size_t i = 0; i < n; ++i) sums[i] += static_cast<double>(exps[i]);
  }
  double sum = 0;
  for (const double lane : sums) sum += lane;
  return static_cast<float>(most + std::log(sum));
}

float LogProb(std::span<const float> logits, TokenId token) {
  return logits[static_cast<size_t>(token)] - LogSumExp(logits);
}

// A token's logit falls once however often it stands in the window.
void Sampler::Penalise(std::span<float> logits, const SamplingOptions& options, std::span<const TokenId> recent) {
  penalised_.clear();
  if (options.repetition_penalty == 1.0f) return;
  for (const TokenId id : recent) penalised_.push_back({logits[static_cast<size_t>(id)], id});
  std::sort(penalised_.begin(), penalised_.end(), [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
  const auto same = [](const Candidate& a, const Candidate& b) { return a.id == b.id; };
  penalised_.erase(std::unique(penalised_.begin(), penalised_.end(), same), penalised_.end());
  for (const Candidate& seen : penalised_) {
    logits[static_cast<size_t>(seen.id)] =
        seen.logit > 0 ? seen.logit / options.repetition_penalty : seen.logit * options.repetition_penalty;
  }
}

TokenId Sampler::Sample(std::span<float> logits, const SamplingOptions& options, std::span<const TokenId> recent,
                        Random* random, float* logit) {
  Penalise(logits, options, recent);
  const TokenId token = Choose(logits, options, random);
  if (logit != nullptr) {
    const auto seen =
        std::find_if(penalised_.begin(), penalised_.end(), [&](const Candidate& c) { return c.id == token; });
    *logit = seen == penalised_.end() ? logits[static_cast<size_t>(token)] : seen->logit;
  }
  return token;
}

TokenId Sampler::Choose(std::span<const float> logits, const SamplingOptions& options, Random* random) {
  candidates_.clear();
  Candidate best{0, kNoToken};
  for (size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i])) continue;
    const Candidate candidate{logits[i], static_cast<TokenId>(i)};
    if (best.id == kNoToken || candidate.logit > best.logit) best = candidate;
    if (options.temperature > 0) candidates_.push_back(candidate);
  }
  if (best.id == kNoToken) return 0;  // nothing is a number
  if (options.temperature == 0 || std::isinf(best.logit)) return best.id;

  const auto by_logit = [](const Candidate& a, const Candidate& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
  };
  if (options.top_k > 0 && static_cast<size_t>(options.top_k) < candidates_.size()) {
    std::nth_element(candidates_.begin(), candidates_.begin() + options.top_k - 1, candidates_.end(), by_logit);
    candidates_.resize(static_cast<size_t>(options.top_k));
  }
  if (options.top_p < 1) {
    std::sort(candidates_.begin(), candidates_.end(), by_logit);
    KeepTopP(options.top_p);
  }
  if (options.min_p > 0) {
    const float least = best.logit + std::log(options.min_p);
    std::erase_if(candidates_, [&](const Candidate& c) { return c.logit < least; });
  }
  return Draw(options.temperature, random);
}

// Keeps the shortest prefix of the sorted candidates whose probabilities reach top_p.
void Sampler::KeepTopP(float top_p) {
  const float most = candidates_.front().logit;
  double total = 0, reached = 0;
  for (const Candidate& c : candidates_) total += std::exp(static_cast<double>(c.logit - most));
  size_t keep = 0;
  while (keep < candidates_.size() && reached < top_p * total)
    reached += std::exp(static_cast<double>(candidates_[keep++].logit - most));
  candidates_.resize(std::max<size_t>(1, keep));
}

TokenId Sampler::Draw(float temperature, Random* random) {
  // By id, so that the draw depends on the distribution alone and not on how it was cut.
  std::sort(candidates_.begin(), candidates_.end(), [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
  float most = candidates_.front().logit;
  for (const Candidate& c : candidates_) most = std::max(most, c.logit);
  double total = 0;
  for (const Candidate& c : candidates_) total += std::exp(static_cast<double>(c.logit - most) / temperature);
  double left = random->Uniform() * total;
  for (const Candidate& c : candidates_) {
    left -= std::exp(static_cast<double>(c.logit - most) / temperature);
    if (left < 0) return c.id;
  }
  return candidates_.back().id;  // rounding left a sliver
}

}  // namespace thermoe
