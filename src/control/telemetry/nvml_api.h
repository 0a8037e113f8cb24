// SPDX-License-Identifier: Apache-2.0
// The part of NVIDIA's management library that telemetry calls, declared from its documentation (NVML API Reference
// Guide, docs.nvidia.com/deploy/nvml-api), so that neither header nor driver is needed to build.
#pragma once

#include <cstddef>
#include <cstdint>

namespace thermoe {

// nvmlReturn_t. Drivers may return values that are not listed.
enum class NvmlReturn : int {
  kSuccess = 0,
  kUninitialized = 1,
  kInvalidArgument = 2,
  kNotSupported = 3,
  kNoPermission = 4,
  kAlreadyInitialized = 5,
  kNotFound = 6,
  kInsufficientSize = 7,
  kInsufficientPower = 8,
  kDriverNotLoaded = 9,
  kTimeout = 10,
  kIrqIssue = 11,
  kLibraryNotFound = 12,
  kFunctionNotFound = 13,
  kCorruptedInforom = 14,
  kGpuIsLost = 15,
  kResetRequired = 16,
  kOperatingSystem = 17,
  kLibRmVersionMismatch = 18,
  kInUse = 19,
  kMemory = 20,
  kNoData = 21,
  kVgpuEccNotSupported = 22,
  kInsufficientResources = 23,
  kFreqNotSupported = 24,
  kArgumentVersionMismatch = 25,
  kDeprecated = 26,
  kNotReady = 27,
  kGpuNotFound = 28,
  kInvalidState = 29,
  kResetTypeNotSupported = 30,
  kUnknown = 999,
};

using NvmlDevice = struct NvmlDeviceOpaque*;

struct NvmlUtilization {  // nvmlUtilization_t
  unsigned int gpu_percent;
  unsigned int memory_percent;
};

struct NvmlMarginTemperature {  // nvmlMarginTemperature_v1_t
  unsigned int version;
  int margin_c;
};
inline constexpr unsigned int kNvmlMarginTemperatureV1 = sizeof(NvmlMarginTemperature) | (1u << 24);

// nvmlValueType_t: which member of the value is set.
enum class NvmlValueType : int {
  kDouble = 0,
  kUnsignedInt = 1,
  kUnsignedLong = 2,
  kUnsignedLongLong = 3,
  kSignedLongLong = 4,
  kSignedInt = 5,
  kUnsignedShort = 6,
};

struct NvmlFieldValue {  // nvmlFieldValue_t
  unsigned int field_id;
  unsigned int scope_id;
  long long timestamp_us;
  long long latency_us;
  NvmlValueType type;
  NvmlReturn status;
  union {
    double as_double;
    int as_int;
    unsigned int as_unsigned_int;
    unsigned long as_unsigned_long;
    unsigned long long as_unsigned_long_long;
    long long as_long_long;
    unsigned short as_unsigned_short;
  } value;
};
static_assert(sizeof(NvmlFieldValue) == 40 && offsetof(NvmlFieldValue, value) == 32);

inline constexpr unsigned int kNvmlFieldMemoryTemp_c = 82;
inline constexpr unsigned int kNvmlFieldPowerInstant_mw = 186;

enum class NvmlClock : int { kSm = 1, kMemory = 2 };  // nvmlClockType_t
enum class NvmlThreshold : int {
  kShutdown = 0,
  kSlowdown = 1,
  kMemoryMax = 2,
  kGpuMax = 3
};                                         // nvmlTemperatureThresholds_t
enum class NvmlSensor : int { kGpu = 0 };  // nvmlTemperatureSensors_t

// Clock event reasons (nvmlClocksEventReason*), formerly called throttle reasons.
inline constexpr uint64_t kNvmlReasonIdle = 0x1;
inline constexpr uint64_t kNvmlReasonSoftwarePowerCap = 0x4;
inline constexpr uint64_t kNvmlReasonHardwareSlowdown = 0x8;  // thermal, brake, or a fast power trip
inline constexpr uint64_t kNvmlReasonSoftwareThermal = 0x20;
inline constexpr uint64_t kNvmlReasonHardwareThermal = 0x40;
inline constexpr uint64_t kNvmlReasonPowerBrake = 0x80;

// One pointer a function; null where the library has none.
struct NvmlApi {
  NvmlReturn (*init)() = nullptr;
  NvmlReturn (*shutdown)() = nullptr;
  const char* (*error_string)(NvmlReturn) = nullptr;
  NvmlReturn (*driver_version)(char* text, unsigned int bytes) = nullptr;
  NvmlReturn (*device_count)(unsigned int*) = nullptr;
  NvmlReturn (*device_by_index)(unsigned int index, NvmlDevice*) = nullptr;
  NvmlReturn (*name)(NvmlDevice, char* text, unsigned int bytes) = nullptr;
  NvmlReturn (*uuid)(NvmlDevice, char* text, unsigned int bytes) = nullptr;
  NvmlReturn (*total_energy_mj)(NvmlDevice, unsigned long long*) = nullptr;
  NvmlReturn (*power_average_mw)(NvmlDevice, unsigned int*) = nullptr;
  NvmlReturn (*power_limit_mw)(NvmlDevice, unsigned int*) = nullptr;
  NvmlReturn (*field_values)(NvmlDevice, int count, NvmlFieldValue*) = nullptr;
  NvmlReturn (*temperature_c)(NvmlDevice, NvmlSensor, unsigned int*) = nullptr;
  NvmlReturn (*temperature_threshold_c)(NvmlDevice, NvmlThreshold, unsigned int*) = nullptr;
  NvmlReturn (*margin_temperature)(NvmlDevice, NvmlMarginTemperature*) = nullptr;
  NvmlReturn (*utilization)(NvmlDevice, NvmlUtilization*) = nullptr;
  NvmlReturn (*clock_mhz)(NvmlDevice, NvmlClock, unsigned int*) = nullptr;
  NvmlReturn (*max_clock_mhz)(NvmlDevice, NvmlClock, unsigned int*) = nullptr;
  NvmlReturn (*clock_reasons)(NvmlDevice, unsigned long long*) = nullptr;
};

}  // namespace thermoe
