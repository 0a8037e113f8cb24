// SPDX-License-Identifier: Apache-2.0
// How tokens are chosen: the same settings as flags and as keys of a prompts file.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>

#include "json_out.h"
#include "thermoe/engine.h"
#include "thermoe/status.h"

namespace thermoe {

struct SamplingFlags {
  int tokens = 128;
  double temperature = 0.8;
  int top_k = 40;
  double top_p = 0.95;
  double min_p = 0.05;
  double repeat_penalty = 1.0;
  int repeat_last = 64;
  std::optional<uint64_t> seed;
  bool greedy = false;
  bool ignore_end = false;
};

void AddSamplingFlags(CLI::App* app, SamplingFlags* flags);

// Sets the field that `key` ("n", "temp", "top_k", ..., "seed", "greedy") names. kNotFound: no such key;
// kInvalidArgument: wrong type or out of range.
Status SetSamplingField(const std::string& key, const Json& value, SamplingFlags* flags);

// Fills sampling, length and end handling of a request; `seed` for want of flags.seed.
void ApplySampling(const SamplingFlags& flags, uint64_t seed, Request* request);

}  // namespace thermoe
