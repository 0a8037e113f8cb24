// SPDX-License-Identifier: Apache-2.0
// Statistics of activations for feature alignment: mean and variance of the residual stream after every layer, over a text that the
// model knows well. `thermoe calibrate --features FILE` measures them.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "forward/backward/learn.h"
#include "thermoe/model.h"
#include "thermoe/status.h"
#include "thermoe/tokenizer.h"

namespace thermoe {

// Over all ids of `windows`, each a context of its own, on the CPU with `threads` threads (0: all). `progress` hears the share done;
// false stops (kCancelled). Errors: kInvalidArgument (no ids, ids outside the vocabulary), kResourceExhausted.
Result<FeatureStatistics> MeasureFeatures(const Model& model, const std::vector<std::vector<TokenId>>& windows, int threads,
                                          const std::function<bool(double)>& progress);

// JSON with a schema version and the model's identity; replaced at once.
Status WriteFeatures(const std::string& path, const std::string& model_identity, const FeatureStatistics& features);
// kNotFound, kCorrupt, kInvalidArgument (another model's).
Result<std::shared_ptr<const FeatureStatistics>> ReadFeatures(const std::string& path, const std::string& model_identity, int32_t layers,
                                                              int32_t hidden);

}  // namespace thermoe
