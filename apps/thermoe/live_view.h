// SPDX-License-Identifier: Apache-2.0
// The live view's picture: from plain data to lines of a given width and height. No terminal here; live_screen.h draws
// them.
#pragma once

#include <string>
#include <vector>

#include "live_paint.h"
#include "thermoe/control.h"

namespace thermoe {

struct LiveFrame {
  std::string title;  // what is going on, a line; "": none
  std::string model;  // "ember-22m-q8_0.gguf"
  TelemetryInfo telemetry;
  ControlView control;
  double run_s = 0;         // of the engine's clock, since the view began
  double tokens_per_s = 0;  // over the last second of that clock
  double power_w = 0;       // the same; 0: unknown
  double joules = 0;        // so far; 0: unknown
  int64_t tokens = 0;
  // [layers][experts] of the slots of recent steps, 1: the busiest expert of the layer.
  std::vector<std::vector<float>> experts;
  std::vector<int> distinct;  // [layers] experts that the last step used
  // One each kHistory_s of the engine's clock, oldest first.
  std::vector<double> rate_history, power_history, temp_history;
  std::string text;   // generated so far
  bool keys = false;  // q is listened for
};

inline constexpr double kHistory_s = 0.5;

// Exactly `height` lines of at most `width` columns. Of what does not fit, graphs go first, then text, heat strips are
// joined, and rows dropped from below.
std::vector<std::string> RenderLive(const LiveFrame& frame, int width, int height, LiveStyle style);

// "12.0 s  812.4 tokens/s  2.00 W of 2 W  41 C  ...": for --live=log.
std::string LiveLogLine(const LiveFrame& frame);

}  // namespace thermoe
