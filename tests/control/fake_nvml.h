// SPDX-License-Identifier: Apache-2.0
// An NVML that does what a test says. It shares nothing with src/, so that its types are a second opinion on ours.
#pragma once

#include <cstdint>

enum FakeCall : int {
  kFakeInit,
  kFakeShutdown,
  kFakeCount,
  kFakeHandle,
  kFakeName,
  kFakeUuid,
  kFakeEnergy,
  kFakePower,
  kFakePowerLimit,
  kFakeFieldValues,
  kFakeTemperature,
  kFakeThreshold,
  kFakeMargin,
  kFakeUtilization,
  kFakeClock,
  kFakeMaxClock,
  kFakeReasons,
  kFakeCalls,  // how many
};

struct FakeNvml {
  int ret[kFakeCalls] = {};
  int field_ret[2] = {};  // of field 186 and 82
  uint64_t calls[kFakeCalls] = {};
  int inits = 0;  // nvmlInit less nvmlShutdown
  unsigned devices = 1;
  const char* name = "Fake GPU";
  const char* uuid = "GPU-0";
  const char* other_uuid = "GPU-another";  // of all but the first device
  unsigned long long energy_mj = 2612232;
  unsigned power_mw = 71000, limit_mw = 700000, instant_mw = 71200;
  unsigned temperature_c = 34, memory_temp_c = 36;
  unsigned threshold_c[4] = {95, 89, 95, 87};  // shutdown, slowdown, memory, GPU
  int margin_c = 55;
  unsigned gpu_percent = 0, memory_percent = 0;
  unsigned sm_mhz = 1980, memory_mhz = 2619, max_sm_mhz = 1980;
  unsigned long long reasons = 1;
  int field_type = 1;  // nvmlValueType_t of both fields
};

// The script of the loaded library: `fake_nvml` by dlsym.
extern "C" FakeNvml* fake_nvml();
