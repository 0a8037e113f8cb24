// SPDX-License-Identifier: Apache-2.0
// Numbers of the GGUF file format, shared by its reader and its writer.
// Source: the GGUF specification (ggml, docs/gguf.md).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "model/formats.h"

namespace thermoe {

inline constexpr uint32_t kGgufMagic = 0x46554747;  // "GGUF", little endian
inline constexpr uint32_t kGgufVersion = 3;         // written; 2 and 3 are read (they differ in byte order only)
inline constexpr uint64_t kGgufAlignment = 32;      // of tensor data, unless general.alignment says otherwise
inline constexpr uint32_t kGgufMostDimensions = 4;

enum class GgufType : uint32_t {
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kText = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12,
};

// Bytes of a scalar; 0 for text, arrays and unknown types.
size_t GgufScalarBytes(GgufType type);

// The ggml name of a tensor type ("q4_k"), or "type 77" for one that is not known by name.
std::string GgmlTypeName(uint32_t ggml_type);

// The types that thermoe reads, both ways.
std::optional<DType> DTypeOfGgml(uint32_t ggml_type);
uint32_t GgmlOfDType(DType type);

}  // namespace thermoe
