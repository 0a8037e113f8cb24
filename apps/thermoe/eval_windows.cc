// SPDX-License-Identifier: Apache-2.0
#include "eval_windows.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "base/errors.h"

namespace thermoe {
namespace {

// CR LF and CR to LF, which is how Python and most tools read text files.
std::string UnixNewlines(const std::string& text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\r') {
      out += text[i];
    } else if (i + 1 == text.size() || text[i + 1] != '\n') {
      out += '\n';
    }
  }
  return out;
}

// The first `count` Unicode characters of UTF-8 text.
std::string_view FirstCharacters(std::string_view text, int64_t count) {
  for (size_t i = 0; i < text.size(); ++i) {
    if ((text[i] & 0xc0) == 0x80) continue;
    if (count-- == 0) return text.substr(0, i);
  }
  return text;
}

// Windows start at every S-th id. Each counts the predictions that no earlier one counted, so every id but the first
// counts once; the last window may be shorter.
Result<std::vector<EvalWindow>> Join(std::string text, const Tokenizer& tokenizer, const WindowOptions& options) {
  std::replace(text.begin(), text.end(), '\0', '\n');
  Result<std::vector<TokenId>> encoded = tokenizer.Encode(text);
  if (!encoded.ok()) return encoded.status();
  std::vector<TokenId>& ids = *encoded;
  if (options.max_tokens > 0) ids.resize(std::min(ids.size(), static_cast<size_t>(options.max_tokens)));
  std::vector<EvalWindow> windows;
  size_t counted = 1;  // ids whose prediction is counted; the first has none
  for (size_t begin = 0; counted < ids.size(); begin += static_cast<size_t>(options.stride)) {
    const size_t end = std::min(ids.size(), begin + static_cast<size_t>(options.window) + 1);
    windows.push_back({{ids.begin() + static_cast<ptrdiff_t>(begin), ids.begin() + static_cast<ptrdiff_t>(end)},
                       static_cast<int>(end - counted)});
    counted = end;
  }
  return windows;
}

// As range(0, len(ids) - W, W) does: a document of exactly n W ids gives n - 1 windows. FACTS were measured so.
Result<std::vector<EvalWindow>> Split(const std::string& text, const Tokenizer& tokenizer,
                                      const WindowOptions& options) {
  const auto width = static_cast<ptrdiff_t>(options.window);
  std::vector<EvalWindow> windows;
  for (size_t start = 0; start <= text.size();) {
    const size_t end = std::min(text.find('\0', start), text.size());
    Result<std::vector<TokenId>> ids = tokenizer.Encode(std::string_view(text).substr(start, end - start));
    if (!ids.ok()) return ids.status();
    if (options.whole_documents && ids->size() > 1) {
      const int counted = static_cast<int>(ids->size()) - 1;
      windows.push_back({std::move(*ids), counted});
    }
    const auto end_of_windows = options.whole_documents ? 0 : static_cast<ptrdiff_t>(ids->size()) - width;
    for (ptrdiff_t begin = 0; begin < end_of_windows; begin += width) {
      windows.push_back({{ids->begin() + begin, ids->begin() + begin + width}, options.window - 1});
    }
    start = end + 1;
  }
  return windows;
}

}  // namespace

Result<std::vector<EvalWindow>> CutWindows(const std::string& text, const std::string& source,
                                           const Tokenizer& tokenizer, const WindowOptions& options) {
  std::string used = options.unix_newlines ? UnixNewlines(text) : text;
  if (options.max_chars > 0) used.resize(FirstCharacters(used, options.max_chars).size());
  if (used.empty()) return InvalidArgument("{}: is empty; there is nothing to evaluate", source);
  Result<std::vector<EvalWindow>> cut = options.documents == Documents::kJoin
                                            ? Join(std::move(used), tokenizer, options)
                                            : Split(used, tokenizer, options);
  if (!cut.ok()) return Status(cut.status().code(), source + ": " + cut.status().message());
  if (cut->empty()) {
    if (options.documents == Documents::kJoin) {
      return InvalidArgument("{}: has fewer than 2 tokens; there is nothing to predict", source);
    }
    return InvalidArgument("{}: no document is longer than {} tokens; choose a smaller --window", source,
                           options.window);
  }
  if (options.sample > 0) {
    std::vector<EvalWindow> chosen;
    const size_t every = std::max<size_t>(1, cut->size() / static_cast<size_t>(options.sample));
    for (size_t i = 0; i < cut->size() && chosen.size() < static_cast<size_t>(options.sample); i += every) {
      chosen.push_back(std::move((*cut)[i]));
    }
    cut = std::move(chosen);
  }
  return cut;
}

}  // namespace thermoe
