// SPDX-License-Identifier: Apache-2.0
// The one Tokenizer of this library: what differs between formats and models is data in its parts.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "model/added_tokens.h"
#include "model/normalizer.h"
#include "model/pretokenizer.h"
#include "model/vocabulary.h"
#include "model/word_encoder.h"
#include "thermoe/tokenizer.h"

namespace thermoe {

struct TokenizerParts {
  std::unique_ptr<const Vocabulary> vocabulary;  // encoder points into it
  std::vector<AddedToken> added;                 // matched in the text as it stands
  std::vector<AddedToken> added_normalised;      // matched after normalisation, their texts normalised too
  Normalizer normalizer;
  PreTokenizer pretokenizer;
  std::shared_ptr<const WordEncoder> encoder;
  std::string pretokenizer_name;      // for Describe(); may be empty
  bool strips_leading_space = false;  // Decode takes one space off the start
  TokenId bos = kNoToken;
  bool adds_bos = false;
  std::vector<TokenId> end_ids;
};

std::shared_ptr<const Tokenizer> AssembleTokenizer(TokenizerParts parts);

}  // namespace thermoe
