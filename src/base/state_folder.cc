// SPDX-License-Identifier: Apache-2.0
#include "base/state_folder.h"

#include <cstdlib>

#include "base/errors.h"

namespace thermoe {

Result<std::string> StateFolder() {
  const auto set = [](const char* name) -> std::string {
    const char* value = std::getenv(name);
    return value == nullptr ? "" : value;
  };
  // The XDG Base Directory Specification: relative paths are to be ignored.
  if (const std::string state = set("XDG_STATE_HOME"); !state.empty() && state.front() == '/') return state + "/thermoe";
  if (const std::string home = set("HOME"); !home.empty()) return home + "/.local/state/thermoe";
  return NotFound("neither XDG_STATE_HOME nor HOME is set; set one of them, or name a file to write to");
}

}  // namespace thermoe
