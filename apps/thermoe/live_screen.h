// SPDX-License-Identifier: Apache-2.0
// A full-screen picture on a terminal's second page. Whatever ends the process, the terminal is as it was before.
#pragma once

#include <memory>
#include <string>
#include <vector>

namespace thermoe {

// Whether pictures can be drawn on `fd`: a terminal that moves its cursor (TERM neither empty nor "dumb"), with this
// program in its foreground.
bool CanDraw(int fd);

class LiveScreen {
 public:
  // One at a time. `fd` must be one that CanDraw.
  explicit LiveScreen(int fd);
  ~LiveScreen();
  LiveScreen(const LiveScreen&) = delete;
  LiveScreen& operator=(const LiveScreen&) = delete;

  // As it is now: it changes when the window does.
  int width() const;
  int height() const;
  // True once after the window changed or the program came back from the background.
  bool TakeChange();
  // Lines from the top; at most height() of them, at most width() columns each.
  void Draw(const std::vector<std::string>& lines);

  // Whether standard input is the same terminal, so that keys can be told.
  bool has_keys() const { return has_keys_; }
  // A key that was pressed; 0: none. Never waits.
  char TakeKey();

 private:
  int fd_;
  bool has_keys_ = false;
};

}  // namespace thermoe
