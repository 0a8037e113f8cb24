// SPDX-License-Identifier: Apache-2.0
// Numbers that a draw (sample.cu) is made of: logits in their order, probabilities as whole numbers. One definition for the host and the device.
#pragma once

#include <bit>
#include <cstdint>

namespace thermoe::cuda {

// A code is a logit that is a number, in the high bits, and a token: the larger the logit and, of equal ones, the lower the token, the larger the code.
// 0 is none.
inline constexpr int kIdBits = 24, kCodeBits = 32 + kIdBits, kDigitBits = 8;
inline constexpr int64_t kMostIds = int64_t{1} << kIdBits;

// Rises with the logit; -0 and 0 are the same.
constexpr uint32_t OrderOf(float logit) {
  const uint32_t bits = std::bit_cast<uint32_t>(logit + 0.0f);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
constexpr float LogitOfOrder(uint32_t order) { return std::bit_cast<float>((order & 0x80000000u) != 0 ? order & 0x7fffffffu : ~order); }

constexpr uint64_t CodeOf(float logit, int32_t id) { return uint64_t{OrderOf(logit)} << kIdBits | static_cast<uint64_t>(kMostIds - 1 - id); }
constexpr float LogitOf(uint64_t code) { return LogitOfOrder(static_cast<uint32_t>(code >> kIdBits)); }
constexpr int32_t IdOf(uint64_t code) { return static_cast<int32_t>(kMostIds - 1 - static_cast<int64_t>(code & (kMostIds - 1))); }

// The same two with the token above: the lower it is, the larger.
constexpr uint64_t ById(uint64_t code) { return (code & (kMostIds - 1)) << 32 | code >> kIdBits; }
constexpr uint64_t FromById(uint64_t by_id) { return (by_id & 0xffffffffu) << kIdBits | by_id >> 32; }

// The bin, 0 first, of a code among those that share what is above `shift`, where a digit begins.
constexpr uint32_t DigitBin(uint64_t code, int shift) {
  constexpr uint32_t kDigits = (1u << kDigitBits) - 1;
  return kDigits - (static_cast<uint32_t>(code >> (shift - kDigitBits)) & kDigits);
}

// What a logit becomes that is among the recent ones.
constexpr float Penalised(float logit, float penalty) { return logit > 0 ? logit / penalty : logit * penalty; }

// A probability relative to the largest, in [0, 1], in 2^-38: of 2^18 tokens all that is rounded away is 5e-7 of the whole, and sums of up to 2^24 fit 64 bits.
// By one conversion to 32 bits, of which a multiprocessor does four times as many as of those to 64.
inline constexpr int kMassBits = 38;
constexpr uint64_t MassOf(float probability) {
  constexpr int kCoarse = 7;
  const bool small = probability < 0x1p-6f;  // beyond, less than all bits are needed
  const auto units = static_cast<uint32_t>(probability * (small ? 0x1p38f : 0x1p31f) + 0.5f);
  return small ? units : uint64_t{units} << kCoarse;
}

// Tokens are kept as long as those before them have less than this of `total`: at least one.
constexpr uint64_t NeededOf(float top_p, uint64_t total) {
  const double share = static_cast<double>(top_p) * static_cast<double>(total);
  auto needed = static_cast<uint64_t>(share);
  needed += static_cast<double>(needed) < share ? 1 : 0;
  return needed < 1 ? 1 : needed > total ? total : needed;
}
// The first token with which so much of `total` is reached is drawn.
constexpr uint64_t DrawnAt(double uniform, uint64_t total) {
  const auto passed = static_cast<uint64_t>(uniform * static_cast<double>(total));
  return passed < total ? passed + 1 : total;
}

}  // namespace thermoe::cuda
