// SPDX-License-Identifier: Apache-2.0
// libFuzzer on the safetensors reader and on config.json. Not part of the normal build:
//   clang++ -std=c++20 -g -O1 -fsanitize=fuzzer,address,undefined -Iinclude -Isrc fuzz/safetensors_fuzz.cc
//     src/model/*.cc src/model/architectures/*.cc src/base/*.cc -lfmt -lpcre2-8 -lutf8proc -o safetensors_fuzz
//   mkdir corpus && cp tests/fixtures/*/config.json corpus   (and any small model.safetensors)
//   ./safetensors_fuzz corpus
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>

#include "model/architecture.h"
#include "model/safetensors_reader.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace thermoe;
  static_cast<void>(ParseSafetensors("fuzz.safetensors", std::as_bytes(std::span(data, size))).ok());
  const auto config = nlohmann::json::parse(data, data + size, nullptr, /*allow_exceptions=*/false);
  if (config.is_object()) static_cast<void>(ReadHfConfig("config.json", config).ok());
  return 0;
}
