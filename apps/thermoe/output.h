// SPDX-License-Identifier: Apache-2.0
// Standard output, and notes on standard error. The first write to the former that fails keeps its cause (a full disk, a
// closed file) until FlushOutput asks.
#pragma once

#include <string>
#include <string_view>

#include "thermoe/status.h"

namespace thermoe {

void Print(std::string_view text);
// Writes what is buffered. kInternal if this or any write before it failed.
Status FlushOutput();

// To standard error, at once. Where that cannot be written nobody is there to be told, so nothing happens.
void PrintNote(std::string_view text);

// A whole file anew. kInvalidArgument names `flag`, where the path came from.
Status WriteFile(const std::string& path, std::string_view text, std::string_view flag);
// UTF-8 `text` with what XML would take for its own, or does not allow, replaced.
std::string XmlText(std::string_view text);

}  // namespace thermoe
