// SPDX-License-Identifier: Apache-2.0
// thermoe record: what the sensors show, row by row, in a CSV file that --telemetry replay:FILE plays again.
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "base/errors.h"
#include "command.h"
#include "control/telemetry/find_sources.h"
#include "control/telemetry/sampler.h"
#include "control/telemetry/trace_csv.h"
#include "flags.h"
#include "help.h"
#include "interrupt.h"
#include "json_out.h"
#include "output.h"
#include "telemetry_options.h"
#include "terminal.h"

namespace thermoe {
namespace {

namespace fs = std::filesystem;

const HelpPage kPage = {
    "thermoe record --out FILE [--telemetry SOURCE | --device GPU] [--seconds X] [--period-ms N] [--force]",
    "Writes what a device's sensors show to a CSV file, one row a period, until --seconds have passed or Ctrl-C. "
    "Sensors are "
    "polled every 25 ms whatever the period, or every 90 ms where no energy counter moves faster. A sensor that is "
    "unknown leaves its cell empty. The first lines of the "
    "file explain its columns; '--telemetry replay:FILE' plays it again. No model is run: --device names the GPU whose "
    "sensors are read, as it names the one that run, bench and eval compute on.",
    " thermoe record --out trace.csv --seconds 60\n"
    " thermoe record --device 1 --out second.csv\n"
    " thermoe record --telemetry nvml:0 --period-ms 25 --out burst.csv"};

struct RecordFlags {
  std::string out;
  std::string telemetry;  // empty: auto
  std::string device;     // whose sensors, where telemetry names none; empty: THERMOE_DEVICE
  double seconds = 0;  // 0: until Ctrl-C
  int period_ms = 100;
  bool force = false;
  bool json = false;
};

class OutputFile {
 public:
  OutputFile() = default;
  ~OutputFile() {
    if (file_ != nullptr) std::fclose(file_);
  }
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  Status Open(const std::string& path) {
    path_ = path;
    file_ = std::fopen(path.c_str(), "we");
    return file_ != nullptr ? Status::Ok() : Failed();
  }
  // Each row reaches the file at once: a recording that is cut off keeps what it has.
  Status Write(const std::string& text) {
    errno = 0;
    if (std::fwrite(text.data(), 1, text.size(), file_) < text.size() || std::fflush(file_) != 0) return Failed();
    return Status::Ok();
  }

 private:
  Status Failed() const {
    return InvalidArgument("{}: cannot be written: {}; choose another file with --out", path_, std::strerror(errno));
  }
  std::string path_;
  std::FILE* file_ = nullptr;
};

Status CheckOutput(const RecordFlags& flags) {
  std::error_code error;
  if (flags.out.empty()) return InvalidArgument("--out is empty; give a file name");
  if (fs::is_directory(flags.out, error)) return InvalidArgument("{}: is a folder; give a file name", flags.out);
  if (fs::exists(flags.out, error) && !flags.force && !fs::is_character_file(flags.out, error)) {
    return InvalidArgument("{}: exists already; choose another name or add --force to overwrite it", flags.out);
  }
  return Status::Ok();
}

std::string LiveLine(const Snapshot& snapshot, double elapsed_s) {
  const auto value = [](const std::optional<double>& field, const char* unit) {
    return field ? fmt::format("{:.1f} {}", *field, unit) : fmt::format("? {}", unit);
  };
  return fmt::format("{:.1f} s  {}  {}  {}", elapsed_s, value(snapshot.power_w, "W"), value(snapshot.temp_c, "C"),
                     value(snapshot.clock_mhz, "MHz"));
}

Status Record(const RecordFlags& flags) {
  THERMOE_RETURN_IF_ERROR(CheckOutput(flags));
  const Result<std::string> choice = ChooseSensors(flags.telemetry, flags.device);
  if (!choice.ok()) return choice.status();
  Result<std::unique_ptr<TelemetrySource>> source = FindSource(*choice);
  if (!source.ok()) return source.status();
  const std::string name = (*source)->name();
  OutputFile file;
  THERMOE_RETURN_IF_ERROR(file.Open(flags.out));
  THERMOE_RETURN_IF_ERROR(file.Write(TraceHeader(name)));
  TelemetrySampler sampler(std::move(*source));
  sampler.Start();
  const auto start = std::chrono::steady_clock::now();
  const bool live = IsTerminal(STDERR_FILENO) && !flags.json;
  int64_t rows = 0, lost = 0;
  double elapsed_s = 0;
  Status status;
  for (int64_t i = 1; status.ok(); ++i) {
    std::this_thread::sleep_until(start + std::chrono::milliseconds(flags.period_ms) * i);
    elapsed_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    const bool last = Interrupted() || (flags.seconds > 0 && elapsed_s >= flags.seconds);
    Snapshot snapshot = sampler.Latest();
    snapshot.time_s = elapsed_s;
    if (snapshot.state == SourceState::kLost) ++lost;
    status = file.Write(TraceLine(snapshot));
    ++rows;
    if (live) PrintNote(fmt::format("\r{:<60}", LiveLine(snapshot, elapsed_s)));
    if (last) break;
  }
  if (live) PrintNote(fmt::format("\r{:<60}\r", ""));
  ClearInterrupt();  // Ctrl-C is how a recording ends
  THERMOE_RETURN_IF_ERROR(status);
  if (flags.json) {
    Json json = NewDocument();
    json["file"] = flags.out;
    json["source"] = name;
    json["rows"] = rows;
    json["lost_rows"] = lost;
    json["seconds"] = elapsed_s;
    return PrintJsonLine(json);
  }
  Print(fmt::format("{}: {} rows of {} in {:.1f} s{}\n", Printable(flags.out, STDOUT_FILENO), WithCommas(rows),
                    Printable(name, STDOUT_FILENO), elapsed_s,
                    lost > 0 ? fmt::format(", {} of them with the source lost", WithCommas(lost)) : ""));
  return Status::Ok();
}

}  // namespace

Command MakeRecordCommand(CLI::App* root) {
  CLI::App* app = root->add_subcommand("record", "write what the sensors show to a file");
  auto flags = std::make_shared<RecordFlags>();
  SetHelpPage(app, kPage);
  app->add_option("--out", flags->out, "The CSV file to write.")->type_name("FILE")->required();
  app->add_option("--telemetry", flags->telemetry, "The source: " + SourceChoices() + "; default auto.")
      ->type_name("SOURCE");
  app->add_option("--device", flags->device,
                  "The GPU whose sensors to record: its number, its UUID or the beginning of it, or a part of its name, as "
                  "thermoe doctor lists them; default that of THERMOE_DEVICE, else what --telemetry auto finds.")
      ->type_name("GPU");
  AddNumber(app, "--seconds", &flags->seconds, {0, 1e9, true, false}, "Stop after X seconds; default: at Ctrl-C.");
  AddNumber(app, "--period-ms", &flags->period_ms, {1, 3600000}, "Milliseconds from row to row; default 100.");
  app->add_flag("--force", flags->force, "Overwrite FILE.");
  app->add_flag("--json", flags->json, "Print one JSON object; errors become JSON too.");
  return {app, [flags] { return Record(*flags); }};
}

}  // namespace thermoe
