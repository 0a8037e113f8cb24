// SPDX-License-Identifier: Apache-2.0
#include "model/fields.h"

#include <cmath>
#include <cstring>

#include "base/errors.h"

namespace thermoe {
namespace {

template <typename T>
T Load(std::span<const std::byte> bytes) {
  T value;
  std::memcpy(&value, bytes.data(), sizeof(T));
  return value;
}

// Any integer scalar as int64; none for other types and for unsigned values past 2^63.
std::optional<int64_t> AsInteger(const GgufValue& value) {
  switch (value.type) {
    case GgufType::kU8: return Load<uint8_t>(value.bytes);
    case GgufType::kI8: return Load<int8_t>(value.bytes);
    case GgufType::kU16: return Load<uint16_t>(value.bytes);
    case GgufType::kI16: return Load<int16_t>(value.bytes);
    case GgufType::kU32: return Load<uint32_t>(value.bytes);
    case GgufType::kI32: return Load<int32_t>(value.bytes);
    case GgufType::kI64: return Load<int64_t>(value.bytes);
    case GgufType::kU64: {
      const auto number = Load<uint64_t>(value.bytes);
      if (number > INT64_MAX) return std::nullopt;
      return static_cast<int64_t>(number);
    }
    default: return std::nullopt;
  }
}

std::string Joined(HfFields::Names names) {
  std::string text;
  for (const char* name : names) text += (text.empty() ? "" : " or ") + std::string(name);
  return text;
}

}  // namespace

void GgufFields::RefuseType(std::string_view key, std::string_view wanted) {
  Refuse(Corrupt("{}: metadata {} is not {}; convert the model again", path(), Key(key), wanted));
}

int32_t GgufFields::Int(std::string_view key) {
  if (!Has(key)) Refuse(Corrupt("{}: lacks the metadata {}; convert the model again", path(), Key(key)));
  const int32_t value = IntOr(key, 1);
  if (value == 0) RefuseType(key, "a positive integer");
  return value;
}

int32_t GgufFields::IntOr(std::string_view key, int32_t fallback) {
  const GgufValue* value = Find(key);
  if (value == nullptr) return fallback;
  const auto number = AsInteger(*value);
  if (!number || *number < 0 || *number > INT32_MAX) {
    RefuseType(key, "an integer from 0 to 2^31 - 1");
    return fallback;
  }
  return static_cast<int32_t>(*number);
}

float GgufFields::FloatOr(std::string_view key, float fallback) {
  const GgufValue* value = Find(key);
  if (value == nullptr) return fallback;
  float number = NAN;
  if (value->type == GgufType::kF32) number = Load<float>(value->bytes);
  if (value->type == GgufType::kF64) number = static_cast<float>(Load<double>(value->bytes));
  if (!std::isfinite(number)) {
    RefuseType(key, "a finite number");
    return fallback;
  }
  return number;
}

bool GgufFields::BoolOr(std::string_view key, bool fallback) {
  const GgufValue* value = Find(key);
  if (value == nullptr) return fallback;
  if (value->type != GgufType::kBool) {
    RefuseType(key, "true or false");
    return fallback;
  }
  return Load<uint8_t>(value->bytes) != 0;
}

std::string GgufFields::TextOr(std::string_view key, std::string_view fallback) {
  const GgufValue* value = Find(key);
  if (value == nullptr) return std::string(fallback);
  if (value->type != GgufType::kText) {
    RefuseType(key, "a text");
    return std::string(fallback);
  }
  return {reinterpret_cast<const char*>(value->bytes.data()), value->bytes.size()};
}

const GgufValue* GgufFields::FindArray(std::string_view key, std::initializer_list<GgufType> items,
                                       std::string_view wanted) {
  const GgufValue* value = Find(key);
  if (value == nullptr) return nullptr;
  for (GgufType item : items) {
    if (value->type == GgufType::kArray && value->item_type == item) return value;
  }
  RefuseType(key, wanted);
  return nullptr;
}

uint64_t GgufFields::Count(std::string_view key) const {
  const GgufValue* value = Find(key);
  return value != nullptr && value->type == GgufType::kArray ? value->count : 0;
}

std::vector<std::string> GgufFields::Texts(std::string_view key) {
  const GgufValue* value = FindArray(key, {GgufType::kText}, "an array of texts");
  if (value == nullptr) return {};
  std::vector<std::string> texts;
  texts.reserve(value->count);  // the reader has walked them all
  std::span<const std::byte> rest = value->bytes;
  for (uint64_t i = 0; i < value->count; ++i) {
    const auto length = Load<uint64_t>(rest);
    texts.emplace_back(reinterpret_cast<const char*>(rest.data()) + sizeof(length), length);
    rest = rest.subspan(sizeof(length) + length);
  }
  return texts;
}

std::vector<int32_t> GgufFields::Ints(std::string_view key) {
  // Same bits either way for the small values that tokenizers have.
  const GgufValue* value = FindArray(key, {GgufType::kI32, GgufType::kU32}, "an array of 32-bit integers");
  if (value == nullptr) return {};
  std::vector<int32_t> items(value->count);
  if (!items.empty()) std::memcpy(items.data(), value->bytes.data(), value->bytes.size());
  return items;
}

std::vector<float> GgufFields::Floats(std::string_view key) {
  const GgufValue* value = FindArray(key, {GgufType::kF32}, "an array of floats");
  if (value == nullptr) return {};
  std::vector<float> items(value->count);
  if (!items.empty()) std::memcpy(items.data(), value->bytes.data(), value->bytes.size());
  return items;
}

const nlohmann::json* HfFields::Find(Names names) const {
  for (const char* name : names) {
    const auto found = object_.find(name);
    if (found != object_.end() && !found->is_null()) return &*found;
  }
  return nullptr;
}

void HfFields::RefuseType(Names names, std::string_view wanted) {
  Refuse(Corrupt("{}: {} is not {}; download it again", path_, Joined(names), wanted));
}

int32_t HfFields::Int(Names names) {
  if (!Has(names)) Refuse(Corrupt("{}: lacks {}; download it again", path_, Joined(names)));
  const int32_t value = IntOr(names, 1);
  if (value == 0) RefuseType(names, "a positive integer");
  return value;
}

int32_t HfFields::IntOr(Names names, int32_t fallback) {
  const nlohmann::json* value = Find(names);
  if (value == nullptr) return fallback;
  if (!value->is_number_unsigned() || value->get<uint64_t>() > INT32_MAX) {
    RefuseType(names, "an integer from 0 to 2^31 - 1");
    return fallback;
  }
  return static_cast<int32_t>(value->get<uint64_t>());
}

float HfFields::FloatOr(Names names, float fallback) {
  const nlohmann::json* value = Find(names);
  if (value == nullptr) return fallback;
  const float number = value->is_number() ? static_cast<float>(value->get<double>()) : NAN;
  if (!std::isfinite(number)) {
    RefuseType(names, "a finite number");
    return fallback;
  }
  return number;
}

bool HfFields::BoolOr(Names names, bool fallback) {
  const nlohmann::json* value = Find(names);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) {
    RefuseType(names, "true or false");
    return fallback;
  }
  return value->get<bool>();
}

std::string HfFields::TextOr(Names names, std::string_view fallback) {
  const nlohmann::json* value = Find(names);
  if (value == nullptr) return std::string(fallback);
  if (!value->is_string()) {
    RefuseType(names, "a text");
    return std::string(fallback);
  }
  return value->get<std::string>();
}

const nlohmann::json& HfFields::Array(const char* name) {
  static const nlohmann::json kEmpty = nlohmann::json::array();
  const nlohmann::json* found = Find({name});
  if (found == nullptr) return kEmpty;
  if (!found->is_array()) RefuseType({name}, "a list");
  return found->is_array() ? *found : kEmpty;
}

HfFields HfFields::Object(const char* name) {
  static const nlohmann::json kEmpty = nlohmann::json::object();
  const nlohmann::json* found = Find({name});
  if (found == nullptr) return {path_, kEmpty};
  if (!found->is_object()) RefuseType({name}, "an object");
  return {path_, found->is_object() ? *found : kEmpty};
}

}  // namespace thermoe
