// SPDX-License-Identifier: Apache-2.0
// Where thermoe keeps what it learnt about a machine and its models.
#pragma once

#include <string>

#include "thermoe/status.h"

namespace thermoe {

// $XDG_STATE_HOME/thermoe, else ~/.local/state/thermoe; it may not exist yet. kNotFound when neither variable is set.
Result<std::string> StateFolder();

}  // namespace thermoe
