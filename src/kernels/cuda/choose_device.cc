// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/choose_device.h"

#include <algorithm>
#include <cctype>
#include <charconv>

#include "base/errors.h"

namespace thermoe::cuda {
namespace {

bool Same(char a, char b) { return std::tolower(static_cast<unsigned char>(a)) == std::tolower(static_cast<unsigned char>(b)); }
bool BeginsWith(std::string_view text, std::string_view part) { return NameHas(text.substr(0, part.size()), part); }

std::string Listed(std::span<const DeviceFacts> devices) {
  std::string text;
  for (const DeviceFacts& device : devices) {
    text += fmt::format("{}{} ({}, {})", text.empty() ? "" : ", ", device.index, device.name, device.uuid);
  }
  return text;
}

}  // namespace

bool NameHas(std::string_view name, std::string_view part) {
  return std::search(name.begin(), name.end(), part.begin(), part.end(), Same) != name.end();
}

Result<DeviceFacts> ChooseDevice(std::span<const DeviceFacts> devices, std::string_view wish) {
  if (devices.empty()) {
    return Unsupported("no CUDA device is here (or no driver for it); use --backend cpu (or THERMOE_BACKEND=cpu)");
  }
  if (wish.empty()) return devices.front();
  int number = -1;
  const auto parsed = std::from_chars(wish.data(), wish.data() + wish.size(), number);
  const bool is_number = parsed.ec == std::errc() && parsed.ptr == wish.data() + wish.size();
  const DeviceFacts* found = nullptr;
  int fit = 0;
  for (const DeviceFacts& device : devices) {
    const bool fits = is_number ? device.index == number : BeginsWith(device.uuid, wish) || NameHas(device.name, wish);
    if (!fits) continue;
    found = &device;
    ++fit;
  }
  if (fit == 1) return *found;
  return InvalidArgument("device \"{}\" (--device, or THERMOE_DEVICE): {} of that {}; name one by its number; there are {}", wish, fit == 0 ? "none" : "several",
                         is_number ? "number" : "name or UUID", Listed(devices));
}

}  // namespace thermoe::cuda
