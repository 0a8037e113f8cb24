// SPDX-License-Identifier: Apache-2.0
// Names a model by its content, so that what was learnt about it (calibration, profiles) finds it again wherever it
// lies. Not cryptographic: it tells models apart, it does not resist forgery.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace thermoe {

// A 128-bit hash of a sequence of byte strings: two 64-bit lanes of multiply and xor-shift. The same on every
// little-endian machine; part of file names and records, so it must not change without a new version number.
class IdentityHash {
 public:
  void Add(std::span<const std::byte> bytes);
  // Bytes at fixed positions of a large block, at most 2 MiB of them, and its size.
  void AddSampled(std::span<const std::byte> bytes);
  std::string Hex() const;  // 32 digits

 private:
  void Mix(uint64_t word);

  uint64_t a_ = 0x243f6a8885a308d3;  // digits of pi, for want of anything better
  uint64_t b_ = 0x13198a2e03707344;
};

}  // namespace thermoe
