// SPDX-License-Identifier: Apache-2.0
// Standard output. The first write that fails keeps its cause (a full disk, a closed file) until FlushOutput asks.
#pragma once

#include <string_view>

#include "thermoe/status.h"

namespace thermoe {

void Print(std::string_view text);
// Writes what is buffered. kInternal if this or any write before it failed.
Status FlushOutput();

}  // namespace thermoe
