// SPDX-License-Identifier: Apache-2.0
// Graphs of steps by what they are keyed by. There may be as many as numbers of rows times doublings of the context, and each takes memory of host and device, so
// only those that were used last are kept.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <utility>

namespace thermoe::cuda {

// Graph: a handle, null: none. Drop: what is called with a handle that is kept no longer.
template <typename Graph, typename Drop>
class StepGraphs {
 public:
  explicit StepGraphs(size_t most, Drop drop = {}) : most_(most), drop_(std::move(drop)) {}
  ~StepGraphs() { Clear(); }
  StepGraphs(const StepGraphs&) = delete;
  StepGraphs& operator=(const StepGraphs&) = delete;

  // Whether there has been such a step, as far as is remembered.
  bool Knows(uint64_t key) const { return kept_.contains(key); }
  // Its graph, or null; it counts as used.
  Graph Find(uint64_t key) {
    const auto at = kept_.find(key);
    if (at == kept_.end()) return nullptr;
    at->second.used = ++uses_;
    return at->second.graph;
  }
  // graph: null where the step is only to be known. Another of that key is dropped, and, of more than `most`, the one that was used longest ago.
  void Put(uint64_t key, Graph graph) {
    Entry& entry = kept_[key];
    if (entry.graph != nullptr) drop_(entry.graph);
    entry = {graph, ++uses_};
    if (kept_.size() <= most_) return;
    const auto oldest = std::min_element(kept_.begin(), kept_.end(), [](const auto& a, const auto& b) { return a.second.used < b.second.used; });
    if (oldest->second.graph != nullptr) drop_(oldest->second.graph);
    kept_.erase(oldest);
  }
  void Clear() {
    for (const auto& [key, entry] : kept_) {
      if (entry.graph != nullptr) drop_(entry.graph);
    }
    kept_.clear();
  }

 private:
  struct Entry {
    Graph graph = nullptr;
    uint64_t used = 0;
  };
  size_t most_;
  Drop drop_;
  std::unordered_map<uint64_t, Entry> kept_;
  uint64_t uses_ = 0;
};

}  // namespace thermoe::cuda
