// SPDX-License-Identifier: Apache-2.0
#include "live.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <numeric>
#include <utility>

#include "flags.h"
#include "interrupt.h"
#include "output.h"
#include "terminal.h"

namespace thermoe {
namespace {

constexpr double kDraw_s = 0.1, kSample_s = 0.1, kLog_s = 1;
constexpr double kWindow_s = 1;      // of tokens per second
constexpr float kKeep_frac = 0.97f;  // of the experts' use, from step to step
constexpr size_t kMostHistory = 512, kMostText = 1 << 16;
constexpr int kSamples = static_cast<int>(kHistory_s / kSample_s + 0.5);  // of a history's entry

double MachineSeconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

bool WritesUtf8() {
  for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    const char* value = std::getenv(name);
    if (value == nullptr || *value == '\0') continue;
    const std::string_view text = value;
    return text.find("UTF-8") != text.npos || text.find("utf8") != text.npos || text.find("UTF8") != text.npos;
  }
  return false;
}

}  // namespace

void AddLiveFlag(CLI::App* app, std::string* mode) {
  app->add_flag("--live{view}", *mode,
                "Show speed, power, heat, routing and experts in use while it runs, on standard error; q stops the "
                "run. --live=log "
                "prints a line a second instead, as --live does where there is no terminal.")
      ->check(OneOf({"view", "log"}))
      ->group("Output options");
}

std::unique_ptr<Live> Live::Start(const std::string& mode, Engine* engine) {
  if (mode.empty()) return nullptr;
  return std::unique_ptr<Live>(new Live(engine, mode == "view" && CanDraw(STDERR_FILENO)));
}

Live::Live(Engine* engine, bool draw) : engine_(engine) {
  const ModelInfo& info = engine->model().info();
  frame_.model = std::filesystem::path(info.path).filename().string();
  frame_.telemetry = engine->telemetry();
  frame_.experts.assign(static_cast<size_t>(info.moe_layers), std::vector<float>(static_cast<size_t>(info.experts)));
  style_ = {UseColour(STDERR_FILENO), WritesUtf8()};
  start_s_ = next_sample_s_ = engine->now_s();
  next_log_s_ = start_s_ + kLog_s;
  start_j_ = engine->energy().total_j();
  if (draw) screen_ = std::make_unique<LiveScreen>(STDERR_FILENO);
  frame_.keys = screen_ != nullptr && screen_->has_keys();
  frame_.control = engine->control_view();
  if (screen_) Show();
}

void Live::SetTitle(std::string title) {
  frame_.title = std::move(title);
  if (screen_ == nullptr) PrintNote(frame_.title + "\n");
}

// Use of each layer's experts fades from step to step.
void Live::CountStep() {
  const StepRecord& record = engine_->last_step();
  const double now_s = engine_->now_s();
  frame_.tokens += record.decode_tokens;
  recent_tokens_ += record.decode_tokens;
  steps_.emplace_back(now_s, record.decode_tokens);
  while (steps_.size() > 1 && steps_.front().first < now_s - kWindow_s) {
    recent_tokens_ -= steps_.front().second;
    steps_.pop_front();
  }
  const double passed_s = std::min(kWindow_s, now_s - start_s_);
  frame_.tokens_per_s = passed_s > 0 ? static_cast<double>(recent_tokens_) / passed_s : 0;
  frame_.distinct.clear();
  for (const LayerRecord& layer : record.layers) frame_.distinct.push_back(layer.distinct_experts);
  for (size_t layer = 0; layer < std::min(frame_.experts.size(), record.layers.size()); ++layer) {
    std::vector<float>& use = frame_.experts[layer];
    const std::vector<int32_t>& slots = record.layers[layer].expert_slots;
    for (size_t e = 0; e < std::min(use.size(), slots.size()); ++e)
      use[e] = kKeep_frac * use[e] + static_cast<float>(slots[e]);
  }
}

// Into the newest entry of each history, as a mean.
void Live::Sample() {
  frame_.control = engine_->control_view();
  if (frame_.control.power_w <= 0) powers_.clear();
  if (frame_.control.power_w > 0) powers_.push_back(frame_.control.power_w);
  if (powers_.size() > kWindow_s / kSample_s) powers_.pop_front();
  frame_.power_w =
      powers_.empty() ? 0 : std::accumulate(powers_.begin(), powers_.end(), 0.0) / static_cast<double>(powers_.size());
  const bool opens = samples_ == 0;
  ++samples_;
  const auto add = [&](std::vector<double>* history, double value) {
    if (opens && history->size() >= kMostHistory) history->erase(history->begin());
    if (opens) history->push_back(0);
    history->back() += (value - history->back()) / samples_;
  };
  add(&frame_.rate_history, frame_.tokens_per_s);
  add(&frame_.power_history, frame_.control.power_w);
  add(&frame_.temp_history, frame_.control.temp_c);
  if (samples_ == kSamples) samples_ = 0;
}

void Live::AfterStep() {
  CountStep();
  const double now_s = engine_->now_s();
  if (now_s >= next_sample_s_) {
    next_sample_s_ = now_s + kSample_s;
    Sample();
  }
  if (screen_ == nullptr) {
    if (now_s < next_log_s_) return;
    next_log_s_ = now_s + kLog_s;
    Show();
    return;
  }
  for (char key; (key = screen_->TakeKey()) != 0;) {
    if (key == 'q' || key == 'Q') RequestInterrupt();
  }
  const double machine_s = MachineSeconds();
  if (machine_s < next_draw_s_ && !screen_->TakeChange()) return;
  next_draw_s_ = machine_s + kDraw_s;
  Show();
}

void Live::Show() {
  frame_.control = engine_->control_view();
  frame_.run_s = engine_->now_s() - start_s_;
  const EnergyTotals totals = engine_->energy();
  frame_.joules = totals.source != EnergySource::kNone ? totals.total_j() - start_j_ : 0;
  if (screen_ == nullptr) {
    PrintNote(LiveLogLine(frame_) + "\n");
    return;
  }
  if (frame_.text.size() > kMostText) frame_.text.erase(0, frame_.text.size() - kMostText / 2);
  LiveFrame shown = frame_;
  for (std::vector<float>& layer : shown.experts) {
    const float most = *std::max_element(layer.begin(), layer.end());
    for (float& use : layer) use = most > 0 ? use / most : 0;
  }
  screen_->Draw(RenderLive(shown, screen_->width(), screen_->height(), style_));
}

void Live::Finish() {
  if (screen_ != nullptr) Show();  // the last picture
  screen_.reset();
  Show();
}

}  // namespace thermoe
