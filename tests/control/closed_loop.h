// SPDX-License-Identifier: Apache-2.0
// The control loop against the plant, in virtual time: the OLMoE shape on the H100's profile with fixed work per step.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "control/loop.h"
#include "control/plant/plant_source.h"
#include "control/router/load_mix.h"
#include "control/simulate/sim_routing.h"
#include "control/simulate/sim_scenario.h"

namespace thermoe {

inline constexpr SteeringShape kOlmoeShape = {16, 64, 8, true};

inline DeviceProfile H100() {
  Result<DeviceProfile> profile = LoadDeviceProfile(std::string(THERMOE_SOURCE_DIR) + "/data/profiles/h100.toml");
  EXPECT_TRUE(profile.ok()) << profile.status().message();
  return profile.ok() ? *profile : DeviceProfile{};
}

inline OperatingPoints EmberFront() {
  Result<OperatingPoints> front = ReadOperatingPoints(std::string(THERMOE_MODELS_DIR) + "/ember-22m-points.json",
                                                      "5a3f15f35e53f425c113d15acdd24584");
  EXPECT_TRUE(front.ok()) << front.status().message();
  return front.ok() ? *front : OperatingPoints{};
}

// Priors as somebody would give them from a data sheet: 20 % off, on purpose.
inline ControlConfig H100Config(RouterMode router = RouterMode::kAdaptive) {
  ControlConfig config;
  config.router = router;
  config.prices = {100, 155e-12, 0.8e-12, 20};
  config.device_power_w = 700;
  config.device_temp_c = 87;
  return config;
}

struct Load {
  double batch = 16;
  int prefill_every = 0;  // a burst after so many decode steps; 0: never
  // Plain decode at batch 16: routed experts by 8 bits, and attention, norms, output and keys.
  double expert_bytes = 6.0e9, other_bytes = 0.5e9, decode_flops = 4e10;
  double burst_flops = 4.4e12, burst_bytes = 7e9;  // 6.5 ms or so of dense products
  double requests_per_s = 0;                       // decode steps come at this rate; 0: as fast as they can
};

struct Moment {
  double time_s, energy_j;
};

class ClosedLoop {
 public:
  ClosedLoop(const ControlConfig& config, Scenario scenario, uint64_t seed = 1, OperatingPoints front = EmberFront())
      : plant(H100(), std::move(scenario), seed), source(&plant) {
    Result<std::unique_ptr<ControlLoop>> made = MakeControlLoop(config, std::move(front), kOlmoeShape);
    EXPECT_TRUE(made.ok()) << made.status().message();
    if (made.ok()) loop = std::move(*made);
    for (const OperatingPoint& point : loop->points()) steerings.push_back(ToSteering(point, kOlmoeShape.layers, 0));
  }

  void Run(double seconds, const Load& load) {
    const double end_s = plant.now_s() + seconds;
    while (plant.now_s() < end_s && !plant.shut_down()) Step(load);
  }

  void Step(const Load& load) {
    if (decision.pause_s > 0) plant.Idle(std::min(decision.pause_s, 1.0));
    const double paused_s = plant.now_s();
    if (load.requests_per_s > 0 && paused_s < next_request_s) plant.Idle(next_request_s - paused_s);
    if (load.requests_per_s > 0)
      next_request_s = std::max(next_request_s + 1 / load.requests_per_s, plant.now_s() - 0.1);
    const bool burst = load.prefill_every > 0 && ++since_burst > load.prefill_every;
    if (burst) since_burst = 0;
    const OperatingPoint& point = loop->points()[static_cast<size_t>(in_force)];
    StepRecord& r = record;
    r.tokens = burst ? 512 : static_cast<int32_t>(load.batch);
    r.prefill_tokens = burst ? 512 : 0;
    r.decode_tokens = burst ? 0 : static_cast<int32_t>(load.batch);
    // Distinct experts of a layer at this batch, by FACTS: 8 at 1, 49.65 at 16.
    const double distinct = 64 * (1 - std::pow(1 - 8.0 / 64, load.batch)) / (64 * (1 - std::pow(1 - 8.0 / 64, 16)));
    r.expert_bytes = burst ? load.burst_bytes : load.expert_bytes * distinct * BytesFracAt(point, load.batch);
    r.weight_bytes = r.expert_bytes + load.other_bytes;
    r.flops = burst ? load.burst_flops : load.decode_flops * load.batch / 16;
    const double start_s = plant.now_s();
    const WorkOutcome outcome = plant.Run({r.weight_bytes + r.kv_bytes, r.flops});
    r.times.total_us = outcome.duration_s * 1e6;
    if (gates) gates->Step(rows, burst ? 512 : 0, steering, &record);
    Snapshot snapshot = source.Read();
    if (corrupt) corrupt(&snapshot);
    decision = loop->AfterStep({start_s, plant.now_s(), record, snapshot, 0});
    if (!burst) {
      latencies_ms.push_back((plant.now_s() - last_end_s) * 1e3);
      tokens += load.batch;
      loss_sum += LossAt(point, load.batch) * load.batch;
    }
    last_end_s = plant.now_s();
    if (decision.steering) {
      ++steerings_given;
      steering = decision.steering;
      for (size_t i = 0; i < steerings.size(); ++i) {
        Steering same = *decision.steering;
        same.version = 0;
        same.sample_gate_rows = 0;
        for (LayerSteering& layer : same.layers) layer.selection_bias.clear();
        if (same == steerings[i]) in_force = static_cast<int>(i);
      }
    }
    trace.push_back({plant.now_s(), plant.energy_j()});
    paused_s_sum += decision.pause_s;
    hottest_c = std::max(hottest_c, plant.temps_c()[kDie]);
  }

  // From now on records say which experts the gates of a drawn model chose, and show rows of logits where asked to.
  void DrawGates(int32_t batch) {
    const Result<ModelShape> shape = SimModelShape(SimModel{});
    ASSERT_TRUE(shape.ok());
    gates = std::make_unique<SimRouting>(shape->config, true, batch, 1);
    for (int32_t row = 0; row < batch; ++row) rows.push_back(row);
  }
  // Of all biases in force.
  float StrongestBias() const {
    float strongest = 0;
    if (steering == nullptr) return 0;
    for (const LayerSteering& layer : steering->layers) {
      for (const float bias : layer.selection_bias) strongest = std::max(strongest, std::fabs(bias));
    }
    return strongest;
  }

  double EnergyAt(double time_s) const {
    const auto after =
        std::lower_bound(trace.begin(), trace.end(), time_s, [](const Moment& m, double t) { return m.time_s < t; });
    if (after == trace.begin()) return trace.front().energy_j;
    if (after == trace.end()) return trace.back().energy_j;
    const Moment &a = *(after - 1), &b = *after;
    return a.energy_j + (b.energy_j - a.energy_j) * (time_s - a.time_s) / (b.time_s - a.time_s);
  }
  double MeanPower(double from_s, double to_s) const { return (EnergyAt(to_s) - EnergyAt(from_s)) / (to_s - from_s); }
  double WorstSecond(double from_s, double to_s) const {
    double worst = 0;
    for (double t = from_s; t + 1 <= to_s; t += 0.02) worst = std::max(worst, MeanPower(t, t + 1));
    return worst;
  }
  // The longest time on end that the mean over a second lay above `power_w`.
  double LongestOver(double power_w, double from_s, double to_s) const {
    double longest = 0, since = from_s;
    for (double t = from_s; t + 1 <= to_s; t += 0.02) {
      if (MeanPower(t, t + 1) <= power_w) since = t;
      longest = std::max(longest, t - since);
    }
    return longest;
  }
  double mean_loss() const { return tokens > 0 ? loss_sum / tokens : 0; }

  Plant plant;
  PlantSource source;
  std::unique_ptr<ControlLoop> loop;
  std::vector<Steering> steerings;
  std::function<void(Snapshot*)> corrupt;
  std::unique_ptr<SimRouting> gates;
  std::vector<int32_t> rows;
  std::shared_ptr<const Steering> steering;  // in force; null: plain
  StepDecision decision;
  StepRecord record;
  int in_force = 0, since_burst = 0, steerings_given = 0;
  double next_request_s = 0, last_end_s = 0, tokens = 0, loss_sum = 0, paused_s_sum = 0, hottest_c = 0;
  std::vector<Moment> trace;
  std::vector<double> latencies_ms;
};

}  // namespace thermoe
