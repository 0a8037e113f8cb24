// SPDX-License-Identifier: Apache-2.0
#include "model/identity.h"

#include <fmt/format.h>

#include <bit>
#include <cstring>

namespace thermoe {
namespace {

constexpr size_t kSampleBytes = 4096;  // a page: reading less would cost the same
constexpr size_t kSamples = 512;       // spread over the file; 2 MiB read, a few hundred milliseconds on a cold disk

// Finaliser of splitmix64: every input bit reaches every output bit.
uint64_t Avalanche(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

}  // namespace

void IdentityHash::Mix(uint64_t word) {
  a_ = (std::rotl(a_, 29) ^ word) * 0x9e3779b97f4a7c15;
  b_ = (std::rotl(b_, 31) + word) * 0xd6e8feb86659fd93;
}

void IdentityHash::Add(std::span<const std::byte> bytes) {
  size_t at = 0;
  for (; at + 8 <= bytes.size(); at += 8) {
    uint64_t word;
    std::memcpy(&word, bytes.data() + at, 8);
    Mix(word);
  }
  uint64_t rest = 0;
  if (at < bytes.size()) std::memcpy(&rest, bytes.data() + at, bytes.size() - at);
  Mix(rest);
  Mix(bytes.size());  // so that the borders between strings count
}

void IdentityHash::AddSampled(std::span<const std::byte> bytes) {
  if (bytes.size() <= kSamples * kSampleBytes) return Add(bytes);
  const size_t last = bytes.size() - kSampleBytes;
  for (size_t i = 0; i < kSamples; ++i) Add(bytes.subspan(last * i / (kSamples - 1), kSampleBytes));
  Mix(bytes.size());
}

std::string IdentityHash::Hex() const {
  return fmt::format("{:016x}{:016x}", Avalanche(a_ ^ std::rotl(b_, 32)), Avalanche(b_ + a_));
}

}  // namespace thermoe
