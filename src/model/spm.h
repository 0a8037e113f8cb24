// SPDX-License-Identifier: Apache-2.0
// SentencePiece's BPE (Kudo and Richardson 2018): neighbours merge when their text is a token, the one with the highest
// score first.
#pragma once

#include <memory>
#include <vector>

#include "model/vocabulary.h"
#include "model/word_encoder.h"

namespace thermoe {

// `scores`: [vocabulary], no NaN. Characters without a token become <0xXX> tokens, or `unknown` where the vocabulary
// has none. The vocabulary must outlive the encoder.
std::shared_ptr<const WordEncoder> MakeSentencePieceBpe(const Vocabulary& vocabulary, const std::vector<float>& scores,
                                                        TokenId unknown);

}  // namespace thermoe
