// SPDX-License-Identifier: Apache-2.0
// A subcommand: its parser and what it does once the command line is read. One file a subcommand adds one of these.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <vector>

#include "thermoe/status.h"

namespace thermoe {

struct Command {
  CLI::App* parser = nullptr;
  // Prints its own output; what it returns becomes the error line and the exit code (ExitCode in main.cc).
  std::function<Status()> run;
};

Command MakeRunCommand(CLI::App* root);
Command MakeEvalCommand(CLI::App* root);
Command MakeBenchCommand(CLI::App* root);
Command MakeInspectCommand(CLI::App* root);
Command MakeSynthCommand(CLI::App* root);
Command MakeDemoCommand(CLI::App* root);
Command MakeDoctorCommand(CLI::App* root);
Command MakeRecordCommand(CLI::App* root);
Command MakeReplayCommand(CLI::App* root);
Command MakeReportCommand(CLI::App* root);
Command MakeProfileCommand(CLI::App* root);
Command MakeCalibrateCommand(CLI::App* root);
Command MakeSimulateCommand(CLI::App* root);

}  // namespace thermoe
