// SPDX-License-Identifier: Apache-2.0
// Standard output, and notes on standard error. The first write to the former that fails keeps its cause (a full disk, a
// closed file) until FlushOutput asks.
#pragma once

#include <string_view>

#include "thermoe/status.h"

namespace thermoe {

void Print(std::string_view text);
// Writes what is buffered. kInternal if this or any write before it failed.
Status FlushOutput();

// To standard error, at once. Where that cannot be written nobody is there to be told, so nothing happens.
void PrintNote(std::string_view text);

}  // namespace thermoe
