// SPDX-License-Identifier: Apache-2.0
#include "base/cpu_name.h"

#include <fstream>

namespace thermoe {

std::string CpuName() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "";
}

}  // namespace thermoe
