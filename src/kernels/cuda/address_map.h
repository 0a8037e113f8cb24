// SPDX-License-Identifier: Apache-2.0
// Which device memory stands for which host memory.
#pragma once

#include <cstddef>
#include <map>

namespace thermoe::cuda {

class AddressMap {
 public:
  void Add(const void* host, size_t bytes, std::byte* device) {
    const auto* begin = static_cast<const std::byte*>(host);
    // A vector that was freed may have left its address to another.
    auto at = ranges_.lower_bound(begin);
    if (at != ranges_.begin() && std::prev(at)->second.end > begin) at = std::prev(at);
    while (at != ranges_.end() && at->first < begin + bytes) at = ranges_.erase(at);
    ranges_[begin] = {begin + bytes, device};
  }
  // The device's address of `host`, or null.
  std::byte* Find(const void* host) const {
    const auto* p = static_cast<const std::byte*>(host);
    auto at = ranges_.upper_bound(p);
    if (at == ranges_.begin()) return nullptr;
    --at;
    return p < at->second.end ? at->second.device + (p - at->first) : nullptr;
  }

 private:
  struct Range {
    const std::byte* end;
    std::byte* device;
  };
  std::map<const std::byte*, Range> ranges_;
};

}  // namespace thermoe::cuda
