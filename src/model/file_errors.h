// SPDX-License-Identifier: Apache-2.0
// Sentences that several readers say, so that they say them alike.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "thermoe/status.h"

namespace thermoe {

// 91204 -> "91,204".
std::string Grouped(uint64_t number);

// {2, 64} -> "[2, 64]".
std::string ShapeText(const std::vector<int64_t>& shape);

// The header says more than the file holds. `at`: where reading stopped.
Status HeaderTooShort(const std::string& path, uint64_t at, uint64_t file_bytes);

Status TensorPastEnd(const std::string& path, std::string_view tensor, uint64_t end, uint64_t file_bytes);

// The element product of `shape`, or -1 when a dimension is negative or the product passes 2^63.
int64_t CheckedElements(const std::vector<int64_t>& shape);

}  // namespace thermoe
