// SPDX-License-Identifier: Apache-2.0
#include "control/fake_nvml.h"

#include <time.h>

#include <cstdlib>
#include <cstring>

namespace {

FakeNvml script;

struct Device {};
Device devices[8];

struct FieldValue {
  unsigned int field, scope;
  long long timestamp, latency;
  int type, ret;
  union {
    double d;
    unsigned long long ull;
    unsigned int ui;
  };
};

// What a call answers before it looks at its arguments.
int Begin(FakeCall call) {
  ++script.calls[call];
  // An odd driver, for programs that a test cannot script from within.
  if (const char* delay_ms = std::getenv("FAKE_NVML_DELAY_MS")) {
    const long delay = std::atol(delay_ms);
    const timespec wait{delay / 1000, delay % 1000 * 1000000};
    nanosleep(&wait, nullptr);
  }
  if (script.ret[call] != 0) return script.ret[call];
  return script.inits > 0 || call == kFakeInit ? 0 : 1;
}

template <typename T, typename V>
int Answer(FakeCall call, T* out, V value) {
  const int ret = Begin(call);
  if (ret == 0) *out = static_cast<T>(value);
  return ret;
}

[[maybe_unused]] int Text(FakeCall call, const char* text, char* out, unsigned bytes) {
  const int ret = Begin(call);
  if (ret == 0) std::strncpy(out, text, bytes);
  return ret;
}

}  // namespace

extern "C" {

FakeNvml* fake_nvml() { return &script; }

int nvmlInit_v2() {
  const int ret = Begin(kFakeInit);
  if (ret == 0) ++script.inits;
  return ret;
}

int nvmlShutdown() {
  const int ret = Begin(kFakeShutdown);
  if (script.inits > 0) --script.inits;
  return ret;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device** out) {
  const int ret = Begin(kFakeHandle);
  if (ret != 0) return ret;
  if (index >= script.devices) return 2;
  *out = &devices[index];
  return 0;
}

int nvmlDeviceGetTemperature(Device*, int, unsigned* out) {
  return Answer(kFakeTemperature, out, script.temperature_c);
}

#ifndef FAKE_NVML_BARE
const char* nvmlErrorString(int code) {
  return code == 3 ? "Not Supported" : code == 15 ? "GPU is lost" : "Some Error";
}
int nvmlDeviceGetCount_v2(unsigned* out) { return Answer(kFakeCount, out, script.devices); }
int nvmlDeviceGetName(Device*, char* out, unsigned bytes) { return Text(kFakeName, script.name, out, bytes); }
int nvmlDeviceGetUUID(Device* device, char* out, unsigned bytes) {
  return Text(kFakeUuid, device == &devices[0] ? script.uuid : script.other_uuid, out, bytes);
}
int nvmlDeviceGetTotalEnergyConsumption(Device*, unsigned long long* out) {
  return Answer(kFakeEnergy, out, script.energy_mj);
}
int nvmlDeviceGetPowerUsage(Device*, unsigned* out) { return Answer(kFakePower, out, script.power_mw); }
int nvmlDeviceGetEnforcedPowerLimit(Device*, unsigned* out) { return Answer(kFakePowerLimit, out, script.limit_mw); }

int nvmlDeviceGetFieldValues(Device*, int count, FieldValue* values) {
  const int ret = Begin(kFakeFieldValues);
  if (ret != 0) return ret;
  for (int i = 0; i < count; ++i) {
    FieldValue& value = values[i];
    const bool power = value.field == 186;
    if (!power && value.field != 82) {
      value.ret = 3;
      continue;
    }
    value.ret = script.field_ret[power ? 0 : 1];
    value.type = script.field_type;
    const unsigned number = power ? script.instant_mw : script.memory_temp_c;
    value.ull = 0;
    if (value.type == 0) {
      value.d = number;
    } else if (value.type == 1 || value.type == 5) {
      value.ui = number;
    } else {
      value.ull = number;
    }
  }
  return 0;
}

int nvmlDeviceGetTemperatureThreshold(Device*, int which, unsigned* out) {
  return Answer(kFakeThreshold, out, which >= 0 && which < 4 ? script.threshold_c[which] : 0u);
}

int nvmlDeviceGetMarginTemperature(Device*, unsigned* version_and_margin) {
  if (version_and_margin[0] != (8u | 1u << 24)) return 25;
  return Answer(kFakeMargin, version_and_margin + 1, script.margin_c);
}

int nvmlDeviceGetUtilizationRates(Device*, unsigned* gpu_and_memory) {
  const int ret = Answer(kFakeUtilization, gpu_and_memory, script.gpu_percent);
  if (ret == 0) gpu_and_memory[1] = script.memory_percent;
  return ret;
}

int nvmlDeviceGetClockInfo(Device*, int type, unsigned* out) {
  return Answer(kFakeClock, out, type == 2 ? script.memory_mhz : script.sm_mhz);
}
int nvmlDeviceGetMaxClockInfo(Device*, int, unsigned* out) { return Answer(kFakeMaxClock, out, script.max_sm_mhz); }
int nvmlDeviceGetCurrentClocksEventReasons(Device*, unsigned long long* out) {
  return Answer(kFakeReasons, out, script.reasons);
}
#endif

}  // extern "C"
