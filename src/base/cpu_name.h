// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

namespace thermoe {

// "AMD EPYC ...", or "" when the system does not say.
std::string CpuName();

}  // namespace thermoe
