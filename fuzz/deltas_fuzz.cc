// SPDX-License-Identifier: Apache-2.0
// libFuzzer on the reader of a session's deltas. Not part of the normal build:
//   clang++ -std=c++20 -g -O1 -fsanitize=fuzzer,address,undefined -Iinclude -Isrc fuzz/deltas_fuzz.cc
//   src/engine/deltas_file.cc
//     src/engine/adaptation.cc src/engine/ttt_options.cc src/forward/deltas.cc src/forward/backward/optimizer.cc
//     src/control/plant/toml_file.cc src/model/*.cc src/model/architectures/*.cc src/base/*.cc -lfmt -lpcre2-8
//     -lutf8proc -o deltas_fuzz
//   mkdir corpus && thermoe run -p "some text" --ttt output --ttt-save corpus/seed   (or any small file of deltas)
//   ./deltas_fuzz corpus
#include <cstddef>
#include <cstdint>
#include <span>

#include "engine/adaptation.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace thermoe;
  ModelConfig config;
  config.layers = config.heads = config.kv_heads = config.slots = 1;
  config.hidden = config.head_dim = config.experts = config.vocab = 2;
  TttOptions options;
  options.groups = {{DeltaGroup::kOutputBias, 0.01f, 0}, {DeltaGroup::kLowRankQ, 0.01f, 0}};
  options.rank = 1;
  Adaptation adaptation(config, options, nullptr);
  static_cast<void>(ParseDeltas("fuzz", std::as_bytes(std::span(data, size)), "model", &adaptation).ok());
  return 0;
}
