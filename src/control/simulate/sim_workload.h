// SPDX-License-Identifier: Apache-2.0
// The requests of a scenario and the steps that serve them: what the engine's scheduler does, without a model.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "control/cost/operation.h"
#include "control/plant/plant.h"
#include "control/simulate/sim_routing.h"
#include "control/simulate/sim_scenario.h"

namespace thermoe {

class SimWorkload {
 public:
  SimWorkload(const SimLoad& load, const ModelShape& shape, uint64_t seed);

  // Takes in what arrived until now. `max_sequences`: bound on what runs at a time; 0: the load's own.
  void Admit(double now_s, int32_t max_sequences);
  bool has_work() const { return !running_.empty() || burst_left_ > 0; }
  // Of the next request that has not arrived yet; infinite when there is none.
  double next_arrival_s() const { return next_.time_s; }

  // The next step: every sequence that decodes, and up to `prefill_chunk` rows of prompts (0: the load's own). Fills *record and
  // says what it moves and computes. Only with work.
  Work Step(int32_t prefill_chunk, const std::shared_ptr<const Steering>& steering, StepRecord* record);
  // It was done: sequences go on and end.
  void Commit();

  int32_t queued() const { return static_cast<int32_t>(queue_.size()); }
  int32_t running() const { return static_cast<int32_t>(running_.size()); }
  // Of the present step: rows of others' prompts, what was read of that prompt before them, and what is left after.
  int32_t burst_rows() const { return burst_rows_; }
  int32_t burst_position() const { return burst_done_; }
  int32_t burst_ahead() const { return burst_left_ - burst_rows_; }
  double bias_mass_lost() const { return routing_.bias_mass_lost(); }

 private:
  struct Request {
    double time_s = 0;
    int32_t prompt = 0, generated = 0;
  };
  struct Sequence {
    int32_t place = 0;  // its text in the gates
    int32_t prompt_left = 0, generated_left = 0;
    int64_t position = 0;  // tokens behind it
    int32_t rows = 0;      // of the present step
  };

  int32_t DrawLength(int32_t mean);
  Request DrawRequest(double time_s) { return {time_s, DrawLength(load_.prompt_tokens), DrawLength(load_.generated_tokens)}; }
  void DrawArrival();
  void Start(const Request& request, bool prefilled);
  int64_t TakePrompts(int32_t chunk, StepShape* step);

  SimLoad load_;
  ModelShape shape_;
  Random random_;  // of requests: the same for every router
  SimRouting routing_;
  Request next_;  // time infinite: none
  double drawn_to_s_ = 0, hazard_left_ = 0;
  std::deque<Request> queue_;
  std::vector<Sequence> running_;
  std::vector<int32_t> free_places_, decoding_;
  StepShape step_;
  int32_t burst_left_ = 0, burst_done_ = 0, burst_rows_ = 0, decode_steps_ = 0;
  uint64_t steps_ = 0;
};

}  // namespace thermoe
