// SPDX-License-Identifier: Apache-2.0
#include "flags.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <random>

#include "terminal.h"

namespace thermoe {
namespace {

std::string NumberText(double value) {
  if (std::floor(value) == value && std::fabs(value) < 1e16) return WithCommas(static_cast<int64_t>(value));
  return fmt::format("{:g}", value);
}

std::vector<std::string> SplitCommas(const std::string& text) {
  std::vector<std::string> parts;
  size_t start = 0;
  for (size_t comma; (comma = text.find(',', start)) != std::string::npos; start = comma + 1) {
    parts.push_back(text.substr(start, comma - start));
  }
  parts.push_back(text.substr(start));
  return parts;
}

// Levenshtein distance; flags are short.
size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({row[j - 1] + 1, above + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
      diagonal = above;
    }
  }
  return row[b.size()];
}

}  // namespace

std::string Describe(const Range& range) {
  return fmt::format("{}{} {} and at most {}", range.whole ? "a whole number, " : "",
                     range.low_open ? "above" : "at least", NumberText(range.low), NumberText(range.high));
}

std::string CheckRange(const Range& range, std::string_view value) {
  double number = 0;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
  const bool read = error == std::errc() && end == value.data() + value.size() && std::isfinite(number);
  const bool inside = read && (range.low_open ? number > range.low : number >= range.low) && number <= range.high &&
                      (!range.whole || std::floor(number) == number);
  if (inside) return "";
  return fmt::format("must be {} but is '{}'", Describe(range), EscapeControls(value));
}

uint64_t RandomSeed() { return std::random_device{}(); }

CLI::Option* AddNumberList(CLI::App* app, const std::string& names, std::vector<int>* values, const Range& range,
                           const std::string& help) {
  return app
      ->add_option_function<std::string>(
          names,
          [values](const std::string& text) {
            values->clear();
            for (const std::string& part : SplitCommas(text)) values->push_back(static_cast<int>(std::stod(part)));
          },
          help)
      ->check([range](const std::string& text) {
        for (const std::string& part : SplitCommas(text)) {
          if (std::string wrong = CheckRange(range, part); !wrong.empty()) return wrong;
        }
        return std::string();
      })
      ->type_name("N[,N...]");
}

CLI::Validator OneOf(const std::vector<std::string>& choices) {
  return CLI::Validator(
      [choices](const std::string& text) {
        if (std::find(choices.begin(), choices.end(), text) != choices.end()) return std::string();
        return fmt::format("must be one of {} but is '{}'", Join(choices, ", "), EscapeControls(text));
      },
      "");
}

CLI::Option* AddChoice(CLI::App* app, const std::string& names, std::string* value,
                       const std::vector<std::string>& choices, const std::string& help) {
  return app->add_option(names, *value, help)->check(OneOf(choices))->type_name(Join(choices, "|"));
}

CLI::Option* AddChoice(CLI::App* app, const std::string& names, std::optional<std::string>* value,
                       const std::vector<std::string>& choices, const std::string& help) {
  return app->add_option(names, *value, help)->check(OneOf(choices))->type_name(Join(choices, "|"));
}

std::string NearestFlag(const CLI::App& app, std::string_view unknown) {
  unknown = unknown.substr(0, unknown.find('='));
  std::string best;
  size_t best_distance = std::max<size_t>(1, unknown.size() / 3) + 1;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) {
      const std::string flag = "--" + name;
      // A shortened flag counts as near whatever its length: --temperature is asked for more often than --temp.
      const bool prefix = unknown.size() > 4 && (flag.starts_with(unknown) || unknown.starts_with(flag));
      const size_t distance = prefix ? 1 : EditDistance(flag, unknown);
      if (distance >= best_distance) continue;
      best_distance = distance;
      best = flag;
    }
  }
  return best;
}

}  // namespace thermoe
