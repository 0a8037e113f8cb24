// SPDX-License-Identifier: Apache-2.0
#include "model/pretokenizer.h"

#include <algorithm>
#include <utility>

#include "model/unicode.h"

namespace thermoe {
namespace {

// Calls emit(piece, is_match) for the matches of `regex` and the gaps between them, in order.
template <typename Emit>
Status ForEachMatch(const Regex& regex, std::string_view text, RegexScratch* scratch, const Emit& emit) {
  size_t gap = 0;  // end of what has been emitted
  size_t from = 0;
  RegexMatch match;
  while (from < text.size()) {
    if (Status status = regex.Find(text, from, scratch, &match); !status.ok()) return status;
    if (!match.found) break;
    if (match.begin > gap) emit(text.substr(gap, match.begin - gap), false);
    if (match.end > match.begin) emit(text.substr(match.begin, match.end - match.begin), true);
    gap = from = match.end;
    // An empty match cuts, then the search must move on.
    if (match.end == match.begin && from < text.size()) from += Utf8Length(text[from]);
  }
  if (gap < text.size()) emit(text.substr(gap), false);
  return Status::Ok();
}

// Appends to `out` or lengthens its last piece, as `behavior` says. `merge_next` is the flag of a delimiter that
// waits for the piece after it.
class SplitCollector {
 public:
  SplitCollector(const SplitStage& stage, std::vector<std::string_view>* out) : stage_(stage), out_(out) {}

  void operator()(std::string_view piece, bool is_match) {
    const bool delimiter = is_match != stage_.invert;
    bool join = false;
    switch (stage_.behavior) {
      case SplitBehavior::kIsolated: break;
      case SplitBehavior::kRemoved:
        if (delimiter) return;
        break;
      case SplitBehavior::kContiguous: join = any_ && delimiter == last_delimiter_; break;
      case SplitBehavior::kMergedWithPrevious: join = any_ && delimiter && !last_delimiter_; break;
      case SplitBehavior::kMergedWithNext: join = any_ && !delimiter && last_delimiter_; break;
    }
    any_ = true;
    last_delimiter_ = delimiter;
    if (join) {
      out_->back() = {out_->back().data(), out_->back().size() + piece.size()};
    } else {
      out_->push_back(piece);
    }
  }

 private:
  const SplitStage& stage_;
  std::vector<std::string_view>* out_;
  bool any_ = false;
  bool last_delimiter_ = false;
};

Status Apply(const SplitStage& stage, std::string_view piece, bool /*first*/, Words* words) {
  SplitCollector collect(stage, &words->views);
  return ForEachMatch(stage.regex, piece, &words->regex,
                      [&](std::string_view part, bool is_match) { collect(part, is_match); });
}

Status Apply(const PrefixSpaceStage&, std::string_view piece, bool /*first*/, Words* words) {
  if (piece.front() != ' ') piece = words->owned.emplace_back(" " + std::string(piece));
  words->views.push_back(piece);
  return Status::Ok();
}

Status Apply(const MetaspaceStage& stage, std::string_view piece, bool first, Words* words) {
  std::string text;
  text.reserve(piece.size() + piece.size() / 2);
  for (const char c : piece) {
    if (c == ' ') {
      text += stage.marker;
    } else {
      text += c;
    }
  }
  const bool prepend = stage.scheme == PrependScheme::kAlways || (stage.scheme == PrependScheme::kFirst && first);
  if (prepend && !std::string_view(text).starts_with(stage.marker)) text.insert(0, stage.marker);
  const std::string_view owned = words->owned.emplace_back(std::move(text));
  if (!stage.split) {
    words->views.push_back(owned);
    return Status::Ok();
  }
  size_t begin = 0;
  while (begin < owned.size()) {
    const size_t next = std::min(owned.find(stage.marker, begin + 1), owned.size());
    words->views.push_back(owned.substr(begin, next - begin));
    begin = next;
  }
  return Status::Ok();
}

}  // namespace

Status PreTokenizer::Split(std::string_view text, bool at_start, Words* words) const {
  words->owned.clear();
  words->views.clear();
  if (text.empty()) return Status::Ok();
  words->views.push_back(text);
  for (const PreTokenizerStage& stage : stages_) {
    std::swap(words->views, words->previous);
    words->views.clear();
    bool first = at_start;
    for (const std::string_view piece : words->previous) {
      Status status = std::visit([&](const auto& s) { return Apply(s, piece, first, words); }, stage);
      if (!status.ok()) return status;
      first = false;
    }
  }
  return Status::Ok();
}

}  // namespace thermoe
