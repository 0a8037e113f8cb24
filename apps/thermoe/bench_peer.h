// SPDX-License-Identifier: Apache-2.0
// The other side of `thermoe bench --vs`: a command of the user's that prints tokens per second.
#pragma once

#include <string>
#include <vector>

#include "thermoe/status.h"

namespace thermoe {

// Tokens per second in what a command printed, in order: the values of "tokens_per_s" (a number, or an object with
// "median") and "avg_ts" (llama-bench -o json) if it is JSON, else every line that is a number and nothing else.
std::vector<double> ParseRates(const std::string& output);

// Runs `command` by the shell; its standard error is passed on. kInvalidArgument unless it succeeds within `limit_s`
// seconds and prints `count` rates; kCancelled at Ctrl-C. It is stopped, with what it started, when either comes first.
Result<std::vector<double>> RunPeer(const std::string& command, size_t count, int limit_s);

}  // namespace thermoe
