// SPDX-License-Identifier: Apache-2.0
// From logits to a token.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/random.h"
#include "thermoe/engine.h"

namespace thermoe {

// kInvalidArgument names the option that is out of range.
Status CheckSampling(const SamplingOptions& options);

// Whether none is infinite or not a number.
bool AllFinite(std::span<const float> values);
// log(sum(exp(logits))), summed in double; the same bits on every machine.
float LogSumExp(std::span<const float> logits);
// Natural log of the softmax of `logits` at `token`.
float LogProb(std::span<const float> logits, TokenId token);

// Draws tokens; owns its scratch so that a step does not allocate.
class Sampler {
 public:
  explicit Sampler(int32_t vocab) { candidates_.reserve(static_cast<size_t>(vocab)); }

  // `logits` [V] is changed by the penalty; `recent`: the ids the penalty looks at. Logits that are not a number are
  // never chosen. Order: SamplingOptions. `*logit`, if asked for, becomes the token's logit before the penalty.
  TokenId Sample(std::span<float> logits, const SamplingOptions& options, std::span<const TokenId> recent, Random* random,
                 float* logit = nullptr);

 private:
  struct Candidate {
    float logit;
    TokenId id;
  };
  void Penalise(std::span<float> logits, const SamplingOptions& options, std::span<const TokenId> recent);
  TokenId Choose(std::span<const float> logits, const SamplingOptions& options, Random* random);
  void KeepTopP(float top_p);
  TokenId Draw(float temperature, Random* random);

  std::vector<Candidate> candidates_;
  std::vector<Candidate> penalised_;  // ids of the window, once each, with their logits before the penalty
};

}  // namespace thermoe
