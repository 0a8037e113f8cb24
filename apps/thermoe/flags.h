// SPDX-License-Identifier: Apache-2.0
// Numeric flags with ranges: a value outside ends in one sentence that names flag, range and value.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "thermoe/status.h"

namespace thermoe {

struct Range {
  double low = 0;
  double high = 0;
  bool low_open = false;  // low itself is not allowed
  bool whole = true;      // whole numbers only
};
// "a whole number, at least 1 and at most 1,024", "above 0 and at most 1".
std::string Describe(const Range& range);
// Empty when `value` is inside, else "must be ... but is 'value'".
std::string CheckRange(const Range& range, std::string_view value);

inline constexpr double kMostInt = std::numeric_limits<int32_t>::max();
// Whole numbers up to here survive every JSON reader.
inline constexpr double kMostSeed = 9007199254740992.0;  // 2^53

// Seeds that nobody chose: 32 bits, short enough to type again.
uint64_t RandomSeed();

template <typename Number>
CLI::Option* AddNumber(CLI::App* app, const std::string& names, Number* value, const Range& range,
                       const std::string& help) {
  return app
      ->add_option_function<std::string>(
          names, [value](const std::string& text) { *value = static_cast<Number>(std::stod(text)); }, help)
      ->check([range](const std::string& text) { return CheckRange(range, text); })
      ->type_name(range.whole ? "N" : "X");
}

template <typename Number>
CLI::Option* AddNumber(CLI::App* app, const std::string& names, std::optional<Number>* value, const Range& range,
                       const std::string& help) {
  return app
      ->add_option_function<std::string>(
          names, [value](const std::string& text) { value->emplace(static_cast<Number>(std::stod(text))); }, help)
      ->check([range](const std::string& text) { return CheckRange(range, text); })
      ->type_name(range.whole ? "N" : "X");
}

// "512" or "8,32": whole numbers separated by commas.
CLI::Option* AddNumberList(CLI::App* app, const std::string& names, std::vector<int>* values, const Range& range,
                           const std::string& help);

// One word of `choices`; OneOf for flags of other kinds.
CLI::Validator OneOf(const std::vector<std::string>& choices);
CLI::Option* AddChoice(CLI::App* app, const std::string& names, std::string* value,
                       const std::vector<std::string>& choices, const std::string& help);

CLI::Option* AddChoice(CLI::App* app, const std::string& names, std::optional<std::string>* value,
                       const std::vector<std::string>& choices, const std::string& help);

// The flag of `app` that `unknown` was probably meant to be ("--top-q" -> "--top-p"), or "".
std::string NearestFlag(const CLI::App& app, std::string_view unknown);

}  // namespace thermoe
