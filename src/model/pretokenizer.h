// SPDX-License-Identifier: Apache-2.0
// Cuts text into the words within which merges may happen: a short list of stages, each applied to every piece
// that the one before it left.
#pragma once

#include <deque>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "model/regex.h"
#include "thermoe/status.h"

namespace thermoe {

// What becomes of the matches of a Split, as Hugging Face names it.
enum class SplitBehavior { kIsolated, kRemoved, kMergedWithPrevious, kMergedWithNext, kContiguous };

struct SplitStage {
  Regex regex;
  SplitBehavior behavior = SplitBehavior::kIsolated;
  bool invert = false;  // matches and the gaps between them change places
};

// A space is put before every piece that does not begin with one.
struct PrefixSpaceStage {};

enum class PrependScheme { kAlways, kFirst, kNever };

// Spaces become `marker` (U+2581), SentencePiece's written form of a space.
struct MetaspaceStage {
  std::string marker;
  PrependScheme scheme = PrependScheme::kAlways;
  bool split = true;  // cut before every marker
};

using PreTokenizerStage = std::variant<SplitStage, PrefixSpaceStage, MetaspaceStage>;

// The pieces of one text: views into it, or into `owned` where a stage had to change characters.
struct Words {
  std::vector<std::string_view> views;
  std::deque<std::string> owned;
  std::vector<std::string_view> previous;  // working space
  RegexScratch regex;
};

class PreTokenizer {
 public:
  template <typename Stage>
  void Add(Stage stage) {
    stages_.emplace_back(std::in_place_type<Stage>, std::move(stage));
  }
  bool empty() const { return stages_.empty(); }

  // Sets words->views to the words of `text` (valid UTF-8), in order; none is empty. `at_start`: no text and no
  // token comes before. The views live as long as `text` and `words`.
  Status Split(std::string_view text, bool at_start, Words* words) const;

 private:
  std::vector<PreTokenizerStage> stages_;
};

// What a name in tokenizer.ggml.pre stands for: regular expressions, each of which isolates its matches, and the
// settings that llama.cpp ties to the name.
struct NamedPreTokenizer {
  std::string_view name;
  std::span<const std::string_view> patterns;
  bool ignore_merges = false;  // a word that is a token stays whole, whatever the merges say
  bool adds_bos = false;       // unless the file says otherwise
};

// nullptr if there is no such name.
const NamedPreTokenizer* FindNamedPreTokenizer(std::string_view name);
// All names, comma-separated.
std::string NamedPreTokenizerNames();
// The name under which a single pattern is known, "" if it is not.
std::string_view NameOfPattern(std::string_view pattern);

// GPT-2's pattern, which Hugging Face's ByteLevel stage applies when use_regex is set.
std::string_view Gpt2Pattern();

}  // namespace thermoe
