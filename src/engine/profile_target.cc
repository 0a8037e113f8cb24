// SPDX-License-Identifier: Apache-2.0
#include "engine/profile_target.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/cpu_name.h"
#include "base/random.h"
#include "control/cost/operation.h"
#include "engine/model_impl.h"
#include "forward/sample.h"
#include "forward/step.h"
#include "kernels/cuda/choose_device.h"

namespace thermoe {

static_assert(kLogitRows == kLogitTile);  // control does not see forward

ProfileTarget ProfileTargetOf(const Model& model) {
  const ModelImpl& impl = model.impl();
  ProfileTarget target;
  target.config = &impl.config();
  target.weights = &impl.loaded().weights;
  target.experts = &impl.experts();
  auto sampler = std::make_shared<Sampler>(impl.config().vocab);
  target.sample = [sampler](std::span<float> logits) {
    // As the engine's own sink: are the logits finite, the model's own normaliser, the choice.
    Random random(1);
    if (!AllFinite(logits)) return;
    (void)LogSumExp(logits);
    (void)sampler->Sample(logits, SamplingOptions{}, {}, &random);
  };
  return target;
}

ProfileKey ProfileKeyOf(const Model& model, const std::string& engine, const std::string& device_name, bool quick) {
  const ModelWeights& weights = model.impl().loaded().weights;
  const bool in_float = device_name.empty() && !weights.output.interleaved() && !model.impl().experts().layer(0).front().gate.interleaved();
  const std::string deltas = device_name.empty() ? fmt::format(", deltas of rank {}", kProfiledRank) : "";  // devices do not learn
  return {device_name.empty() ? CpuName() : device_name, engine + (quick ? ", quick" : ""),
          fmt::format("{} {}{}{}", model.info().identity, model.info().expert_type, in_float ? " in float" : "", deltas),
          THERMOE_VERSION};
}

ProfileKey GpuProfileKeyOf(const Model& model, const std::string& device_name, bool quick) {
  return ProfileKeyOf(model, cuda::EngineName(device_name), device_name, quick);
}

Result<std::vector<CostPoint>> LoadProfile(const std::string& path, const Model& model, const std::string& engine, const std::string& device_name) {
  const Result<std::unique_ptr<ProfileStore>> store = ProfileStore::OpenToRead(path);
  if (!store.ok()) return store.status();
  Result<std::vector<CostPoint>> points = (*store)->Load(ProfileKeyOf(model, engine, device_name, false));
  if (!points.ok() || !points->empty()) return points;
  return (*store)->Load(ProfileKeyOf(model, engine, device_name, true));
}

}  // namespace thermoe
