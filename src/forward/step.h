// SPDX-License-Identifier: Apache-2.0
// Everything a stage of the forward pass sees, and the stages themselves, each in the file of its name.
#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <vector>

#include "forward/backward/learn.h"
#include "forward/batch.h"
#include "forward/recall.h"
#include "forward/steering.h"
#include "kernels/op_cost.h"
#include "kernels/ops.h"
#include "model/config.h"
#include "model/weights.h"
#include "runtime/expert_store.h"
#include "runtime/kv_cache.h"

namespace thermoe {

// Rows whose logits are computed at once: the weight matrix is decoded once per tile, and a tile of the largest
// vocabulary here (152 k) is 19 MiB.
inline constexpr int kLogitTile = 32;

// Scratch of a forward pass, allocated once for the largest step. T: rows of the step.
class Workspace {
 public:
  Workspace(const ModelConfig& config, int32_t max_rows);
  static int64_t BytesFor(const ModelConfig& config, int32_t max_rows);

  // Tells a backend with memory of its own of all buffers.
  void AdoptBy(kernels::Ops* ops, const ModelConfig& config, int32_t max_rows);
  // A view of the first `rows` rows of a buffer.
  static MutRows View(std::vector<float>& buffer, int64_t rows, int64_t cols) { return {buffer.data(), rows, cols}; }

  std::vector<int32_t> ids;              // [T] set by Embed
  std::vector<KvRow> kv_rows;            // [T] set by Embed
  std::vector<kernels::RowKind> kinds;   // [T] set by Embed
  std::vector<float> inverse_frequency;  // [rope_dim / 2] constant
  std::vector<float> cosines, sines;     // [T, rope_dim / 2] set by Embed
  std::vector<float> x;                  // [T, D] the residual stream
  std::vector<float> h;                  // [T, D] normalised input of a stage, then its output
  std::vector<float> q, attended;        // [T, heads * head_dim]
  std::vector<float> k, v;               // [T, kv_heads * head_dim]
  std::vector<float> gate_logits, scores;  // [T, E]
  std::vector<int32_t> slot_expert;        // [T, K] and so on: see kernels::Selection
  std::vector<float> slot_weight;
  std::vector<Planes> slot_planes;
  std::vector<int32_t> slot_order;
  std::vector<kernels::Selection::Job> jobs;
  std::vector<float> inner, slot_out;    // [T * K, F], [T * K, D]
  std::vector<float> shared_gate, shared_up, shared_scale;  // [T, shared width] twice, [T, 1]
  std::vector<int32_t> picked, asked;  // [kLogitTile] batch rows of a tile of logits, and the tokens that are asked for
  std::vector<kernels::LogitSummary> summaries;  // [kLogitTile]
  std::vector<float> logit_rows, logits;         // [kLogitTile, D], [kLogitTile, V]
  std::vector<float> low_rank;                   // [T, kMaxRank] inner products of low-rank deltas
  // Of rows that pass again (recall.h): set by ChooseRecalled, and what x was before the experts.
  std::vector<uint8_t> recalled;          // [T] 1: keeps what this layer's experts gave it
  std::vector<kernels::RowKind> layer_kinds;  // [T] kinds, recalled rows as padding
  std::vector<float> row_change;          // [T]
  std::vector<int32_t> row_order;         // [T]
  std::vector<float> before, given;       // [T, D], [D]
  kernels::Selection selection;
  // Of the host alone: what the sink wants of a tile of logits, up to kLogitTile, and [kLogitTile] what was drawn of its rows.
  std::vector<kernels::TokenDraw> draws;
  std::vector<kernels::DrawnToken> drawn;

 private:
  Workspace() = default;
  // Calls visit(buffer, elements) for every buffer above that operations see.
  template <typename Visitor>
  static void VisitBuffers(Workspace& ws, const ModelConfig& config, int32_t max_rows, const Visitor& visit);
};

// The logits of one row: what they come to, and all of them for who needs them.
class LogitRow {
 public:
  // `summary`: made by the backend, whose memory has the logits; null: they are on the host. `drawn`: by the backend; null: not.
  LogitRow(const kernels::Ops& ops, std::span<float> logits, const kernels::LogitSummary* summary, const kernels::DrawnToken* drawn, int32_t asked)
      : ops_(ops), logits_(logits), summary_(summary), drawn_(drawn), asked_(asked) {}

  const kernels::LogitSummary* summary() const { return summary_; }  // null: the logits are on the host
  const kernels::DrawnToken* drawn() const { return drawn_; }        // null: the host draws, where a token is wanted
  bool finite() const;                                               // all of them
  float log_sum_exp() const;
  float asked_logprob() const;  // of BatchRow::asked
  std::span<float> all();       // [V]; may be changed

 private:
  const kernels::Ops& ops_;
  std::span<float> logits_;
  const kernels::LogitSummary* summary_;
  const kernels::DrawnToken* drawn_;
  int32_t asked_;
  bool fetched_ = false;
};

// Rows of a step whose logits are made at once.
struct LogitTile {
  size_t rows[kLogitTile] = {};  // of the batch
  size_t count = 0;
  bool summarised = false;  // by the backend, in Workspace::summaries
  bool draws_asked = false;  // the sink has been asked for draws, and the backend for what it wanted
  bool draws = true;         // and it does them

  std::span<const size_t> all() const { return std::span(rows).first(count); }
};

// Receives logits row by row while the step runs.
class LogitSink {
 public:
  virtual ~LogitSink() = default;
  // Before the logits of a tile come, on a backend that may draw: adds those of its rows that a token is to be drawn of, `row` an index into `rows`, which
  // are the batch's. Nothing may change by this: the backend may draw none of them.
  // May be called when the step has been begun, before those that came earlier are finished.
  virtual void WantDraws(std::span<const size_t> /*rows*/, std::vector<kernels::TokenDraw>* /*draws*/) {}
  // `row` is an index into the batch; `logits` lives only during the call.
  virtual void OnLogits(size_t row, LogitRow* logits) = 0;
};

struct StepContext {
  const ModelConfig& config;
  const ModelWeights& weights;
  const ExpertStore& experts;
  const kernels::Ops& ops;
  KvCache& cache;
  const Steering* steering;  // null: the plain model
  const Batch& batch;
  Workspace& ws;
  StepRecord& record;
  LogitSink& sink;
  Learning* learning = nullptr;  // keeps activations of a segment and takes gradients; null: nothing is learnt
  bool recalls = false;          // some row's session keeps what its experts give
  LogitTile inside{};            // whose logits are a part of the step
  // The layers below have been passed, with the same result: x is what the segment's tape has. 0: all of them pass.
  int32_t first_layer = 0;

  int64_t tokens() const { return static_cast<int64_t>(batch.rows.size()); }
  MutRows view(std::vector<float>& buffer, int64_t cols) const { return Workspace::View(buffer, tokens(), cols); }
  MutRows x() const { return view(ws.x, config.hidden); }
  MutRows h() const { return view(ws.h, config.hidden); }
  void Count(const kernels::OpCost& cost);  // adds to the record
  // Where activations of this layer are kept, or null.
  LayerTape* tape(int32_t layer) const {
    return learning != nullptr && learning->tape.keeps(layer) ? &learning->tape.layer(layer) : nullptr;
  }
};

// Adds the time of a scope to a stage.
class StageTimer {
 public:
  explicit StageTimer(double* total_us) : total_us_(total_us), start_(std::chrono::steady_clock::now()) {}
  ~StageTimer() { *total_us_ += std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start_).count(); }
  StageTimer(const StageTimer&) = delete;
  StageTimer& operator=(const StageTimer&) = delete;

 private:
  double* total_us_;
  std::chrono::steady_clock::time_point start_;
};

void SetRows(StepContext& step);                   // what the batch's rows are: tokens, places
void Embed(StepContext& step);                     // x = embedding of the rows' tokens; their rope angles
void Layer(StepContext& step, int32_t layer);      // the three stages below
void Attention(StepContext& step, int32_t layer);  // x += attention(norm(x))
void Gate(StepContext& step, int32_t layer);       // h = norm(x); selection = choice of experts for h
void Experts(StepContext& step, int32_t layer);    // x += experts(h)
void LogitsInside(StepContext& step);              // of step.inside, as a part of the step
void DrawInside(StepContext& step);                // behind it: tokens of step.inside that are drawn
void Logits(StepContext& step);                    // to the sink, for the rows that want them
// Of the step's rows, if all of them want logits and fit a tile: logits may be a part of such a step. The device is told of them. Empty: they do not.
LogitTile WholeStep(StepContext& step);

// Deltas of the rows' sessions, on rows of `rows` that belong to batch rows 0, 1, ... (deltas.h has the groups).
void ApplyGain(StepContext& step, DeltaGroup group, int32_t layer, MutRows rows);  // rows *= 1 + gain
void ApplyBias(StepContext& step, DeltaGroup group, int32_t layer, MutRows rows);  // rows += bias
void ApplyLowRank(StepContext& step, DeltaGroup group, int32_t layer, MutRows x, MutRows y);  // y += (x A) B
void ApplyScale(StepContext& step, int32_t layer);  // weights of the selection's slots *= exp(scale)
// The same for a tile of rows picked out of the batch: row i belongs to batch row batch_rows[i].
void ApplyToLogits(StepContext& step, std::span<const size_t> batch_rows, MutRows h, MutRows logits);
void ApplyToOutput(StepContext& step, std::span<const size_t> batch_rows, MutRows h);

// One pass over the batch. The caller has reserved KV positions and commits them afterwards.
void Forward(StepContext& step);
// The same in two parts: what is computed, and what comes of it to the sink and the record. ahead: Residency::BeginStep.
void BeginForward(StepContext& step, bool ahead = false);
void FinishForward(StepContext& step);

}  // namespace thermoe
