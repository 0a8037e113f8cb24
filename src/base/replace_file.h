// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

#include "thermoe/status.h"

namespace thermoe {

// A whole file anew: written beside `path`, flushed to the disk, then put in its place at once, so that a reader or a crash finds the
// old file or the new one. kInvalidArgument (a path that cannot be written) and kResourceExhausted (a full disk) name the path.
Status ReplaceFile(const std::string& path, std::string_view bytes);

}  // namespace thermoe
