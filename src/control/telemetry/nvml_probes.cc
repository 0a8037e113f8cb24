// SPDX-License-Identifier: Apache-2.0
#include "control/telemetry/nvml_probes.h"

#include <fmt/format.h>

#include <array>

namespace thermoe {
namespace {

// A call takes about 3 ms in a virtual machine. At these periods a Read makes the energy call and two or three others,
// and what a sensor no longer says is known to be unknown well within kStaleAfter_s.
constexpr double kFast_s = 0.1, kSlow_s = 0.2;
// Limits: what they were is right until someone changes them.
constexpr double kPowerLimit_s = 1, kFixed_s = 10;

// Calls `function` unless the library lacks it.
template <typename... Parameters, typename... Args>
NvmlReturn Call(NvmlReturn (*function)(Parameters...), Args... args) {
  return function != nullptr ? function(args...) : NvmlReturn::kFunctionNotFound;
}

NvmlReturn ReadEnergy(const NvmlApi& api, NvmlDevice device, NvmlReadings* readings) {
  readings->energy_mj.reset();
  unsigned long long energy_mj = 0;
  const NvmlReturn code = Call(api.total_energy_mj, device, &energy_mj);
  if (code == NvmlReturn::kSuccess && energy_mj != 0) readings->energy_mj = energy_mj;  // 0: the counter does not run
  return code;
}

// For the calls that answer with one unsigned number; `scale` brings it to the field's unit.
template <typename Function, typename... Args>
NvmlReturn ReadUnsigned(std::optional<double>* field, double scale, Function function, Args... args) {
  field->reset();
  unsigned int value = 0;
  const NvmlReturn code = Call(function, args..., &value);
  if (code == NvmlReturn::kSuccess) *field = value * scale;
  return code;
}

std::optional<double> FieldNumber(const NvmlFieldValue& field) {
  if (field.status != NvmlReturn::kSuccess) return std::nullopt;
  switch (field.type) {
    case NvmlValueType::kDouble: return field.value.as_double;
    case NvmlValueType::kUnsignedInt: return field.value.as_unsigned_int;
    case NvmlValueType::kUnsignedLong: return static_cast<double>(field.value.as_unsigned_long);
    case NvmlValueType::kUnsignedLongLong: return static_cast<double>(field.value.as_unsigned_long_long);
    case NvmlValueType::kSignedLongLong: return static_cast<double>(field.value.as_long_long);
    case NvmlValueType::kSignedInt: return field.value.as_int;
    case NvmlValueType::kUnsignedShort: return field.value.as_unsigned_short;
  }
  return std::nullopt;
}

// Instant power and memory temperature in one call.
NvmlReturn ReadFieldValues(const NvmlApi& api, NvmlDevice device, NvmlReadings* readings) {
  readings->fields.power_instant_w.reset();
  readings->fields.memory_temp_c.reset();
  NvmlFieldValue values[2] = {};
  values[0].field_id = kNvmlFieldPowerInstant_mw;
  values[1].field_id = kNvmlFieldMemoryTemp_c;
  // An older driver leaves fields that it does not know untouched.
  for (NvmlFieldValue& value : values) value.status = NvmlReturn::kNotSupported;
  const NvmlReturn code = Call(api.field_values, device, 2, static_cast<NvmlFieldValue*>(values));
  if (code != NvmlReturn::kSuccess) return code;
  if (const auto power_mw = FieldNumber(values[0])) readings->fields.power_instant_w = *power_mw / 1000;
  readings->fields.memory_temp_c = FieldNumber(values[1]);
  // One field may say that the whole device is gone; a field of its own that fails is unknown.
  for (const NvmlFieldValue& value : values) {
    if (MeaningOf(value.status) >= NvmlMeaning::kLost) return value.status;
  }
  return values[0].status == NvmlReturn::kSuccess ? values[1].status : values[0].status;
}

NvmlReturn ReadMargin(const NvmlApi& api, NvmlDevice device, NvmlReadings* readings) {
  readings->fields.temp_margin_c.reset();
  NvmlMarginTemperature margin{kNvmlMarginTemperatureV1, 0};
  const NvmlReturn code = Call(api.margin_temperature, device, &margin);
  if (code == NvmlReturn::kSuccess) readings->fields.temp_margin_c = margin.margin_c;
  return code;
}

NvmlReturn ReadUtilisation(const NvmlApi& api, NvmlDevice device, NvmlReadings* readings) {
  readings->fields.utilisation_frac.reset();
  readings->fields.memory_utilisation_frac.reset();
  NvmlUtilization rates{};
  const NvmlReturn code = Call(api.utilization, device, &rates);
  if (code == NvmlReturn::kSuccess) {
    readings->fields.utilisation_frac = rates.gpu_percent / 100.0;
    readings->fields.memory_utilisation_frac = rates.memory_percent / 100.0;
  }
  return code;
}

NvmlReturn ReadReasons(const NvmlApi& api, NvmlDevice device, NvmlReadings* readings) {
  readings->fields.throttle.reset();
  unsigned long long reasons = 0;
  const NvmlReturn code = Call(api.clock_reasons, device, &reasons);
  if (code == NvmlReturn::kSuccess) readings->fields.throttle = ThrottleFromNvml(reasons);
  return code;
}

template <NvmlThreshold threshold, std::optional<double> Snapshot::*field>
NvmlReturn ReadThreshold(const NvmlApi& api, NvmlDevice device, NvmlReadings* readings) {
  return ReadUnsigned(&(readings->fields.*field), 1, api.temperature_threshold_c, device, threshold);
}

constexpr std::array<NvmlProbe, 15> kProbes = {{
    {"nvmlDeviceGetTotalEnergyConsumption", 0, ReadEnergy},
    {"nvmlDeviceGetFieldValues", kFast_s, ReadFieldValues},
    {"nvmlDeviceGetTemperature", kFast_s,
     [](const NvmlApi& api, NvmlDevice device, NvmlReadings* readings) {
       return ReadUnsigned(&readings->fields.temp_c, 1, api.temperature_c, device, NvmlSensor::kGpu);
     }},
    {"nvmlDeviceGetCurrentClocksEventReasons", kFast_s, ReadReasons},
    {"nvmlDeviceGetClockInfo", kFast_s,
     [](const NvmlApi& api, NvmlDevice device, NvmlReadings* readings) {
       return ReadUnsigned(&readings->fields.clock_mhz, 1, api.clock_mhz, device, NvmlClock::kSm);
     }},
    {"nvmlDeviceGetUtilizationRates", kSlow_s, ReadUtilisation},
    {"nvmlDeviceGetPowerUsage", kSlow_s,
     [](const NvmlApi& api, NvmlDevice device, NvmlReadings* readings) {
       return ReadUnsigned(&readings->power_average_w, 1e-3, api.power_average_mw, device);
     }},
    {"nvmlDeviceGetMarginTemperature", kSlow_s, ReadMargin},
    {"nvmlDeviceGetClockInfo", kSlow_s,
     [](const NvmlApi& api, NvmlDevice device, NvmlReadings* readings) {
       return ReadUnsigned(&readings->fields.memory_clock_mhz, 1, api.clock_mhz, device, NvmlClock::kMemory);
     }},
    {"nvmlDeviceGetEnforcedPowerLimit", kPowerLimit_s,
     [](const NvmlApi& api, NvmlDevice device, NvmlReadings* readings) {
       return ReadUnsigned(&readings->fields.power_limit_w, 1e-3, api.power_limit_mw, device);
     }},
    {"nvmlDeviceGetTemperatureThreshold", kFixed_s,
     ReadThreshold<NvmlThreshold::kSlowdown, &Snapshot::temp_slowdown_c>},
    {"nvmlDeviceGetTemperatureThreshold", kFixed_s,
     ReadThreshold<NvmlThreshold::kShutdown, &Snapshot::temp_shutdown_c>},
    {"nvmlDeviceGetTemperatureThreshold", kFixed_s,
     ReadThreshold<NvmlThreshold::kMemoryMax, &Snapshot::memory_temp_limit_c>},
    {"nvmlDeviceGetTemperatureThreshold", kFixed_s, ReadThreshold<NvmlThreshold::kGpuMax, &Snapshot::temp_max_c>},
    {"nvmlDeviceGetMaxClockInfo", kFixed_s,
     [](const NvmlApi& api, NvmlDevice device, NvmlReadings* readings) {
       return ReadUnsigned(&readings->fields.clock_limit_mhz, 1, api.max_clock_mhz, device, NvmlClock::kSm);
     }},
}};

// "71.2 W", or nothing for 0 and for unknown.
std::string Text(const std::optional<double>& value, const char* unit, double scale = 1) {
  return value && *value != 0 ? fmt::format("{:.4g} {}", *value * scale, unit) : "";
}

template <std::optional<double> Snapshot::*field>
std::string Celsius(const NvmlReadings& readings) {
  return Text(readings.fields.*field, "C");
}
template <std::optional<double> Snapshot::*field>
std::string Megahertz(const NvmlReadings& readings) {
  return Text(readings.fields.*field, "MHz");
}
template <std::optional<double> Snapshot::*field>
std::string Watts(const NvmlReadings& readings) {
  return Text(readings.fields.*field, "W");
}

constexpr std::array<NvmlSensorLine, 17> kLines = {{
    {"NVML energy counter", 0,
     [](const NvmlReadings& readings) {
       return readings.energy_mj ? fmt::format("{:.1f} J", static_cast<double>(*readings.energy_mj) / 1000) : "";
     }},
    {"NVML instant power", 1, Watts<&Snapshot::power_instant_w>},
    {"NVML memory temperature", 1, Celsius<&Snapshot::memory_temp_c>},
    {"NVML GPU temperature", 2, Celsius<&Snapshot::temp_c>},
    {"NVML clock event reasons", 3,
     [](const NvmlReadings& readings) -> std::string {
       if (!readings.fields.throttle) return "";
       return *readings.fields.throttle == 0 ? "none" : fmt::format("bits {:#x}", *readings.fields.throttle);
     }},
    {"NVML SM clock", 4, Megahertz<&Snapshot::clock_mhz>},
    {"NVML utilisation", 5,
     [](const NvmlReadings& readings) {
       const auto& utilisation = readings.fields.utilisation_frac;
       return utilisation ? fmt::format("{:.0f} %", *utilisation * 100) : "";
     }},
    {"NVML average power", 6, [](const NvmlReadings& readings) { return Text(readings.power_average_w, "W"); }},
    {"NVML temperature margin", 7, Celsius<&Snapshot::temp_margin_c>},
    {"NVML memory clock", 8, Megahertz<&Snapshot::memory_clock_mhz>},
    {"NVML power limit", 9, Watts<&Snapshot::power_limit_w>},
    {"NVML slowdown temperature", 10, Celsius<&Snapshot::temp_slowdown_c>},
    {"NVML shutdown temperature", 11, Celsius<&Snapshot::temp_shutdown_c>},
    {"NVML memory temperature limit", 12, Celsius<&Snapshot::memory_temp_limit_c>},
    {"NVML GPU temperature limit", 13, Celsius<&Snapshot::temp_max_c>},
    {"NVML highest SM clock", 14, Megahertz<&Snapshot::clock_limit_mhz>},
    {"NVML memory utilisation", 5,
     [](const NvmlReadings& readings) {
       const auto& utilisation = readings.fields.memory_utilisation_frac;
       return utilisation ? fmt::format("{:.0f} %", *utilisation * 100) : "";
     }},
}};

}  // namespace

std::span<const NvmlProbe> NvmlProbes() { return kProbes; }
std::span<const NvmlSensorLine> NvmlSensorLines() { return kLines; }

uint32_t ThrottleFromNvml(uint64_t reasons) {
  uint32_t bits = 0;
  const auto add = [&bits](Throttle throttle) { bits |= static_cast<uint32_t>(throttle); };
  if (reasons & kNvmlReasonSoftwarePowerCap) add(Throttle::kPowerLimit);
  if (reasons & (kNvmlReasonSoftwareThermal | kNvmlReasonHardwareThermal)) add(Throttle::kThermal);
  if (reasons & kNvmlReasonPowerBrake) add(Throttle::kPowerBrake);
  // A hardware slowdown that gives neither of its reasons is a fast power trip on new boards, heat on old ones.
  const uint64_t explained = kNvmlReasonHardwareThermal | kNvmlReasonPowerBrake;
  if ((reasons & kNvmlReasonHardwareSlowdown) && !(reasons & explained)) {
    add(Throttle::kPowerLimit);
    add(Throttle::kThermal);
  }
  const uint64_t named = kNvmlReasonIdle | kNvmlReasonSoftwarePowerCap | kNvmlReasonHardwareSlowdown |
                         kNvmlReasonSoftwareThermal | explained;
  if (reasons & ~named) add(Throttle::kOther);
  return bits;
}

NvmlMeaning MeaningOf(NvmlReturn code) {
  switch (code) {
    case NvmlReturn::kSuccess: return NvmlMeaning::kFine;
    case NvmlReturn::kInvalidArgument:
    case NvmlReturn::kNotSupported:
    case NvmlReturn::kNoPermission:
    case NvmlReturn::kAlreadyInitialized:
    case NvmlReturn::kNotFound:
    case NvmlReturn::kInsufficientSize:
    case NvmlReturn::kTimeout:
    case NvmlReturn::kFunctionNotFound:
    case NvmlReturn::kCorruptedInforom:
    case NvmlReturn::kInUse:
    case NvmlReturn::kMemory:
    case NvmlReturn::kNoData:
    case NvmlReturn::kVgpuEccNotSupported:
    case NvmlReturn::kInsufficientResources:
    case NvmlReturn::kFreqNotSupported:
    case NvmlReturn::kArgumentVersionMismatch:
    case NvmlReturn::kDeprecated:
    case NvmlReturn::kNotReady:
    case NvmlReturn::kInvalidState:
    case NvmlReturn::kResetTypeNotSupported: return NvmlMeaning::kFieldUnknown;
    case NvmlReturn::kUninitialized:
    case NvmlReturn::kInsufficientPower:
    case NvmlReturn::kDriverNotLoaded:
    case NvmlReturn::kLibraryNotFound:
    case NvmlReturn::kGpuIsLost:
    case NvmlReturn::kResetRequired:
    case NvmlReturn::kLibRmVersionMismatch:
    case NvmlReturn::kGpuNotFound: return NvmlMeaning::kLost;
    case NvmlReturn::kIrqIssue:
    case NvmlReturn::kOperatingSystem:
    case NvmlReturn::kUnknown: return NvmlMeaning::kPerhapsLost;
  }
  return NvmlMeaning::kPerhapsLost;  // a code newer than this page
}

}  // namespace thermoe
