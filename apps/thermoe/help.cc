// SPDX-License-Identifier: Apache-2.0
#include "help.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "terminal.h"

namespace thermoe {
namespace {

constexpr int kIndent = 4;
constexpr int kOptionTextIndent = 10;
constexpr int kMostColumns = 100;  // longer lines are hard to read

constexpr const char* kExitStatus =
    "  0    success\n"
    "  2    bad input: a flag, a file, a model or a text that cannot be used; stderr says which and what to do\n"
    "  1    internal failure\n"
    "  130  interrupted by Ctrl-C\n"
    "  141  the reader of standard output left (SIGPIPE, as after 'thermoe run | head')";

constexpr const char* kEnvironment =
    "  THERMOE_MODEL    the model used when none is given, instead of the bundled one\n"
    "  THERMOE_BACKEND  cpu (default), cuda (an NVIDIA GPU) or reference, the slow specification\n"
    "  THERMOE_ISA      portable, avx2 or avx512: instruction set of the cpu backend, mma or wgmma of cuda; default: the best there is\n"
    "  THERMOE_DEVICE   which GPU, for cuda: a number, a UUID or its beginning, a part of a name; default: the first\n"
    "  NO_COLOR         when set and not empty, no colours";

std::string OptionName(const CLI::Option& option) {
  std::string names;
  for (const std::string& name : option.get_snames()) names += (names.empty() ? "-" : ", -") + name;
  for (const std::string& name : option.get_lnames()) names += (names.empty() ? "--" : ", --") + name;
  if (names.empty()) {
    names = option.get_required() ? option.get_name() : "[" + option.get_name() + "]";
    return option.get_items_expected_max() > 1 ? names + "..." : names;
  }
  const std::string type = option.get_type_name();
  return option.get_items_expected_max() == 0 || type.empty() ? names : names + " " + type;
}

// The pages' tables: "  KEY  text", wrapped so that continued lines align with the text.
std::string KeyTable(const std::string& rows, int width) {
  std::string out;
  size_t start = 0;
  while (start < rows.size()) {
    const size_t end = std::min(rows.find('\n', start), rows.size());
    const std::string row = rows.substr(start, end - start);
    start = end + 1;
    const size_t key_end = row.find("  ", 2);
    const size_t text_at = row.find_first_not_of(' ', key_end);
    const int indent = kIndent + static_cast<int>(text_at) - 2;
    std::string text = Wrap(row.substr(text_at), indent, width);
    text.replace(kIndent, key_end - 2, row.substr(2, key_end - 2));
    out += text;
  }
  return out;
}

class ManualFormatter : public CLI::FormatterBase {
 public:
  explicit ManualFormatter(HelpPage page) : page_(std::move(page)) {}

  std::string make_help(const CLI::App* app, std::string, CLI::AppFormatMode) const override {
    const int width = IsTerminal(STDOUT_FILENO) ? std::min(kMostColumns, TerminalWidth()) : 80;
    const std::string name = app->get_parent() == nullptr ? "thermoe" : "thermoe " + app->get_name();
    std::string out = Heading("name") + Wrap(name + " - " + app->get_description(), kIndent, width);
    out += "\n" + Heading("synopsis") + Wrap(page_.synopsis, kIndent, width);
    if (!page_.description.empty()) out += "\n" + Heading("description") + Wrap(page_.description, kIndent, width);
    out += Commands(*app, width) + Options(*app, width);
    if (!page_.examples.empty()) out += "\n" + Heading("examples") + Wrap(page_.examples, kIndent - 1, width);
    out += "\n" + Heading("exit status") + KeyTable(kExitStatus, width);
    return out + "\n" + Heading("environment") + KeyTable(kEnvironment, width);
  }

 private:
  static std::string Heading(std::string title) {
    std::transform(title.begin(), title.end(), title.begin(), [](unsigned char c) { return std::toupper(c); });
    return Bold(title, STDOUT_FILENO) + "\n";
  }

  static std::string Commands(const CLI::App& app, int width) {
    std::string rows;
    for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
      rows += fmt::format("  {:8}  {}\n", command->get_name(), command->get_description());
    }
    return rows.empty() ? "" : "\n" + Heading("commands") + KeyTable(rows, width);
  }

  static std::string Options(const CLI::App& app, int width) {
    std::string out;
    for (const bool positional : {true, false}) {
      for (const std::string& group : app.get_groups()) {
        std::string text;
        for (const CLI::Option* option : app.get_options()) {
          if (option->get_group() != group || option->get_positional() != positional) continue;
          text += std::string(kIndent, ' ') + Bold(OptionName(*option), STDOUT_FILENO) + "\n";
          text += Wrap(option->get_description(), kOptionTextIndent, width);
        }
        if (!text.empty()) out += "\n" + Heading(positional ? "arguments" : group) + text;
      }
    }
    return out;
  }

  HelpPage page_;
};

}  // namespace

void SetHelpPage(CLI::App* app, HelpPage page) { app->formatter(std::make_shared<ManualFormatter>(std::move(page))); }

}  // namespace thermoe
