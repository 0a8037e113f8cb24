// SPDX-License-Identifier: Apache-2.0
#include "model/gguf_format.h"

#include <array>
#include <string_view>
#include <utility>

#include "base/check.h"

namespace thermoe {
namespace {

// Every type that ggml has given a number to and still writes; the gaps were withdrawn.
constexpr std::pair<uint32_t, std::string_view> kGgmlTypes[] = {
    {0, "f32"},      {1, "f16"},     {2, "q4_0"},     {3, "q4_1"},   {6, "q5_0"},    {7, "q5_1"},   {8, "q8_0"},
    {9, "q8_1"},     {10, "q2_k"},   {11, "q3_k"},    {12, "q4_k"},  {13, "q5_k"},   {14, "q6_k"},  {15, "q8_k"},
    {16, "iq2_xxs"}, {17, "iq2_xs"}, {18, "iq3_xxs"}, {19, "iq1_s"}, {20, "iq4_nl"}, {21, "iq3_s"}, {22, "iq2_s"},
    {23, "iq4_xs"},  {24, "i8"},     {25, "i16"},     {26, "i32"},   {27, "i64"},    {28, "f64"},   {29, "iq1_m"},
    {30, "bf16"},    {34, "tq1_0"},  {35, "tq2_0"},   {39, "mxfp4"}, {40, "nvfp4"},
};

constexpr std::pair<uint32_t, DType> kReadable[] = {
    {0, DType::kF32},   {1, DType::kF16},   {2, DType::kQ4_0},  {6, DType::kQ5_0},    {7, DType::kQ5_1},  {8, DType::kQ8_0},
    {12, DType::kQ4K}, {13, DType::kQ5K}, {14, DType::kQ6K}, {20, DType::kIQ4NL}, {30, DType::kBF16}, {39, DType::kMXFP4},
};

}  // namespace

size_t GgufScalarBytes(GgufType type) {
  switch (type) {
    case GgufType::kU8:
    case GgufType::kI8:
    case GgufType::kBool: return 1;
    case GgufType::kU16:
    case GgufType::kI16: return 2;
    case GgufType::kU32:
    case GgufType::kI32:
    case GgufType::kF32: return 4;
    case GgufType::kU64:
    case GgufType::kI64:
    case GgufType::kF64: return 8;
    case GgufType::kText:
    case GgufType::kArray: return 0;
  }
  return 0;
}

std::string GgmlTypeName(uint32_t ggml_type) {
  for (const auto& [id, name] : kGgmlTypes) {
    if (id == ggml_type) return std::string(name);
  }
  return "type " + std::to_string(ggml_type);
}

std::optional<DType> DTypeOfGgml(uint32_t ggml_type) {
  for (const auto& [id, type] : kReadable) {
    if (id == ggml_type) return type;
  }
  return std::nullopt;
}

uint32_t GgmlOfDType(DType type) {
  for (const auto& [id, readable] : kReadable) {
    if (readable == type) return id;
  }
  THERMOE_CHECK(false);  // kNested8 is a layout in memory, no file has it
}

}  // namespace thermoe
