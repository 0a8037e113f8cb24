// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/errors.h"
#include "control/simulate/gate_draw.h"
#include "control/simulate/sim_routers.h"

namespace thermoe {
namespace {

constexpr int32_t kBatch = 16;      // of the second column
constexpr int kDraws = 8;           // of each layer, to price gate mass
constexpr int32_t kMostLayers = 8;  // drawn for it
constexpr uint64_t kSeed = 1;

bool SameSettings(const Steering& a, const Steering& b) {
  if (a.layers.size() != b.layers.size()) return false;
  for (size_t l = 0; l < a.layers.size(); ++l) {
    LayerSteering unbiased = a.layers[l];
    unbiased.selection_bias.clear();
    if (!(unbiased == b.layers[l])) return false;
  }
  return true;
}

bool Exchanges(const OperatingPoint& point) { return point.soft_batch > 0 || point.k0 != kAllSlots; }

// A capped layer whose experts all carry the same cap as `cap` at the same share of the list.
std::vector<uint8_t> Stretched(const std::vector<uint8_t>& cap, size_t experts) {
  std::vector<uint8_t> out(cap.empty() ? 0 : experts);
  for (size_t e = 0; e < out.size(); ++e) out[e] = cap[e * cap.size() / experts];
  return out;
}

}  // namespace

OperatingPoints FitPoints(const OperatingPoints& points, const ModelConfig& config) {
  OperatingPoints fitted = points;
  const auto layers = static_cast<size_t>(config.layers);
  for (OperatingPoint& point : fitted.points) {
    if (point.plane_cap.empty()) continue;
    std::vector<std::vector<uint8_t>> caps(layers);
    for (size_t l = 0; l < layers; ++l) {
      caps[l] = Stretched(point.plane_cap[l * point.plane_cap.size() / layers], static_cast<size_t>(config.experts));
    }
    point.plane_cap = std::move(caps);
  }
  std::erase_if(fitted.points, [&](const OperatingPoint& point) {
    return point.k0 > config.slots || point.k_max > config.slots || point.full_slots > config.slots;
  });
  fitted.layers = config.layers;
  fitted.experts = config.experts;
  fitted.slots = config.slots;
  return fitted;
}

double LossAtBatch(const OperatingPoint& point, double batch) {
  const double at = std::clamp(std::log2(std::max(batch, 1.0)) / std::log2(kBatch), 0.0, 1.0);
  return point.batch1.loss_nats + at * (point.batch16.loss_nats - point.batch1.loss_nats);
}

Result<OperatingPoint> FindPoint(const OperatingPoints& points, const std::string& text) {
  std::vector<std::string> known;
  for (const OperatingPoint& point : points.points) {
    known.push_back(Describe(point));
    if (known.back() == text) return point;
  }
  return NotFound("there is no operating point \"{}\" in the points file; there are: {}", text, fmt::join(known, "; "));
}

PointLoss::PointLoss(OperatingPoints points, const ModelShape& shape, double extra_nats)
    : points_(std::move(points)), slots_(shape.config.slots), extra_nats_(extra_nats) {
  for (const OperatingPoint& point : points_.points) steerings_.push_back(ToSteering(point, points_.layers, 0));
  PriceMass(shape);
}

// Least squares through the origin of the loss that exchanging experts adds on the mass that it loses.
void PointLoss::PriceMass(const ModelShape& shape) {
  GateDraw gate(shape.config, shape.nested, kBatch, kEmberGate, kSeed);
  std::vector<int32_t> rows(kBatch);
  for (int32_t i = 0; i < kBatch; ++i) rows[static_cast<size_t>(i)] = i;
  std::vector<double> mass(points_.points.size());
  LayerRecord record;
  const int32_t layers = std::min(shape.config.layers, kMostLayers);
  for (int draw = 0; draw < kDraws * layers; ++draw) {
    const int32_t layer = draw % layers;
    gate.Draw(layer, rows, 0, nullptr, 0, &record);
    for (size_t i = 0; i < points_.points.size(); ++i) {
      if (!Exchanges(points_.points[i])) continue;
      gate.Reselect(&steerings_[i].layers[static_cast<size_t>(layer)], &record);
      mass[i] += record.gate_mass_lost / (kBatch * kDraws * layers);
    }
  }
  double products = 0, squares = 0;
  for (size_t i = 0; i < points_.points.size(); ++i) {
    OperatingPoint base = points_.points[i];
    if (!Exchanges(base) || base.drop_below_frac > 0 || base.k_max != kAllSlots) continue;
    base.k0 = kAllSlots;
    base.soft_batch = 0;
    for (const OperatingPoint& other : points_.points) {
      if (!other.SameSettings(base)) continue;
      const double loss = points_.points[i].batch16.loss_nats - other.batch16.loss_nats;
      products += mass[i] * loss;
      squares += mass[i] * mass[i];
      break;
    }
  }
  nats_per_mass_ = squares > 0 ? std::max(0.0, products / squares) : 0;
}

const OperatingPoint* PointLoss::Find(const Steering& steering) const {
  for (size_t i = 0; i < steerings_.size(); ++i) {
    if (SameSettings(steering, steerings_[i])) return &points_.points[i];
  }
  return nullptr;
}

double PointLoss::OfSettings(const Steering* steering, double batch) const {
  if (steering == nullptr || steering->layers.empty()) return extra_nats_;
  const OperatingPoint* point = Find(*steering);
  // Settings that nobody measured cannot be priced: not a number, which the results show as unknown.
  return point == nullptr ? std::nan("") : extra_nats_ + LossAtBatch(*point, batch);
}

std::string PointLoss::TextOf(const Steering* steering) const {
  if (steering == nullptr || steering->layers.empty()) return "plain";
  const OperatingPoint* point = Find(*steering);
  return point == nullptr ? "settings without a measured loss" : Describe(*point);
}

}  // namespace thermoe
