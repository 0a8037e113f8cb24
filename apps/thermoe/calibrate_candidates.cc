// SPDX-License-Identifier: Apache-2.0
#include "calibrate_candidates.h"

#include <algorithm>

namespace thermoe {
namespace {

struct Grid {
  const ModelInfo& info;
  std::vector<OperatingPoint> points;

  void Add(const OperatingPoint& point) {
    const int slots = info.expert_slots;
    const auto fits = [&](int count, int least) { return count == kAllSlots || (count >= least && count < slots); };
    if (!fits(point.full_slots, 0) || !fits(point.k0, 1) || !fits(point.k_max, 1)) return;
    const auto same = [&](const OperatingPoint& other) { return other.SameSettings(point); };
    if (std::none_of(points.begin(), points.end(), same)) points.push_back(point);
  }
};

OperatingPoint Point(int full_slots, int k0, float soft_batch, float drop_below_frac) {
  OperatingPoint point;
  point.full_slots = full_slots;
  point.k0 = k0;
  point.soft_batch = soft_batch;
  point.drop_below_frac = drop_below_frac;
  return point;
}

}  // namespace

OperatingPoint CapLayers(const ModelInfo& info, const std::vector<int>& layers) {
  OperatingPoint point;
  point.plane_cap.resize(static_cast<size_t>(info.moe_layers));
  for (const int layer : layers) {
    point.plane_cap[static_cast<size_t>(layer)].assign(static_cast<size_t>(info.experts), uint8_t{1});
  }
  return point;
}

std::vector<OperatingPoint> CandidatePoints(const ModelInfo& info, const std::vector<int>& least_sensitive) {
  Grid grid{info, {}};
  const int all = kAllSlots, slots = info.expert_slots;
  grid.Add({});
  // Precision by slot rank, then batch awareness on top of it: the two cheapest levers.
  grid.Add(Point(0, all, 0, 0));
  grid.Add(Point(0, all, 0.15f, 0));
  grid.Add(Point(1, all, 0, 0));
  grid.Add(Point(2, all, 0, 0));
  grid.Add(Point(0, all, 0.1f, 0));
  grid.Add(Point(0, all, 0.2f, 0));
  grid.Add(Point(1, all, 0.15f, 0));
  grid.Add(Point(0, slots - 1, 0, 0));
  grid.Add(Point(0, slots - 2, 0, 0));
  grid.Add(Point(all, all, 0.1f, 0));
  // The hi plane alone in the layers that mind it least.
  const int layers = static_cast<int>(least_sensitive.size());
  for (const int quarters : {3, 2}) {
    if (layers < 2) break;
    const std::vector<int> capped(least_sensitive.begin(), least_sensitive.begin() + std::max(1, layers * quarters / 4));
    OperatingPoint point = CapLayers(info, capped);
    grid.Add(point);
    point.soft_batch = 0.15f;
    grid.Add(point);
    point.soft_batch = 0;
    point.full_slots = 1;
    grid.Add(point);
  }
  // Fewer slots.
  grid.Add(Point(0, all, 0, 0.05f));
  grid.Add(Point(0, all, 0.1f, 0.05f));
  grid.Add(Point(2, slots - 1, 0, 0));
  grid.Add(Point(all, slots - 2, 0, 0));
  OperatingPoint fewer = Point(0, all, 0, 0);
  fewer.k_max = slots - 1;
  grid.Add(fewer);
  for (const float soft : {0.3f, 0.5f}) grid.Add(Point(0, all, soft, 0));
  grid.Add(Point(0, slots - 3, 0, 0));
  return grid.points;
}

std::vector<OperatingPoint> WorthMore(const std::vector<OperatingPoint>& screened, double slack_nats) {
  const auto near_front = [&](const OperatingPoint& point, PointCost OperatingPoint::* batch) {
    return std::none_of(screened.begin(), screened.end(), [&](const OperatingPoint& other) {
      return (other.*batch).expert_bytes_frac <= (point.*batch).expert_bytes_frac &&
             (other.*batch).loss_nats + slack_nats < (point.*batch).loss_nats;
    });
  };
  std::vector<OperatingPoint> worth;
  for (const OperatingPoint& point : screened) {
    if (near_front(point, &OperatingPoint::batch1) || near_front(point, &OperatingPoint::batch16)) worth.push_back(point);
  }
  return worth;
}

}  // namespace thermoe
