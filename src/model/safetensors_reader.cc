// SPDX-License-Identifier: Apache-2.0
#include "model/safetensors_reader.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <utility>

#include "base/errors.h"
#include "model/file_errors.h"

namespace thermoe {
namespace {

using Json = nlohmann::json;

constexpr uint64_t kLengthBytes = 8;
// The format's own limit; a header of more is damage, and parsing it would take gigabytes.
constexpr uint64_t kMostHeaderBytes = 100'000'000;

std::string LowerCase(std::string text) {
  for (char& c : text) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return text;
}

std::optional<DType> DTypeOf(std::string_view dtype) {
  if (dtype == "F32") return DType::kF32;
  if (dtype == "F16") return DType::kF16;
  if (dtype == "BF16") return DType::kBF16;
  return std::nullopt;
}

// Reads an array of non-negative integers below 2^63.
bool ReadIntegers(const Json& entry, const char* field, std::vector<int64_t>* out) {
  const auto found = entry.find(field);
  if (found == entry.end() || !found->is_array()) return false;
  for (const Json& item : *found) {
    if (!item.is_number_unsigned() || item.get<uint64_t>() > INT64_MAX) return false;
    out->push_back(static_cast<int64_t>(item.get<uint64_t>()));
  }
  return true;
}

Status ReadEntry(const std::string& path, const std::string& name, const Json& entry, std::span<const std::byte> data,
                 uint64_t data_begin, FileTensor* tensor) {
  std::vector<int64_t> offsets;
  const bool complete = entry.is_object() && entry.contains("dtype") && entry["dtype"].is_string() &&
                        ReadIntegers(entry, "shape", &tensor->shape) && ReadIntegers(entry, "data_offsets", &offsets) &&
                        offsets.size() == 2;
  if (!complete) {
    return Corrupt("{}: tensor {} lacks a proper dtype, shape or data_offsets; download it again", path, name);
  }
  const std::string dtype = entry["dtype"].get<std::string>();
  tensor->name = name;
  tensor->type_name = LowerCase(dtype);
  tensor->type = DTypeOf(dtype);
  const auto begin = static_cast<uint64_t>(offsets[0]), end = static_cast<uint64_t>(offsets[1]);
  if (end > data.size()) return TensorPastEnd(path, name, data_begin + end, data_begin + data.size());
  if (begin > end) return Corrupt("{}: tensor {} ends before it begins; download it again", path, name);

  const int64_t elements = CheckedElements(tensor->shape);
  int64_t bytes = 0;
  if (elements < 0 || (tensor->type && (__builtin_mul_overflow(elements, TraitsOf(*tensor->type).block_bytes, &bytes) ||
                                        static_cast<uint64_t>(bytes) != end - begin))) {
    return Corrupt("{}: tensor {} of shape {} and type {} has {} bytes of data; download it again", path, name,
                   ShapeText(tensor->shape), tensor->type_name, Grouped(end - begin));
  }
  tensor->data = data.subspan(begin, end - begin);
  return Status::Ok();
}

}  // namespace

Result<SafetensorsFile> ParseSafetensors(const std::string& path, std::span<const std::byte> bytes) {
  if (bytes.size() < kLengthBytes) return HeaderTooShort(path, bytes.size(), bytes.size());
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), kLengthBytes);
  if (length > kMostHeaderBytes) {
    return Corrupt("{}: claims a header of {} bytes, more than the safetensors format allows; download it again", path,
                   Grouped(length));
  }
  if (length > bytes.size() - kLengthBytes) return HeaderTooShort(path, bytes.size(), bytes.size());

  SafetensorsFile file;
  const uint64_t data_begin = kLengthBytes + length;
  file.header = bytes.first(data_begin);
  const auto* text = reinterpret_cast<const char*>(bytes.data()) + kLengthBytes;
  const Json table = Json::parse(text, text + length, nullptr, /*allow_exceptions=*/false);
  if (!table.is_object()) return Corrupt("{}: its header is not a JSON object; download it again", path);
  for (const auto& [name, entry] : table.items()) {
    if (name == "__metadata__") continue;
    THERMOE_RETURN_IF_ERROR(
        ReadEntry(path, name, entry, bytes.subspan(data_begin), data_begin, &file.tensors.emplace_back()));
  }
  std::stable_sort(file.tensors.begin(), file.tensors.end(),
                   [](const FileTensor& a, const FileTensor& b) { return a.data.data() < b.data.data(); });
  const FileTensor* previous = nullptr;
  for (const FileTensor& tensor : file.tensors) {
    if (tensor.data.empty()) continue;
    if (previous != nullptr && previous->data.data() + previous->data.size() > tensor.data.data()) {
      return Corrupt("{}: tensors {} and {} overlap; download it again", path, previous->name, tensor.name);
    }
    previous = &tensor;
  }
  return file;
}

}  // namespace thermoe
