// SPDX-License-Identifier: Apache-2.0
#include "control/telemetry/nvml_source.h"

#include <algorithm>
#include <array>

#include "base/errors.h"
#include "control/telemetry/snapshot_fields.h"

namespace thermoe {
namespace {

constexpr double kReopen_s = 1;  // nvmlInit may take hundreds of milliseconds
constexpr size_t kTextBytes = 128;
// A margin of 0 means "at the slowdown"; some drivers also say 0 for "no such sensor". It is believed only this close.
constexpr double kNearSlowdown_c = 15;
// A board's mean over 90 ms may exceed its limit for a moment; three times the limit is a counter gone wrong.
constexpr double kPowerSlack = 3;

EnergyMeter::Options NvmlCounter() { return {.joules_per_count = 1e-3, .wraps_at = {uint64_t{1} << 32, 0}}; }

using TextCall = NvmlReturn (*)(NvmlDevice, char*, unsigned int);

std::string DeviceText(TextCall call, NvmlDevice device) {
  std::array<char, kTextBytes> text{};
  if (call == nullptr || call(device, text.data(), kTextBytes - 1) != NvmlReturn::kSuccess) return "";
  return text.data();  // the last byte stays 0 whatever was written
}

// What to do about a sensor that does not answer.
std::string Remedy(const NvmlLibrary& library, const NvmlProbe& probe, NvmlReturn code) {
  switch (code) {
    case NvmlReturn::kSuccess: return "the device answers 0 or a value that cannot be; nothing to do";
    case NvmlReturn::kNotSupported: return "this device or its driver has no such sensor";
    case NvmlReturn::kFunctionNotFound:
      return fmt::format("{} has no {}; update the NVIDIA driver", library.path, probe.symbol);
    case NvmlReturn::kNoPermission:
      return fmt::format("{} needs more rights; run as root, or ask the administrator", probe.symbol);
    case NvmlReturn::kNotReady: return "not read yet";
    default: return fmt::format("{} says \"{}\"; see nvidia-smi -q", probe.symbol, NvmlErrorText(library.api, code));
  }
}

}  // namespace

NvmlSource::NvmlSource(NvmlLibrary library, int index, std::string wanted, Clock clock)
    : library_(std::move(library)),
      index_(index),
      wanted_(std::move(wanted)),
      time_(std::move(clock)),
      probes_(NvmlProbes().size()),
      meter_(NvmlCounter()) {}

NvmlSource::~NvmlSource() {
  if (device_ != nullptr && library_.api.shutdown != nullptr) library_.api.shutdown();
}

Result<std::unique_ptr<NvmlSource>> NvmlSource::Open(NvmlLibrary library, int index, Clock clock) {
  std::unique_ptr<NvmlSource> source(new NvmlSource(std::move(library), index, "", std::move(clock)));
  const NvmlReturn code = source->OpenDevice();
  if (code == NvmlReturn::kSuccess) return source;
  const NvmlApi& api = source->library_.api;
  unsigned int count = 0;
  if (api.device_count != nullptr && api.init() == NvmlReturn::kSuccess) {
    const bool counted = api.device_count(&count) == NvmlReturn::kSuccess;
    if (api.shutdown != nullptr) api.shutdown();
    if (counted && (index < 0 || static_cast<unsigned int>(index) >= count)) {
      return NotFound("nvml:{}: this machine has {} NVIDIA device{}; count from 0 (nvidia-smi -L lists them)", index,
                      count, count == 1 ? "" : "s");
    }
  }
  return NotFound("nvml:{}: the device does not answer (\"{}\"); check it with nvidia-smi, load the driver or reset it",
                  index, NvmlErrorText(api, code));
}

Result<std::unique_ptr<NvmlSource>> NvmlSource::Open(NvmlLibrary library, const std::string& uuid, Clock clock) {
  std::unique_ptr<NvmlSource> source(new NvmlSource(std::move(library), 0, uuid, std::move(clock)));
  if (const NvmlReturn code = source->OpenDevice(); code != NvmlReturn::kSuccess) {
    return NotFound("nvml:{}: no device of this UUID answers (\"{}\"); nvidia-smi -L lists them", uuid, NvmlErrorText(source->library_.api, code));
  }
  return source;
}

NvmlReturn NvmlSource::FindWanted(NvmlDevice* device) {
  const NvmlApi& api = library_.api;
  unsigned int count = 1;
  if (api.device_count != nullptr && api.device_count(&count) != NvmlReturn::kSuccess) count = 1;
  NvmlReturn code = NvmlReturn::kGpuNotFound;
  for (unsigned int i = 0; i < count; ++i) {
    NvmlDevice found = nullptr;
    if (code = api.device_by_index(i, &found); code != NvmlReturn::kSuccess) continue;
    if (count > 1 && !DeviceText(api.uuid, found).starts_with(wanted_)) continue;
    *device = found;
    index_ = static_cast<int>(i);
    return NvmlReturn::kSuccess;
  }
  return code == NvmlReturn::kSuccess ? NvmlReturn::kGpuNotFound : code;
}

NvmlReturn NvmlSource::OpenDevice() {
  const NvmlApi& api = library_.api;
  opened_s_ = time_.now_s();
  open_code_ = api.init();
  if (open_code_ != NvmlReturn::kSuccess) return open_code_;
  NvmlDevice device = nullptr;
  open_code_ = !wanted_.empty() ? FindWanted(&device)
               : index_ < 0     ? NvmlReturn::kInvalidArgument
                                : api.device_by_index(static_cast<unsigned int>(index_), &device);
  if (open_code_ == NvmlReturn::kSuccess && device == nullptr) open_code_ = NvmlReturn::kGpuNotFound;
  if (open_code_ == NvmlReturn::kSuccess) {
    // Numbers move up when a device falls off the bus: another GPU's readings must not pass for this one's.
    const std::string uuid = DeviceText(api.uuid, device);
    if (!uuid_.empty() && uuid != uuid_) open_code_ = NvmlReturn::kGpuNotFound;
    if (uuid_.empty()) uuid_ = uuid;
  }
  if (open_code_ != NvmlReturn::kSuccess) {
    if (api.shutdown != nullptr) api.shutdown();
    return open_code_;
  }
  device_ = device;
  if (device_name_.empty()) device_name_ = DeviceText(api.name, device);
  for (ProbeState& probe : probes_) probe.due_s = 0;
  stagger_ = true;
  return open_code_;
}

void NvmlSource::Lose() {
  device_ = nullptr;
  if (library_.api.shutdown != nullptr) library_.api.shutdown();
  readings_ = {};
  meter_.RestartWindow();
}

std::string NvmlSource::name() const {
  return fmt::format("nvml:{}{}{}", index_, device_name_.empty() ? "" : " ", device_name_);
}

Snapshot NvmlSource::Read() {
  if (!time_.Advance()) meter_.RestartWindow();
  if (device_ == nullptr) {
    if (time_.now_s() - opened_s_ < kReopen_s) return LostAt(time_.now_s());
    if (OpenDevice() != NvmlReturn::kSuccess) return LostAt(time_.now_s());
  }
  if (!RunProbes()) {
    Lose();
    return LostAt(time_.now_s());
  }
  return Compose();
}

bool NvmlSource::RunProbes() {
  const double now_s = time_.now_s();
  const auto table = NvmlProbes();
  for (size_t i = 0; i < table.size(); ++i) {
    ProbeState& probe = probes_[i];
    if (now_s < probe.due_s) continue;
    const double spread = stagger_ ? static_cast<double>(i + 1) / static_cast<double>(table.size()) : 1;
    probe.due_s = now_s + table[i].period_s * spread;
    probe.code = table[i].read(library_.api, device_, &readings_);
    const NvmlMeaning meaning = MeaningOf(probe.code);
    // Some drivers answer one call with "unknown error" for ever: the second time in a row costs only its own field.
    const bool first_time = !probe.suspect;
    probe.suspect = meaning == NvmlMeaning::kPerhapsLost;
    if (meaning == NvmlMeaning::kLost || (probe.suspect && first_time)) {
      open_code_ = probe.code;
      return false;
    }
  }
  stagger_ = false;
  return true;
}

Snapshot NvmlSource::Compose() {
  const double now_s = time_.now_s();
  Snapshot snapshot = readings_.fields;
  snapshot.time_s = now_s;
  snapshot.state = SourceState::kOk;
  DropImplausible(&snapshot);
  if (snapshot.power_limit_w) meter_.set_max_power_w(kPowerSlack * *snapshot.power_limit_w);
  if (readings_.energy_mj) {
    meter_.Update(now_s, *readings_.energy_mj);
    snapshot.energy_j = meter_.energy_j();
    snapshot.power_w = meter_.power_w();
  } else {
    meter_.RestartWindow();
  }
  if (!snapshot.power_w) snapshot.power_w = readings_.power_average_w;

  if (snapshot.power_instant_w != instant_w_) {
    instant_w_ = snapshot.power_instant_w;
    instant_changed_s_ = now_s;
  }
  const bool works = working_ || snapshot.utilisation_frac.value_or(0) > 0;
  if (readings_.energy_mj && works && meter_.rest_s() >= kRestLimit_s) {
    snapshot.state = SourceState::kStale;
    snapshot.energy_j.reset();
    snapshot.power_w.reset();  // the device's average comes from the same sensors
    if (now_s - instant_changed_s_ >= kRestLimit_s) snapshot.power_instant_w.reset();
  }
  if (snapshot.temp_margin_c == 0.0) {
    const double slowdown_c = std::min(snapshot.temp_slowdown_c.value_or(1e3), snapshot.temp_max_c.value_or(1e3));
    if (!snapshot.temp_c || *snapshot.temp_c < slowdown_c - kNearSlowdown_c) snapshot.temp_margin_c.reset();
  }
  DropImplausible(&snapshot);
  return AnyKnown(snapshot) || snapshot.state == SourceState::kStale ? snapshot : LostAt(now_s);
}

std::vector<SensorReport> NvmlSource::Report() {
  std::vector<SensorReport> reports;
  NvmlReadings readings = readings_;
  DropImplausible(&readings.fields);
  for (const NvmlSensorLine& line : NvmlSensorLines()) {
    SensorReport& report = reports.emplace_back();
    report.name = line.name;
    if (device_ == nullptr) {
      report.reason =
          fmt::format("the device is lost (\"{}\"); it is tried again every second, check it with nvidia-smi",
                      NvmlErrorText(library_.api, open_code_));
      continue;
    }
    report.value = line.value(readings);
    report.found = !report.value.empty();
    if (!report.found) report.reason = Remedy(library_, NvmlProbes()[line.probe], probes_[line.probe].code);
  }
  return reports;
}

}  // namespace thermoe
