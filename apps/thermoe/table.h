// SPDX-License-Identifier: Apache-2.0
// A table for people on stdout: aligned columns, or one block a row where the terminal is too narrow for them.
#pragma once

#include <string>
#include <vector>

namespace thermoe {

class Table {
 public:
  // The first column is aligned to the left, the others, numbers mostly, to the right.
  explicit Table(std::vector<std::string> titles) : titles_(std::move(titles)) {}
  // As many cells as titles.
  void Add(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }
  void Print() const;

 private:
  std::vector<std::string> titles_;
  std::vector<std::vector<std::string>> rows_;
};

// "name   text" lines with the names in one column; texts wrap below themselves.
void PrintFields(const std::vector<std::pair<std::string, std::string>>& fields);

}  // namespace thermoe
