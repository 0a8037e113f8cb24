// SPDX-License-Identifier: Apache-2.0
// libFuzzer on the GGUF reader, the config readers and the binder. Not part of the normal build:
//   clang++ -std=c++20 -g -O1 -fsanitize=fuzzer,address,undefined -Iinclude -Isrc fuzz/gguf_fuzz.cc src/model/*.cc
//     src/model/architectures/*.cc src/base/*.cc -lfmt -lpcre2-8 -lutf8proc -o gguf_fuzz
//   mkdir corpus && thermoe synth --arch olmoe --layers 1 corpus/seed.gguf   (or any small .gguf)
//   ./gguf_fuzz corpus
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "model/architecture.h"
#include "model/bind_weights.h"
#include "model/gguf_reader.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace thermoe;
  auto file = GgufFile::Parse("fuzz.gguf", std::as_bytes(std::span(data, size)));
  if (!file.ok()) return 0;
  TensorSource source;
  if (!source.Add(file->path(), file->tensors()).ok()) return 0;
  GgufFields tokens(*file, "tokenizer.ggml");
  tokens.Texts("tokens");
  tokens.Ints("token_type");
  tokens.Floats("scores");
  auto read = ReadGgufConfig(*file, source);
  if (!read.ok()) return 0;
  ModelWeights weights;
  std::vector<std::unique_ptr<std::byte[]>> owned;
  static_cast<void>(BindWeights(source, read->config, read->architecture->gguf_names(), &weights, &owned).ok());
  return 0;
}
