// SPDX-License-Identifier: Apache-2.0
// thermoe replay: makes the decisions of a log again and says whether they are the same to the bit.
#include <fmt/format.h>

#include <memory>
#include <string>

#include "base/errors.h"
#include "command.h"
#include "control/router/decision_log.h"
#include "help.h"
#include "json_out.h"
#include "output.h"
#include "terminal.h"

namespace thermoe {
namespace {

const HelpPage kPage = {
    "thermoe replay LOG [--json]",
    "Reads a decision log, as the control loop writes it, and makes every decision again from what it depended on: sensors, "
    "steps, limits and the state that the run began with. No hardware and no model is needed. With the same build every "
    "decision comes out the same to the bit; the first that does not is shown, and the exit status is 1.",
    " thermoe replay decisions.jsonl"};

struct ReplayFlags {
  std::string path;
  bool json = false;
};

Status RunReplay(const ReplayFlags& flags) {
  const Result<ReplayReport> report = Replay(flags.path);
  if (!report.ok()) return report.status();
  if (flags.json) {
    Json json = NewDocument();
    json["log"] = flags.path;
    json["ticks"] = report->ticks;
    json["steps"] = report->steps;
    json["cut"] = report->cut;
    json["difference"] = report->difference.empty() ? Json() : Json(report->difference);
    THERMOE_RETURN_IF_ERROR(PrintJsonLine(json));
  } else if (report->difference.empty()) {
    Print(fmt::format("{} decisions in {} ticks, all the same to the bit{}\n", report->steps, report->ticks,
                      report->cut ? "; the last line has no end and was left out" : ""));
  }
  if (report->difference.empty()) return Status::Ok();
  return {StatusCode::kInternal, fmt::format("{}: {}; was it written by another build?", flags.path, report->difference)};
}

}  // namespace

Command MakeReplayCommand(CLI::App* root) {
  CLI::App* app = root->add_subcommand("replay", "make a log's decisions again");
  auto flags = std::make_shared<ReplayFlags>();
  SetHelpPage(app, kPage);
  app->add_option("LOG", flags->path, "A decision log.")->required()->type_name("FILE");
  app->add_flag("--json", flags->json, "Print one JSON object; errors become JSON too.");
  return {app, [flags] { return RunReplay(*flags); }};
}

}  // namespace thermoe
