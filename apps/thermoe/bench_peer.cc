// SPDX-License-Identifier: Apache-2.0
#include "bench_peer.h"

#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <string_view>

#include "base/errors.h"
#include "interrupt.h"
#include "json_out.h"

namespace thermoe {
namespace {

constexpr size_t kMostOutput = size_t{16} << 20;

void CollectRates(const Json& json, std::vector<double>* rates) {
  if (!json.is_structured()) return;
  for (const auto& [key, value] : json.items()) {
    const bool is_rate = json.is_object() && (key == "tokens_per_s" || key == "avg_ts");
    const Json& rate = is_rate && value.is_object() && value.contains("median") ? value["median"] : value;
    if (is_rate && rate.is_number()) {
      rates->push_back(rate.get<double>());
    } else {
      CollectRates(value, rates);
    }
  }
}

}  // namespace

std::vector<double> ParseRates(const std::string& output) {
  std::vector<double> rates;
  if (const Json json = Json::parse(output, nullptr, /*allow_exceptions=*/false); json.is_structured()) {
    CollectRates(json, &rates);
    return rates;
  }
  std::string_view rest = output;
  while (!rest.empty()) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    std::string_view line = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    while (!line.empty() && (line.front() == ' ' || line.front() == '\t')) line.remove_prefix(1);
    while (!line.empty() && (line.back() == ' ' || line.back() == '\t' || line.back() == '\r')) line.remove_suffix(1);
    double rate = 0;
    const auto [stop, error] = std::from_chars(line.data(), line.data() + line.size(), rate);
    if (error == std::errc() && stop == line.data() + line.size() && std::isfinite(rate)) rates.push_back(rate);
  }
  return rates;
}

Result<std::vector<double>> RunPeer(const std::string& command, size_t count) {
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return InvalidArgument("--vs: the shell cannot be started; check the system's process limit");
  std::string output;
  std::array<char, 4096> buffer;
  for (size_t got; (got = std::fread(buffer.data(), 1, buffer.size(), pipe)) > 0;) {
    if (output.size() < kMostOutput) output.append(buffer.data(), got);
  }
  const int status = pclose(pipe);
  if (Interrupted()) return InterruptedStatus();
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    return InvalidArgument("--vs: the command ended with {}; run it by itself to see why",
                           WIFEXITED(status) ? fmt::format("exit code {}", WEXITSTATUS(status))
                                             : fmt::format("signal {}", WTERMSIG(status)));
  }
  std::vector<double> rates = ParseRates(output);
  if (rates.size() != count) {
    return InvalidArgument("--vs: the command printed {} rates but there are {} tests; have it print tokens per second, one a "
                           "line, in the order of the tests",
                           rates.size(), count);
  }
  for (const double rate : rates) {
    if (!(rate > 0)) return InvalidArgument("--vs: the command printed a rate of {}; tokens per second are above 0", rate);
  }
  return rates;
}

}  // namespace thermoe
