// SPDX-License-Identifier: Apache-2.0
#include "model_options.h"

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "base/errors.h"
#include "base/state_folder.h"
#include "flags.h"
#include "interrupt.h"
#include "terminal.h"

namespace thermoe {
namespace {

namespace fs = std::filesystem;

constexpr const char* kBundledModel = "ember-22m-q8_0.gguf";
constexpr const char* kBundledPoints = "ember-22m-points.json";

std::vector<fs::path> BundledPlaces(const char* name) {
  std::vector<fs::path> places;
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  if (!error) places.push_back(program.parent_path() / "../share/thermoe/models" / name);
  places.push_back(fs::path(THERMOE_MODELS_DIR) / name);
  return places;
}

}  // namespace

bool ComputesOnCuda(const ModelFlags& flags) {
  const char* set = std::getenv("THERMOE_BACKEND");
  return flags.backend == "cuda" || (flags.backend.empty() && set != nullptr && std::string_view(set) == "cuda");
}

CLI::Option* AddModelArgument(CLI::App* app, ModelFlags* flags, bool required) {
  const char* help = "A .gguf file, or a Hugging Face folder with config.json, *.safetensors and tokenizer.json.";
  CLI::Option* option =
      app->add_option("MODEL", flags->model, required ? help : std::string(help) + " Default: the bundled model.");
  return required ? option->required() : option;
}

void AddEngineFlags(CLI::App* app, ModelFlags* flags) {
  AddNumber(app, "--threads", &flags->threads, {1, 1024}, "Threads; default: one per core this process may use.")
      ->group("Engine options");
  AddNumber(app, "--prefill-chunk", &flags->prefill_chunk, {1, 8192},
            "Prompt tokens computed in one step; default 256. Results do not depend on it.")
      ->group("Engine options");
  AddBackendFlags(app, flags, "Engine options");
  app->add_flag("--in-float", flags->in_float,
                "Leave 8- and 4-bit weights as the file has them and compute in float: slower, exact activations.")
      ->group("Engine options");
}

void AddBackendFlags(CLI::App* app, ModelFlags* flags, const std::string& group) {
  app->add_option("--backend", flags->backend, "What computes: cpu (default), cuda (an NVIDIA GPU) or reference (plain and slow).")
      ->type_name("NAME")
      ->check(CLI::IsMember({"cpu", "cuda", "reference"}))
      ->group(group);
  app->add_option("--device", flags->device,
                  "Which GPU, for --backend cuda: its number, its UUID or the beginning of it, or a part of its name; default the first. thermoe doctor lists them.")
      ->type_name("GPU")
      ->group(group);
}

Result<std::string> ResolveModel(const std::string& given) {
  std::error_code error;
  if (!given.empty()) {
    if (fs::exists(given, error)) return given;
    const bool text = given.find(' ') != std::string::npos;
    return NotFound("{}: no such file or folder; MODEL is a .gguf file or a Hugging Face folder{}", given,
                    text ? ", and text goes after -p" : "");
  }
  if (const char* chosen = std::getenv("THERMOE_MODEL"); chosen != nullptr && *chosen != '\0') {
    if (fs::exists(chosen, error)) return std::string(chosen);
    return NotFound("{}: no such file or folder; it is what THERMOE_MODEL says", chosen);
  }
  std::string looked;
  for (const fs::path& place : BundledPlaces(kBundledModel)) {
    if (fs::exists(place, error)) return place.lexically_normal().string();
    looked += (looked.empty() ? "" : " and ") + place.lexically_normal().string();
  }
  return NotFound("the bundled model was not found at {}; give a MODEL or set THERMOE_MODEL", looked);
}

Result<std::string> BundledPoints() {
  std::error_code error;
  for (const fs::path& place : BundledPlaces(kBundledPoints)) {
    if (fs::exists(place, error)) return place.lexically_normal().string();
  }
  return NotFound("{} was not found", kBundledPoints);
}

Status CheckDevice(const ModelFlags& flags) {
  if (flags.device.empty() || ComputesOnCuda(flags)) return Status::Ok();
  return InvalidArgument("--device {}: names a GPU for --backend cuda, and no GPU is asked to compute; add --backend cuda or leave --device out", flags.device);
}

Result<OpenedModel> OpenModel(const ModelFlags& flags, ExpertStorage experts, bool to_run, const EngineOptions* engine) {
  if (to_run) THERMOE_RETURN_IF_ERROR(CheckDevice(flags));
  Result<std::string> path = ResolveModel(flags.model);
  if (!path.ok()) return path.status();
  ProgressBar bar("loading " + fs::path(*path).filename().string());
  const auto start = std::chrono::steady_clock::now();
  LoadOptions options;
  options.experts = experts;
  options.interleave = to_run && !flags.in_float && !ComputesOnCuda(flags);  // for integer kernels of the cpu backend; a GPU packs weights its own way
  options.threads = flags.threads;
  options.engine = engine;
  options.progress = BarProgress(&bar);
  Result<std::shared_ptr<const Model>> model = Model::Load(*path, options);
  if (!model.ok()) return model.status().code() == StatusCode::kCancelled ? InterruptedStatus() : model.status();
  const std::chrono::duration<double, std::milli> load_ms = std::chrono::steady_clock::now() - start;
  return OpenedModel{std::move(*model), load_ms.count()};
}

Result<std::string> ProfilePath() {
  const Result<std::string> folder = StateFolder();
  return folder.ok() ? Result<std::string>(*folder + "/profiles.sqlite") : folder;
}

EngineOptions EngineOptionsFrom(const ModelFlags& flags) {
  EngineOptions options;
  if (const Result<std::string> path = ProfilePath(); path.ok()) options.profile_path = *path;
  options.threads = flags.threads;
  options.backend = flags.backend;
  options.device = flags.device;
  options.prefill_chunk = flags.prefill_chunk;
  return options;
}

}  // namespace thermoe
