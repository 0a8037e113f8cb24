// SPDX-License-Identifier: Apache-2.0
// A TOML file as flat numbers, with errors that name the file, line, key, range and remedy.
#pragma once

#include <map>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "thermoe/status.h"

namespace thermoe {

class TomlFile {
 public:
  static Result<TomlFile> Open(const std::string& path);

  // `key` is dotted: "power.idle_w". Each fails when the key is missing, of another kind, or outside [low, high].
  Result<double> Number(std::string_view key, double low, double high);
  Result<std::string> Text(std::string_view key);
  // [[0, 25], [60, 35]]: pairs of a time in seconds and a value in [low, high].
  Result<std::vector<std::pair<double, double>>> Pairs(std::string_view key, double low, double high);

  bool Has(std::string_view key) const { return values_.contains(std::string(key)); }
  // "profile.toml: line 7: power.idle_w": how a sentence about `key` begins.
  std::string Where(std::string_view key) const;
  // Refuses what nobody asked for: most often a misspelt key.
  Status CheckAllRead() const;

 private:
  enum class Kind { kNumber, kText, kPairs, kOther };
  struct Value {
    Kind kind = Kind::kOther;
    std::string kind_name;  // as the file's author would call it
    int line = 0;
    double number = 0;
    std::string text;
    std::vector<std::pair<double, double>> pairs;
  };
  friend struct TomlFlattener;

  Result<const Value*> Find(std::string_view key, Kind kind, const std::string& wanted);

  std::string path_;
  std::map<std::string, Value> values_;  // dotted key -> value
  std::set<std::string> read_;
};

}  // namespace thermoe
