// SPDX-License-Identifier: Apache-2.0
// thermoe doctor: which sensors this machine has, which are missing, why, and what to do.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/errors.h"
#include "command.h"
#include "control/telemetry/find_sources.h"
#include "engine/gpus.h"
#include "help.h"
#include "interrupt.h"
#include "json_out.h"
#include "output.h"
#include "table.h"
#include "telemetry_options.h"
#include "terminal.h"

namespace thermoe {
namespace {

// Long enough for three changes of a counter that moves every 100 ms.
constexpr int kReadings = 16;
constexpr auto kPeriod = std::chrono::milliseconds(25);
// Odd drivers take seconds for a reading, or never answer.
constexpr std::chrono::duration<double> kMostReading(2);  // no further reading is begun
constexpr std::chrono::duration<double> kMostAnswer(6);   // what has not answered by then is left alone

const HelpPage kPage = {
    "thermoe doctor [--telemetry SOURCE | --device GPU] [--json]",
    "Lists the GPUs that --backend cuda could use, reads every sensor that thermoe knows for half a second and says what was found, what is missing, why, and what "
    "to do about it: NVML for NVIDIA GPUs; RAPL, hwmon, thermal zones, cpufreq and /proc/stat for the processor. A "
    "sensor "
    "that is missing is unknown to thermoe, never 0. A source that does not answer within 6 s is given up.",
    " thermoe doctor\n"
    " thermoe doctor --telemetry nvml:1 --json"};

struct DoctorFlags {
  std::string telemetry, device;
  bool json = false;
};

struct Finding {
  std::string name;  // of the source
  Status opened;     // why it is not there
  std::vector<SensorReport> sensors;
  double slowest_s = 0;                       // reading
  EnergySource energy = EnergySource::kNone;  // where joules would come from
};

// As the engine would call joules counted with this source; the best of its readings counts.
EnergySource EnergyOf(const std::string& choice, const Snapshot& snapshot, EnergySource so_far) {
  if (choice.starts_with("plant:")) return EnergySource::kSimulated;
  if (choice.starts_with("replay:")) return EnergySource::kReplayed;
  if (snapshot.energy_j || so_far == EnergySource::kCounter) return EnergySource::kCounter;
  if (snapshot.power_w || so_far == EnergySource::kPower) return EnergySource::kPower;
  return EnergySource::kEstimate;
}

std::string EnergySentence(EnergySource energy) {
  switch (energy) {
    case EnergySource::kNone: return "";
    case EnergySource::kCounter: return "counted by its energy counter";
    case EnergySource::kPower: return "power readings times time";
    case EnergySource::kEstimate: return "estimates, and called so: nothing here shows power";
    case EnergySource::kSimulated: return "simulated";
    case EnergySource::kReplayed: return "those of the recording, of other work";
  }
  return "";
}

Finding ReadSource(const std::string& choice) {
  using Steady = std::chrono::steady_clock;
  Finding finding{choice, {}, {}};
  Result<std::unique_ptr<TelemetrySource>> source = FindSource(choice);
  if (!source.ok()) {
    finding.opened = source.status();
    return finding;
  }
  const auto begin = Steady::now();
  for (int i = 0; i < kReadings && !Interrupted() && Steady::now() - begin < kMostReading; ++i) {
    if (i > 0) std::this_thread::sleep_for(kPeriod);
    const auto start = Steady::now();
    const Snapshot snapshot = (*source)->Read();
    finding.energy = EnergyOf(choice, snapshot, finding.energy);
    finding.slowest_s = std::max(finding.slowest_s, std::chrono::duration<double>(Steady::now() - start).count());
  }
  finding.name = (*source)->name();
  finding.sensors = (*source)->Report();
  return finding;
}

// ReadSource in a thread of its own, which is left behind if the driver never returns from a call.
Finding Examine(const std::string& choice) {
  struct Shared {
    std::mutex mutex;
    std::condition_variable ready;
    bool done = false;
    Finding finding;
  };
  const auto shared = std::make_shared<Shared>();
  std::thread([shared, choice] {
    Finding finding = ReadSource(choice);
    const std::lock_guard lock(shared->mutex);
    shared->finding = std::move(finding);
    shared->done = true;
    shared->ready.notify_one();
  }).detach();
  std::unique_lock lock(shared->mutex);
  const auto most = std::chrono::duration_cast<std::chrono::steady_clock::duration>(kMostAnswer);
  const auto until = std::chrono::steady_clock::now() + most;
  while (!shared->done && !Interrupted() && std::chrono::steady_clock::now() < until) {
    shared->ready.wait_for(lock, std::chrono::milliseconds(50));
  }
  if (shared->done) return std::move(shared->finding);
  return {choice,
          NotFound("{}: no answer within {:.0f} s; its driver hangs: look at dmesg, restart the driver or the machine",
                   choice, kMostAnswer.count()),
          {}};
}

// What is worth saying of how long readings take.
std::string SlowNote(const Finding& finding) {
  if (finding.slowest_s <= kStaleAfter_s) return "";
  return fmt::format("slow: one took {:.1f} s; a source counts as lost while a reading takes more than {} s",
                     finding.slowest_s, kStaleAfter_s);
}

Status PrintJson(const Gpus& gpus, const std::vector<Finding>& findings) {
  Json json = NewDocument();
  json["gpus"] = Json::array();
  for (const Gpu& gpu : gpus.all) {
    json["gpus"].push_back({{"number", gpu.number}, {"name", gpu.name}, {"uuid", gpu.uuid}, {"capability", gpu.capability},
                            {"memory_bytes", gpu.memory_bytes}, {"chosen", gpus.chosen == gpu.number}});
  }
  json["gpus_error"] = gpus.all.empty() ? Json(gpus.wish.message()) : Json();
  json["sources"] = Json::array();
  for (const Finding& finding : findings) {
    Json source;
    source["name"] = finding.name;
    source["error"] = finding.opened.ok() ? Json() : Json(finding.opened.message());
    source["slowest_reading_ms"] = finding.opened.ok() ? Json(1e3 * finding.slowest_s) : Json();
    source["energy_source"] = finding.opened.ok() ? Json(EnergySourceName(finding.energy)) : Json();
    source["sensors"] = Json::array();
    for (const SensorReport& sensor : finding.sensors) {
      Json entry;
      entry["name"] = sensor.name;
      entry["found"] = sensor.found;
      entry["value"] = sensor.found ? Json(sensor.value) : Json();
      entry["reason"] = sensor.found ? Json() : Json(sensor.reason);
      source["sensors"].push_back(std::move(entry));
    }
    json["sources"].push_back(std::move(source));
  }
  return PrintJsonLine(json);
}

void PrintGpus(const Gpus& gpus) {
  Print(Bold("GPUs for --backend cuda", STDOUT_FILENO) + "\n");
  std::vector<std::pair<std::string, std::string>> lines;
  if (gpus.all.empty()) lines.emplace_back("  none", gpus.wish.message());
  for (const Gpu& gpu : gpus.all) {
    lines.emplace_back(fmt::format("  {}", gpu.number), fmt::format("{}, {} GiB, {}{}", gpu.name, gpu.memory_bytes >> 30, gpu.uuid,
                                                                    gpus.chosen == gpu.number ? "; chosen" : ""));
  }
  PrintFields(lines);
  Print("\n");
}

void PrintReport(const std::vector<Finding>& findings) {
  bool first = true;
  for (const Finding& finding : findings) {
    Print(std::string(first ? "" : "\n") + Bold(Printable(finding.name, STDOUT_FILENO), STDOUT_FILENO) + "\n");
    first = false;
    std::vector<std::pair<std::string, std::string>> lines;
    if (!finding.opened.ok()) lines.emplace_back("  not there", finding.opened.message());
    if (const std::string note = SlowNote(finding); !note.empty()) lines.emplace_back("  readings", note);
    for (const SensorReport& sensor : finding.sensors) {
      lines.emplace_back("  " + sensor.name, sensor.found ? sensor.value : "missing: " + sensor.reason);
    }
    if (const std::string joules = EnergySentence(finding.energy); !joules.empty())
      lines.emplace_back("  joules", joules);
    PrintFields(lines);
  }
}

Status Doctor(const DoctorFlags& flags) {
  const Gpus gpus = FindGpus(flags.device);
  const Result<std::string> sensors = ChooseSensors(flags.telemetry, flags.device);
  if (!sensors.ok()) return sensors.status();
  std::vector<Finding> findings;
  if (flags.telemetry.empty()) {
    const auto chosen = std::find_if(gpus.all.begin(), gpus.all.end(), [&](const Gpu& gpu) { return gpu.number == gpus.chosen; });
    findings.push_back(Examine(chosen == gpus.all.end() ? "nvml" : "nvml:" + chosen->uuid));
    findings.push_back(Examine("linux"));
  } else {
    findings.push_back(Examine(*sensors));
    if (!findings.back().opened.ok()) return findings.back().opened;
  }
  if (Interrupted()) return InterruptedStatus();
  if (flags.json) return PrintJson(gpus, findings);
  PrintGpus(gpus);
  PrintReport(findings);
  return Status::Ok();
}

}  // namespace

Command MakeDoctorCommand(CLI::App* root) {
  CLI::App* app = root->add_subcommand("doctor", "say which sensors there are");
  auto flags = std::make_shared<DoctorFlags>();
  SetHelpPage(app, kPage);
  app->add_option("--telemetry", flags->telemetry, "Only this source: " + SourceChoices() + ".")->type_name("SOURCE");
  app->add_option("--device", flags->device, "The GPU that --backend cuda would use: a number, a UUID or its beginning, a part of a name.")->type_name("GPU");
  app->add_flag("--json", flags->json, "Print one JSON object; errors become JSON too.");
  return {app, [flags] { return Doctor(*flags); }};
}

}  // namespace thermoe
