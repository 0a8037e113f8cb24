// SPDX-License-Identifier: Apache-2.0
// What the engine knows of the machine's energy, and how it came to know it. docs/energy.md tells the rules.
#pragma once

#include <string>

namespace thermoe {

// Where joules come from. Anything but kCounter and kPower says nothing about what this machine drew.
enum class EnergySource {
  kNone,       // nothing is accounted
  kEstimate,   // predicted from bytes, FLOPs and time: no sensor shows power
  kCounter,    // an energy counter
  kPower,      // power readings, summed over time
  kReplayed,   // a recording: of some other work
  kSimulated,  // a device in virtual time
};
const char* EnergySourceName(EnergySource source);  // "none", "estimate", "counter", "power", "replayed", "simulated"

// Joules of one request. Their sum over requests, and what no request was in flight for, is what the counter counted.
struct RequestEnergy {
  EnergySource source = EnergySource::kNone;
  double prefill_j = 0;  // its share of the steps' energy for rows of its prompt
  double decode_j = 0;   // the same for rows of generated tokens
  double idle_j = 0;     // its share of the time between steps while it was in flight
  // Share of the sum that no reading has confirmed: work since the counter last moved, or while a source was lost.
  double estimated_frac = 0;

  double total_j() const { return prefill_j + decode_j + idle_j; }
};

// Joules since the source was opened.
struct EnergyTotals {
  EnergySource source = EnergySource::kNone;
  double prefill_j = 0, decode_j = 0;
  double idle_j = 0;             // between steps, with requests in flight or without
  double unassigned_idle_j = 0;  // the part of idle_j during which no request was in flight
  double estimated_frac = 0;     // as above
  double counted_j = 0;          // what the source counted; 0 for kEstimate

  double total_j() const { return prefill_j + decode_j + idle_j; }
};

// Where the engine's readings come from.
struct TelemetryInfo {
  std::string name = "none";  // "none", "linux", "nvml:0 NVIDIA H100", "replay:trace.csv", "plant:small"
  bool simulated = false;     // time is virtual: durations and rates are the simulated device's
  bool replayed = false;      // readings have nothing to do with this work
};

}  // namespace thermoe
