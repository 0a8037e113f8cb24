// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/choose_device.h"

#include <algorithm>
#include <cctype>
#include <charconv>

#include "base/errors.h"

namespace thermoe::cuda {
namespace {

bool Same(char a, char b) { return std::tolower(static_cast<unsigned char>(a)) == std::tolower(static_cast<unsigned char>(b)); }
bool BeginsWith(std::string_view text, std::string_view part) {
  return text.size() >= part.size() && std::equal(part.begin(), part.end(), text.begin(), Same);
}
bool ParseNumber(std::string_view wish, int* number) {
  const auto parsed = std::from_chars(wish.data(), wish.data() + wish.size(), *number);
  return parsed.ec == std::errc() && parsed.ptr == wish.data() + wish.size();
}

std::string Listed(std::span<const DeviceFacts> devices) {
  std::string text;
  for (const DeviceFacts& device : devices) {
    text += fmt::format("{}{} ({}, {})", text.empty() ? "" : ", ", device.index, device.name, device.uuid);
  }
  return text;
}

}  // namespace

bool IsPartOfName(std::string_view wish, std::string_view name) {
  int number = 0;
  return !ParseNumber(wish, &number) && std::search(name.begin(), name.end(), wish.begin(), wish.end(), Same) != name.end();
}

std::string EngineName(std::string_view device_name) { return fmt::format("cuda ({})", device_name); }

Result<DeviceFacts> ChooseDevice(std::span<const DeviceFacts> devices, std::string_view wish) {
  if (devices.empty()) {
    return Unsupported("no CUDA device is here (or no driver for it); use --backend cpu (or THERMOE_BACKEND=cpu)");
  }
  if (wish.empty()) return devices.front();
  int number = -1;
  const bool is_number = ParseNumber(wish, &number);
  const DeviceFacts* found = nullptr;
  int fit = 0;
  for (const DeviceFacts& device : devices) {
    const bool fits = is_number ? device.index == number : BeginsWith(device.uuid, wish) || IsPartOfName(wish, device.name);
    if (!fits) continue;
    found = &device;
    ++fit;
  }
  if (fit == 1) return *found;
  return InvalidArgument("device \"{}\" (--device, or THERMOE_DEVICE): {} of that {}; name one by its number; there are {}", wish, fit == 0 ? "none" : "several",
                         is_number ? "number" : "name or UUID", Listed(devices));
}

}  // namespace thermoe::cuda
