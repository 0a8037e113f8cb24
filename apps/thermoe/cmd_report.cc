// SPDX-License-Identifier: Apache-2.0
// thermoe report: a run over time, drawn from its decision log.
#include <fmt/format.h>
#include <unistd.h>

#include <memory>
#include <string>

#include "base/errors.h"
#include "command.h"
#include "help.h"
#include "json_out.h"
#include "output.h"
#include "report_chart.h"
#include "report_log.h"
#include "report_measure.h"
#include "table.h"
#include "terminal.h"
#include "text_input.h"

namespace thermoe {
namespace {

const HelpPage kPage = {
    "thermoe report LOG [--out FILE.html|FILE.svg] [--json]",
    "Draws a run from its decision log (--decision-log of run, eval and bench): watts against the cap, temperature "
    "against the limit, "
    "tokens per second, operating points and what they lose, pauses, multipliers. Prints a summary and writes the "
    "chart, by default "
    "beside the log as LOG.html, which holds the summary too. The files stand alone: no script, nothing from "
    "elsewhere.\n\n"
    "A log whose last line has no end, as one that still grows or of a run that was killed, is drawn up to there.",
    " thermoe run --telemetry plant:small --power-limit 2 --decision-log run.jsonl -p 'Once upon a time'\n"
    " thermoe report run.jsonl\n"
    " thermoe report run.jsonl --out run.svg"};

struct ReportFlags {
  std::string log, out;
  bool json = false;
};

Status RunReport(const ReportFlags& flags) {
  const std::string out = flags.out.empty() ? flags.log + ".html" : flags.out;
  const bool html = out.ends_with(".html") || out.ends_with(".htm");
  if (!html && !out.ends_with(".svg"))
    return InvalidArgument("--out {}: must end in .html or .svg; choose another name", out);
  if (flags.out.empty() && flags.log == "-") return InvalidArgument("-: the chart needs a name; give one with --out");
  Result<std::string> text = ReadFile(flags.log);
  if (!text.ok()) return text.status();
  const Result<RunLog> log = ParseRunLog(*text, flags.log == "-" ? "standard input" : flags.log);
  if (!log.ok()) return log.status();
  const RunSummary summary = Summarise(*log);
  THERMOE_RETURN_IF_ERROR(WriteFile(out, html ? ReportHtml(*log, summary) : ReportSvg(*log), "--out"));
  if (flags.json) {
    Json json = NewDocument();
    json["log"] = flags.log;
    json["file"] = out;
    json.update(SummaryJson(*log, summary));
    return PrintJsonLine(json);
  }
  Print(Bold(Printable(RunTitle(*log), STDOUT_FILENO), STDOUT_FILENO) + "\n");
  std::vector<std::pair<std::string, std::string>> rows = SummaryRows(*log, summary);
  rows.emplace_back("chart", out);
  PrintFields(rows);
  return Status::Ok();
}

}  // namespace

Command MakeReportCommand(CLI::App* root) {
  CLI::App* app = root->add_subcommand("report", "draw a run from its decision log");
  auto flags = std::make_shared<ReportFlags>();
  SetHelpPage(app, kPage);
  app->add_option("LOG", flags->log, "A decision log; - is standard input.")->required()->type_name("FILE");
  app->add_option("--out", flags->out, "Where the chart goes, replaced if it is there; .html or .svg.")
      ->type_name("FILE");
  app->add_flag("--json", flags->json, "Print the summary as one JSON object; errors become JSON too.");
  return {app, [flags] { return RunReport(*flags); }};
}

}  // namespace thermoe
