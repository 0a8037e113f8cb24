// SPDX-License-Identifier: Apache-2.0
// --live: what a run does, while it runs: a picture on a terminal, or a line a second for logs.
#pragma once

#include <CLI/CLI.hpp>
#include <deque>
#include <memory>
#include <string>
#include <string_view>

#include "live_screen.h"
#include "live_view.h"
#include "thermoe/engine.h"
#include "thermoe/status.h"

namespace thermoe {

// "": off; "view"; "log". *mode becomes what was asked for.
void AddLiveFlag(CLI::App* app, std::string* mode);

// Draws on standard error, so that standard output may go to a file. A view where no terminal can draw becomes log
// lines.
class Live {
 public:
  // Null for mode "". `engine` must outlive it.
  static std::unique_ptr<Live> Start(const std::string& mode, Engine* engine);

  // After each step. Looks at the clock and mostly returns.
  void AfterStep();
  void AddText(std::string_view text) { frame_.text += text; }
  // Begins another text.
  void ClearText() { frame_.text.clear(); }
  // What is going on, in a line above the rest; where no picture is drawn a line of its own.
  void SetTitle(std::string title);
  // Whether a picture is drawn: then generated text is shown in it, and only after it on standard output.
  bool drawing() const { return screen_ != nullptr; }
  // The last picture and the terminal as it was; then a last line.
  void Finish();

 private:
  Live(Engine* engine, bool draw);
  void CountStep();
  void Sample();
  void Show();

  Engine* engine_;
  std::unique_ptr<LiveScreen> screen_;
  LiveFrame frame_;
  LiveStyle style_;
  double start_s_ = 0, start_j_ = 0, next_sample_s_ = 0, next_log_s_ = 0;  // of the engine's clock
  double next_draw_s_ = 0;                                                 // of the machine's
  std::deque<std::pair<double, int>> steps_;  // end and generated tokens of the last second's
  int64_t recent_tokens_ = 0;
  std::deque<double> powers_;  // samples of the last second
  int samples_ = 0;            // in the newest entry of the histories
};

}  // namespace thermoe
