// SPDX-License-Identifier: Apache-2.0
// Test-time training as a load of the simulator: the prompts of others are streams that are learnt from, always or as
// the AdaptationController decides. What it gains is the curve measured on ember-22m (docs/adaptation-control.md);
// costs are those of the simulated shape.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>

#include "control/adapt/adapt_pricer.h"
#include "control/adapt/adaptation_controller.h"
#include "control/plant/device_profile.h"
#include "control/plant/plant.h"

namespace thermoe {

enum class SimTttMode : uint8_t { kOff, kAlways, kAuto };

struct SimTttOptions {
  int32_t segment = 128;    // tokens between two updates: what a step reads of a prompt
  int64_t text_tokens = 0;  // of a stream: prompts belong to the same one until it has so many; 0: each prompt is one
  double price_nats = AdaptConfig{}.price_nats;
};

// What a step reads.
struct SimTttStep {
  int32_t rows = 0;         // of the prompt; 0: none
  int64_t position = 0;     // of the first
  int64_t ahead = 0;        // of the prompt, after them
  int32_t decode_rows = 0;  // of others
  Work work;                // of the step without adapting
  AdaptLoop loop;
};

struct SimTttResult {
  int64_t tokens = 0;              // read of prompts
  double gain_nats = 0;            // their mean gain
  double joules = 0, seconds = 0;  // of adapting, by the device's prices and speeds
  std::array<int64_t, kAdaptTiers> tiers = {};
  int64_t deferred = 0, caught_up = 0, dropped = 0;
};

class SimTtt {
 public:
  SimTtt(SimTttMode mode, const SimTttOptions& options, const ModelShape& shape, const DeviceProfile& profile);

  // What adapting adds to a step.
  Work Add(const SimTttStep& step);
  // The step took so long: clocks fall, and operations overlap less than a roofline says.
  void Observe(double seconds);
  SimTttResult result() const;

 private:
  struct Segment {
    int32_t rows = 0;
    int64_t position = 0;
  };
  AdaptInput InputOf(const SimTttStep& step, const Segment& segment);
  void NewText();
  Work Read(const SimTttStep& step);
  Work CatchUp(const SimTttStep& step);
  Work Take(const AdaptCost& cost);
  double SecondsOf(const Work& work) const;

  SimTttMode mode_;
  SimTttOptions options_;
  ModelShape shape_;
  AdaptDevice device_;
  KernelCostModel costs_;
  AdaptPricer pricer_;
  std::optional<AdaptationController> controller_;  // of the present prompt
  std::optional<BenefitModel> truth_;               // as measured, of what it has learnt
  std::deque<Segment> deferred_;
  SimTttResult result_;
  double gain_sum_ = 0;
  int64_t text_read_ = 0;
  double predicted_s_ = 0, slowness_ = 1;  // of the present step; measured over predicted, running mean
};

}  // namespace thermoe
