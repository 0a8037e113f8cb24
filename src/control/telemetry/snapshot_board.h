// SPDX-License-Identifier: Apache-2.0
// The newest snapshot, between one writer and any number of readers that must neither wait nor allocate.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "control/telemetry/snapshot.h"

namespace thermoe {

struct PublishedSnapshot {
  double read_s = -std::numeric_limits<double>::infinity();  // when its reading began, by the publisher's clock
  Snapshot snapshot;
};

// Two slots, each with a sequence number that is odd while it is written. The writer takes the slot that is not the
// newest, so a reader tries again only if a snapshot came while it copied one, and a writer stopped midway holds nobody
// up.
class SnapshotBoard {
 public:
  SnapshotBoard() { Publish({}); }

  // From one thread at a time.
  void Publish(const PublishedSnapshot& published) {
    std::array<uint64_t, kWords> words;
    std::memcpy(words.data(), &published, sizeof(published));
    const uint32_t next = 1 - newest_.load(std::memory_order_relaxed);
    Slot& slot = slots_[next];
    const uint64_t sequence = slot.sequence.load(std::memory_order_relaxed);
    slot.sequence.store(sequence + 1, std::memory_order_relaxed);
    // Release on every word in place of a fence, which ThreadSanitizer does not see: whoever reads a new word also sees
    // the odd sequence number.
    for (size_t i = 0; i < kWords; ++i) slot.words[i].store(words[i], std::memory_order_release);
    slot.sequence.store(sequence + 2, std::memory_order_release);
    newest_.store(next, std::memory_order_release);
  }

  PublishedSnapshot Newest() const {
    std::array<uint64_t, kWords> words;
    for (;;) {
      const uint32_t newest = newest_.load(std::memory_order_acquire);
      const Slot& slot = slots_[newest];
      const uint64_t before = slot.sequence.load(std::memory_order_acquire);
      for (size_t i = 0; i < kWords; ++i) words[i] = slot.words[i].load(std::memory_order_acquire);
      // A slot that is whole but not the newest any more may have been written again and not be announced yet: the next
      // reading would go back behind it.
      if (before % 2 == 0 && slot.sequence.load(std::memory_order_relaxed) == before && newest_.load(std::memory_order_relaxed) == newest) break;
    }
    PublishedSnapshot published;
    std::memcpy(static_cast<void*>(&published), words.data(), sizeof(published));
    return published;
  }

 private:
  static_assert(std::is_trivially_copyable_v<PublishedSnapshot>);
  static_assert(sizeof(PublishedSnapshot) % sizeof(uint64_t) == 0);
  static constexpr size_t kWords = sizeof(PublishedSnapshot) / sizeof(uint64_t);

  struct alignas(64) Slot {
    std::atomic<uint64_t> sequence{0};
    std::array<std::atomic<uint64_t>, kWords> words{};
  };
  Slot slots_[2];
  std::atomic<uint32_t> newest_{0};
};

}  // namespace thermoe
