// SPDX-License-Identifier: Apache-2.0
// Runs of recorded operations that launches put together.
#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/cuda/project.h"

namespace thermoe::cuda {

// The node there, if it is one of these.
template <typename T>
const T* NodeAt(std::span<const Node> nodes, size_t at) {
  return at < nodes.size() ? std::get_if<T>(&nodes[at]) : nullptr;
}

// Norms, clamps and rope of q and k, then the cache: how many nodes they are; 0: not these.
size_t ProjectionsAt(std::span<const Node> nodes, FinishLaunch* finish);

}  // namespace thermoe::cuda
