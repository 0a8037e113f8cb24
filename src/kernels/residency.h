// SPDX-License-Identifier: Apache-2.0
// The part of a backend that concerns where operands are. Host backends compute in place and have nothing to do here. A backend on a
// device has memory of its own: operands are named by host addresses all the same, those of adopted buffers and of resident weights
// standing for its copies. Operations may then be under way when a call returns; what they wrote is on the host after Fetch.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "base/mapped_file.h"
#include "base/views.h"
#include "kernels/what_fits.h"
#include "model/config.h"
#include "model/weights.h"
#include "runtime/kv_layout.h"
#include "thermoe/status.h"
#include "thermoe/steering.h"

namespace thermoe::kernels {

// Rows picked out of a matrix, side by side.
struct GatherArgs {
  ConstRows x;                      // [T, D]
  std::span<const int32_t> picked;  // [rows] of x; in host memory, published where it is adopted
  MutRows out;                      // [rows, D]
};

// What angles a step's rows turn by.
struct AnglesArgs {
  std::span<const KvRow> rows;               // [T] their positions
  std::span<const float> inverse_frequency;  // [rope_dim / 2] radians a position
  MutRows cosines, sines;                    // [T, rope_dim / 2]
};

// As a token of Embed, in a step begun ahead (BeginStep): the largest logit of the same row of the newest Summarise, which the host does not know yet.
inline constexpr int32_t kLargestBefore = -1;
inline constexpr int32_t kMostAhead = 32;  // rows of a step begun ahead

// What a row of logits comes to, where nobody needs all of it.
struct LogitSummary {
  float log_sum_exp = 0;
  int32_t best = 0;  // the largest that is a number; the first of equals
  float best_logit = 0;
  float asked_logit = 0;  // of the token that was asked for
  bool finite = true;     // all of them
};
struct SummariseArgs {
  ConstRows logits;                // [rows, V]
  std::span<const int32_t> asked;  // [rows] a token, or -1; in host memory, published where it is adopted
  std::span<LogitSummary> out;     // [rows], in host memory, there after FinishSummaries
};

// What an engine takes beside the model.
struct StepSizes {
  int64_t kv_positions = 0;   // of all sequences, in whole blocks
  int64_t step_bytes = 0;     // of the buffers that will be adopted
  int32_t max_rows = 0;       // of a step
  int32_t max_sequences = 0;  // in a step
  int32_t context = 0;        // positions of a sequence
};

// A model before it is read: shapes and types count, no weight does.
struct PlannedModel {
  const ModelConfig& config;
  const ModelWeights& weights;
  std::span<const std::span<const FfnWeights>> experts;  // [L][E]
  bool nested = false;                                   // experts will be kNested8, whatever they are now
};

// A token to be drawn of a row of logits; Sampler (forward/sample.h) is the specification of how.
struct TokenDraw {
  int64_t row = 0;                   // of the logits
  float temperature = 0;             // 0: the largest, after the penalty
  int32_t top_k = 0;                 // 0: all
  float top_p = 1, min_p = 0;        // 1, 0: all
  float repetition_penalty = 1;      // 1: none
  std::span<const int32_t> recent;   // tokens in [0, V) that it acts on, once however often they are there; in host memory
  double uniform = 0;                // in [0, 1): how far down the tokens left, in order of their ids, by probability
};
struct DrawnToken {
  int32_t token = -1;         // -1: none was drawn
  float logit = 0;            // before the penalty
  bool used_uniform = false;  // not at temperature 0, and where an infinite logit or none that is a number leaves no choice
};
struct DrawArgs {
  ConstRows logits;                  // [rows, V] of the newest Summarise; as they were, afterwards
  std::span<const TokenDraw> draws;  // each of another row
  std::span<DrawnToken> out;         // [rows], in host memory, there after FinishSummaries; of other rows as it was
};

// What a backend with memory of its own holds for an engine.
struct ResidentModel {
  const ModelConfig& config;
  const ModelWeights& weights;
  std::span<const std::span<const FfnWeights>> experts;  // [L][E], in the storage they are used in
  KvPool kv;
  int64_t step_bytes = 0;     // of the buffers that will be adopted
  int32_t max_rows = 0;       // of a step
  int32_t max_sequences = 0;  // in a step
  int32_t context = 0;        // positions of a sequence
  std::span<const MappedFile> files = {};  // where weights may lie
};

// Operations that are done again and again to be measured.
class MeasuredStep {
 public:
  virtual ~MeasuredStep() = default;
  // Does them `times` times and waits; microseconds of once, by the device's clock where it has one.
  virtual double Run(int times) = 0;
};

// How Hold's weights came onto the device.
struct LoadFacts {
  int64_t bytes = 0;         // of weights, as the file or the host has them
  double seconds = 0;        // from the first to the last, packing included
  double read_seconds = 0;   // of these, while the host read them
  double link_bytes_per_s = 0;  // what the link does when nothing else is done, at least what loading reached; 0: nothing was loaded
};

class Residency {
 public:
  virtual ~Residency() = default;

  // Whether the device has room for the model and an engine of this size, which takes what `sizes` says. kResourceExhausted says what is
  // needed, what is free, what would fit and which flag asks for that.
  virtual Status CheckFits(const PlannedModel&, const EngineSize&, const std::function<StepSizes(const EngineSize&)>& /*sizes*/) const {
    return Status::Ok();
  }
  // Puts weights, keys and values on the device. kResourceExhausted, kUnsupported.
  virtual Status Hold(const ResidentModel&) { return Status::Ok(); }
  // From here on operations see the device's copy of this buffer (not the host's contents).
  virtual void Adopt(std::span<std::byte> /*buffer*/) {}
  // The host has written these bytes of an adopted buffer; not called between BeginStep and EndStep.
  virtual void Publish(std::span<const std::byte> /*bytes*/) const {}
  // Waits for all operations so far and brings these bytes of an adopted buffer to the host.
  virtual void Fetch(std::span<std::byte> /*bytes*/) const {}
  // Copies keys or values inside the pool.
  virtual void CopyKv(float* to, const float* from, int64_t floats) const { std::copy_n(from, floats, to); }
  // Places of the rows of the next step, and the steering of all its layers (null: plain), which record what they did
  // in `records`.
  virtual void SetRows(std::span<const KvRow> /*rows*/) const {}
  virtual void SetSteering(const Steering* /*steering*/, std::span<LayerRecord> /*records*/) const {}
  // Operations between the two are the same as last time with this key (0: never): a backend may have them as a graph.
  // ahead: the step before has ended but is not finished. FinishSummaries and then FinishRecords are of that one the first time, of this one
  // the second; BeginStep without `ahead` before that leaves this one to nobody. Of steps of up to kMostAhead rows that both end with Summarise, where overlaps_steps().
  virtual void BeginStep(uint64_t /*key*/, bool /*ahead*/ = false) const {}
  virtual void EndStep() const {}
  // Whether a step may be begun ahead.
  virtual bool overlaps_steps() const { return false; }
  // Waits until `records` of SetSteering are filled.
  virtual void FinishRecords() const {}
  // kInternal once the device has failed: nothing computed since is of use.
  virtual Status Health() const { return Status::Ok(); }
  // What `record` calls, as a step: a graph where steps are graphs. Its operands must be adopted or resident, outlive the result and have
  // no other use while it runs.
  virtual std::unique_ptr<MeasuredStep> Measure(std::function<void()> record) const;
  // Of a key's or value's element, as it lies in the pool.
  virtual int32_t kv_element_bytes() const { return sizeof(float); }
  // Whether operations run on a device with memory of its own.
  virtual bool on_device() const { return false; }
  virtual LoadFacts load_facts() const { return {}; }
  // Bytes a second that the device reads of its own memory, measured now; 0 of the host, and where it cannot be.
  virtual double MeasureReadSpeed() const { return 0; }
  // Its name, "" for the host, and the telemetry source that shows it (EngineOptions::telemetry).
  virtual std::string device_name() const { return ""; }
  virtual std::string sensors() const { return "linux"; }

  virtual void Gather(const GatherArgs& args) const {
    for (int64_t i = 0; i < args.out.rows; ++i) std::copy_n(args.x.row(args.picked[static_cast<size_t>(i)]), args.out.cols, args.out.row(i));
  }
  virtual void Angles(const AnglesArgs& args) const;
  // False: not done here, the caller reads the logits itself.
  virtual bool Summarise(const SummariseArgs& /*args*/) const { return false; }
  // After Summarise, before FinishSummaries. False: not done here, the caller draws itself. A token differs from the specification's where sums of
  // probabilities lie within 1e-6 of what they are compared with; it depends on the row and its draw alone.
  virtual bool DrawTokens(const DrawArgs& /*args*/) const { return false; }
  // Waits until `out` of the newest Summarise (BeginStep: or of the one before), and of a DrawTokens after it, is filled.
  virtual void FinishSummaries() const {}
  // Whether FinishSummaries would not wait.
  virtual bool SummariesAreThere() const { return true; }
};

}  // namespace thermoe::kernels
