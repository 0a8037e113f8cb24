// SPDX-License-Identifier: Apache-2.0
// The live view's picture: from plain data to lines of a given width and height. No terminal here; live_screen.h draws them.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "thermoe/control.h"

namespace thermoe {

struct LiveFrame {
  std::string model;      // "ember-22m-q8_0.gguf"
  TelemetryInfo telemetry;
  ControlView control;
  double run_s = 0;       // of the engine's clock, since the view began
  double tokens_per_s = 0;  // over the last second of that clock
  double joules_per_token = 0;  // so far; 0: unknown
  int64_t tokens = 0;
  // [layers][experts] of the slots of recent steps, 1: the busiest expert of the layer.
  std::vector<std::vector<float>> experts;
  // One a tenth of a second of the engine's clock, oldest first.
  std::vector<double> rate_history, power_history, temp_history;
  std::string text;  // generated so far
};

struct LiveStyle {
  bool colour = false;
  bool unicode = false;  // blocks and dots; else ASCII
};

// Exactly `height` lines of at most `width` columns; escape sequences of colour take none. Of what does not fit, the
// heat strips are joined first, then the text shortened, then rows dropped from below.
std::vector<std::string> RenderLive(const LiveFrame& frame, int width, int height, LiveStyle style);

// "12.0 s  812.4 tokens/s  2.00 W of 2 W  41 C  ...": for --live=log.
std::string LiveLogLine(const LiveFrame& frame);

// Columns that `text` (UTF-8, with escape sequences of colour) takes on a terminal.
int ColumnsOf(std::string_view text);
// The last `count` lines of `text` wrapped at `width` columns.
std::vector<std::string> LastLines(std::string_view text, int width, int count);

}  // namespace thermoe
