// SPDX-License-Identifier: Apache-2.0
// thermoe profile: times every operation of a model on this machine, keeps the points, and tests the cost model made of
// them.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/cpu_name.h"
#include "base/errors.h"
#include "command.h"
#include "control/cost/cost_file.h"
#include "control/cost/profile_store.h"
#include "control/cost/profiler.h"
#include "control/telemetry/find_sources.h"
#include "cost_plot.h"
#include "engine/gpus.h"
#include "engine/profile_target.h"
#include "flags.h"
#include "help.h"
#include "interrupt.h"
#include "json_out.h"
#include "model_options.h"
#include "output.h"
#include "table.h"
#include "terminal.h"
#include "thermoe/control.h"

namespace thermoe {
namespace {

constexpr const char* kGroup = "Profile options";

const HelpPage kPage = {"thermoe profile [MODEL] [FLAGS...]",
                        "Times every operation that the engine launches for a model, over a grid of rows, experts and "
                        "context, with the model's own "
                        "weights on this machine, and makes a cost model of the points: what any step would take.\n"
                        "\n"
                        "Points are kept in $XDG_STATE_HOME/thermoe/profiles.sqlite (or below ~/.local/state) for each "
                        "processor, number of threads, "
                        "model and version. A profile that was stopped goes on where it was, give or take some "
                        "seconds; one that is complete is only "
                        "read. --force measures everything again.\n"
                        "\n"
                        "Some points are measured but not given to the model: the errors that are printed are those of "
                        "its predictions for these. "
                        "Where the processor's energy counter can be read, each operation's joules are measured over "
                        "many changes of it; without one "
                        "energy is an estimate.\n"
                        "\n"
                        "With --backend cuda operations are timed on the GPU, in runs as a step launches them, and joules by its energy counter "
                        "at some sizes; test-time training does not run there and is left out.",
                        " thermoe profile\n"
                        " thermoe profile model.gguf --backend cuda --quick\n"
                        " thermoe profile model.gguf --experts nested --threads 4 --plot errors.svg\n"
                        " thermoe profile --show"};

struct ProfileFlags {
  ModelFlags model;
  std::string experts = "native";
  std::string plot, store, exported;
  bool show = false, quick = false, force = false, json = false;
};

struct FamilyErrors {
  std::string name;
  int points = 0;  // measured for the model
  CostErrors errors;
};

struct Report {
  KernelCostModel cost;
  int with_energy = 0;  // points whose joules a counter measured
  std::vector<CostPoint> points;
  CostErrors all, energy;
  std::vector<FamilyErrors> families;
  int measured = 0;  // in this run
};

std::vector<CostPoint> HeldOut(const std::vector<CostPoint>& points, const FamilyInfo* family) {
  std::vector<CostPoint> found;
  for (const CostPoint& point : points) {
    if (point.held_out && (family == nullptr || point.shape.family == family->family)) found.push_back(point);
  }
  return found;
}

Report MakeReport(std::vector<CostPoint> points) {
  Report report;
  report.cost = KernelCostModel(points);
  report.all = ErrorsOf(report.cost, HeldOut(points, nullptr));
  report.energy = EnergyErrorsOf(report.cost, HeldOut(points, nullptr));
  for (const FamilyInfo& family : Families()) {
    const auto known = std::count_if(points.begin(), points.end(), [&](const CostPoint& point) {
      return !point.held_out && point.shape.family == family.family;
    });
    const CostErrors errors = ErrorsOf(report.cost, HeldOut(points, &family));
    if (known > 0 || errors.points > 0)
      report.families.push_back({std::string(family.name), static_cast<int>(known), errors});
  }
  report.with_energy = static_cast<int>(
      std::count_if(points.begin(), points.end(), [](const CostPoint& point) { return point.energy_j.has_value(); }));
  report.points = std::move(points);
  return report;
}

Result<std::string> StorePath(const ProfileFlags& flags) { return flags.store.empty() ? ProfilePath() : flags.store; }

// Measures what the store has not.
Result<int> MeasureMissing(Profiler* profiler, ProfileStore* store, const ProfileKey& key,
                           std::vector<CostPoint>* points) {
  ProgressBar bar("profile");
  int measured = 0;
  const std::vector<CostPoint> known = *points;
  const auto keep = [&](const CostPoint& point) {
    points->push_back(point);
    ++measured;
    return store->Add(key, point);
  };
  const Status status = profiler->Run(known, keep, [&](double done_frac) {
    bar.Update(done_frac);
    return !Interrupted();
  });
  bar.Clear();
  if (!status.ok()) return status;
  return measured;
}

Status PrintJson(const ProfileKey& key, bool on_gpu, const Model& model, const std::string& path, const Report& report) {
  Json json = NewDocument();
  json["model"] = ModelJson(model.info());
  json["device"] = {{"cpu", CpuName()}, {"gpu", on_gpu ? Json(key.device) : Json()}, {"engine", key.backend}};
  json["store"] = path;
  json["measured"] = report.measured;
  json["points"] = report.cost.points();
  json["energy_source"] = EnergySourceName(report.with_energy > 0 ? EnergySource::kCounter : EnergySource::kEstimate);
  json["points_with_energy"] = report.with_energy;
  json["peak_gbps"] = report.cost.peak_gbps();
  json["peak_gflops"] = report.cost.peak_gflops();
  const auto errors = [](const CostErrors& of) -> Json {
    if (of.points == 0) return {{"points", 0}, {"median_frac", nullptr}, {"p95_frac", nullptr}};
    return {{"points", of.points}, {"median_frac", of.median_frac}, {"p95_frac", of.p95_frac}};
  };
  json["held_out"] = errors(report.all);
  json["held_out_energy"] = errors(report.energy);
  json["families"] = Json::array();
  for (const FamilyErrors& family : report.families) {
    json["families"].push_back({{"name", family.name}, {"points", family.points}, {"held_out", errors(family.errors)}});
  }
  return PrintJsonLine(json);
}

void PrintReport(const ProfileKey& key, const Model& model, const std::string& path, const Report& report) {
  const auto percent = [](double frac) { return fmt::format("{:.1f} %", 100 * frac); };
  PrintFields(
      {{"model", fmt::format("{}, experts {}", model.info().path, model.info().expert_type)},
       {"machine", key.device},
       {"engine", key.backend},
       {"store", fmt::format("{}, {} points, {} measured now", path, report.points.size(), report.measured)},
       {"reached", fmt::format("{:.1f} GB/s, {:.1f} GFLOP/s", report.cost.peak_gbps(), report.cost.peak_gflops())},
       {"energy", report.with_energy > 0 ? fmt::format("measured by a counter for {} points", report.with_energy)
                                         : std::string("no counter was read; predictions are estimates")},
       {"latency", report.all.points == 0
                       ? std::string("no points were held out")
                       : fmt::format("error on {} held-out shapes: median {}, 95th percentile {}", report.all.points,
                                     percent(report.all.median_frac), percent(report.all.p95_frac))},
       {"joules", report.energy.points == 0
                      ? std::string("none were measured at held-out shapes")
                      : fmt::format("error on {} held-out shapes: median {}, 95th percentile {}", report.energy.points,
                                    percent(report.energy.median_frac), percent(report.energy.p95_frac))}});
  Print("\n");
  Table table({"operation", "points", "held out", "median error", "95th percentile"});
  for (const FamilyErrors& family : report.families) {
    const bool any = family.errors.points > 0;
    table.Add({family.name, fmt::format("{}", family.points), fmt::format("{}", family.errors.points),
               any ? percent(family.errors.median_frac) : "", any ? percent(family.errors.p95_frac) : ""});
  }
  table.Print();
}

Status WritePlot(const std::string& path, const Report& report) {
  std::vector<PlotPoint> dots;
  for (const CostPoint& point : report.points) {
    if (!point.held_out) continue;
    const CostPrediction predicted = report.cost.Predict(point.shape);
    dots.push_back(
        {std::string(InfoOf(point.shape.family).name), point.latency_us, predicted.latency_us, TextOf(point.shape)});
  }
  const std::string svg = CostPlotSvg(
      dots, fmt::format("Latency of {} held-out operations: median error {:.1f} %, 95th percentile {:.1f} %",
                        dots.size(), 100 * report.all.median_frac, 100 * report.all.p95_frac));
  return WriteFile(path, svg, "--plot");
}

// The counter of what computes, where it can be read.
std::function<std::optional<double>()> EnergyCounter(const std::string& sensors) {
  Result<std::unique_ptr<TelemetrySource>> source = FindSource(sensors);
  if (!source.ok()) return {};
  const std::shared_ptr<TelemetrySource> shared = std::move(source).value();
  if (!shared->Read().energy_j) return {};
  return [shared] { return shared->Read().energy_j; };
}

// " (it has: ...)": what a store has of this model; "": nothing.
std::string Listed(const Result<std::vector<ProfileKey>>& keys) {
  std::string list;
  for (size_t i = 0; keys.ok() && i < keys->size(); ++i) {
    const ProfileKey& key = (*keys)[i];
    list += fmt::format("{}{}: {}", list.empty() ? " (it has: " : "; ", key.device, key.backend);
    if (key.build != THERMOE_VERSION) list += fmt::format(", of version {}", key.build);
  }
  return list.empty() ? "" : list + ")";
}

// Why nothing is shown, with what could be.
Status NoProfile(ProfileStore* store, const ProfileKey& key) {
  return NotFound("{}: no profile of this model on {} with {}{}; run 'thermoe profile' without --show first", store->path(), key.device,
                  key.backend, Listed(store->KeysOf(key.model)));
}

// What was measured on a GPU that is not here: the only one of the store, or the one that --device names by a part of its name.
// `absent`: why none is here.
Result<ProfileKey> KeyOfAbsentGpu(ProfileStore* store, const Model& model, const ProfileFlags& flags, const Status& absent) {
  const Result<std::vector<ProfileKey>> all = store->KeysOf(GpuProfileKeyOf(model, "a GPU", flags.quick).model);
  if (!all.ok()) return all.status();
  std::vector<ProfileKey> fit;
  for (const ProfileKey& key : *all) {
    if (key == GpuProfileKeyOf(model, key.device, flags.quick) && NamesGpu(flags.model.device, key.device)) fit.push_back(key);
  }
  if (fit.size() == 1) return fit.front();
  if (fit.empty()) {
    return Status(absent.code(), fmt::format("{}; nor has {} a {} profile of this model on a GPU of such a name{}", absent.message(), store->path(),
                                             flags.quick ? "quick" : "full", Listed(all)));
  }
  return InvalidArgument("{}: has this model on several such GPUs{}; name one by --device", store->path(), Listed(all));
}

// A key, and the profiler that has made it or can; none where the GPU is not here.
struct Profiled {
  ProfileKey key;
  std::unique_ptr<Profiler> profiler;
};

Result<Profiled> FindProfiled(const ProfileFlags& flags, ProfileStore* store, const Model& model, const Status& gpu_here) {
  if (!gpu_here.ok()) {
    Result<ProfileKey> key = KeyOfAbsentGpu(store, model, flags, gpu_here);
    if (!key.ok()) return key.status();
    return Profiled{std::move(key).value(), nullptr};
  }
  ProfilerOptions options;
  options.threads = flags.model.threads;
  options.quick = flags.quick;
  options.backend = flags.model.backend;
  options.device = flags.model.device;
  Result<std::unique_ptr<Profiler>> profiler = Profiler::Create(ProfileTargetOf(model), options);
  if (!profiler.ok()) return profiler.status();
  ProfileKey key = ProfileKeyOf(model, (*profiler)->Describe(), (*profiler)->device_name(), flags.quick);
  return Profiled{std::move(key), std::move(profiler).value()};
}

Status Profile(const ProfileFlags& flags) {
  const Result<std::string> path = StorePath(flags);
  if (!path.ok()) return path.status();
  const bool on_gpu = ComputesOnCuda(flags.model);
  // Before a store is made.
  THERMOE_RETURN_IF_ERROR(CheckDevice(flags.model));
  const Status gpu_here = on_gpu ? FindGpus(flags.model.device).wish : Status::Ok();
  if (!flags.show) THERMOE_RETURN_IF_ERROR(gpu_here);
  Result<std::unique_ptr<ProfileStore>> store =
      flags.show ? ProfileStore::OpenToRead(*path) : ProfileStore::Open(*path);
  if (!store.ok()) return store.status();
  // Whether a GPU has room for the weights, before they are read. What is measured needs some more, of which Profiler speaks.
  EngineOptions least = EngineOptionsFrom(flags.model);
  least.max_sequences = 1, least.context = 1, least.prefill_chunk = 1;
  Result<OpenedModel> opened =
      OpenModel(flags.model, flags.experts == "nested" ? ExpertStorage::kNested : ExpertStorage::kNative, true, on_gpu && !flags.show ? &least : nullptr);
  if (!opened.ok()) return opened.status();
  const Model& model = *opened->model;
  const Result<Profiled> profiled = FindProfiled(flags, store->get(), model, gpu_here);
  if (!profiled.ok()) return profiled.status();
  const ProfileKey& key = profiled->key;
  Profiler* profiler = profiled->profiler.get();
  if (flags.force && !flags.show) THERMOE_RETURN_IF_ERROR((*store)->Clear(key));
  Result<std::vector<CostPoint>> points = (*store)->Load(key);
  if (!points.ok()) return points.status();
  int measured = 0;
  if (!flags.show) {
    profiler->SetEnergyCounter(EnergyCounter(profiler->sensors()));
    const Result<int> added = MeasureMissing(profiler, store->get(), key, &*points);
    if (!added.ok()) return added.status();
    measured = *added;
  } else if (points->empty()) {
    return NoProfile(store->get(), key);
  }
  Report report = MakeReport(std::move(points).value());
  report.measured = measured;
  if (!flags.exported.empty()) {
    THERMOE_RETURN_IF_ERROR(WriteFile(flags.exported, CostFileText({key, report.points}), "--export"));
  }
  if (!flags.plot.empty()) THERMOE_RETURN_IF_ERROR(WritePlot(flags.plot, report));
  if (flags.json) return PrintJson(key, on_gpu, model, *path, report);
  PrintReport(key, model, *path, report);
  if (flags.show) Print("\n" + report.cost.Describe());
  return Status::Ok();
}

}  // namespace

Command MakeProfileCommand(CLI::App* root) {
  CLI::App* app = root->add_subcommand("profile", "time every operation and make the cost model");
  auto flags = std::make_shared<ProfileFlags>();
  SetHelpPage(app, kPage);
  AddModelArgument(app, &flags->model, /*required=*/false);
  AddChoice(app, "--experts", &flags->experts, {"native", "nested"},
            "How experts are kept; default native, as the file has them.")
      ->group(kGroup);
  AddNumber(app, "--threads", &flags->model.threads, {1, 1024}, "Threads; default: one per core this process may use.")
      ->group(kGroup);
  AddBackendFlags(app, &flags->model, kGroup);
  app->add_flag("--in-float", flags->model.in_float, "Leave 8- and 4-bit weights as the file has them.")->group(kGroup);
  app->add_flag("--quick", flags->quick, "A coarse grid, in seconds; kept apart from full profiles.")->group(kGroup);
  app->add_flag("--force", flags->force, "Forget the points and measure again.")->group(kGroup);
  app->add_flag("--show", flags->show, "Measure nothing; print the model's tables: a GPU's also on a machine without it (--store, --device with its name).")->group(kGroup);
  app->add_option("--store", flags->store, "The SQLite file; default profiles.sqlite in the state folder.")
      ->type_name("FILE")
      ->group(kGroup);
  app->add_option("--export", flags->exported, "Write the points as text, for a scenario's device.costs (thermoe simulate).")
      ->type_name("FILE.csv")
      ->group("Output options");
  app->add_option("--plot", flags->plot, "Draw measured against predicted latency of held-out points as SVG.")
      ->type_name("FILE")
      ->group("Output options");
  app->add_flag("--json", flags->json, "Print one JSON object; errors become JSON too.")->group("Output options");
  return {app, [flags] { return Profile(*flags); }};
}

}  // namespace thermoe
