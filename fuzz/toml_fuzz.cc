// SPDX-License-Identifier: Apache-2.0
// libFuzzer on the reader of TOML: scenarios, schedules, profiles of devices and options of test-time training. Not part of
// the normal build:
//   clang++ -std=c++20 -g -O1 -fsanitize=fuzzer,address,undefined -Iinclude -Isrc fuzz/toml_fuzz.cc
//     src/control/plant/toml_file.cc src/control/plant/toml_text.cc src/model/unicode.cc src/base/status.cc src/base/utf8.cc
//     -lfmt -lutf8proc -o toml_fuzz
//   mkdir corpus && ./toml_fuzz corpus scenarios data/profiles
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "control/plant/toml_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const int file = memfd_create("fuzz", 0);
  if (ftruncate(file, 0) != 0 || pwrite(file, data, size, 0) != static_cast<ssize_t>(size)) return 0;
  static_cast<void>(thermoe::TomlFile::Open("/proc/self/fd/" + std::to_string(file)).ok());
  return 0;
}
