// SPDX-License-Identifier: Apache-2.0
// What of an engine would fit where memory is short. Pure functions.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace thermoe::kernels {

// How large an engine is.
struct EngineSize {
  int32_t sequences = 1;      // at once
  int32_t context = 1;        // positions of each
  int32_t prefill_chunk = 1;  // rows of prompts in a step
};

// The smallest engine worth having of those up to `asked`: one sequence of a block of positions, prompts read 32 tokens at a time.
EngineSize SmallestSize(const EngineSize& asked);

// The largest n in [1, most] that fits, where all smaller ones do if it does; 0: none.
int32_t LargestThatFits(int32_t most, const std::function<bool(int32_t)>& fits);

// How much of `asked`, which does not fit, would: fewer sequences, a shorter context, a smaller chunk, or all of these. A part of a sentence
// that names the flags; "" where not even SmallestSize fits.
std::string WhatFits(const EngineSize& asked, const std::function<bool(const EngineSize&)>& fits);

}  // namespace thermoe::kernels
