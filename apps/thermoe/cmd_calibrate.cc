// SPDX-License-Identifier: Apache-2.0
// thermoe calibrate: what each way of routing costs in quality, and the settings worth using.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <utility>

#include "base/errors.h"
#include "base/state_folder.h"
#include "calibrate_candidates.h"
#include "calibrate_chart.h"
#include "calibrate_features.h"
#include "calibrate_measure.h"
#include "command.h"
#include "control/router/operating_point.h"
#include "eval_windows.h"
#include "flags.h"
#include "help.h"
#include "json_out.h"
#include "model/identity.h"
#include "model_options.h"
#include "output.h"
#include "table.h"
#include "terminal.h"
#include "text_input.h"

namespace thermoe {
namespace {

namespace fs = std::filesystem;

constexpr const char* kGroup = "Calibration options";
constexpr int kDefaultWindow = 1024;
constexpr int kDefaultSample = 32;
constexpr int kLayerSample = 4;  // windows of each text for ranking layers: they differ by more than its error
// Screening with half the windows errs by about 0.001 nats a point; what lies further behind will not come back.
constexpr double kSlackNats = 0.003;

const HelpPage kPage = {
    "thermoe calibrate MODEL TEXT... [FLAGS...]",
    "Measures what ways of routing cost MODEL in quality: full slots, plane caps in the layers that mind them least, "
    "k0, "
    "the soft batch rule, fewer slots, a threshold and combinations, at batch 1 and batch 16. Each is the change of "
    "mean "
    "negative log-likelihood against the plain model on the same windows of each TEXT (as 'thermoe eval --documents "
    "split --batch 16 --baseline'), beside the expert bytes it reads. The points that no other beats, the Pareto "
    "front, "
    "are printed.\n"
    "\n"
    "Every setting is first screened on 16 windows of each text; those near the front are measured again on --sample "
    "windows. What is measured is written to the file at once: a run that was stopped goes on where it was.\n"
    "\n"
    "With --features FILE nothing of that is done: mean and variance of the model's activations on TEXT go to FILE, for "
    "'--ttt-objective features' of run and eval.",
    " thermoe calibrate model.gguf prose.txt code.txt\n"
    " thermoe calibrate model.gguf prose.txt --quick --out points.json --plot points.svg"};

struct CalibrateFlags {
  ModelFlags model;
  std::vector<std::string> texts, names;
  std::optional<int> window, sample;
  std::optional<double> minutes;
  std::string out, plot, features;
  bool quick = false, json = false;
};

using TextWindows = std::vector<std::vector<EvalWindow>>;  // [texts]

struct Calibration {
  const CalibrateFlags& flags;
  Engine* engine;
  std::vector<std::string> texts;
  std::string path;
  OperatingPoints file;
  std::optional<std::chrono::steady_clock::time_point> deadline;  // --minutes
  bool out_of_time = false;

  const ModelInfo& info() const { return engine->model().info(); }
};

Result<std::string> OutputPath(const CalibrateFlags& flags, const ModelInfo& info) {
  if (!flags.out.empty()) return flags.out;
  const Result<std::string> folder = StateFolder();
  if (!folder.ok()) return folder;
  std::error_code error;
  fs::create_directories(*folder, error);
  if (error) return InvalidArgument("{}: cannot be made: {}; say where to write with --out", *folder, error.message());
  return *folder + "/" + info.identity + "-points.json";
}

Result<TextWindows> Windows(const Calibration& run, int sample) {
  WindowOptions options;
  options.documents = Documents::kSplit;
  options.window = options.stride = run.file.window;
  options.sample = sample;
  TextWindows windows;
  for (size_t i = 0; i < run.texts.size(); ++i) {
    Result<std::vector<EvalWindow>> cut =
        CutWindows(run.texts[i], run.flags.texts[i], run.engine->model().tokenizer(), options);
    if (!cut.ok()) return cut.status();
    if (cut->size() < static_cast<size_t>(kCalibrationBatch)) {
      return InvalidArgument(
          "{}: has {} windows of {} tokens and {} are needed; choose a smaller --window or a longer text",
          run.flags.texts[i], cut->size(), options.window, kCalibrationBatch);
    }
    // Whole batches only, or the last would be a smaller batch than 16.
    cut->resize(cut->size() / kCalibrationBatch * kCalibrationBatch);
    windows.push_back(std::move(*cut));
  }
  return windows;
}

// What a new file says about its measurements; points of an earlier run on the same texts and windows are kept.
Status StartOrResume(Calibration* run) {
  const ModelInfo& info = run->info();
  OperatingPoints& file = run->file;
  file.model_identity = info.identity;
  file.model_name = info.name.empty() ? fs::path(info.path).stem().string() : info.name;
  file.layers = info.moe_layers;
  file.experts = info.experts;
  file.slots = info.expert_slots;
  file.window = run->flags.window.value_or(std::min(kDefaultWindow, info.context));
  for (size_t i = 0; i < run->texts.size(); ++i) {
    IdentityHash hash;
    hash.Add(std::as_bytes(std::span(run->texts[i])));
    const std::string& path = run->flags.texts[i];
    file.texts.push_back(
        {i < run->flags.names.size() ? run->flags.names[i] : fs::path(path).filename().string(), hash.Hex()});
  }
  std::error_code error;
  if (!fs::exists(run->path, error)) return Status::Ok();
  if (!fs::is_regular_file(run->path, error)) {
    return InvalidArgument("{}: is a folder or a device; points are kept in a file: choose another --out", run->path);
  }
  Result<OperatingPoints> earlier = ReadOperatingPoints(run->path, info.identity);
  if (!earlier.ok()) return earlier.status();
  const auto same_text = [](const CalibrationText& a, const CalibrationText& b) { return a.identity == b.identity; };
  if (earlier->window != file.window || earlier->layers != file.layers || earlier->experts != file.experts ||
      earlier->slots != file.slots ||
      !std::equal(earlier->texts.begin(), earlier->texts.end(), file.texts.begin(), file.texts.end(), same_text)) {
    return InvalidArgument("{}: its points were measured on other texts or windows; remove it or choose another --out",
                           run->path);
  }
  file.points = std::move(earlier->points);
  return Status::Ok();
}

OperatingPoint* Find(OperatingPoints* file, const OperatingPoint& settings) {
  for (OperatingPoint& point : file->points) {
    if (point.SameSettings(settings)) return &point;
  }
  return nullptr;
}

// Measures one setting on `meter`'s windows unless it was measured on as many; writes the file.
Status MeasureOne(Calibration* run, PointMeter* meter, int windows, OperatingPoint settings,
                  const ScoreProgress& progress) {
  if (const OperatingPoint* known = Find(&run->file, settings); known && known->windows >= windows) return Status::Ok();
  const OperatingPoint* alone = nullptr;
  if (settings.batch_aware(run->file.slots)) {
    const OperatingPoint other = Alone(settings, run->file.slots);
    THERMOE_RETURN_IF_ERROR(MeasureOne(run, meter, windows, other, progress));
    alone = Find(&run->file, other);
  }
  settings.batch1 = settings.batch16 = {};
  THERMOE_RETURN_IF_ERROR(meter->Measure(&settings, alone, progress));
  if (OperatingPoint* known = Find(&run->file, settings)) {
    *known = settings;
  } else {
    run->file.points.push_back(settings);
  }
  return WriteOperatingPoints(run->path, run->file);
}

Status MeasureAll(Calibration* run, int sample, const char* label, const std::vector<OperatingPoint>& settings) {
  Result<TextWindows> windows = Windows(*run, sample);
  if (!windows.ok()) return windows.status();
  const int count = static_cast<int>(windows->front().size());
  PointMeter meter(run->engine, std::move(*windows));
  ProgressBar bar(label);
  for (size_t i = 0; i < settings.size(); ++i) {
    if (run->deadline && std::chrono::steady_clock::now() >= *run->deadline) {
      run->out_of_time = true;
      return Status::Ok();
    }
    const auto each = static_cast<double>(settings.size());
    THERMOE_RETURN_IF_ERROR(MeasureOne(run, &meter, count, settings[i], [&](int64_t done) {
      const double share = static_cast<double>(done) / static_cast<double>(meter.predictions());
      bar.Update((static_cast<double>(i) + share) / each);
    }));
  }
  return Status::Ok();
}

// MoE layers by rising loss when all their experts are read by the hi plane alone.
Result<std::vector<int>> LayersBySensitivity(const Calibration& run) {
  Result<TextWindows> windows = Windows(run, kCalibrationBatch);
  if (!windows.ok()) return windows.status();
  for (auto& text : *windows) {  // spread over the text as the others are
    for (size_t i = 0; i < kLayerSample; ++i) text[i] = text[i * kCalibrationBatch / kLayerSample];
    text.resize(kLayerSample);
  }
  PointMeter meter(run.engine, std::move(*windows));
  ProgressBar bar("ranking layers");
  std::vector<double> loss(static_cast<size_t>(run.info().moe_layers));
  for (size_t layer = 0; layer < loss.size(); ++layer) {
    const Result<double> one = meter.PrefillLoss(CapLayers(run.info(), {static_cast<int>(layer)}), [&](int64_t done) {
      const double share = static_cast<double>(done) / static_cast<double>(meter.predictions());
      bar.Update((static_cast<double>(layer) + share) / static_cast<double>(loss.size()));
    });
    if (!one.ok()) return one.status();
    loss[layer] = *one;
  }
  std::vector<int> order(loss.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return loss[static_cast<size_t>(a)] < loss[static_cast<size_t>(b)]; });
  return order;
}

void PrintFront(const OperatingPoints& file, PointCost OperatingPoint::*batch, int size) {
  std::vector<std::string> titles = {fmt::format("batch {}", size), "expert bytes", "loss, nats", "std. error"};
  for (const CalibrationText& text : file.texts) titles.push_back(text.name);
  Table table(std::move(titles));
  for (const size_t i : ParetoFront(file.points, batch)) {
    const PointCost& cost = file.points[i].*batch;
    std::vector<std::string> row = {Describe(file.points[i]), fmt::format("{:.1f} %", 100 * cost.expert_bytes_frac),
                                    fmt::format("{:+.4f}", cost.loss_nats),
                                    fmt::format("{:.4f}", cost.loss_error_nats)};
    for (const double loss : cost.text_loss_nats) row.push_back(fmt::format("{:+.4f}", loss));
    table.Add(std::move(row));
  }
  table.Print();
}

Status Report(const Calibration& run) {
  if (!run.flags.plot.empty()) {
    THERMOE_RETURN_IF_ERROR(WriteFile(run.flags.plot, CalibrationChart(run.file), "--plot"));
  }
  if (run.flags.json) {
    Json json = NewDocument();
    json["file"] = run.path;
    json["front_batch1"] = ParetoFront(run.file.points, &OperatingPoint::batch1);
    json["front_batch16"] = ParetoFront(run.file.points, &OperatingPoint::batch16);
    json["complete"] = !run.out_of_time;
    json["points"] = Json::parse(OperatingPointsJson(run.file))["points"];
    return PrintJsonLine(json);
  }
  PrintFront(run.file, &OperatingPoint::batch1, 1);
  Print("\n");
  PrintFront(run.file, &OperatingPoint::batch16, kCalibrationBatch);
  Print(fmt::format("\n{} points in {}\n", run.file.points.size(), Printable(run.path, STDOUT_FILENO)));
  if (run.out_of_time) Print("Time was up before all settings were measured; run the same command again to go on.\n");
  return Status::Ok();
}

Status MeasureTextFeatures(const CalibrateFlags& flags, const Model& model, const std::vector<std::string>& texts) {
  WindowOptions options;
  options.documents = Documents::kJoin;
  options.window = options.stride = flags.window.value_or(std::min(kDefaultWindow, model.info().context)) - 1;  // W + 1 ids a window
  options.sample = flags.sample.value_or(kDefaultSample);
  TextWindows windows;
  for (size_t i = 0; i < texts.size(); ++i) {
    Result<std::vector<EvalWindow>> cut = CutWindows(texts[i], flags.texts[i], model.tokenizer(), options);
    if (!cut.ok()) return cut.status();
    windows.push_back(std::move(*cut));
  }
  return CalibrateFeatures(model, windows, flags.model.threads, flags.features, flags.json);
}

Status Run(const CalibrateFlags& flags) {
  if (!flags.names.empty() && flags.names.size() != flags.texts.size()) {
    return InvalidArgument("{} --text-name for {} texts; give one for each, in their order, or none",
                           flags.names.size(), flags.texts.size());
  }
  std::vector<std::string> texts;
  for (const std::string& path : flags.texts) {
    Result<std::string> text = ReadTextFile(path);
    if (!text.ok()) return text.status();
    texts.push_back(std::move(*text));
  }
  if (!flags.features.empty() && ComputesOnCuda(flags.model)) {
    return Unsupported("--features {}: activations are measured on the cpu backend, not on cuda; use --backend cpu (or THERMOE_BACKEND=cpu)", flags.features);
  }
  EngineOptions options = EngineOptionsFrom(flags.model);
  options.context = flags.window.value_or(kDefaultWindow);  // at most, until the model is known
  options.max_sequences = kCalibrationBatch;
  options.prefill_chunk = std::max(options.prefill_chunk, kCalibrationBatch);
  Result<OpenedModel> opened = OpenModel(flags.model, ExpertStorage::kNested, /*to_run=*/true, flags.features.empty() ? &options : nullptr);
  if (!opened.ok()) return opened.status();
  const ModelInfo& info = opened->model->info();
  if (flags.window && *flags.window > info.context) {
    return InvalidArgument("--window {} is longer than the model's context of {}; choose a smaller one", *flags.window,
                           info.context);
  }
  if (!flags.features.empty()) return MeasureTextFeatures(flags, *opened->model, texts);
  options.context = std::min(options.context, info.context);
  Result<std::unique_ptr<Engine>> engine = Engine::Create(opened->model, options);
  if (!engine.ok()) return engine.status();
  Result<std::string> path = OutputPath(flags, info);
  if (!path.ok()) return path.status();
  Calibration run{flags, engine->get(), std::move(texts), std::move(*path), {}, {}};
  if (flags.minutes) {
    run.deadline = std::chrono::steady_clock::now() + std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                                                          std::chrono::duration<double>(*flags.minutes * 60));
  }
  THERMOE_RETURN_IF_ERROR(StartOrResume(&run));
  THERMOE_RETURN_IF_ERROR(MeasureAll(&run, kCalibrationBatch, "screening", CandidatePoints(info, {})));
  if (!run.out_of_time) {
    const Result<std::vector<int>> order = LayersBySensitivity(run);
    if (!order.ok()) return order.status();
    THERMOE_RETURN_IF_ERROR(MeasureAll(&run, kCalibrationBatch, "screening plane caps", CandidatePoints(info, *order)));
  }
  const int sample = flags.sample.value_or(kDefaultSample);
  if (!flags.quick && !run.out_of_time && sample > kCalibrationBatch) {
    THERMOE_RETURN_IF_ERROR(MeasureAll(&run, sample, "measuring", WorthMore(run.file.points, kSlackNats)));
  }
  return Report(run);
}

}  // namespace

Command MakeCalibrateCommand(CLI::App* root) {
  CLI::App* app = root->add_subcommand("calibrate", "measure what ways of routing cost a model in quality");
  auto flags = std::make_shared<CalibrateFlags>();
  SetHelpPage(app, kPage);
  AddModelArgument(app, &flags->model, /*required=*/true);
  app->add_option("TEXT", flags->texts, "UTF-8 text files; NUL bytes separate documents.")->required();
  app->add_option("--out", flags->out, "Where to keep the points; default: the state folder, by the model's identity.")
      ->type_name("FILE")
      ->group(kGroup);
  app->add_option("--plot", flags->plot, "Also draw all points and the fronts as SVG.")->type_name("FILE")->group(kGroup);
  app->add_option("--features", flags->features, "Measure only activations, for feature alignment, and write their statistics to FILE.")
      ->type_name("FILE")
      ->group(kGroup);
  app->add_option("--text-name", flags->names, "What to call a text, once for each; default: its file name.")
      ->allow_extra_args(false)
      ->type_name("NAME")
      ->group(kGroup);
  app->add_flag("--quick", flags->quick, "Stop after screening on 16 windows of each text.")->group(kGroup);
  AddNumber(app, "--window", &flags->window, {2, 1 << 24}, "Window length in tokens; default 1024, or the context.")
      ->group(kGroup);
  AddNumber(app, "--sample", &flags->sample, {kCalibrationBatch, 1 << 24}, "Windows of each text; default 32.")
      ->group(kGroup);
  AddNumber(app, "--minutes", &flags->minutes, {0, 1e6, true, false},
            "Begin no further setting after X minutes; the same command goes on later.")
      ->group(kGroup);
  AddEngineFlags(app, &flags->model);
  app->add_flag("--json", flags->json, "Print one JSON object; errors become JSON too.")->group("Output options");
  return {app, [flags] { return Run(*flags); }};
}

}  // namespace thermoe
