// SPDX-License-Identifier: Apache-2.0
// Typed access to a model's own fields: GGUF metadata and Hugging Face config.json. Both remember the first thing
// that was wrong, so that a config reader can read all it wants and ask once.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/gguf_reader.h"
#include "thermoe/status.h"

namespace thermoe {

// The first failure of a reader.
class FieldErrors {
 public:
  const Status& status() const { return status_; }
  void Refuse(Status status) {
    if (status_.ok()) status_ = std::move(status);
  }

 private:
  Status status_;
};

// Metadata "<prefix>.<key>" of a GGUF file. Integers are 0 .. 2^31 - 1; text views point into the file.
class GgufFields : public FieldErrors {
 public:
  GgufFields(const GgufFile& file, std::string prefix) : file_(file), prefix_(std::move(prefix)) {}

  const std::string& path() const { return file_.path(); }
  bool Has(std::string_view key) const { return Find(key) != nullptr; }

  int32_t Int(std::string_view key);  // required, at least 1
  int32_t IntOr(std::string_view key, int32_t fallback);
  float FloatOr(std::string_view key, float fallback);
  bool BoolOr(std::string_view key, bool fallback);
  std::string TextOr(std::string_view key, std::string_view fallback);
  uint64_t Count(std::string_view key) const;            // items of an array; 0 when there is none
  std::vector<std::string> Texts(std::string_view key);  // empty when absent
  std::vector<int32_t> Ints(std::string_view key);
  std::vector<float> Floats(std::string_view key);

 private:
  std::string Key(std::string_view key) const { return prefix_ + "." + std::string(key); }
  const GgufValue* Find(std::string_view key) const { return file_.Find(Key(key)); }
  // The array `key` of `items`; null when absent (no error) or of another type (refused).
  const GgufValue* FindArray(std::string_view key, std::initializer_list<GgufType> items, std::string_view wanted);
  void RefuseType(std::string_view key, std::string_view wanted);

  const GgufFile& file_;
  std::string prefix_;
};

// Fields of one JSON object of a config.json. null counts as absent. `names` are alternatives; the first that is
// there counts.
class HfFields : public FieldErrors {
 public:
  using Names = std::initializer_list<const char*>;

  HfFields(std::string path, const nlohmann::json& object) : path_(std::move(path)), object_(object) {}

  const std::string& path() const { return path_; }
  bool Has(Names names) const { return Find(names) != nullptr; }

  int32_t Int(Names names);  // required, at least 1
  int32_t IntOr(Names names, int32_t fallback);
  float FloatOr(Names names, float fallback);
  bool BoolOr(Names names, bool fallback);
  std::string TextOr(Names names, std::string_view fallback);
  // The array called `name`; an empty one when absent.
  const nlohmann::json& Array(const char* name);
  // The object called `name`; an empty one when absent. Its errors are its own: Refuse(object.status()) takes them over.
  HfFields Object(const char* name);

 private:
  const nlohmann::json* Find(Names names) const;
  void RefuseType(Names names, std::string_view wanted);

  std::string path_;
  const nlohmann::json& object_;
};

}  // namespace thermoe
