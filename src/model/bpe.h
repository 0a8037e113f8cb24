// SPDX-License-Identifier: Apache-2.0
// Byte-pair encoding by a list of merges (Sennrich et al. 2016), over bytes or over characters.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "model/vocabulary.h"
#include "model/word_encoder.h"

namespace thermoe {

// (left id, right id) -> (rank, merged id): open addressing, at most half full.
class MergeTable {
 public:
  explicit MergeTable(size_t merges = 0);
  // Keeps the first or, with `replace`, the last of several entries for one pair.
  void Insert(TokenId left, TokenId right, MergeOutcome outcome, bool replace);
  MergeOutcome Find(TokenId left, TokenId right) const {
    const uint64_t key = Key(left, right);
    for (size_t i = Slot(key);; i = (i + 1) & mask_) {
      if (entries_[i].key == key) return entries_[i].outcome;
      if (entries_[i].key == kEmpty) return {};
    }
  }

 private:
  struct Entry {
    uint64_t key = kEmpty;
    MergeOutcome outcome;
  };
  static constexpr uint64_t kEmpty = UINT64_MAX;  // the pair (-1, -1), which no merge has

  static uint64_t Key(TokenId left, TokenId right) {
    return (static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32) | static_cast<uint32_t>(right);
  }
  // Fibonacci hashing: the top bits of the product.
  size_t Slot(uint64_t key) const { return static_cast<size_t>((key ^ (key >> 29)) * 0x9e3779b97f4a7c15ull >> shift_); }

  std::vector<Entry> entries_;
  size_t mask_ = 0;
  int shift_ = 63;
};

// One line of a file's merge list.
struct Merge {
  std::string left, right;
};

// The pair of "a b": cut at the first space that is not the first character. False if there is none.
bool ParseMerge(std::string_view line, Merge* merge);

struct BpeOptions {
  bool ignore_merges = false;        // a word that is a token stays whole
  bool last_duplicate_wins = false;  // of two lines for one pair, as Hugging Face reads them
  // Character BPE only:
  bool byte_fallback = false;  // characters without a token become <0xXX> tokens
  bool fuse_unknown = false;   // a run of unknown characters gives one unknown token
  TokenId unknown = kNoToken;
};

// Over bytes: words are raw UTF-8, tokens are written in the byte-level alphabet. kCorrupt for a merge whose parts
// or result are no tokens.
Result<std::shared_ptr<const WordEncoder>> MakeByteLevelBpe(const Vocabulary& vocabulary,
                                                            const std::vector<Merge>& merges,
                                                            const BpeOptions& options);
// Over characters; likewise. The vocabulary must outlive the encoder.
Result<std::shared_ptr<const WordEncoder>> MakeCharacterBpe(const Vocabulary& vocabulary,
                                                            const std::vector<Merge>& merges,
                                                            const BpeOptions& options);

}  // namespace thermoe
