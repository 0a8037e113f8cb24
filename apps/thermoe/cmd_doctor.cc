// SPDX-License-Identifier: Apache-2.0
// thermoe doctor: which sensors this machine has, which are missing, why, and what to do.
#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "command.h"
#include "control/telemetry/find_sources.h"
#include "help.h"
#include "interrupt.h"
#include "json_out.h"
#include "output.h"
#include "table.h"
#include "terminal.h"

namespace thermoe {
namespace {

// Long enough for three changes of a counter that moves every 100 ms.
constexpr int kReadings = 16;
constexpr auto kPeriod = std::chrono::milliseconds(25);

const HelpPage kPage = {
    "thermoe doctor [--telemetry SOURCE] [--json]",
    "Reads every sensor that thermoe knows for half a second and says what was found, what is missing, why, and what "
    "to do about it: NVML for NVIDIA GPUs; RAPL, hwmon, thermal zones, cpufreq and /proc/stat for the processor. A sensor "
    "that is missing is unknown to thermoe, never 0.",
    " thermoe doctor\n"
    " thermoe doctor --telemetry nvml:1 --json"};

struct DoctorFlags {
  std::string telemetry;
  bool json = false;
};

struct Finding {
  std::string name;   // of the source
  Status opened;      // why it is not there
  std::vector<SensorReport> sensors;
};

Finding Examine(const std::string& choice) {
  Finding finding{choice, {}, {}};
  Result<std::unique_ptr<TelemetrySource>> source = FindSource(choice);
  if (!source.ok()) {
    finding.opened = source.status();
    return finding;
  }
  for (int i = 0; i < kReadings && !Interrupted(); ++i) {
    if (i > 0) std::this_thread::sleep_for(kPeriod);
    (void)(*source)->Read();
  }
  finding.name = (*source)->name();
  finding.sensors = (*source)->Report();
  return finding;
}

Status PrintJson(const std::vector<Finding>& findings) {
  Json json = NewDocument();
  json["sources"] = Json::array();
  for (const Finding& finding : findings) {
    Json source;
    source["name"] = finding.name;
    source["error"] = finding.opened.ok() ? Json() : Json(finding.opened.message());
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

void PrintReport(const std::vector<Finding>& findings) {
  bool first = true;
  for (const Finding& finding : findings) {
    Print(std::string(first ? "" : "\n") + Bold(Printable(finding.name, STDOUT_FILENO), STDOUT_FILENO) + "\n");
    first = false;
    std::vector<std::pair<std::string, std::string>> lines;
    if (!finding.opened.ok()) lines.emplace_back("  not there", finding.opened.message());
    for (const SensorReport& sensor : finding.sensors) {
      lines.emplace_back("  " + sensor.name, sensor.found ? sensor.value : "missing: " + sensor.reason);
    }
    PrintFields(lines);
  }
}

Status Doctor(const DoctorFlags& flags) {
  std::vector<Finding> findings;
  if (flags.telemetry.empty()) {
    findings.push_back(Examine("nvml"));
    findings.push_back(Examine("linux"));
  } else {
    findings.push_back(Examine(flags.telemetry));
    if (!findings.back().opened.ok()) return findings.back().opened;
  }
  if (Interrupted()) return InterruptedStatus();
  if (flags.json) return PrintJson(findings);
  PrintReport(findings);
  return Status::Ok();
}

}  // namespace

Command MakeDoctorCommand(CLI::App* root) {
  CLI::App* app = root->add_subcommand("doctor", "say which sensors there are");
  auto flags = std::make_shared<DoctorFlags>();
  SetHelpPage(app, kPage);
  app->add_option("--telemetry", flags->telemetry, "Only this source: " + SourceChoices() + ".")->type_name("SOURCE");
  app->add_flag("--json", flags->json, "Print one JSON object; errors become JSON too.");
  return {app, [flags] { return Doctor(*flags); }};
}

}  // namespace thermoe
