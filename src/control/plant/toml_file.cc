// SPDX-License-Identifier: Apache-2.0
#include "control/plant/toml_file.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>

// Its errors come back as values; no exception may cross our functions. What it asserts a file can break ("[[["), and clang
// takes for granted in a release: the checks that come after it must speak instead.
#define TOML_EXCEPTIONS 0
#define TOML_MAX_NESTED_VALUES 16
#define TOML_ASSERT(expr) static_assert(true)
#pragma push_macro("NDEBUG")
#undef NDEBUG
#include <toml++/toml.h>
#pragma pop_macro("NDEBUG")

#include "base/errors.h"
#include "control/plant/toml_text.h"

namespace thermoe {

struct TomlFlattener {
  TomlFile* file;
  const TomlText* written;

  void Table(const std::string& prefix, const toml::table& table) const {
    for (const auto& [key, node] : table) {
      const std::string name = (prefix.empty() ? "" : prefix + ".") + written->Read(key.str());
      if (const toml::table* inner = node.as_table()) {
        Table(name, *inner);
      } else {
        file->values_[name] = Leaf(node);
      }
    }
  }

  static bool IsNumber(const toml::node& node) { return node.is_integer() || node.is_floating_point(); }

  TomlFile::Value Leaf(const toml::node& node) const {
    TomlFile::Value value;
    value.line = static_cast<int>(node.source().begin.line);
    if (IsNumber(node)) {
      value.kind = TomlFile::Kind::kNumber;
      value.kind_name = "a number";
      value.number = *node.value<double>();
    } else if (node.is_string()) {
      value.kind = TomlFile::Kind::kText;
      value.kind_name = "a text";
      value.text = written->Read(*node.value<std::string>());
    } else if (const toml::array* array = node.as_array()) {
      value.kind_name = "an array of something else";
      bool pairs = !array->empty();
      for (const toml::node& element : *array) {
        const toml::array* pair = element.as_array();
        pairs = pairs && pair != nullptr && pair->size() == 2 && IsNumber((*pair)[0]) && IsNumber((*pair)[1]);
        if (!pairs) break;
        value.pairs.emplace_back(*(*pair)[0].value<double>(), *(*pair)[1].value<double>());
      }
      if (pairs) value.kind = TomlFile::Kind::kPairs;
    } else {
      value.kind_name = node.is_boolean() ? "a boolean" : "a date or time";
    }
    return value;
  }
};

Result<TomlFile> TomlFile::Open(const std::string& path) {
  std::error_code error;
  if (std::filesystem::exists(path, error) && !std::filesystem::is_regular_file(path, error)) {
    return InvalidArgument("{}: is no file but a folder or device; give the path of a TOML file", path);
  }
  if (!std::filesystem::is_regular_file(path, error)) {
    return NotFound("{}: no such file; give the path of a TOML file like those in data/profiles and scenarios", path);
  }
  std::ifstream stream(path, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  const Result<TomlText> written = TomlText::Create(text, path);
  if (!written.ok()) return written.status();
  const toml::parse_result parsed = toml::parse(written->spelt(), path);
  if (!parsed) {
    const toml::source_position at = parsed.error().source().begin;
    return InvalidArgument("{}: line {}: {}; correct the TOML there", path, at.line,
                           written->ReadError(parsed.error().description(), at.line, at.column));
  }
  TomlFile file;
  file.path_ = path;
  TomlFlattener{&file, &*written}.Table("", parsed.table());
  return file;
}

std::string TomlFile::Where(std::string_view key) const {
  const auto found = values_.find(std::string(key));
  if (found == values_.end()) return fmt::format("{}: {}", path_, key);
  return fmt::format("{}: line {}: {}", path_, found->second.line, key);
}

Result<const TomlFile::Value*> TomlFile::Find(std::string_view key, Kind kind, const std::string& wanted) {
  read_.insert(std::string(key));
  const auto found = values_.find(std::string(key));
  if (found == values_.end()) return InvalidArgument("{} is missing; add it as {}", Where(key), wanted);
  if (found->second.kind != kind)
    return InvalidArgument("{} is {}; make it {}", Where(key), found->second.kind_name, wanted);
  return &found->second;
}

Result<double> TomlFile::Number(std::string_view key, double low, double high) {
  const std::string wanted = fmt::format("a number from {} to {}", low, high);
  const Result<const Value*> value = Find(key, Kind::kNumber, wanted);
  if (!value.ok()) return value.status();
  const double number = (*value)->number;
  if (!(number >= low && number <= high)) return InvalidArgument("{} is {}; make it {}", Where(key), number, wanted);
  return number;
}

Result<std::string> TomlFile::Text(std::string_view key) {
  const Result<const Value*> value = Find(key, Kind::kText, "a text in quotes");
  if (!value.ok()) return value.status();
  return (*value)->text;
}

Result<std::vector<std::pair<double, double>>> TomlFile::Pairs(std::string_view key, double low, double high) {
  const std::string wanted = fmt::format("an array of pairs [time in seconds, value from {} to {}]", low, high);
  const Result<const Value*> value = Find(key, Kind::kPairs, wanted);
  if (!value.ok()) return value.status();
  for (const auto& [time, number] : (*value)->pairs) {
    if (std::isfinite(time) && number >= low && number <= high) continue;
    return InvalidArgument("{} has the pair [{}, {}]; make it {}", Where(key), time, number, wanted);
  }
  return (*value)->pairs;
}

Status TomlFile::CheckAllRead() const {
  for (const auto& [key, value] : values_) {
    if (!read_.contains(key))
      return InvalidArgument("{} is no key of this kind of file; correct its spelling or delete it", Where(key));
  }
  return Status::Ok();
}

}  // namespace thermoe
