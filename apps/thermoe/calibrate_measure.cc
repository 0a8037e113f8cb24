// SPDX-License-Identifier: Apache-2.0
#include "calibrate_measure.h"

#include <cmath>
#include <memory>
#include <utility>

#include "base/errors.h"

namespace thermoe {
namespace {

// Means over texts; bytes as the ratio of sums, so that a text counts by what it reads.
PointCost CostOf(const std::vector<Scores>& scores, const std::vector<Scores>& plain, double (ExpertUse::*bytes)() const) {
  PointCost cost;
  double read = 0, plain_read = 0, squares = 0;
  const auto texts = static_cast<double>(scores.size());
  for (size_t i = 0; i < scores.size(); ++i) {
    const Change change = PairedChange(scores[i], plain[i]);
    cost.text_loss_nats.push_back(change.mean_nats);
    cost.loss_nats += change.mean_nats / texts;
    if (!std::isnan(change.error_nats)) squares += change.error_nats * change.error_nats;
    read += (scores[i].use.*bytes)();
    plain_read += (plain[i].use.*bytes)();
  }
  cost.loss_error_nats = std::sqrt(squares) / texts;
  cost.expert_bytes_frac = read / plain_read;
  return cost;
}

}  // namespace

int64_t PointMeter::predictions() const {
  int64_t total = 0;
  for (const auto& text : windows_) {
    for (const EvalWindow& window : text) total += static_cast<int64_t>(window.ids.size()) - 1;
  }
  return total;
}

Result<std::vector<Scores>> PointMeter::Score(const OperatingPoint* point, bool prefill, const ScoreProgress& progress) {
  std::shared_ptr<const Steering> steering;
  if (point != nullptr) {
    steering = std::make_shared<const Steering>(ToSteering(*point, engine_->model().info().moe_layers, 1));
  }
  THERMOE_RETURN_IF_ERROR(engine_->SetSteering(steering));
  std::vector<Scores> all;
  int64_t before = 0;
  for (const auto& text : windows_) {
    const ScoreProgress shifted = [&](int64_t done) { progress(before + done); };
    Result<Scores> scores = prefill ? ScoreByPrefill(engine_, text, shifted)
                                    : ScoreByDecode(engine_, text, kCalibrationBatch, shifted);
    if (!scores.ok()) return scores.status();
    before += scores->tokens();
    all.push_back(std::move(*scores));
  }
  return all;
}

Status PointMeter::Measure(OperatingPoint* point, const OperatingPoint* alone, const ScoreProgress& progress) {
  if (plain_.empty()) {
    Result<std::vector<Scores>> plain = Score(nullptr, /*prefill=*/false, progress);
    if (!plain.ok()) return plain.status();
    plain_ = std::move(*plain);
  }
  const bool is_plain = point->SameSettings(OperatingPoint());
  Result<std::vector<Scores>> measured = std::vector<Scores>();
  if (!is_plain) measured = Score(point, /*prefill=*/false, progress);
  if (!measured.ok()) return measured.status();
  const std::vector<Scores>& scores = is_plain ? plain_ : *measured;
  point->windows = static_cast<int>(windows_.front().size());
  point->batch16 = CostOf(scores, plain_, &ExpertUse::ExpertsReadPerStep);
  point->batch1 = alone != nullptr ? alone->batch1 : CostOf(scores, plain_, &ExpertUse::ExpertsReadPerToken);
  return Status::Ok();
}

Result<double> PointMeter::PrefillLoss(const OperatingPoint& point, const ScoreProgress& progress) {
  if (plain_prefill_.empty()) {
    Result<std::vector<Scores>> plain = Score(nullptr, /*prefill=*/true, progress);
    if (!plain.ok()) return plain.status();
    plain_prefill_ = std::move(*plain);
  }
  const Result<std::vector<Scores>> scores = Score(&point, /*prefill=*/true, progress);
  if (!scores.ok()) return scores.status();
  return CostOf(*scores, plain_prefill_, &ExpertUse::ExpertsReadPerToken).loss_nats;
}

}  // namespace thermoe
