// SPDX-License-Identifier: Apache-2.0
#include "model/file_errors.h"

#include <fmt/ranges.h>

#include "base/errors.h"

namespace thermoe {

std::string Grouped(uint64_t number) {
  std::string digits = std::to_string(number);
  for (size_t from_end = 3; from_end < digits.size(); from_end += 4) digits.insert(digits.size() - from_end, 1, ',');
  return digits;
}

std::string ShapeText(const std::vector<int64_t>& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

Status HeaderTooShort(const std::string& path, uint64_t at, uint64_t file_bytes) {
  return Corrupt("{}: is cut off or damaged: its header needs more after byte {} than the file of {} bytes has; download it "
                 "again",
                 path, Grouped(at), Grouped(file_bytes));
}

Status TensorPastEnd(const std::string& path, std::string_view tensor, uint64_t end, uint64_t file_bytes) {
  return Corrupt("{}: tensor {} ends at byte {} but the file has {}; download it again", path, tensor, Grouped(end),
                 Grouped(file_bytes));
}

int64_t CheckedElements(const std::vector<int64_t>& shape) {
  int64_t product = 1;
  for (int64_t extent : shape) {
    if (extent < 0 || __builtin_mul_overflow(product, extent, &product)) return -1;
  }
  return product;
}

}  // namespace thermoe
