// SPDX-License-Identifier: Apache-2.0
#include "support/float64_model.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"

namespace thermoe::testing {
namespace {

using Row = std::vector<double>;

// Eight partial sums, so that the compiler may use vector instructions.
double Dot(const float* w, const double* x, int64_t n) {
  double sums[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int j = 0; j < 8; ++j) sums[j] += w[i + j] * x[i + j];
  }
  for (; i < n; ++i) sums[0] += w[i] * x[i];
  return std::accumulate(std::begin(sums), std::end(sums), 0.0);
}

Row Normalised(const Row& x, const std::vector<float>& gain, double epsilon) {
  Row out(x.size());
  for (size_t begin = 0; begin < x.size(); begin += gain.size()) {
    double squares = 0;
    for (size_t i = 0; i < gain.size(); ++i) squares += x[begin + i] * x[begin + i];
    const double scale = 1 / std::sqrt(squares / static_cast<double>(gain.size()) + epsilon);
    for (size_t i = 0; i < gain.size(); ++i) out[begin + i] = x[begin + i] * scale * gain[i];
  }
  return out;
}

Row Softmax(Row x) {
  const double most = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (double& value : x) sum += value = std::exp(value - most);
  for (double& value : x) value /= sum;
  return x;
}

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

}  // namespace

Float64Model::Matrix Float64Model::Decode(const WeightMatrix& weight, Planes planes) {
  Matrix matrix{weight.rows, weight.cols, std::vector<float>(static_cast<size_t>(weight.rows * weight.cols))};
  for (int64_t r = 0; r < weight.rows; ++r) DecodeRow(weight, r, planes, matrix.values.data() + r * weight.cols);
  return matrix;
}

Float64Model::Expert Float64Model::Decode(const FfnWeights& weights, Planes planes) {
  if (weights.gate.empty()) return {};
  return {Decode(weights.gate, planes), Decode(weights.up, planes), Decode(weights.down, planes)};
}

Float64Model::Float64Model(const ModelImpl& model)
    : model_(model),
      embedding_(Decode(model.loaded().weights.embedding)),
      output_(Decode(model.loaded().weights.output)) {
  const bool nested = model.experts().storage() == ExpertStorage::kNested;
  for (int32_t l = 0; l < model.config().layers; ++l) {
    const LayerWeights& weights = model.loaded().weights.layers[static_cast<size_t>(l)];
    Layer layer{Decode(weights.q),
                Decode(weights.k),
                Decode(weights.v),
                Decode(weights.o),
                Decode(weights.gate),
                {},
                Decode(weights.shared),
                {},
                {}};
    if (!weights.shared_gate.empty()) layer.shared_gate = Decode(weights.shared_gate);
    for (const FfnWeights& expert : model.experts().layer(l)) {
      layer.experts.push_back(Decode(expert));
      if (nested) layer.experts_hi.push_back(Decode(expert, Planes::kHi));
    }
    layers_.push_back(std::move(layer));
  }
}

// One evaluation.
class Float64Model::Pass {
 public:
  Pass(const Float64Model& model, const Float64Segment& segment, std::span<const double> deltas)
      : model_(model),
        config_(model.model_.config()),
        weights_(model.model_.loaded().weights),
        segment_(segment),
        deltas_(deltas) {}

  double Run() {
    for (const int32_t id : segment_.ids) {
      const float* row = model_.embedding_.values.data() + id * int64_t{config_.hidden};
      x_.emplace_back(row, row + config_.hidden);
    }
    for (int32_t layer = 0; layer < config_.layers; ++layer) {
      Attention(layer);
      for (size_t t = 0; t < x_.size(); ++t) Experts(layer, t);
      if (segment_.features != nullptr) AlignFeatures(layer);
    }
    return segment_.objective == TttObjective::kFeatureAlignment ? loss_ : MeanLoss();
  }

 private:
  // A delta's values, or null where the layout does not have it.
  const double* Find(DeltaGroup group, int32_t layer, DeltaPart part = DeltaPart::kWhole) const {
    const DeltaTensor* tensor = segment_.layout->Find(group, layer, part);
    return tensor == nullptr ? nullptr : deltas_.data() + tensor->offset;
  }

  void Add(DeltaGroup group, int32_t layer, Row* x) const {
    const double* bias = Find(group, layer);
    for (size_t i = 0; bias != nullptr && i < x->size(); ++i) (*x)[i] += bias[i];
  }

  Row NormWithGain(const Row& x, const std::vector<float>& weight, DeltaGroup group, int32_t layer) const {
    Row h = Normalised(x, weight, config_.norm_epsilon);
    const double* gain = Find(group, layer);
    for (size_t i = 0; gain != nullptr && i < h.size(); ++i) h[i] *= 1 + gain[i];
    return h;
  }

  static Row Times(const Matrix& w, const Row& x) {
    Row y(static_cast<size_t>(w.rows));
    for (int64_t r = 0; r < w.rows; ++r)
      y[static_cast<size_t>(r)] = Dot(w.values.data() + r * w.cols, x.data(), w.cols);
    return y;
  }

  // W x + bias + (x A) B with A kept as [r, in] and B as [r, out].
  Row Project(const Matrix& w, const std::vector<float>& bias, const Row& x, DeltaGroup group, int32_t layer) const {
    Row y = Times(w, x);
    for (size_t i = 0; i < bias.size(); ++i) y[i] += bias[i];
    const double *a = Find(group, layer, DeltaPart::kA), *b = Find(group, layer, DeltaPart::kB);
    for (int32_t r = 0; a != nullptr && r < segment_.layout->rank(); ++r) {
      double inner = 0;
      for (size_t i = 0; i < x.size(); ++i) inner += x[i] * a[static_cast<size_t>(r) * x.size() + i];
      for (size_t i = 0; i < y.size(); ++i) y[i] += inner * b[static_cast<size_t>(r) * y.size() + i];
    }
    return y;
  }

  void Clamp(Row* x) const {
    const double limit = config_.attention.clip_qkv;
    for (double& value : *x) value = limit > 0 ? std::clamp(value, -limit, limit) : value;
  }

  void Turn(Row* x, int32_t position) const {
    const int32_t dim = config_.head_dim, turning = config_.attention.rope_dim;
    const bool halves = config_.attention.rope == RopeKind::kHalves;
    for (size_t head = 0; head < x->size(); head += static_cast<size_t>(dim)) {
      for (int32_t i = 0; i < turning / 2; ++i) {
        const double angle = position * std::pow(static_cast<double>(config_.attention.rope_theta), -2.0 * i / turning);
        double& a = (*x)[head + static_cast<size_t>(halves ? i : 2 * i)];
        double& b = (*x)[head + static_cast<size_t>(halves ? i + turning / 2 : 2 * i + 1)];
        const double turned = a * std::cos(angle) - b * std::sin(angle);
        b = b * std::cos(angle) + a * std::sin(angle);
        a = turned;
      }
    }
  }

  void Attention(int32_t layer) {
    const LayerWeights& weights = weights_.layers[static_cast<size_t>(layer)];
    const Layer& matrices = model_.layers_[static_cast<size_t>(layer)];
    const bool normed = config_.attention.qk_norm != QkNorm::kNone;
    const int32_t past = segment_.past == nullptr ? 0 : segment_.past->positions;
    const int64_t kv_width = int64_t{config_.kv_heads} * config_.head_dim;
    Rows keys, values;
    for (int32_t i = 0; i < past; ++i) {
      const auto at = static_cast<std::ptrdiff_t>(i * kv_width);
      const auto& k = segment_.past->keys[static_cast<size_t>(layer)];
      const auto& v = segment_.past->values[static_cast<size_t>(layer)];
      keys.emplace_back(k.begin() + at, k.begin() + at + kv_width);
      values.emplace_back(v.begin() + at, v.begin() + at + kv_width);
    }
    for (size_t t = 0; t < x_.size(); ++t) {
      const int32_t position = past + static_cast<int32_t>(t);
      const Row h = NormWithGain(x_[t], weights.attention_norm, DeltaGroup::kAttentionGain, layer);
      Row q = Project(matrices.q, weights.q_bias, h, DeltaGroup::kLowRankQ, layer);
      Row k = Project(matrices.k, weights.k_bias, h, DeltaGroup::kLowRankK, layer);
      Row v = Project(matrices.v, weights.v_bias, h, DeltaGroup::kLowRankV, layer);
      if (normed) {
        q = Normalised(q, weights.q_norm, config_.norm_epsilon);
        k = Normalised(k, weights.k_norm, config_.norm_epsilon);
      }
      for (Row* part : {&q, &k, &v}) Clamp(part);
      for (Row* part : {&q, &k}) Turn(part, position);
      keys.push_back(std::move(k));
      values.push_back(std::move(v));
      const Row out = Project(matrices.o, {}, Attend(q, keys, values), DeltaGroup::kLowRankO, layer);
      for (size_t i = 0; i < out.size(); ++i) x_[t][i] += out[i];
    }
  }

  Row Attend(const Row& q, const Rows& keys, const Rows& values) const {
    const auto dim = static_cast<size_t>(config_.head_dim);
    Row out(q.size());
    for (size_t head = 0; head < static_cast<size_t>(config_.heads); ++head) {
      const size_t from = head / static_cast<size_t>(config_.heads / config_.kv_heads) * dim;
      Row p(keys.size());
      for (size_t i = 0; i < keys.size(); ++i) {
        p[i] = std::inner_product(q.begin() + static_cast<std::ptrdiff_t>(head * dim),
                                  q.begin() + static_cast<std::ptrdiff_t>((head + 1) * dim),
                                  keys[i].begin() + static_cast<std::ptrdiff_t>(from), 0.0) /
               std::sqrt(static_cast<double>(dim));
      }
      p = Softmax(std::move(p));
      for (size_t i = 0; i < keys.size(); ++i) {
        for (size_t d = 0; d < dim; ++d) out[head * dim + d] += p[i] * values[i][from + d];
      }
    }
    return out;
  }

  // The K best of the model's own scores, ties to the lower index.
  std::vector<int32_t> Best(const Row& scores) const {
    std::vector<int32_t> order(scores.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      return scores[static_cast<size_t>(a)] > scores[static_cast<size_t>(b)];
    });
    order.resize(static_cast<size_t>(config_.slots));
    return order;
  }

  static Row Feed(const Expert& expert, const Row& h) {
    Row gate = Times(expert.gate, h);
    const Row up = Times(expert.up, h);
    for (size_t i = 0; i < gate.size(); ++i) gate[i] *= Sigmoid(gate[i]) * up[i];
    return Times(expert.down, gate);
  }

  void Experts(int32_t layer, size_t t) {
    const Layer& matrices = model_.layers_[static_cast<size_t>(layer)];
    const Row h =
        NormWithGain(x_[t], weights_.layers[static_cast<size_t>(layer)].expert_norm, DeltaGroup::kExpertGain, layer);
    Row scores = Project(matrices.gate, {}, h, DeltaGroup::kLowRankGate, layer);
    Add(DeltaGroup::kRouterShift, layer, &scores);
    scores = Softmax(std::move(scores));
    const std::vector<int32_t> plain = Best(scores);
    std::vector<int32_t> chosen = plain;
    const auto slots = static_cast<std::ptrdiff_t>(config_.slots);
    if (segment_.held != nullptr) {
      const auto begin =
          segment_.held->expert[static_cast<size_t>(layer)].begin() + static_cast<std::ptrdiff_t>(t) * slots;
      chosen.assign(begin, begin + slots);
    }
    const auto mass_of = [&](const std::vector<int32_t>& experts) {
      double mass = 0;
      for (const int32_t e : experts) mass += e < 0 ? 0 : scores[static_cast<size_t>(e)];
      return mass;
    };
    const double scale = (config_.gate.normalise ? 1 : mass_of(plain)) / mass_of(chosen);
    const double* log_scale = Find(DeltaGroup::kExpertScale, layer);
    Row out(h.size());
    for (size_t slot = 0; slot < chosen.size() && chosen[slot] >= 0; ++slot) {
      const auto e = static_cast<size_t>(chosen[slot]);
      const bool hi =
          segment_.held != nullptr && !matrices.experts_hi.empty() &&
          segment_.held->planes[static_cast<size_t>(layer)][t * static_cast<size_t>(slots) + slot] == Planes::kHi;
      const Row y = Feed((hi ? matrices.experts_hi : matrices.experts)[e], h);
      const double weight = scores[e] * scale * (log_scale == nullptr ? 1 : std::exp(log_scale[e]));
      for (size_t i = 0; i < out.size(); ++i) out[i] += weight * y[i];
    }
    if (config_.shared_width > 0) {
      const Row y = Feed(matrices.shared, h);
      const double weight = config_.shared_gate ? Sigmoid(Times(matrices.shared_gate, h)[0]) : 1;
      for (size_t i = 0; i < out.size(); ++i) out[i] += weight * y[i];
    }
    Add(DeltaGroup::kResidualBias, layer, &out);
    for (size_t i = 0; i < out.size(); ++i) x_[t][i] += out[i];
  }

  void AlignFeatures(int32_t layer) {
    const auto rows = static_cast<double>(x_.size()), width = static_cast<double>(config_.hidden);
    for (size_t c = 0; c < static_cast<size_t>(config_.hidden); ++c) {
      double mean = 0, square = 0;
      for (const Row& x : x_) mean += x[c] / rows;
      for (const Row& x : x_) square += (x[c] - mean) * (x[c] - mean) / rows;
      const size_t at = static_cast<size_t>(layer) * static_cast<size_t>(config_.hidden) + c;
      const double stored = segment_.features->variance[at] + 1e-6;
      const double off = mean - segment_.features->mean[at], wide = std::sqrt(square + 1e-6) - std::sqrt(stored);
      loss_ += (off * off + wide * wide) / stored / width / config_.layers;
    }
  }

  double MeanLoss() const {
    double sum = 0;
    int rows = 0;
    for (size_t t = 0; t < x_.size(); ++t) {
      if (segment_.targets[t] < 0) continue;
      Row h = NormWithGain(x_[t], weights_.output_norm, DeltaGroup::kOutputGain, 0);
      Add(DeltaGroup::kHiddenBias, 0, &h);
      Row p = Project(model_.output_, {}, h, DeltaGroup::kLowRankOutput, 0);
      Add(DeltaGroup::kOutputBias, 0, &p);
      p = Softmax(std::move(p));
      double loss = 0;
      if (segment_.objective == TttObjective::kEntropy) {
        for (const double value : p) loss -= value > 0 ? value * std::log(value) : 0;
      } else if (segment_.objective == TttObjective::kNll) {
        loss = -std::log(p[static_cast<size_t>(segment_.targets[t])]);
      } else {
        const double best = *std::max_element(p.begin(), p.end());
        if (best < segment_.confidence) continue;
        loss = -std::log(best);
      }
      sum += loss;
      ++rows;
    }
    THERMOE_CHECK(rows > 0);
    return sum / rows;
  }

  const Float64Model& model_;
  const ModelConfig& config_;
  const ModelWeights& weights_;
  const Float64Segment& segment_;
  std::span<const double> deltas_;
  Rows x_;
  double loss_ = 0;
};

double Float64Model::Loss(const Float64Segment& segment, std::span<const double> deltas) const {
  THERMOE_CHECK(segment.targets.size() == segment.ids.size() &&
                static_cast<int64_t>(deltas.size()) == segment.layout->size());
  return Pass(*this, segment, deltas).Run();
}

}  // namespace thermoe::testing
