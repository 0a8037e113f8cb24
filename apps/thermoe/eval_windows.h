// SPDX-License-Identifier: Apache-2.0
// Cuts texts into windows for `thermoe eval`. docs/json.md names the protocols in words.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "thermoe/status.h"
#include "thermoe/tokenizer.h"

namespace thermoe {

enum class Documents {
  kJoin,   // NUL becomes a newline; windows of W inputs and W predictions over the whole text
  kSplit,  // windows of W ids and W - 1 predictions inside each document, what is left over dropped
};

struct WindowOptions {
  Documents documents = Documents::kJoin;
  bool unix_newlines = true;  // CR LF and lone CR become LF first, as text files are read elsewhere
  int window = 512;           // W
  int stride = 512;           // S <= W; join only
  int64_t max_chars = 0;      // Unicode characters of a file that are used; 0: all
  int64_t max_tokens = 0;     // ids of a file that are used; 0: all; join only
  int sample = 0;             // at most so many windows, evenly spread; 0: all
  bool whole_documents = false;  // split only: each document of at least two ids is one window, whatever W
};

// A context of its own. Each id but the first is predicted from those before it; the last `counted` predictions
// enter the mean.
struct EvalWindow {
  std::vector<TokenId> ids;
  int counted = 0;
};

// `text` must be UTF-8; `source` names it in errors: no window fits.
Result<std::vector<EvalWindow>> CutWindows(const std::string& text, const std::string& source,
                                           const Tokenizer& tokenizer, const WindowOptions& options);

}  // namespace thermoe
