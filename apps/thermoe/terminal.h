// SPDX-License-Identifier: Apache-2.0
// What a person at a terminal sees and a pipe does not: colours, progress bars, escaped control characters.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace thermoe {

bool IsTerminal(int fd);
// A terminal, NO_COLOR unset or empty, TERM not "dumb".
bool UseColour(int fd);
// Columns of the terminal on stderr or stdout; without one COLUMNS, else 80. At least 20.
int TerminalWidth();

// `text` in that style if UseColour(fd), else as it is.
std::string Dim(std::string_view text, int fd);
std::string Bold(std::string_view text, int fd);

// Control characters other than newline and tab as \x1b: text of strangers must not steer a terminal.
std::string EscapeControls(std::string_view text);
// EscapeControls if `fd` is a terminal, else `text`.
std::string Printable(std::string_view text, int fd);

std::string Join(const std::vector<std::string>& parts, std::string_view separator);
std::string WithCommas(int64_t number);    // 40,000
std::string BytesText(double bytes);       // "24.2 MB", decimal units
std::string DurationText(double seconds);  // "0:07", "12:30", "1:02:03"

// Lines of at most `width` columns, each after `indent` spaces; a blank line in `text` stays one, a line
// that starts with a space is kept as it is.
std::string Wrap(std::string_view text, int indent, int width);

// One line on stderr that redraws itself, with the time left; nothing at all unless stderr is a terminal.
class ProgressBar {
 public:
  explicit ProgressBar(std::string label);
  ~ProgressBar() { Clear(); }
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void Update(double done_frac);
  // Erases the line, so that other output may follow.
  void Clear();

 private:
  using Clock = std::chrono::steady_clock;
  std::string label_;
  bool enabled_;
  int drawn_columns_ = 0;
  Clock::time_point start_ = Clock::now();
  Clock::time_point next_draw_;
};

// For loaders: draws, and asks them to stop when the user pressed Ctrl-C.
std::function<bool(double)> BarProgress(ProgressBar* bar);

}  // namespace thermoe
