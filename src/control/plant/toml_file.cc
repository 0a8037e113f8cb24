// SPDX-License-Identifier: Apache-2.0
#include "control/plant/toml_file.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string_view>

// Its errors come back as values; no exception may cross our functions. What it asserts a file can break ("[[["), and clang
// takes for granted in a release: the checks that come after it must speak instead.
#define TOML_EXCEPTIONS 0
#define TOML_ASSERT(expr) static_assert(true)
#pragma push_macro("NDEBUG")
#undef NDEBUG
#include <toml++/toml.h>
#pragma pop_macro("NDEBUG")

#include "base/errors.h"
#include "base/utf8.h"

namespace thermoe {

namespace {

// A text without other bytes than ASCII, each written as a mark and two digits. toml++ 3.3 sees no others: a letter beyond ASCII
// where it looks for blanks can lead it to where it told the compiler that nothing leads.
class AsciiSpelling {
 public:
  explicit AsciiSpelling(std::string_view text) {
    // Part of a name wherever it stands, and no escape after a backslash.
    while (text.find(mark_) != std::string_view::npos) mark_ += '8';
  }
  std::string Spelt(std::string_view text) const {
    std::string spelt;
    for (const char c : text) {
      const auto byte = static_cast<unsigned char>(c);
      byte < 0x80 ? spelt += c : spelt += fmt::format("{}{:02x}", mark_, byte);
    }
    return spelt;
  }
  std::string Read(std::string_view spelt) const {
    std::string text;
    while (true) {
      const size_t at = spelt.find(mark_), digits = at + mark_.size();
      unsigned byte = 0;
      if (at == std::string_view::npos || digits + 2 > spelt.size() ||
          std::from_chars(&spelt[digits], &spelt[digits] + 2, byte, 16).ptr != &spelt[digits] + 2) {
        return text.append(spelt);  // nothing more, or what an error cut
      }
      text.append(spelt.substr(0, at)) += static_cast<char>(byte);
      spelt.remove_prefix(digits + 2);
    }
  }

 private:
  std::string mark_ = "Q8";
};

}  // namespace

struct TomlFlattener {
  TomlFile* file;
  const AsciiSpelling* spelling;

  void Table(const std::string& prefix, const toml::table& table) const {
    for (const auto& [key, node] : table) {
      const std::string name = (prefix.empty() ? "" : prefix + ".") + spelling->Read(key.str());
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
      value.text = spelling->Read(*node.value<std::string>());
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
  // TOML has no control characters; toml++ 3.3 asserts on one that begins the name of a table.
  const auto control = std::find_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) < 0x20 && c != '\t' && c != '\n' && c != '\r') || c == 0x7f;
  });
  if (control != text.end()) {
    return InvalidArgument("{}: line {}: there is a control character; give a text file in TOML", path,
                           1 + std::count(text.begin(), control, '\n'));
  }
  if (const size_t bad = FindInvalidUtf8(text); bad != std::string::npos) {
    return InvalidArgument("{}: line {}: is not UTF-8; save the file as such", path,
                           1 + std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(bad), '\n'));
  }
  constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";
  const AsciiSpelling spelling(text);
  const toml::parse_result parsed =
      toml::parse(spelling.Spelt(std::string_view(text).substr(text.starts_with(kByteOrderMark) ? kByteOrderMark.size() : 0)), path);
  if (!parsed) {
    return InvalidArgument("{}: line {}: {}; correct the TOML there", path, parsed.error().source().begin.line,
                           spelling.Read(parsed.error().description()));
  }
  TomlFile file;
  file.path_ = path;
  TomlFlattener{&file, &spelling}.Table("", parsed.table());
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
