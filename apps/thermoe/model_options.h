// SPDX-License-Identifier: Apache-2.0
// Flags that every command with a model shares: which model, how its experts are kept, how many threads.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "thermoe/engine.h"
#include "thermoe/model.h"
#include "thermoe/status.h"

namespace thermoe {

struct ModelFlags {
  std::string model;  // empty: THERMOE_MODEL, else the bundled model
  int threads = 0;
  int prefill_chunk = 256;
  bool in_float = false;
  std::string backend;  // empty: THERMOE_BACKEND, else cpu
  std::string device;   // of cuda; empty: THERMOE_DEVICE, else the first
};

CLI::Option* AddModelArgument(CLI::App* app, ModelFlags* flags, bool required);
void AddEngineFlags(CLI::App* app, ModelFlags* flags);
void AddBackendFlags(CLI::App* app, ModelFlags* flags, const std::string& group);  // part of the above
bool ComputesOnCuda(const ModelFlags& flags);

// The path to load: `given`, else THERMOE_MODEL, else the bundled model beside the program or in the source tree.
// kNotFound names the path and, for what looks like text, where text goes.
Result<std::string> ResolveModel(const std::string& given);

// The operating points shipped with the bundled model. kNotFound where they are not.
Result<std::string> BundledPoints();

struct OpenedModel {
  std::shared_ptr<const Model> model;
  double load_ms = 0;
};
// A GPU may be named only where one is to compute.
Status CheckDevice(const ModelFlags& flags);

// ResolveModel and Model::Load with a progress bar. `to_run`: false when nothing will be computed with it, which
// leaves the weights as the file has them and so loads faster. `engine`: what it is for, where that is known; its context and sequences are
// refused before weights are read where memory has no room for them or the GPU is not there.
Result<OpenedModel> OpenModel(const ModelFlags& flags, ExpertStorage experts, bool to_run = true, const EngineOptions* engine = nullptr);

// Where `thermoe profile` keeps its points, whether there are any or not.
Result<std::string> ProfilePath();

// Options that `flags` decide, and the profile; the caller adds context and sequences.
EngineOptions EngineOptionsFrom(const ModelFlags& flags);

}  // namespace thermoe
