// SPDX-License-Identifier: Apache-2.0
// What a tokenizer changes in a text before it cuts it up.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "model/regex.h"
#include "model/unicode.h"
#include "thermoe/status.h"

namespace thermoe {

struct PrependStep {
  std::string text;  // put before every non-empty text
};

struct ReplaceStep {
  std::string from;            // a literal, not empty, or
  std::optional<Regex> regex;  // a pattern
  std::string to;
};

using NormalizerStep = std::variant<NormalForm, PrependStep, ReplaceStep>;

class Normalizer {
 public:
  template <typename Step>
  void Add(Step step) {
    steps_.emplace_back(std::in_place_type<Step>, std::move(step));
  }
  bool empty() const { return steps_.empty(); }

  // kResourceExhausted if the result would be more than kMaxGrowth times as long as the text.
  Result<std::string> Apply(std::string_view text, RegexScratch* scratch) const;

 private:
  // U+FDFA, Unicode's worst, becomes 11 times as long; a replacement of a space by a marker, three times.
  static constexpr size_t kMaxGrowth = 64;
  static constexpr size_t kMaxGrowthBase = 4096;  // bytes, for short texts

  std::vector<NormalizerStep> steps_;
};

// `text` with every `from` (not empty) replaced.
std::string ReplaceAll(std::string_view text, std::string_view from, std::string_view to);

}  // namespace thermoe
