// SPDX-License-Identifier: Apache-2.0
// thermoe synth: checkpoints of real shapes with random weights, for benches.
#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <system_error>
#include <vector>

#include "base/errors.h"
#include "command.h"
#include "flags.h"
#include "help.h"
#include "interrupt.h"
#include "json_out.h"
#include "model/formats.h"
#include "model/synth.h"
#include "output.h"
#include "terminal.h"

namespace thermoe {
namespace {

namespace fs = std::filesystem;

const HelpPage kPage = {
    "thermoe synth --arch NAME [--layers N] [--type TYPE] [--seed N] [--force] OUT",
    "Writes a GGUF file with random weights in the shapes of a real model (OLMoE-1B-7B, Qwen3-30B-A3B, Mixtral-8x7B, "
    "Qwen1.5-MoE-A2.7B), for benches: speed depends on shapes and types, not on what weights hold. It writes no "
    "sensible text. Fewer --layers make a smaller file with the same layers. The file appears under its name only "
    "once it is complete.",
    " thermoe synth --arch olmoe --layers 4 --type q8_0 olmoe-4.gguf\n"
    " thermoe bench olmoe-4.gguf"};

struct SynthFlags {
  std::string arch, out;
  std::string type = "q8_0";
  int layers = 0;
  uint64_t seed = 1;
  bool force = false;
  bool json = false;
};

constexpr DType kTypes[] = {DType::kF32,  DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0,  DType::kQ5_0,
                            DType::kQ5_1, DType::kQ4K, DType::kQ5K,  DType::kQ6K,  DType::kIQ4NL, DType::kMXFP4};
constexpr const char* kMedium = "_m";  // behind a type of K blocks: llama.cpp's mixture of that and wider ones

Status CheckOutput(const SynthFlags& flags) {
  std::error_code error;
  if (fs::is_directory(flags.out, error)) return InvalidArgument("{}: is a folder; give a file name", flags.out);
  if (fs::exists(flags.out, error) && !flags.force) {
    return InvalidArgument("{}: exists already; choose another name or add --force to overwrite it", flags.out);
  }
  const fs::path folder = fs::path(flags.out).parent_path();
  if (!folder.empty() && !fs::is_directory(folder, error)) {
    return NotFound("{}: the folder {} does not exist; make it first", flags.out, folder.string());
  }
  return Status::Ok();
}

Status Synth(const SynthFlags& flags) {
  THERMOE_RETURN_IF_ERROR(CheckOutput(flags));
  SynthOptions options;
  options.arch = flags.arch;
  options.layers = flags.layers;
  options.seed = flags.seed;
  options.medium = flags.type.ends_with(kMedium);
  for (const DType type : kTypes) {
    if (flags.type == std::string(TraitsOf(type).name) + (options.medium ? kMedium : "")) options.type = type;
  }
  ProgressBar bar("writing " + fs::path(flags.out).filename().string());
  options.progress = BarProgress(&bar);
  const auto start = std::chrono::steady_clock::now();
  const Status written = Synthesise(options, flags.out);  // under another name until it is complete
  bar.Clear();
  if (!written.ok()) return written.code() == StatusCode::kCancelled ? InterruptedStatus() : written;
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  std::error_code error;
  const auto bytes = static_cast<int64_t>(fs::file_size(flags.out, error));
  if (flags.json) {
    Json json = NewDocument();
    json["file"] = flags.out;
    json["arch"] = flags.arch;
    json["layers"] = flags.layers > 0 ? Json(flags.layers) : Json();
    json["type"] = flags.type;
    json["seed"] = flags.seed;
    json["bytes"] = bytes;
    json["seconds"] = seconds.count();
    return PrintJsonLine(json);
  }
  Print(fmt::format("{}: {}, {:.1f} s\n", Printable(flags.out, STDOUT_FILENO), BytesText(static_cast<double>(bytes)),
                    seconds.count()));
  return Status::Ok();
}

}  // namespace

Command MakeSynthCommand(CLI::App* root) {
  CLI::App* app = root->add_subcommand("synth", "write a model of a real shape with random weights");
  auto flags = std::make_shared<SynthFlags>();
  SetHelpPage(app, kPage);
  std::vector<std::string> types;
  for (const DType type : kTypes) types.emplace_back(TraitsOf(type).name);
  for (const DType type : {DType::kQ4K, DType::kQ5K}) types.push_back(std::string(TraitsOf(type).name) + kMedium);
  AddChoice(app, "--arch", &flags->arch, {"olmoe", "qwen3moe", "mixtral", "qwen2moe"}, "Whose shapes.")->required();
  AddNumber(app, "--layers", &flags->layers, {1, 1024}, "Layers; default: the real model's.");
  AddChoice(app, "--type", &flags->type, types, "Type of the matrices; default q8_0. q4_k_m and q5_k_m: mixtures of types, as files have them that are called so.");
  AddNumber(app, "--seed", &flags->seed, {0, kMostSeed}, "Seed of the weights; default 1.");
  app->add_flag("--force", flags->force, "Overwrite OUT.");
  app->add_flag("--json", flags->json, "Print one JSON object; errors become JSON too.");
  app->add_option("OUT", flags->out, "The GGUF file to write.")->required();
  return {app, [flags] { return Synth(*flags); }};
}

}  // namespace thermoe
