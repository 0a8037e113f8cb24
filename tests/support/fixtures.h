// SPDX-License-Identifier: Apache-2.0
// Fixture models: opened once per program; and short ways to run an engine over them.
#pragma once

#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "thermoe/engine.h"
#include "thermoe/model.h"

namespace thermoe::testing {

inline std::string FixturePath(const std::string& name) { return std::string(THERMOE_FIXTURES) + "/" + name; }
inline std::string EmberPath() { return std::string(THERMOE_MODELS_DIR) + "/ember-22m-q8_0.gguf"; }

inline nlohmann::json ReadJson(const std::string& path) {
  std::ifstream file(path);
  EXPECT_TRUE(file.good()) << path;
  return nlohmann::json::parse(file);
}

inline std::shared_ptr<const Model> OpenModel(const std::string& path, ExpertStorage experts = ExpertStorage::kNative) {
  static std::map<std::pair<std::string, ExpertStorage>, std::shared_ptr<const Model>> opened;
  auto& model = opened[{path, experts}];
  if (model == nullptr) {
    LoadOptions options;
    options.experts = experts;
    Result<std::shared_ptr<const Model>> loaded = Model::Load(path, options);
    EXPECT_TRUE(loaded.ok()) << loaded.status().message();
    if (loaded.ok()) model = *loaded;
  }
  return model;
}

// As a GPU wants it: not in the layout of the cpu backend's kernels. Opened anew.
inline std::shared_ptr<const Model> LoadForDevice(const std::string& path, ExpertStorage experts = ExpertStorage::kNative) {
  LoadOptions options;
  options.interleave = false;
  options.experts = experts;
  Result<std::shared_ptr<const Model>> model = Model::Load(path, options);
  EXPECT_TRUE(model.ok()) << model.status().message();
  return model.ok() ? *model : nullptr;
}

inline std::unique_ptr<Engine> MakeEngine(const std::shared_ptr<const Model>& model, const EngineOptions& options = {}) {
  Result<std::unique_ptr<Engine>> engine = Engine::Create(model, options);
  EXPECT_TRUE(engine.ok()) << engine.status().message();
  return engine.ok() ? std::move(engine).value() : nullptr;
}

inline RequestResult RunRequest(Engine* engine, Request request) {
  Result<RequestResult> result = engine->Run(std::move(request));
  EXPECT_TRUE(result.ok()) << result.status().message();
  return result.ok() ? std::move(result).value() : RequestResult{};
}

}  // namespace thermoe::testing
