// SPDX-License-Identifier: Apache-2.0
#include "bench_peer.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cmath>
#include <csignal>
#include <string_view>
#include <thread>

#include "base/errors.h"
#include "interrupt.h"
#include "json_out.h"

namespace thermoe {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kMostOutput = size_t{16} << 20;
constexpr int kLook_ms = 50;    // between looks at Ctrl-C and the clock
constexpr int kStillRuns = -1;  // no status of a process

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

struct Peer {
  pid_t process = 0;  // and leader of a group of its own, so that what it starts can be stopped with it
  int output = -1;    // what it prints
};

// The shell with `command`; it reads nothing, and its standard error is ours.
Result<Peer> StartPeer(const std::string& command) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0)
    return InvalidArgument("--vs: no pipe can be made; check the system's limit of open files");
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
  posix_spawnattr_setpgroup(&attributes, 0);
  std::string name = "sh", flag = "-c", text = command;
  char* arguments[] = {name.data(), flag.data(), text.data(), nullptr};
  Peer peer;
  const int error = posix_spawn(&peer.process, "/bin/sh", &actions, &attributes, arguments, environ);
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);
  if (error != 0) {
    close(ends[0]);
    return InvalidArgument("--vs: the shell cannot be started; check the system's process limit");
  }
  peer.output = ends[0];
  return peer;
}

// Appends what comes from `fd` to `output`; false if the user or the time stops it before the end.
bool ReadUntil(Clock::time_point deadline, int fd, std::string* output) {
  std::array<char, 4096> buffer;
  while (!Interrupted() && Clock::now() < deadline) {
    pollfd input{fd, POLLIN, 0};
    if (poll(&input, 1, kLook_ms) <= 0) continue;
    const ssize_t got = read(fd, buffer.data(), buffer.size());
    if (got == 0) return true;
    if (got > 0 && output->size() < kMostOutput) output->append(buffer.data(), static_cast<size_t>(got));
  }
  return false;
}

// The status of a command that has closed its output, or kStillRuns.
int WaitFor(pid_t process, Clock::time_point deadline) {
  while (!Interrupted() && Clock::now() < deadline) {
    int status = 0;
    if (waitpid(process, &status, WNOHANG) == process) return status;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return kStillRuns;
}

void Stop(pid_t process) {
  kill(-process, SIGTERM);
  if (int status = 0; waitpid(process, &status, WNOHANG) != process) {
    std::this_thread::sleep_for(std::chrono::milliseconds(kLook_ms));  // to tidy up
    kill(-process, SIGKILL);
    waitpid(process, &status, 0);
  }
}

Status CheckExit(int status) {
  if (WIFSIGNALED(status))
    return InvalidArgument("--vs: the command ended with signal {}; run it by itself to see why", WTERMSIG(status));
  if (WEXITSTATUS(status) == 127)
    return InvalidArgument("--vs: the shell found no such command (exit code 127); check its name and path");
  if (WEXITSTATUS(status) == 0) return Status::Ok();
  return InvalidArgument("--vs: the command ended with exit code {}; run it by itself to see why", WEXITSTATUS(status));
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

Result<std::vector<double>> RunPeer(const std::string& command, size_t count, int limit_s) {
  const Result<Peer> peer = StartPeer(command);
  if (!peer.ok()) return peer.status();
  const Clock::time_point deadline = Clock::now() + std::chrono::seconds(limit_s);
  std::string output;
  const bool ended = ReadUntil(deadline, peer->output, &output);
  close(peer->output);
  const int status = ended ? WaitFor(peer->process, deadline) : kStillRuns;
  if (status == kStillRuns) Stop(peer->process);
  if (Interrupted()) return InterruptedStatus();
  if (status == kStillRuns) {
    return InvalidArgument(
        "--vs: the command had not ended after {} s and was stopped; run it by itself to see why, or raise --vs-limit",
        limit_s);
  }
  THERMOE_RETURN_IF_ERROR(CheckExit(status));
  std::vector<double> rates = ParseRates(output);
  if (rates.size() != count) {
    return InvalidArgument(
        "--vs: the command printed {} rates but there are {} tests; have it print tokens per second, one a "
        "line, in the order of the tests",
        rates.size(), count);
  }
  for (const double rate : rates) {
    if (!(rate > 0))
      return InvalidArgument("--vs: the command printed a rate of {}; tokens per second are above 0", rate);
  }
  return rates;
}

}  // namespace thermoe
