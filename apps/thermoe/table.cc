// SPDX-License-Identifier: Apache-2.0
#include "table.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "output.h"
#include "terminal.h"

namespace thermoe {
namespace {

constexpr int kGap = 2;  // spaces between columns

// A pipe gets the full table whatever COLUMNS says: programs cut columns themselves.
int OutputWidth() { return IsTerminal(STDOUT_FILENO) ? TerminalWidth() : 1 << 20; }

// One column per character, continuation bytes not counted.
int Columns(const std::string& text) {
  return static_cast<int>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

std::string Pad(const std::string& text, int width, bool left) {
  const std::string space(std::max(0, width - Columns(text)), ' ');
  return left ? text + space : space + text;
}

}  // namespace

void Table::Print() const {
  std::vector<int> widths;
  int total = -kGap;
  for (size_t column = 0; column < titles_.size(); ++column) {
    int width = Columns(titles_[column]);
    for (const auto& row : rows_) width = std::max(width, Columns(row[column]));
    widths.push_back(width);
    total += width + kGap;
  }
  if (total > OutputWidth()) {
    for (const auto& row : rows_) {
      thermoe::Print(Bold(Printable(row.front(), STDOUT_FILENO), STDOUT_FILENO) + "\n");
      std::vector<std::pair<std::string, std::string>> fields;
      for (size_t column = 1; column < titles_.size(); ++column)
        fields.emplace_back("  " + titles_[column], row[column]);
      PrintFields(fields);
    }
    return;
  }
  const auto print = [&](const std::vector<std::string>& cells, bool title) {
    std::string line;
    for (size_t column = 0; column < cells.size(); ++column) {
      if (column > 0) line += std::string(kGap, ' ');
      line += Pad(cells[column], widths[column], column == 0);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    line = Printable(line, STDOUT_FILENO);
    thermoe::Print((title ? Bold(line, STDOUT_FILENO) : line) + "\n");
  };
  print(titles_, true);
  for (const auto& row : rows_) print(row, false);
}

void PrintFields(const std::vector<std::pair<std::string, std::string>>& fields) {
  int name_width = 0;
  for (const auto& [name, text] : fields) name_width = std::max(name_width, Columns(name));
  const int indent = name_width + kGap;
  for (const auto& [name, text] : fields) {
    std::string lines = Wrap(Printable(text, STDOUT_FILENO), indent, std::max(indent + 20, OutputWidth()));
    if (lines.empty()) lines = std::string(indent, ' ') + "\n";
    const std::string head = Pad(name, indent, true);
    Print(Dim(head, STDOUT_FILENO) + lines.substr(indent));
  }
}

}  // namespace thermoe
