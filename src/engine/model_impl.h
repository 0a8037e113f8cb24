// SPDX-License-Identifier: Apache-2.0
// What stands behind thermoe::Model.
#pragma once

#include <memory>

#include "model/loaded_model.h"
#include "runtime/expert_store.h"
#include "thermoe/model.h"

namespace thermoe {

class ModelImpl {
 public:
  ModelImpl(std::unique_ptr<LoadedModel> loaded, std::vector<WeightBuffer> dense, ExpertStore experts);

  const LoadedModel& loaded() const { return *loaded_; }
  const ModelConfig& config() const { return loaded_->config; }
  const ExpertStore& experts() const { return experts_; }
  const ModelInfo& info() const { return info_; }

 private:
  std::unique_ptr<LoadedModel> loaded_;
  std::vector<WeightBuffer> dense_;  // repacked matrices that loaded_->weights point into
  ExpertStore experts_;
  ModelInfo info_;
};

}  // namespace thermoe
