// SPDX-License-Identifier: Apache-2.0
// What the control loop is asked to keep, and what it shows: plain data.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "control/cost/cost_model.h"
#include "control/router/operating_point.h"
#include "control/router/ttha_terms.h"
#include "thermoe/status.h"

namespace thermoe {

enum class RouterMode : uint8_t {
  kPlain,     // the plain model; limits are kept by pacing alone
  kStatic,    // one given point, and pacing
  kAdaptive,  // points as the machine needs them, then pacing
};
const char* RouterModeName(RouterMode mode);  // "plain", "static", "adaptive"
Result<RouterMode> ParseRouterMode(std::string_view name);

// What gives way first under a limit: quality within the floor, or speed down to the latency target. kEnergy: as
// kThroughput, and quality within the floor gives way for joules without a limit, too.
enum class Preference : uint8_t { kThroughput, kQuality, kEnergy };
const char* PreferenceName(Preference preference);  // "throughput", "quality", "energy"
Result<Preference> ParsePreference(std::string_view name);

// A step may lose so many times the mean that a quality budget allows, where no floor is given.
inline constexpr double kFloorOverBudget = 2;

// 0: none.
struct ControlLimits {
  double power_w = 0;     // mean over a second
  double temp_c = 0;      // of the die
  double latency_ms = 0;  // of a decode step, pause included: what a user sees between two tokens

  bool any() const { return power_w > 0 || temp_c > 0 || latency_ms > 0; }
  bool operator==(const ControlLimits&) const = default;
};

struct ControlConfig {
  RouterMode router = RouterMode::kAdaptive;
  OperatingPoint static_point;  // for kStatic; need not be in the front
  ControlLimits limits;
  double quality_floor_nats = 0.02;  // no point that loses more is chosen
  // Of the mean over decoded tokens of the last minutes, for Preference::kEnergy; at most the floor, which bounds every
  // step. 0: none, the floor alone.
  double quality_budget_nats = 0;
  Preference prefer = Preference::kThroughput;
  // Whether steps take as long as the latency target allows while requests overlap, so that more share each read of the
  // weights; for kAdaptive with Preference::kEnergy.
  bool gather = true;
  double tick_s = 0.1;
  // Whether the hardware adapter learns which experts to avoid while a limit presses (docs/ttha.md); for kAdaptive.
  bool ttha = false;
  // [L * E] placement group of each expert, 0 upwards; empty: all in one, and nothing to balance.
  std::vector<uint16_t> placement;

  // Before anything is measured.
  EnergyPrices prices;
  double bytes_per_s = 0, flops_per_s = 0;  // what the device reaches; 0: learnt from the first steps
  // The device's own limits; 0: unknown. A limit above its device's is refused.
  double device_power_w = 0, device_temp_c = 0;

  // Bounds of the engine, which smaller chunks and batches start from; 0: those two actuators are not used.
  int32_t prefill_chunk = 0, max_sequences = 0;

  std::string model, telemetry;  // their names, for whoever reads the log
  bool simulated = false, replayed = false;

  std::string state_path;  // read at start if it exists, written by SaveState; empty: nothing is kept
  std::string log_path;    // decision log, JSON lines; empty: none
};

// Ranges, and limits against the device's own. One sentence names what and how to put it right.
Status CheckConfig(const ControlConfig& config);
Status CheckLimits(const ControlLimits& limits, double device_power_w, double device_temp_c);

// Why the last tick decided as it did.
enum class DecisionReason : uint8_t {
  kHeadroom,       // no limit presses: plain
  kPrice,          // the cheapest point at the present multipliers
  kDwell,          // another point would be chosen, but this one is too young
  kFixed,          // the mode has one point
  kPreferQuality,  // pacing first: the plain point while the latency target allows
  kSafest,         // a sensor that a limit needs is unknown, stale or lost
  kBudget,         // the cheapest at the price that keeps the mean loss at the budget
};
const char* DecisionReasonName(DecisionReason reason);

// A limit that the loop has failed to keep for seconds with all it has.
enum class Unmet : uint8_t {
  kNone,
  kIdleHeat,   // even at rest the device is predicted to pass the temperature limit, or to come within its margin
  kIdlePower,  // it draws the power limit at rest
  kLatency,    // steps take longer than the target
};

// For a live view, the simulator and logs. Of the last tick where nothing else is said.
struct ControlStatus {
  double time_s = 0;  // of the last step's end
  ControlLimits limits;
  double lambda_power = 0, lambda_temp = 0, lambda_latency = 0;
  int32_t point_index = 0;  // in points(); 0 is plain
  std::string point_text = "plain";
  double point_loss_nats = 0, point_bytes_frac = 1;  // at the running batch
  double batch = 0;                                  // decode rows of a step, running mean
  double pause_frac = 0;                             // share of the last second that steps were kept waiting
  double gather_ms = 0;         // from step to step, so that requests share reads of the weights; 0: not stretched
  double mean_loss_nats = 0;    // of the last minutes' decoded tokens; with a quality budget
  double power_w = 0;           // measured, over the last change of the counter; 0: unknown
  double forecast_power_w = 0;  // what the chosen point and pacing are predicted to draw
  double demand_w = 0;          // what the present steps would draw without a pause
  double cap_w = 0;             // what pacing holds now: of power and temperature limit; 0: nothing
  double temp_c = 0;            // measured; 0: unknown
  double forecast_temp_c = 0;   // at the horizon
  double latency_ms = 0;        // decode steps, running mean, pause included
  double idle_w = 0, j_per_byte = 0, j_per_flop = 0;  // as identified
  Unmet unmet = Unmet::kNone;                         // since the limits were set
  double unmet_value = 0;                             // C, W or ms that it came to
  bool safest = false;                                // sensors fail: safest point and feed-forward pacing
  DecisionReason reason = DecisionReason::kHeadroom;
  int32_t prefill_chunk = 0, max_sequences = 0;  // bounds in force; 0: the engine's own
  int64_t ticks = 0, point_changes = 0;
  // Of the hardware adapter; weights and values of its terms as ttha_terms.h names them.
  bool ttha = false;
  double ttha_gain = 0;  // 0: no bias is set
  TthaValues ttha_weight = {}, ttha_value = {};
};

}  // namespace thermoe
