// SPDX-License-Identifier: Apache-2.0
// thermoe eval: how well a model predicts texts, plainly or steered.
#include <fmt/format.h>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <utility>

#include "base/errors.h"
#include "command.h"
#include "control_options.h"
#include "eval_score.h"
#include "eval_ttt.h"
#include "eval_windows.h"
#include "flags.h"
#include "help.h"
#include "json_out.h"
#include "model_options.h"
#include "output.h"
#include "steering_options.h"
#include "table.h"
#include "telemetry_options.h"
#include "terminal.h"
#include "text_input.h"

namespace thermoe {
namespace {

constexpr const char* kGroup = "Window options";
constexpr const char* kOutputGroup = "Output options";
constexpr int kDefaultWindow = 512;

const HelpPage kPage = {
    "thermoe eval MODEL TEXT... [FLAGS...]",
    "Measures the mean negative log-likelihood (nats per token) and the perplexity that MODEL gives to each TEXT.\n"
    "\n"
    "A text is cut into windows, each scored in a context of its own. With --documents join (default) NUL bytes "
    "become newlines and a window has W inputs and W predictions: position i predicts id i + 1, the last one the "
    "first id of the next window; with a stride S < W windows overlap and each after the first counts only its last "
    "S predictions. With --documents split, windows of W ids and W - 1 predictions lie inside the documents that "
    "NUL bytes separate, and what is left over is dropped.\n"
    "\n"
    "Windows run through prefill, one after the other. With --batch B, B consecutive windows are decoded in lock "
    "step, teacher-forced; batch-aware selection (--k0, --soft-batch) acts only there. A window's first id is a prefill row, so "
    "its experts are chosen plainly.\n"
    "\n"
    "'experts read' is the expert bytes read per MoE layer in units of whole 8-bit experts (an expert read by its hi "
    "plane alone counts 18/34): per token, or with --batch per step, where all tokens share what is read. "
    "--baseline also scores the same windows with neutral steering and prints the paired change with its standard "
    "error over windows.\n"
    "\n"
    "With --ttt each document (--window W: each window of W ids in it) is read as a stream with deltas of its own: every segment is "
    "scored before the model learns from it, and the plain model reads the same segments. Where a stream passes the context, it goes "
    "on with its newest tokens.",
    " thermoe eval model.gguf book.txt\n"
    " thermoe eval model.gguf *.txt --window 512 --max-chars 40000 --max-tokens 4097 --json\n"
    " thermoe eval model.gguf book.txt --documents split --window 1024 --sample 32 --k-max 6 --baseline\n"
    " thermoe eval model.gguf book.txt --documents split --window 1024 --sample 32 --batch 16 --k0 4 --baseline"};

struct EvalFlags {
  ModelFlags model;
  SteeringFlags steering;
  ControlFlags control;
  TttFlags ttt;
  std::string telemetry = "none";
  std::vector<std::string> texts;
  std::string documents = "join";
  std::string newlines = "unix";
  std::optional<int> window, stride, batch, sample, context;
  std::optional<int64_t> max_chars, max_tokens;
  bool baseline = false;
  bool json = false;
};

struct FileScores {
  std::string file;
  Scores steered;
  std::optional<Scores> plain;  // --baseline
};

Result<WindowOptions> WindowOptionsFrom(const EvalFlags& flags, int model_context) {
  WindowOptions options;
  options.documents = flags.documents == "split" ? Documents::kSplit : Documents::kJoin;
  options.unix_newlines = flags.newlines == "unix";
  const bool split = options.documents == Documents::kSplit || flags.ttt.on();
  if (flags.ttt.on()) {
    options.documents = Documents::kSplit;
    options.whole_documents = !flags.window;
    model_context = 1 << 24;  // streams go on past it
  }
  options.window = flags.window.value_or(std::min(kDefaultWindow, model_context));
  if (options.window > model_context) {
    return InvalidArgument("--window {} is longer than the model's context of {}; choose a smaller one", options.window,
                           model_context);
  }
  options.stride = flags.stride.value_or(options.window);
  if (split && flags.stride)
    return InvalidArgument("--stride goes with --documents join; split windows do not overlap");
  if (split && flags.max_tokens) return InvalidArgument("--max-tokens goes with --documents join; use --sample");
  if (options.stride > options.window) {
    return InvalidArgument("--stride {} is longer than --window {}; predictions in between would not count",
                           options.stride, options.window);
  }
  options.max_chars = flags.max_chars.value_or(0);
  options.max_tokens = flags.max_tokens.value_or(0);
  options.sample = flags.sample.value_or(0);
  return options;
}

Result<Scores> ScoreWindows(const EvalFlags& flags, Engine* engine, const std::vector<EvalWindow>& windows,
                            const std::string& label) {
  int64_t total = 0;
  for (const EvalWindow& window : windows) total += static_cast<int64_t>(window.ids.size()) - 1;
  ProgressBar bar(label);
  const ScoreProgress progress = [&](int64_t done) {
    bar.Update(static_cast<double>(done) / static_cast<double>(total));
  };
  return flags.batch ? ScoreByDecode(engine, windows, *flags.batch, progress)
                     : ScoreByPrefill(engine, windows, progress);
}

Result<FileScores> EvaluateFile(const EvalFlags& flags, const WindowOptions& options,
                                const std::shared_ptr<const Steering>& steering, Engine* engine,
                                const std::string& path, const std::string& text) {
  const Result<std::vector<EvalWindow>> windows = CutWindows(text, path, engine->model().tokenizer(), options);
  if (!windows.ok()) return windows.status();
  const std::string name = std::filesystem::path(path).filename().string();
  FileScores scores;
  scores.file = path;
  if (flags.baseline) {
    THERMOE_RETURN_IF_ERROR(engine->SetSteering(nullptr));
    Result<Scores> plain = ScoreWindows(flags, engine, *windows, "plain " + name);
    if (!plain.ok()) return plain.status();
    scores.plain = std::move(*plain);
  }
  if (!flags.control.on()) THERMOE_RETURN_IF_ERROR(engine->SetSteering(steering));
  Result<Scores> steered = ScoreWindows(flags, engine, *windows, "eval " + name);
  if (!steered.ok()) return steered.status();
  scores.steered = std::move(*steered);
  return scores;
}

double ExpertsRead(const EvalFlags& flags, const ExpertUse& use) {
  return flags.batch ? use.ExpertsReadPerStep() : use.ExpertsReadPerToken();
}

void AddUse(const EvalFlags& flags, const Scores& scores, Json* json) {
  const ExpertUse& use = scores.use;
  (*json)["distinct_experts"] = flags.batch ? Json(use.MeanDistinct()) : Json();
  (*json)["experts_read"] = ExpertsRead(flags, use);
  (*json)["slots_per_token"] = use.MeanSlots();
  (*json)["gate_mass_lost_frac"] = use.MeanGateMassLost();
}

Json FileJson(const EvalFlags& flags, const FileScores& file) {
  const auto window_nll = [](const Scores& scores) {
    Json list = Json::array();
    for (const WindowScore& window : scores.windows) list.push_back(window.mean_nll());
    return list;
  };
  Json json;
  json["file"] = file.file;
  json["tokens"] = file.steered.tokens();
  json["mean_nll"] = file.steered.mean_nll();
  json["perplexity"] = std::exp(file.steered.mean_nll());
  json["windows"] = file.steered.windows.size();
  json["window_nll"] = window_nll(file.steered);
  AddUse(flags, file.steered, &json);
  json["baseline"] = Json();
  if (file.plain) {
    const Change change = PairedChange(file.steered, *file.plain);
    Json baseline;
    baseline["mean_nll"] = file.plain->mean_nll();
    baseline["perplexity"] = std::exp(file.plain->mean_nll());
    baseline["change_nats"] = change.mean_nats;
    baseline["change_error_nats"] = std::isnan(change.error_nats) ? Json() : Json(change.error_nats);
    baseline["window_nll"] = window_nll(*file.plain);
    AddUse(flags, *file.plain, &baseline);
    json["baseline"] = std::move(baseline);
  }
  return json;
}

Status PrintJson(const EvalFlags& flags, const WindowOptions& options, const Engine& engine, const ControlView& view,
               const std::vector<FileScores>& files) {
  const auto limit = [](int64_t value) { return value > 0 ? Json(value) : Json(); };
  Json json = NewDocument();
  json["model"] = ModelJson(engine.model().info());
  json["engine"] = engine.Describe();
  Json protocol;
  protocol["documents"] = flags.documents;
  protocol["newlines"] = flags.newlines;
  protocol["window"] = options.window;
  protocol["stride"] = options.stride;
  protocol["batch"] = flags.batch ? Json(*flags.batch) : Json();
  protocol["max_chars"] = limit(options.max_chars);
  protocol["max_tokens"] = limit(options.max_tokens);
  protocol["sample"] = limit(options.sample);
  json["protocol"] = std::move(protocol);
  json["steering"] = SteeringJson(flags.steering);
  json["telemetry"] = TelemetryJson(engine.telemetry());
  json["control"] = ControlJson(view);
  json["files"] = Json::array();
  for (const FileScores& file : files) json["files"].push_back(FileJson(flags, file));
  return PrintJsonLine(json);
}

void PrintTable(const EvalFlags& flags, const std::vector<FileScores>& files) {
  const bool use = flags.batch || flags.steering.steers();
  std::vector<std::string> titles = {"file", "tokens", "windows", "mean NLL", "perplexity"};
  if (flags.baseline) titles.insert(titles.end(), {"change", "std. error"});
  if (use && flags.batch) titles.push_back("distinct");
  if (use) titles.insert(titles.end(), {"experts read", "slots/token", "mass lost"});
  Table table(std::move(titles));
  for (const FileScores& file : files) {
    const Scores& scores = file.steered;
    std::vector<std::string> row = {std::filesystem::path(file.file).filename().string(), WithCommas(scores.tokens()),
                                    WithCommas(static_cast<int64_t>(scores.windows.size())),
                                    fmt::format("{:.4f}", scores.mean_nll()),
                                    fmt::format("{:.3f}", std::exp(scores.mean_nll()))};
    if (file.plain) {
      const Change change = PairedChange(scores, *file.plain);
      row.push_back(fmt::format("{:+.4f}", change.mean_nats));
      row.push_back(std::isnan(change.error_nats) ? "-" : fmt::format("{:.4f}", change.error_nats));
    }
    if (use && flags.batch) row.push_back(fmt::format("{:.2f}", scores.use.MeanDistinct()));
    if (use) {
      row.push_back(fmt::format("{:.2f}", ExpertsRead(flags, scores.use)));
      row.push_back(fmt::format("{:.2f}", scores.use.MeanSlots()));
      row.push_back(fmt::format("{:.2f} %", 100 * scores.use.MeanGateMassLost()));
    }
    table.Add(std::move(row));
  }
  table.Print();
}

Status EvaluateStreams(const EvalFlags& flags, const WindowOptions& windows, const TttOptions& ttt, Engine* engine,
                       const std::vector<std::string>& texts) {
  std::vector<TttScores> files;
  for (size_t i = 0; i < texts.size(); ++i) {
    const Result<std::vector<EvalWindow>> streams = CutWindows(texts[i], flags.texts[i], engine->model().tokenizer(), windows);
    if (!streams.ok()) return streams.status();
    double total = 0;
    for (const EvalWindow& stream : *streams) total += 2.0 * static_cast<double>(stream.ids.size());
    ProgressBar bar("eval " + std::filesystem::path(flags.texts[i]).filename().string());
    Result<TttScores> scores = ScoreStreams(engine, *streams, ttt, flags.ttt,
                                            [&](int64_t done) { bar.Update(static_cast<double>(done) / total); });
    if (!scores.ok()) return scores.status();
    scores->file = flags.texts[i];
    files.push_back(std::move(*scores));
  }
  THERMOE_RETURN_IF_ERROR(engine->SaveControl());
  if (!flags.json) {
    PrintTttTable(files);
    return Status::Ok();
  }
  Json json = NewDocument();
  json["model"] = ModelJson(engine->model().info());
  json["engine"] = engine->Describe();
  json["steering"] = SteeringJson(flags.steering);
  json["telemetry"] = TelemetryJson(engine->telemetry());
  json["control"] = ControlJson(engine->control_view());
  json["ttt"] = TttOptionsJson(ttt);
  json["adapt_cost"] = AdaptCostJson(engine->cost_view());
  json["files"] = Json::array();
  for (const TttScores& file : files) json["files"].push_back(TttScoresJson(file, ttt));
  return PrintJsonLine(json);
}

Status CheckTttFlags(const EvalFlags& flags) {
  if (!flags.ttt.on()) return Status::Ok();
  if (flags.batch) return InvalidArgument("--batch decodes but --ttt learns from what it reads; leave one of them out");
  if (flags.baseline) return InvalidArgument("--ttt shows the plain model beside the adapted one; leave --baseline out");
  if (flags.stride || flags.max_tokens) return InvalidArgument("--stride and --max-tokens do not go with --ttt; use --window and --sample");
  return Status::Ok();
}

Status Run(EvalFlags flags) {
  THERMOE_RETURN_IF_ERROR(ResolveControl(&flags.control, &flags.steering, &flags.telemetry));
  const Result<std::string> telemetry = ResolveTelemetry(flags.telemetry);
  if (!telemetry.ok()) return telemetry.status();
  if (flags.control.on() && flags.baseline) {
    return InvalidArgument("--baseline scores twice with one engine, whose control loop would go on; run eval with and without limits");
  }
  THERMOE_RETURN_IF_ERROR(CheckSteering(flags.steering));
  THERMOE_RETURN_IF_ERROR(CheckTttFlags(flags));
  const Result<TttOptions> ttt = TttOptionsFrom(flags.ttt, flags.model);
  if (!ttt.ok()) return ttt.status();
  if ((flags.steering.k0 || flags.steering.soft_batch) && !flags.batch) {
    return InvalidArgument("{} acts on decode steps only; add --batch N to decode N windows in lock step",
                           flags.steering.k0 ? "--k0" : "--soft-batch");
  }
  std::vector<std::string> texts;
  for (const std::string& path : flags.texts) {
    Result<std::string> text = ReadTextFile(path);
    if (!text.ok()) return text.status();
    texts.push_back(std::move(*text));
  }
  EngineOptions engine_options = EngineOptionsFrom(flags.model);
  engine_options.context = flags.ttt.on() ? flags.context.value_or(0) : flags.window.value_or(kDefaultWindow);  // at most, until the model is known
  if (flags.ttt.on()) engine_options.prefill_chunk = std::max(engine_options.prefill_chunk, TttLongestStep(*ttt));
  engine_options.max_sequences = flags.batch.value_or(1);
  // All first ids of a batch must fit one step, or its windows would not run in lock step.
  engine_options.prefill_chunk = std::max(engine_options.prefill_chunk, engine_options.max_sequences);
  engine_options.telemetry = *telemetry;
  Result<OpenedModel> opened = OpenModel(flags.model, flags.steering.storage(), /*to_run=*/true, &engine_options);
  if (!opened.ok()) return opened.status();
  const Result<WindowOptions> options = WindowOptionsFrom(flags, opened->model->info().context);
  if (!options.ok()) return options.status();
  if (!flags.ttt.on()) engine_options.context = options->window;
  Result<ControlOptions> control =
      ControlOptionsFrom(flags.control, flags.steering, opened->model->info(), *telemetry, /*keeps_state=*/false);
  if (!control.ok()) return control.status();
  engine_options.control = std::move(*control);
  Result<std::unique_ptr<Engine>> engine = Engine::Create(opened->model, engine_options);
  if (!engine.ok()) return engine.status();
  Result<std::shared_ptr<const Steering>> steering = BuildSteering(flags.steering, opened->model->info());
  if (!steering.ok()) return steering.status();
  if (flags.control.on()) *steering = nullptr;  // the loop's to choose
  THERMOE_RETURN_IF_ERROR((*engine)->SetSteering(*steering));
  if (flags.ttt.on()) return EvaluateStreams(flags, *options, *ttt, engine->get(), texts);
  std::vector<FileScores> files;
  for (size_t i = 0; i < texts.size(); ++i) {
    Result<FileScores> scores = EvaluateFile(flags, *options, *steering, engine->get(), flags.texts[i], texts[i]);
    if (!scores.ok()) return scores.status();
    files.push_back(std::move(*scores));
  }
  THERMOE_RETURN_IF_ERROR((*engine)->SaveControl());
  if (flags.json) {
    return PrintJson(flags, *options, **engine, (*engine)->control_view(), files);
  }
  PrintTable(flags, files);
  if (const std::string text = ControlText((*engine)->control_view()); !text.empty()) Print("\n" + text + "\n");
  return Status::Ok();
}

}  // namespace

Command MakeEvalCommand(CLI::App* root) {
  CLI::App* app = root->add_subcommand("eval", "measure how well a model predicts texts");
  auto flags = std::make_shared<EvalFlags>();
  SetHelpPage(app, kPage);
  AddModelArgument(app, &flags->model, /*required=*/true);
  app->add_option("TEXT", flags->texts, "UTF-8 text files.")->required();
  AddNumber(app, "--window", &flags->window, {2, 1 << 24}, "Window length W in tokens; default 512, or the context.")
      ->group(kGroup);
  AddNumber(app, "--stride", &flags->stride, {1, 1 << 24}, "Step S from window to window; default W.")->group(kGroup);
  AddNumber(app, "--max-chars", &flags->max_chars, {1, kMostSeed}, "Use the first N characters of each text.")
      ->group(kGroup);
  AddNumber(app, "--max-tokens", &flags->max_tokens, {2, kMostSeed}, "Use the first N tokens of each text.")
      ->group(kGroup);
  AddChoice(app, "--documents", &flags->documents, {"join", "split"}, "What NUL bytes in a text mean; default join.")
      ->group(kGroup);
  AddChoice(app, "--newlines", &flags->newlines, {"unix", "keep"},
            "unix (default) reads CR LF and CR as LF; keep leaves a text's bytes as they are.")
      ->group(kGroup);
  AddNumber(app, "--sample", &flags->sample, {1, 1 << 24},
            "Of all windows of a text take every (count / N)-th, rounded down, up to N.")
      ->group(kGroup);
  AddNumber(app, "--batch", &flags->batch, {1, 4096}, "Decode N windows in lock step instead of prefilling each.")
      ->group(kGroup);
  AddSteeringFlags(app, &flags->steering);
  app->add_flag("--baseline", flags->baseline, "Compare with neutral steering on the same windows.")
      ->group("Steering options");
  AddTttFlags(app, &flags->ttt);
  AddNumber(app, "--ctx", &flags->context, {2, kMostInt}, "With --ttt: positions of a context; default: the model's own.")->group(kGroup);
  AddEngineFlags(app, &flags->model);
  AddTelemetryFlag(app, &flags->telemetry, "none");
  AddControlFlags(app, &flags->control);
  app->add_flag("--json", flags->json, "Print one JSON object; errors become JSON too.")->group(kOutputGroup);
  return {app, [flags] { return Run(*flags); }};
}

}  // namespace thermoe
