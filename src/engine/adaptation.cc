// SPDX-License-Identifier: Apache-2.0
#include "engine/adaptation.h"

#include "control/adapt/adapt_pricer.h"

namespace thermoe {

Adaptation::Adaptation(const ModelConfig& config, const TttOptions& options, std::shared_ptr<const FeatureStatistics> features)
    : scale(options.steps == 1 ? options.scale_rate : 0, LowestLayerOf(AdaptTier::kLast, config.layers)),
      options_(options),
      features_(std::move(features)),
      deltas_(Deltas::Start(std::make_shared<DeltaLayout>(config, options), options.seed, options.start)),
      optimizer_(deltas_.layout, options),
      gradient_(deltas_.values.size()) {
  stats.delta_bytes = static_cast<int64_t>(deltas_.values.size() * sizeof(float));
}

AutoAdaptation::AutoAdaptation(const TttOptions& options, const BenefitState& from)
    : start(from), controller(AdaptConfig{.price_nats = options.price_nats}, from) {}

void Adaptation::Reset() {
  deltas_ = Deltas::Start(deltas_.layout, options_.seed, options_.start);
  scale.Restore({});
  optimizer_ = DeltaOptimizer(deltas_.layout, options_);
}

std::unique_ptr<Adaptation> Adaptation::Fork() const {
  auto fork = std::make_unique<Adaptation>(*this);
  fork->stats = TttStats{};
  if (fork->automatic) fork->automatic->deferred.clear();  // their keys and values are shared now, and not to be written
  fork->stats.delta_bytes = stats.delta_bytes;
  fork->stats.recall_bytes = stats.recall_bytes;
  return fork;
}

}  // namespace thermoe
