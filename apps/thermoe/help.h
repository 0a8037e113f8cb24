// SPDX-License-Identifier: Apache-2.0
// Help in the shape of a manual page: NAME, SYNOPSIS, DESCRIPTION, options by group, EXAMPLES, EXIT STATUS,
// ENVIRONMENT.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace thermoe {

struct HelpPage {
  std::string synopsis;     // without "thermoe"; lines that start with a space are kept as they are
  std::string description;  // paragraphs
  std::string examples;     // lines; each starts with a space
};

// Makes `--help` of `app` print that page. The one-line summary is app->get_description().
void SetHelpPage(CLI::App* app, HelpPage page);

}  // namespace thermoe
