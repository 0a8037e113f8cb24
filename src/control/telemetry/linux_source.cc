// SPDX-License-Identifier: Apache-2.0
#include "control/telemetry/linux_source.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <string_view>

#include "control/telemetry/small_file.h"
#include "control/telemetry/snapshot_fields.h"

namespace thermoe {
namespace {

namespace fs = std::filesystem;

constexpr double kFind_s = 1;
constexpr double kUtilisationWindow_s = 0.09;  // every fourth poll: ten ticks of 10 ms
constexpr double kMaxDomain_w = 3000;          // of one RAPL domain: beyond any socket of 2025
constexpr double kIdle_frac = 0.05;            // below this share of work a resting counter is no surprise
// Reading a clock may interrupt its core, so a big machine is sampled.
constexpr size_t kMostClocks = 16;
constexpr size_t kMostEntries = 4096;  // of a folder

// Names in a folder that start with `prefix`, sorted; none if the folder cannot be read.
std::vector<std::string> List(const std::string& folder, std::string_view prefix) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name.starts_with(prefix)) names.push_back(name);
    if (names.size() == kMostEntries) break;
  }
  std::sort(names.begin(), names.end());
  return names;
}

// A text of the kernel's for people; short, printable.
std::string Label(const std::string& path) {
  std::string text = ReadSmallFile(path).text.substr(0, 64);
  std::erase_if(text, [](char c) { return c < ' ' || c > '~'; });
  return text;
}

std::optional<double> Scaled(std::optional<int64_t> value, double scale, double min, double max) {
  if (!value) return std::nullopt;
  const double scaled = static_cast<double>(*value) * scale;
  return scaled >= min && scaled <= max ? std::optional(scaled) : std::nullopt;
}
// Millidegrees.
std::optional<double> ReadCelsius(const std::string& path) { return Scaled(ReadInteger(path), 1e-3, 0.1, 150); }
std::optional<double> ReadMegahertz(const std::string& path) { return Scaled(ReadInteger(path), 1e-3, 1, 2e4); }

std::optional<double> Least(std::optional<double> a, std::optional<double> b) {
  return a && b ? std::min(*a, *b) : a ? a : b;
}

bool IsDigits(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

}  // namespace

LinuxSource::LinuxSource(std::string root, Clock clock) : root_(std::move(root)), time_(std::move(clock)) {}

void LinuxSource::FindSensors() {
  FindRapl();
  FindTemperatures();
  FindClocks();
}

void LinuxSource::FindRapl() {
  const std::string base = root_ + "/sys/class/powercap/";
  std::vector<RaplDomain> found;
  // Not intel-rapl-mmio, which counts the same packages again.
  for (const std::string& entry : List(base, "intel-rapl:")) {
    const std::string name = Label(base + entry + "/name");
    const bool package = name.starts_with("package");
    if (!package && name != "dram") continue;  // cores and uncore lie inside the package, psys around it
    const auto range_uj = ReadInteger(base + entry + "/max_energy_range_uj");
    EnergyMeter::Options options{.joules_per_count = 1e-6, .wraps_at = {}, .max_power_w = kMaxDomain_w};
    if (range_uj && *range_uj > 0) options.wraps_at.push_back(static_cast<uint64_t>(*range_uj));
    const auto known = std::find_if(rapl_.begin(), rapl_.end(),
                                    [&](const RaplDomain& domain) { return domain.folder == base + entry; });
    if (known != rapl_.end()) {
      found.push_back(std::move(*known));
      known->folder.clear();
    } else {
      found.push_back({base + entry, name, package, EnergyMeter(options), ENODATA});
    }
  }
  // A domain that disappeared stays, unreadable: without it the sum would silently be of fewer.
  for (RaplDomain& domain : rapl_) {
    if (!domain.folder.empty()) found.push_back(std::move(domain));
  }
  rapl_ = std::move(found);
}

void LinuxSource::FindTemperatures() {
  temps_.clear();
  const std::string base = root_ + "/sys/class/hwmon/";
  for (const std::string& entry : List(base, "hwmon")) {
    const std::string chip = Label(base + entry + "/name");
    if (chip != "k10temp" && chip != "coretemp" && chip != "zenpower") continue;
    for (const std::string& file : List(base + entry, "temp")) {
      if (!file.ends_with("_input")) continue;
      const std::string stem = base + entry + "/" + file.substr(0, file.size() - std::strlen("_input"));
      std::string label = Label(stem + "_label");
      if (label.empty()) label = file;
      // crit: PROCHOT on Intel, HTC on AMD, where the clocks are cut.
      temps_.push_back({chip + " " + label, base + entry + "/" + file, ReadCelsius(stem + "_crit"),
                        ReadCelsius(stem + "_emergency")});
    }
  }
  if (temps_.empty()) FindThermalZones();
}

void LinuxSource::FindThermalZones() {
  const std::string base = root_ + "/sys/class/thermal/";
  for (const std::string& entry : List(base, "thermal_zone")) {
    const std::string type = Label(base + entry + "/type");
    // acpitz and the like are somewhere on the board.
    if (type.find("cpu") == std::string::npos && type.find("pkg") == std::string::npos && !type.starts_with("soc"))
      continue;
    TempSensor sensor{"thermal zone " + type, base + entry + "/temp", {}, {}};
    for (const std::string& trip : List(base + entry, "trip_point_")) {
      if (!trip.ends_with("_type")) continue;
      const std::string stem = base + entry + "/" + trip.substr(0, trip.size() - std::strlen("_type"));
      const std::string kind = Label(stem + "_type");
      if (kind == "passive") sensor.slowdown_c = Least(sensor.slowdown_c, ReadCelsius(stem + "_temp"));
      if (kind == "critical") sensor.shutdown_c = Least(sensor.shutdown_c, ReadCelsius(stem + "_temp"));
    }
    temps_.push_back(std::move(sensor));
  }
}

void LinuxSource::FindClocks() {
  clocks_.clear();
  clock_limit_mhz_.reset();
  const std::string base = root_ + "/sys/devices/system/cpu/";
  std::vector<std::string> all;
  for (const std::string& entry : List(base, "cpu")) {
    if (IsDigits(std::string_view(entry).substr(3))) all.push_back(base + entry + "/cpufreq");
  }
  const size_t stride = (all.size() + kMostClocks - 1) / kMostClocks;
  for (size_t i = 0; i < all.size(); i += stride) {
    const auto limit_mhz = ReadMegahertz(all[i] + "/cpuinfo_max_freq");
    if (limit_mhz) clock_limit_mhz_ = std::max(*limit_mhz, clock_limit_mhz_.value_or(0));
    if (ReadMegahertz(all[i] + "/scaling_cur_freq")) clocks_.push_back(all[i]);
  }
}

void LinuxSource::ReadEnergy(Snapshot* snapshot) {
  double energy_j = 0, power_w = 0, limit_w = 0;
  bool energy_known = !rapl_.empty(), power_known = energy_known, limit_known = energy_known, rests = false;
  for (RaplDomain& domain : rapl_) {
    const SmallFile file = ReadSmallFile(domain.folder + "/energy_uj");
    const auto count_uj = file.error == 0 ? ParseInteger(file.text) : std::nullopt;
    // 0 is what a hypervisor shows that passes the folder on, but no counter.
    domain.error = file.error != 0 ? file.error : count_uj && *count_uj > 0 ? 0 : EINVAL;
    if (domain.error != 0) {
      domain.meter.RestartWindow();
      energy_known = power_known = false;
    } else {
      domain.meter.Update(time_.now_s(), static_cast<uint64_t>(*count_uj));
    }
    energy_j += domain.meter.energy_j();
    if (const auto domain_w = domain.meter.power_w()) {
      power_w += *domain_w;
    } else {
      power_known = false;
    }
    if (domain.package) {
      rests = rests || (domain.error == 0 && domain.meter.rest_s() >= kRestLimit_s);
      const auto domain_limit_w =
          Scaled(ReadInteger(domain.folder + "/constraint_0_power_limit_uw"), 1e-6, 0.1, kMaxDomain_w);
      limit_known = limit_known && domain_limit_w;
      limit_w += domain_limit_w.value_or(0);
    }
  }
  if (limit_known) snapshot->power_limit_w = limit_w;
  if (rests && (working_ || utilisation_frac_.value_or(0) > kIdle_frac)) {
    snapshot->state = SourceState::kStale;
    return;
  }
  if (energy_known) snapshot->energy_j = energy_j;
  if (power_known) snapshot->power_w = power_w;
}

void LinuxSource::ReadTemperatures(Snapshot* snapshot) {
  for (const TempSensor& sensor : temps_) {
    if (const auto celsius = ReadCelsius(sensor.input)) {
      snapshot->temp_c = std::max(*celsius, snapshot->temp_c.value_or(0));
    }
    snapshot->temp_slowdown_c = Least(snapshot->temp_slowdown_c, sensor.slowdown_c);
    snapshot->temp_shutdown_c = Least(snapshot->temp_shutdown_c, sensor.shutdown_c);
  }
}

void LinuxSource::ReadClocks(Snapshot* snapshot) {
  double sum_mhz = 0;
  int clocks = 0;
  for (const std::string& folder : clocks_) {
    if (const auto mhz = ReadMegahertz(folder + "/scaling_cur_freq")) {
      sum_mhz += *mhz;
      ++clocks;
    }
  }
  if (clocks > 0) snapshot->clock_mhz = sum_mhz / clocks;
  snapshot->clock_limit_mhz = clock_limit_mhz_;
}

// "cpu  user nice system idle iowait irq softirq steal guest guest_nice": guests are counted in user already; stolen
// time is other machines' work.
void LinuxSource::ReadUtilisation() {
  if (all_ticks_ && time_.now_s() - ticks_s_ < kUtilisationWindow_s) return;
  const std::string text = ReadSmallFile(root_ + "/proc/stat").text;
  std::array<int64_t, 8> ticks{};
  const char* at = text.data();
  const char* const end = at + text.size();
  bool valid = text.starts_with("cpu ");
  if (valid) at += 4;
  for (size_t i = 0; valid && i < ticks.size(); ++i) {
    while (at != end && *at == ' ') ++at;
    const auto [next, error] = std::from_chars(at, end, ticks[i]);
    // 2^50 ticks are 350,000 years; sums stay far from overflow.
    valid = error == std::errc() && ticks[i] >= 0 && ticks[i] < (int64_t{1} << 50) &&
            (next == end || *next == ' ' || *next == '\n');
    at = next;
  }
  if (!valid) {
    busy_ticks_.reset();
    all_ticks_.reset();
    utilisation_frac_.reset();
    return;
  }
  const int64_t busy = ticks[0] + ticks[1] + ticks[2] + ticks[5] + ticks[6];
  const int64_t all = busy + ticks[3] + ticks[4] + ticks[7];
  const bool first = !all_ticks_;
  utilisation_frac_.reset();
  if (!first && all > *all_ticks_ && busy >= *busy_ticks_) {
    utilisation_frac_ = static_cast<double>(busy - *busy_ticks_) / static_cast<double>(all - *all_ticks_);
  }
  busy_ticks_ = busy;
  all_ticks_ = all;
  ticks_s_ = time_.now_s();
}

// Only energy counters move faster. Each reading takes a thread off its core.
double LinuxSource::least_period_s() const { return rapl_.empty() ? kUtilisationWindow_s : 0; }

Snapshot LinuxSource::Read() {
  if (!time_.Advance()) {
    for (RaplDomain& domain : rapl_) domain.meter.RestartWindow();
  }
  if (time_.now_s() >= find_due_s_) {
    FindSensors();
    find_due_s_ = time_.now_s() + kFind_s;
  }
  Snapshot snapshot;
  snapshot.time_s = time_.now_s();
  snapshot.state = SourceState::kOk;
  ReadUtilisation();
  snapshot.utilisation_frac = utilisation_frac_;
  ReadEnergy(&snapshot);
  ReadTemperatures(&snapshot);
  ReadClocks(&snapshot);
  DropImplausible(&snapshot);
  // The first reading of /proc/stat alone tells nothing yet, but it is there.
  const bool there = AnyKnown(snapshot) || all_ticks_ || snapshot.state == SourceState::kStale;
  last_ = there ? snapshot : LostAt(snapshot.time_s);
  return last_;
}

std::vector<SensorReport> LinuxSource::Report() {
  std::vector<SensorReport> reports;
  const auto add = [&](std::string name, const std::string& value, const std::string& reason) {
    reports.push_back({std::move(name), !value.empty(), value, value.empty() ? reason : ""});
  };
  for (const RaplDomain& domain : rapl_) {
    const std::string file = domain.folder + "/energy_uj";
    const auto power_w = domain.meter.power_w();
    const std::string value = domain.error != 0 ? "" : power_w ? fmt::format("{:.4g} W", *power_w) : "counts";
    add("RAPL " + domain.name, value,
        domain.error == EACCES || domain.error == EPERM
            ? fmt::format("{} is for root only; run `sudo chmod a+r {}` after each boot, or run as root", file, file)
        : domain.error == EINVAL
            ? fmt::format("{} holds no count; update the kernel", file)
            : fmt::format("{}: {}; load the module intel_rapl_msr", file, std::strerror(domain.error)));
  }
  if (rapl_.empty()) {
    add("RAPL", "",
        "no energy counter in /sys/class/powercap; load the module intel_rapl_msr (a virtual machine has none)");
  }
  for (const TempSensor& sensor : temps_) {
    const auto celsius = ReadCelsius(sensor.input);
    add(sensor.name, celsius ? fmt::format("{:.1f} C", *celsius) : "",
        fmt::format("{} holds no temperature", sensor.input));
  }
  if (temps_.empty()) {
    add("CPU temperature", "",
        "no k10temp, coretemp or zenpower in /sys/class/hwmon and no CPU thermal zone; load the "
        "processor's module (a virtual machine has none)");
  }
  add("cpufreq clocks", last_.clock_mhz ? fmt::format("{:.0f} MHz", *last_.clock_mhz) : "",
      "no scaling_cur_freq in /sys/devices/system/cpu; the firmware or the hypervisor governs the clocks");
  add("/proc/stat utilisation",
      last_.utilisation_frac ? fmt::format("{:.0f} %", *last_.utilisation_frac * 100)
      : all_ticks_           ? "counts"
                             : "",
      "/proc/stat cannot be read; mount /proc");
  return reports;
}

}  // namespace thermoe
