// SPDX-License-Identifier: Apache-2.0
#include "kernels/what_fits.h"

#include <fmt/format.h>

#include <algorithm>

#include "runtime/kv_layout.h"

namespace thermoe::kernels {
namespace {

constexpr int32_t kLeastChunk = 32;  // below, prompts are read about as slowly as tokens are generated
constexpr const char* kSequenceFlags = "--parallel or --batch";
constexpr const char* kContextFlags = "--ctx or --window";

std::string Sequences(int32_t n) { return n == 1 ? "one sequence" : fmt::format("{} sequences", n); }

}  // namespace

EngineSize SmallestSize(const EngineSize& asked) {
  return {1, std::min<int32_t>(asked.context, kKvBlock), std::min(asked.prefill_chunk, kLeastChunk)};
}

int32_t LargestThatFits(int32_t most, const std::function<bool(int32_t)>& fits) {
  int32_t low = 0, high = most;
  while (low < high) {
    const int32_t middle = high - (high - low) / 2;
    if (fits(middle)) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

std::string WhatFits(const EngineSize& asked, const std::function<bool(const EngineSize&)>& fits) {
  // Less than a block of positions takes a block.
  const auto context_of = [&](int32_t sequences, int32_t chunk) {
    const int32_t context = LargestThatFits(asked.context, [&](int32_t n) { return fits({sequences, n, chunk}); });
    return context >= std::min<int32_t>(asked.context, kKvBlock) ? context : 0;
  };
  const int32_t sequences = LargestThatFits(asked.sequences, [&](int32_t n) { return fits({n, asked.context, asked.prefill_chunk}); });
  const int32_t context = context_of(asked.sequences, asked.prefill_chunk);
  const int32_t chunk = LargestThatFits(asked.prefill_chunk, [&](int32_t n) { return fits({asked.sequences, asked.context, n}); });
  std::string text;
  const auto add = [&](const std::string& part) { text += (text.empty() ? "" : ", or ") + part; };
  if (sequences > 0) {
    add(fmt::format("{} of {} tokens ({} {})", Sequences(sequences), asked.context, kSequenceFlags, sequences));
  }
  if (context > 0) add(fmt::format("{} of {} tokens ({} {})", Sequences(asked.sequences), context, kContextFlags, context));
  // A step has room for a row of every sequence, whatever is asked for.
  if (chunk >= std::max(kLeastChunk, asked.sequences)) add(fmt::format("all of it in smaller steps (--prefill-chunk {})", chunk));
  if (!text.empty()) return text + " would fit";
  for (const int32_t rows : {asked.prefill_chunk, SmallestSize(asked).prefill_chunk}) {
    const int32_t alone = context_of(1, rows);
    if (alone == 0) continue;
    const std::string smaller = rows < asked.prefill_chunk ? fmt::format(", --prefill-chunk {}", rows) : "";
    const std::string fewer = asked.sequences > 1 ? fmt::format("{} 1, ", kSequenceFlags) : "";
    return fmt::format("one sequence of {} tokens ({}{} {}{}) would fit", alone, fewer, kContextFlags, alone, smaller);
  }
  return "";
}

}  // namespace thermoe::kernels
