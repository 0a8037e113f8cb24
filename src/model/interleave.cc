// SPDX-License-Identifier: Apache-2.0
#include "model/interleave.h"

#include <cstring>

#include "base/check.h"
#include "base/float16.h"
#include "model/quant_blocks.h"

namespace thermoe {
namespace {

constexpr int64_t kSuper = 256;  // columns of a K block

bool IsK(DType type) { return TraitsOf(type).block_elements == kSuper; }

uint32_t Load4(const std::byte* from) {
  uint32_t four;
  std::memcpy(&four, from, 4);
  return four;
}
void Store4(uint32_t four, std::byte* to) { std::memcpy(to, &four, 4); }
float LoadHalf(const std::byte* from) {
  uint16_t h;
  std::memcpy(&h, from, 2);
  return HalfToFloat(h);
}

// The place of the byte with column j of a block's 32 in [4][16][4].
int64_t NibbleAt(int lane, int j) { return (j % 16 / 4) * 64 + lane * 4 + j % 4; }
// The place of its bit in [4][2][16][4] bits.
int64_t BitAt(int lane, int j) { return (j % 16 / 4) * 128 + j / 16 * 64 + lane * 4 + j % 4; }

// The scales of the b-th 32 columns, from the block that holds them.
void StoreScales(DType type, const std::byte* block, int64_t b, int lane, std::byte* to) {
  switch (type) {
    case DType::kQ5_1: std::memcpy(to + 32 + 2 * lane, block + offsetof(BlockQ5_1, m), 2); break;
    case DType::kMXFP4: to[lane] = block[0]; return;
    case DType::kQ4K:
    case DType::kQ5K: return;  // in the super
    case DType::kQ6K:
      to[lane] = block[static_cast<int64_t>(offsetof(BlockQ6K, scales)) + b % 8 * 2];
      to[16 + lane] = block[static_cast<int64_t>(offsetof(BlockQ6K, scales)) + b % 8 * 2 + 1];
      return;
    default: break;
  }
  std::memcpy(to + 2 * lane, block, 2);
}

// A block's super; `super` holds zeros where bits are set.
void StoreSuper(DType type, const std::byte* block, int lane, std::byte* super) {
  if (type == DType::kQ6K) {
    std::memcpy(super + 2 * lane, block + offsetof(BlockQ6K, d), 2);
    return;
  }
  std::memcpy(super + 2 * lane, block, 2);
  std::memcpy(super + 32 + 2 * lane, block + offsetof(BlockQ4K, dmin), 2);
  uint8_t packed[12];
  std::memcpy(packed, block + offsetof(BlockQ4K, scales), sizeof(packed));
  KScales scales;
  std::memcpy(&scales, super + 64, sizeof(scales));
  for (int b = 0; b < 8; ++b) {
    const KScale k = UnpackKScale(packed, b);
    const auto store = [&](KScales::Six* six, int value) {
      six->low[b % 4][lane] |= static_cast<uint8_t>((value & 15) << (b / 4 * 4));
      six->high[b / 4][lane] |= static_cast<uint8_t>(value >> 4 << (b % 4 * 2));
    };
    store(&scales.scale, k.scale);
    store(&scales.min, k.min);
  }
  std::memcpy(super + 64, &scales, sizeof(scales));
}

float SixOf(const KScales::Six& six, int64_t b, int lane) {
  const int low = six.low[b % 4][lane] >> (b % 8 / 4 * 4) & 15;
  return static_cast<float>(low | (six.high[b % 8 / 4][lane] >> (b % 4 * 2) & 3) << 4);
}

void StoreCodes(DType type, const std::byte* block, int64_t b, int lane, std::byte* to) {
  uint8_t codes[32];
  UnpackCodes(type, block, static_cast<int>(b % (TraitsOf(type).block_elements / 32)), codes);
  for (int j = 0; j < 16; ++j) {
    to[NibbleAt(lane, j)] = static_cast<std::byte>((codes[j] & 15) | (codes[j + 16] & 15) << 4);
  }
  for (int plane = 0; plane < TraitsOf(type).bits - 4; ++plane) {
    std::byte* bits = to + 256 + plane * 64;
    for (int j = 0; j < 32; ++j) {
      const int64_t at = BitAt(lane, j);
      bits[at / 8] |= static_cast<std::byte>((codes[j] >> (4 + plane) & 1) << (at % 8));
    }
  }
}

}  // namespace

GroupShape GroupShapeOf(DType type, int64_t cols) {
  GroupShape shape;
  shape.super_bytes = type == DType::kQ6K ? 32 : IsK(type) ? 64 + static_cast<int64_t>(sizeof(KScales)) : 0;
  shape.scale_bytes = type == DType::kMXFP4 ? 16 : type == DType::kQ5_1 ? 64 : type == DType::kQ4K || type == DType::kQ5K ? 0 : 32;
  const int bits = TraitsOf(type).bits;
  shape.code_bytes = type == DType::kQ8_0 ? 512 : type == DType::kNested8 ? 256 : 256 + (bits - 4) * 64;
  const int64_t blocks = cols / kQuantBlock;
  shape.scales_at = cols / kSuper * shape.super_bytes;
  shape.codes_at = (shape.scales_at + blocks * shape.scale_bytes + 63) / 64 * 64;
  shape.bytes = shape.codes_at + blocks * shape.code_bytes;
  return shape;
}

int64_t InterleavedGroupBytes(DType type, int64_t cols) { return GroupShapeOf(type, cols).bytes; }

bool CanInterleave(DType type, int64_t rows, int64_t cols) {
  const int block = TraitsOf(type).block_elements;
  return block > 1 && rows % kInterleave == 0 && cols % block == 0;
}

void InterleaveGroup(DType type, const std::byte* rows, int64_t row_bytes, int64_t cols, std::byte* group) {
  THERMOE_CHECK(CanInterleave(type, kInterleave, cols) && type != DType::kNested8);
  const GroupShape shape = GroupShapeOf(type, cols);
  const DTypeTraits& traits = TraitsOf(type);
  // Padding, and the bits that StoreCodes only sets.
  std::memset(group, 0, static_cast<size_t>(traits.bits == 5 || traits.bits == 6 ? shape.bytes : shape.codes_at));
  for (int lane = 0; lane < kInterleave; ++lane) {
    const std::byte* row = rows + lane * row_bytes;
    for (int64_t s = 0; IsK(type) && s < cols / kSuper; ++s) {
      StoreSuper(type, row + s * traits.block_bytes, lane, group + s * shape.super_bytes);
    }
    for (int64_t b = 0; b < cols / kQuantBlock; ++b) {
      const std::byte* block = row + b * kQuantBlock / traits.block_elements * traits.block_bytes;
      StoreScales(type, block, b, lane, group + shape.scales_at + b * shape.scale_bytes);
      std::byte* codes = group + shape.codes_at + b * shape.code_bytes;
      if (type == DType::kQ8_0) {
        for (int q = 0; q < 8; ++q) Store4(Load4(block + 2 + 4 * q) ^ 0x80808080u, codes + q * 64 + lane * 4);
      } else if (type == DType::kQ4_0 || type == DType::kIQ4NL) {  // file and group pair columns j and j + 16 alike
        for (int q = 0; q < 4; ++q) Store4(Load4(block + 2 + 4 * q), codes + q * 64 + lane * 4);
      } else {
        StoreCodes(type, block, b, lane, codes);
      }
    }
  }
}

void InterleavePlanes(const std::byte* rows, int64_t row_bytes, int64_t cols, std::byte* hi, std::byte* lo) {
  const GroupShape shape = GroupShapeOf(DType::kNested8, cols);
  std::byte* codes = hi + shape.codes_at;
  std::memset(hi, 0, static_cast<size_t>(shape.codes_at));
  for (int lane = 0; lane < kInterleave; ++lane) {
    const std::byte* block = rows + lane * row_bytes;
    for (int64_t b = 0; b < cols / kQuantBlock; ++b, block += sizeof(BlockQ8_0)) {
      std::memcpy(hi + b * 32 + 2 * lane, block, 2);
      for (int q = 0; q < 4; ++q) {
        // Columns 4 q.. and 16 further on, as code + 128 = 16 * (hi + 8) + lo.
        const uint32_t low = Load4(block + 2 + 4 * q) ^ 0x80808080u, high = Load4(block + 18 + 4 * q) ^ 0x80808080u;
        Store4(((low >> 4) & 0x0f0f0f0fu) | (high & 0xf0f0f0f0u), codes + b * 256 + q * 64 + lane * 4);
        Store4((low & 0x0f0f0f0fu) | ((high << 4) & 0xf0f0f0f0u), lo + b * 256 + q * 64 + lane * 4);
      }
    }
  }
}

void DecodeInterleavedRow(const WeightMatrix& matrix, int64_t row, Planes planes, float* out) {
  const DType type = matrix.type;
  const int lane = static_cast<int>(row % kInterleave);
  const GroupShape shape = GroupShapeOf(type, matrix.cols);
  const std::byte* group = matrix.data + row / kInterleave * shape.bytes;
  const std::byte* lo = type == DType::kNested8 && planes == Planes::kBoth
                            ? matrix.lo + row / kInterleave * kInterleave * NestedLoRowBytes(matrix.cols)
                            : nullptr;
  const auto nibble = [&](const std::byte* from, int j) {
    const int byte = static_cast<int>(from[NibbleAt(lane, j)]);
    return j < 16 ? byte & 15 : byte >> 4;
  };
  for (int64_t b = 0; b < matrix.cols / kQuantBlock; ++b) {
    const std::byte* codes = group + shape.codes_at + b * shape.code_bytes;
    const std::byte* scales = group + shape.scales_at + b * shape.scale_bytes;
    const std::byte* super = group + b / 8 * shape.super_bytes;
    KScales k;
    if (type == DType::kQ4K || type == DType::kQ5K) std::memcpy(&k, super + 64, sizeof(k));
    const auto byte = [&](int at) { return static_cast<uint8_t>(scales[at + lane]); };
    for (int j = 0; j < kQuantBlock; ++j) {
      int code = type == DType::kQ8_0 ? static_cast<int>(codes[j / 4 * 64 + lane * 4 + j % 4]) : nibble(codes, j);
      for (int plane = 0; type != DType::kQ8_0 && type != DType::kNested8 && plane < TraitsOf(type).bits - 4; ++plane) {
        const int64_t at = BitAt(lane, j);
        code |= (static_cast<int>(codes[256 + plane * 64 + at / 8]) >> (at % 8) & 1) << (4 + plane);
      }
      const auto f = static_cast<float>(code);
      const float d = LoadHalf(scales + 2 * lane);
      float value = 0;
      switch (type) {
        case DType::kQ8_0: value = d * (f - 128); break;
        case DType::kQ4_0: value = d * (f - 8); break;
        case DType::kQ5_0: value = d * (f - 16); break;
        case DType::kQ5_1: value = d * f + LoadHalf(scales + 32 + 2 * lane); break;
        case DType::kIQ4NL: value = d * static_cast<float>(kIQ4NLValues[code]); break;
        case DType::kMXFP4: value = E8M0Half(byte(0)) * static_cast<float>(kMXFP4Values[code]); break;
        case DType::kQ4K:
        case DType::kQ5K:
          value = LoadHalf(super + 2 * lane) * SixOf(k.scale, b, lane) * f - LoadHalf(super + 32 + 2 * lane) * SixOf(k.min, b, lane);
          break;
        case DType::kQ6K:
          value = LoadHalf(super + 2 * lane) * static_cast<float>(static_cast<int8_t>(byte(j < 16 ? 0 : 16))) * (f - 32);
          break;
        case DType::kNested8: {
          const float high = 16 * (f - 8);
          value = d * (lo != nullptr ? high + static_cast<float>(nibble(lo + b * 256, j)) : high + 7.5f);
          break;
        }
        default: THERMOE_CHECK(false);
      }
      out[b * kQuantBlock + j] = value;
    }
  }
}

}  // namespace thermoe
