// SPDX-License-Identifier: Apache-2.0
// The command line: reads the arguments, runs one command, turns what it returns into an error line and an exit code.
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstring>
#include <exception>
#include <new>
#include <string>
#include <string_view>
#include <vector>

#include "base/errors.h"
#include "command.h"
#include "flags.h"
#include "help.h"
#include "interrupt.h"
#include "json_out.h"
#include "output.h"
#include "terminal.h"

namespace thermoe {
namespace {

constexpr int kExitBadInput = 2;

int ExitCode(StatusCode code) {
  switch (code) {
    case StatusCode::kOk: return 0;
    case StatusCode::kInternal: return 1;
    case StatusCode::kCancelled: return 130;
    default: return kExitBadInput;
  }
}

// The error line, if there is one, and the exit code.
int Finish(const Status& status, bool json) {
  if (status.ok()) return ExitCode(status.code());
  (void)FlushOutput();  // what came before the error stands before it
  if (json) {
    Json document = NewDocument();
    document["error"] = {{"code", StatusCodeName(status.code())}, {"message", status.message()}};
    PrintNote(JsonText(document) + "\n");
  } else {
    PrintNote(fmt::format("thermoe: {}\n", Printable(status.message(), STDERR_FILENO)));
  }
  return ExitCode(status.code());
}

// "--top-p: must be ..." is how CLI11 joins a flag and a validator's text; a sentence has no colon there.
std::string WithoutColon(std::string text) {
  const size_t colon = text.find(": ");
  return colon == std::string::npos ? text : text.erase(colon, 1);
}

// One sentence for what CLI11 could not parse. `parser`: the subcommand in question, or the root.
Status UsageError(const CLI::ParseError& error, const CLI::App& parser, const std::string& command) {
  const std::string help = fmt::format("see '{} --help'", command);
  const bool is_root = parser.get_parent() == nullptr;
  const std::vector<std::string> extras = parser.remaining(true);
  const bool unexpected = dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr ||
                          (is_root && dynamic_cast<const CLI::RequiredError*>(&error) != nullptr);
  if (unexpected) {
    if (extras.empty()) return InvalidArgument("no command given; {}", help);
    const std::string& unknown = extras.front();
    if (unknown.size() < 2 || unknown.front() != '-') {
      return is_root ? InvalidArgument("'{}' is not a command of thermoe; {}", unknown, help)
                     : InvalidArgument("unexpected argument '{}'; {}", unknown, help);
    }
    const std::string nearest = NearestFlag(parser, unknown);
    return nearest.empty() ? InvalidArgument("unknown flag '{}'; {}", unknown, help)
                           : InvalidArgument("unknown flag '{}', did you mean '{}'? {}", unknown, nearest, help);
  }
  if (dynamic_cast<const CLI::ArgumentMismatch*>(&error) != nullptr) {
    const std::string text = error.what();
    return InvalidArgument("{} needs a value, given once; {}", text.substr(0, text.find(':')), help);
  }
  const bool validation = dynamic_cast<const CLI::ValidationError*>(&error) != nullptr;
  return InvalidArgument("{}; {}", validation ? WithoutColon(error.what()) : std::string(error.what()), help);
}

const CLI::App& ParsedApp(const CLI::App& root) {
  const std::vector<CLI::App*> parsed = const_cast<CLI::App&>(root).get_subcommands();
  return parsed.empty() ? root : *parsed.front();
}

// A program started with a standard stream closed would open its files there, and write its text into them.
void OpenStandardStreams() {
  int file = 0;
  while (file >= 0 && file <= STDERR_FILENO) file = open("/dev/null", O_RDWR | O_CLOEXEC);
  if (file > STDERR_FILENO) close(file);
}

int Main(int argc, char** argv, bool json) {
  OpenStandardStreams();
  InstallSignalHandlers();
  CLI::App root("run mixture-of-experts language models", "thermoe");
  root.require_subcommand(1);
  root.set_version_flag("--version", "thermoe " THERMOE_VERSION)->description("Print the version and exit.");
  root.set_help_flag("-h,--help", "Print this help and exit; 'thermoe COMMAND --help' prints a command's.");
  SetHelpPage(&root, {"thermoe COMMAND [FLAGS...]",
                      "thermoe loads open mixture-of-experts models (GGUF files and Hugging Face folders; olmoe, "
                      "qwen3moe, mixtral, qwen2moe), writes text with them, measures them, and lets every choice of "
                      "experts be steered. A small model is bundled, so that 'thermoe run' works with no model given.",
                      " thermoe run -p 'It was a dark and stormy night'\n"
                      " thermoe eval model.gguf text.txt --experts nested --full-slots 1 --baseline\n"
                      " thermoe bench model.gguf --json"});
  const std::vector<Command> commands = {MakeRunCommand(&root), MakeEvalCommand(&root), MakeBenchCommand(&root),
                                         MakeInspectCommand(&root), MakeSynthCommand(&root),
                                         MakeDemoCommand(&root), MakeDoctorCommand(&root),
                                         MakeRecordCommand(&root), MakeReplayCommand(&root),
                                         MakeReportCommand(&root),
                                         MakeProfileCommand(&root), MakeCalibrateCommand(&root),
                                         MakeSimulateCommand(&root)};
  try {
    root.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    const CLI::App& app = ParsedApp(root);
    Print(app.get_formatter()->make_help(&app, "", CLI::AppFormatMode::Normal));
    return Finish(FlushOutput(), json);
  } catch (const CLI::CallForVersion& version) {
    Print(fmt::format("{}\n", version.what()));
    return Finish(FlushOutput(), json);
  } catch (const CLI::ParseError& error) {
    const CLI::App& app = ParsedApp(root);
    return Finish(UsageError(error, app, &app == &root ? "thermoe" : "thermoe " + app.get_name()), json);
  }
  for (const Command& command : commands) {
    if (!command.parser->parsed()) continue;
    Status status = command.run();
    if (status.ok()) status = FlushOutput();
    return Finish(status, json);
  }
  return 0;
}

}  // namespace
}  // namespace thermoe

int main(int argc, char** argv) {
  using thermoe::Finish, thermoe::StatusCode;
  bool json = false;
  for (int i = 1; i < argc; ++i) json = json || std::strcmp(argv[i], "--json") == 0;
  try {
    return thermoe::Main(argc, argv, json);
  } catch (const std::bad_alloc&) {
    return Finish({StatusCode::kResourceExhausted, "memory ran out; try a smaller --ctx, --parallel or model"}, json);
  } catch (const std::exception& error) {
    return Finish({StatusCode::kInternal, fmt::format("internal error: {}", error.what())}, json);
  }
}
