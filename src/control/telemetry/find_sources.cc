// SPDX-License-Identifier: Apache-2.0
#include "control/telemetry/find_sources.h"

#include <charconv>
#include <string_view>
#include <vector>

#include "base/errors.h"
#include "control/plant/open_plant.h"
#include "control/telemetry/linux_source.h"
#include "control/telemetry/nvml_source.h"
#include "control/telemetry/replay_source.h"

namespace thermoe {
namespace {

using SourceResult = Result<std::unique_ptr<TelemetrySource>>;

SourceResult MakeLinux(const std::string&, const SourceOptions& options) {
  return {std::make_unique<LinuxSource>(options.linux_root, options.clock)};
}

SourceResult MakeNvml(const std::string& number, const SourceOptions& options) {
  const bool by_uuid = number.starts_with("GPU-") || number.starts_with("MIG-");
  int index = 0;
  const char* const end = number.data() + number.size();
  const auto parsed = std::from_chars(number.data(), end, index);
  if (!by_uuid && !number.empty() && (parsed.ec != std::errc() || parsed.ptr != end || index < 0)) {
    return InvalidArgument(
        "nvml:{}: the part after nvml: is a device's number or UUID; count from 0 (nvidia-smi -L lists them)", number);
  }
  auto library = OpenNvml(options.nvml_path);
  if (!library.ok()) return library.status();
  auto source = by_uuid ? NvmlSource::Open(std::move(library).value(), number, options.clock)
                        : NvmlSource::Open(std::move(library).value(), index, options.clock);
  if (!source.ok()) return source.status();
  return {std::move(source).value()};
}

SourceResult MakeReplay(const std::string& file, const SourceOptions& options) {
  auto trace = ReadTrace(file);
  if (!trace.ok()) return trace.status();
  return {std::make_unique<ReplaySource>(std::move(trace).value(), file, options.clock)};
}

SourceResult MakePlant(const std::string& file, const SourceOptions& options) {
  return OpenIdlePlant(file, options.clock);
}

SourceResult MakeAuto(const std::string&, const SourceOptions& options) {
  auto nvml = MakeNvml("", options);
  return nvml.ok() ? std::move(nvml) : MakeLinux("", options);
}

// One row a kind of source; a new one needs no more than its row.
enum class Argument { kNone, kOptional, kRequired };
struct Kind {
  std::string_view word;
  Argument argument;
  std::string_view argument_name;  // in messages
  SourceResult (*make)(const std::string& argument, const SourceOptions& options);
};
constexpr Kind kKinds[] = {
    {"auto", Argument::kNone, "", MakeAuto},
    {"nvml", Argument::kOptional, "N", MakeNvml},
    {"linux", Argument::kNone, "", MakeLinux},
    {"replay", Argument::kRequired, "FILE", MakeReplay},
    {"plant", Argument::kRequired, "FILE", MakePlant},
};

}  // namespace

std::string SourceChoices() {
  std::vector<std::string> choices;
  for (const Kind& kind : kKinds) {
    if (kind.argument != Argument::kRequired) choices.emplace_back(kind.word);
    if (kind.argument != Argument::kNone) choices.push_back(fmt::format("{}:{}", kind.word, kind.argument_name));
  }
  std::string text = choices.front();
  for (size_t i = 1; i < choices.size(); ++i) text += (i + 1 < choices.size() ? ", " : " or ") + choices[i];
  return text;
}

SourceResult FindSource(const std::string& choice, const SourceOptions& options) {
  const size_t colon = choice.find(':');
  const std::string word = choice.substr(0, colon);
  const std::string argument = colon == std::string::npos ? "" : choice.substr(colon + 1);
  for (const Kind& kind : kKinds) {
    if (word != kind.word) continue;
    const bool given = colon != std::string::npos;
    const bool fits = kind.argument == Argument::kNone ? !given
                      : given                          ? !argument.empty()
                                                       : kind.argument == Argument::kOptional;
    if (fits) return kind.make(argument, options);
  }
  return InvalidArgument("\"{}\" names no telemetry source; give {}", choice, SourceChoices());
}

}  // namespace thermoe
