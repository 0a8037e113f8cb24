// SPDX-License-Identifier: Apache-2.0
#include "engine/features.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <new>
#include <nlohmann/json.hpp>

#include "base/errors.h"
#include "base/replace_file.h"
#include "engine/model_impl.h"
#include "forward/step.h"
#include "kernels/dispatch.h"
#include "runtime/threads.h"

namespace thermoe {
namespace {

using nlohmann::ordered_json;
constexpr int kSchemaVersion = 1;
constexpr int kChunk = 128;
constexpr size_t kMostBytes = size_t{256} << 20;

// Sums over tokens, around a value near the mean so that squares do not cancel.
struct Moments {
  int64_t count = 0;
  std::vector<double> mean, squares;  // [L, D] running (Welford 1962)

  void Add(int32_t layer, ConstRows x) {
    for (int64_t t = 0; t < x.rows; ++t) {
      const auto n = static_cast<double>(count + t + 1);
      for (int64_t c = 0; c < x.cols; ++c) {
        const auto at = static_cast<size_t>(layer * x.cols + c);
        const double off = x.row(t)[c] - mean[at];
        mean[at] += off / n;
        squares[at] += off * (x.row(t)[c] - mean[at]);
      }
    }
  }
};

class NoSink final : public LogitSink {
  void OnLogits(size_t, LogitRow*) override {}
};

// Passes of one window after the other, whose tape holds what is wanted.
class FeaturePass {
 public:
  FeaturePass(const Model& model, int threads) : model_(model.impl()), config_(model_.config()), threads_(threads), workspace_(config_, kChunk) {
    record_.layers.resize(static_cast<size_t>(config_.layers));
    deltas_ = Deltas::Start(std::make_shared<DeltaLayout>(config_, AllLayers()), 0);
    tape_ = std::make_unique<Tape>(config_, 0, kChunk, false);
    backward_ = std::make_unique<BackwardWorkspace>(config_, kChunk, false);
  }

  Status Open(int64_t positions) {
    Result<std::unique_ptr<kernels::Ops>> ops = kernels::MakeOps("", "", &threads_);
    if (!ops.ok()) return ops.status();
    ops_ = std::move(ops).value();
    if (ops_->on_device()) return Unsupported("activations are measured on the cpu backend, not on {}; unset THERMOE_BACKEND", ops_->name());
    Result<std::unique_ptr<KvCache>> cache = KvCache::Create({config_.layers, config_.kv_heads, config_.head_dim}, positions + kKvBlock);
    if (!cache.ok()) return cache.status();
    cache_ = std::move(cache).value();
    return Status::Ok();
  }

  Status Add(const std::vector<TokenId>& ids, Moments* moments) {
    KvSequence sequence;
    for (size_t begin = 0; begin < ids.size(); begin += kChunk) {
      const auto count = std::min(ids.size() - begin, static_cast<size_t>(kChunk));
      const auto position = static_cast<int32_t>(begin);
      THERMOE_RETURN_IF_ERROR(cache_->Reserve(&sequence, position + static_cast<int32_t>(count)));
      Batch batch;
      for (size_t i = 0; i < count; ++i) {
        batch.rows.push_back({ids[begin + i], &sequence, position + static_cast<int32_t>(i), kernels::RowKind::kPrefill, false, nullptr, -1});
      }
      tape_->Begin(0, static_cast<int64_t>(count), &deltas_, &sequence, position, 0);
      Learning learning{*tape_, *backward_, {}, TttObjective::kFeatureAlignment};
      NoSink nobody;
      StepContext step{config_, model_.loaded().weights, model_.experts(), *ops_, *cache_, nullptr, batch, workspace_, record_, nobody};
      step.learning = &learning;
      Forward(step);
      for (int32_t layer = 0; layer < config_.layers; ++layer) {
        std::vector<float>& kept = layer + 1 < config_.layers ? tape_->layer(layer + 1).x : tape_->output;
        moments->Add(layer, tape_->View(kept, config_.hidden));
      }
      moments->count += static_cast<int64_t>(count);
      cache_->Commit(&sequence, position + static_cast<int32_t>(count));
    }
    cache_->Release(&sequence);
    return Status::Ok();
  }

 private:
  // Deltas of zero that keep every layer on the tape.
  static TttOptions AllLayers() {
    TttOptions options;
    options.groups = {{DeltaGroup::kResidualBias, 0, 0}};
    return options;
  }

  const ModelImpl& model_;
  const ModelConfig& config_;
  ThreadPool threads_;
  Workspace workspace_;
  StepRecord record_;
  Deltas deltas_;
  std::unique_ptr<Tape> tape_;
  std::unique_ptr<BackwardWorkspace> backward_;
  std::unique_ptr<kernels::Ops> ops_;
  std::unique_ptr<KvCache> cache_;
};

}  // namespace

Result<FeatureStatistics> MeasureFeatures(const Model& model, const std::vector<std::vector<TokenId>>& windows, int threads,
                                          const std::function<bool(double)>& progress) try {
  const ModelConfig& config = model.impl().config();
  size_t longest = 0, total = 0, done = 0;
  for (const std::vector<TokenId>& window : windows) {
    longest = std::max(longest, window.size());
    total += window.size();
    for (const TokenId id : window) {
      if (id < 0 || id >= config.vocab) return InvalidArgument("token id {} is outside the vocabulary of {}", id, config.vocab);
    }
  }
  if (total == 0) return InvalidArgument("there are no tokens to measure activations on; give some text");
  if (longest > static_cast<size_t>(config.context)) {
    return InvalidArgument("a window of {} tokens is longer than the model's context of {}; choose a smaller one", longest, config.context);
  }
  FeaturePass pass(model, threads);
  THERMOE_RETURN_IF_ERROR(pass.Open(static_cast<int64_t>(longest)));
  const auto cells = static_cast<size_t>(config.layers) * static_cast<size_t>(config.hidden);
  Moments moments{0, std::vector<double>(cells), std::vector<double>(cells)};
  for (const std::vector<TokenId>& window : windows) {
    if (progress != nullptr && !progress(static_cast<double>(done) / static_cast<double>(total))) {
      return Status(StatusCode::kCancelled, "stopped");
    }
    THERMOE_RETURN_IF_ERROR(pass.Add(window, &moments));
    done += window.size();
  }
  FeatureStatistics features{config.layers, config.hidden, std::vector<float>(cells), std::vector<float>(cells)};
  for (size_t i = 0; i < cells; ++i) {
    features.mean[i] = static_cast<float>(moments.mean[i]);
    features.variance[i] = static_cast<float>(moments.squares[i] / static_cast<double>(moments.count));
  }
  return features;
} catch (const std::bad_alloc&) {
  return ResourceExhausted("memory ran out while activations were measured; use a shorter window");
}

Status WriteFeatures(const std::string& path, const std::string& model_identity, const FeatureStatistics& features) {
  ordered_json json;
  json["schema_version"] = kSchemaVersion;
  json["kind"] = "thermoe-features";
  json["model"] = model_identity;
  json["layers"] = features.layers;
  json["hidden"] = features.hidden;
  json["mean"] = features.mean;
  json["variance"] = features.variance;
  return ReplaceFile(path, json.dump() + "\n");
}

Result<std::shared_ptr<const FeatureStatistics>> ReadFeatures(const std::string& path, const std::string& model_identity, int32_t layers,
                                                              int32_t hidden) try {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) return NotFound("{}: no statistics of activations there; measure them with thermoe calibrate --features", path);
  std::string text;
  for (char piece[1 << 16]; stream && text.size() <= kMostBytes;) {
    stream.read(piece, sizeof(piece));
    text.append(piece, static_cast<size_t>(stream.gcount()));
  }
  const ordered_json json = ordered_json::parse(text, nullptr, false);
  if (!json.is_object() || json.value("kind", "") != "thermoe-features" || json.value("schema_version", 0) != kSchemaVersion) {
    return Corrupt("{}: holds no statistics of activations that this build reads; measure them with thermoe calibrate --features", path);
  }
  if (json.value("model", "") != model_identity) {
    return InvalidArgument("{}: was measured on another model (identity {}) than this one ({}); measure this one", path, json.value("model", ""),
                           model_identity);
  }
  auto features = std::make_shared<FeatureStatistics>();
  features->layers = layers;
  features->hidden = hidden;
  features->mean = json.value("mean", std::vector<float>());
  features->variance = json.value("variance", std::vector<float>());
  const size_t cells = static_cast<size_t>(layers) * static_cast<size_t>(hidden);
  const auto finite = [](float value) { return std::isfinite(value); };
  const auto valid = [&](float value) { return finite(value) && value >= 0; };
  if (features->mean.size() != cells || features->variance.size() != cells ||
      !std::all_of(features->mean.begin(), features->mean.end(), finite) ||
      !std::all_of(features->variance.begin(), features->variance.end(), valid)) {
    return Corrupt("{}: mean and variance must be {} finite numbers each; measure them again", path, cells);
  }
  return std::shared_ptr<const FeatureStatistics>(std::move(features));
} catch (const ordered_json::exception&) {
  return Corrupt("{}: a field has another type than it must have; measure the statistics again", path);
}

}  // namespace thermoe
