// SPDX-License-Identifier: Apache-2.0
// Makes tokenizers from the two formats. The spec is plain data, so that readers need not know how it is used.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "thermoe/status.h"
#include "thermoe/tokenizer.h"

namespace thermoe {

// The tokenizer.ggml.* fields of a GGUF file, as they stand there.
struct GgufTokenizerSpec {
  std::string source;                    // file path, for messages
  std::string model;                     // tokenizer.ggml.model: "gpt2" (byte-level BPE), "llama" (SentencePiece)
  std::string pre;                       // tokenizer.ggml.pre: "qwen2", "llama-bpe", ...; may be empty
  std::vector<std::string> tokens;
  std::vector<float> scores;             // empty or [tokens]
  std::vector<int32_t> types;            // empty or [tokens]: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte
  std::vector<std::string> merges;       // "a b"
  int64_t bos = -1, eos = -1, eot = -1, unknown = -1, padding = -1;
  int add_bos = -1;                      // -1: not stated
  int add_space_prefix = -1;             // -1: not stated
};

// Errors: kUnsupported (model or pre-tokeniser, with the known ones listed), kCorrupt.
Result<std::shared_ptr<const Tokenizer>> MakeGgufTokenizer(GgufTokenizerSpec spec);

// From the texts of tokenizer.json and, where present (else ""), tokenizer_config.json and
// generation_config.json. `folder` is for messages.
Result<std::shared_ptr<const Tokenizer>> MakeHuggingFaceTokenizer(const std::string& folder,
                                                                  std::string_view tokenizer_json,
                                                                  std::string_view tokenizer_config_json,
                                                                  std::string_view generation_config_json);

}  // namespace thermoe
