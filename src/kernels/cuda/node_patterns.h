// SPDX-License-Identifier: Apache-2.0
// Runs of recorded operations that launches put together.
#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/cuda/prefill.h"
#include "kernels/cuda/project.h"

namespace thermoe::cuda {

// The node there, if it is one of these.
template <typename T>
const T* NodeAt(std::span<const Node> nodes, size_t at) {
  return at < nodes.size() ? std::get_if<T>(&nodes[at]) : nullptr;
}

// Whether a norm is of what an addition (without a gate), or experts, gave, and leaves that as it is.
bool Norms(const NormLaunch& norm, const AddNode& add);
bool Norms(const NormLaunch& norm, const ExpertFfnLaunch& experts);

// Norms, clamps and rope of q and k, then the cache: how many nodes they are; 0: not these.
size_t ProjectionsAt(std::span<const Node> nodes, FinishLaunch* finish);

// What comes of attention, added to the rows, their norm, the gate and the selection; nothing but the sum and the norm keeps what the product
// gave.
struct OutputToSelection {
  const LinearLaunch* output = nullptr;
  const AddNode* add = nullptr;
  const NormLaunch* norm = nullptr;
  const LinearLaunch* gate = nullptr;
  const SelectLaunch* select = nullptr;
};
inline constexpr size_t kOutputToSelection = 5;  // nodes
bool OutputToSelectionAt(std::span<const Node> nodes, OutputToSelection* found);

// The neighbouring products of the same rows that nodes begin with (q, k and v): how many, at most kMostTogether.
size_t LinearsAt(std::span<const Node> nodes, LinearLaunch (&together)[kMostTogether]);

// The prefill product that reads what a norm gives next: the one that follows, or, behind the gate and the selection, the experts.
struct PrefillReader {
  const void* node = nullptr;  // the launch; null: there is none
  HalfRows rows;               // where it looks for them
};
PrefillReader PrefillReaderOf(const NormLaunch& norm, std::span<const Node> following);
// Whether nobody but the products that follow reads what a norm gives: the product after attention writes over it.
bool OnlyLinearsRead(const NormLaunch& norm, std::span<const Node> following);

}  // namespace thermoe::cuda
