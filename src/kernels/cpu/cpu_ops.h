// SPDX-License-Identifier: Apache-2.0
// The CPU backend: splits each operation into tasks for the thread team; the kernels are one table per instruction set.
// How work is split never changes a result: a task is whole output rows (kernel_table.h).
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/scratch.h"
#include "kernels/ops.h"
#include "runtime/threads.h"

namespace thermoe::kernels::cpu {

// Work below this is done by the calling thread. A fork and join of two awake threads takes about 0.5 us (measured as the cost of
// operations on either side of a limit), so work of 1 to 2 us is as fast on both sides: no step in the cost of a larger one. Multiply-adds
// of a product are some 80 a nanosecond, those of attention, with its exponentials, 25; row operations take 0.07 ns an element.
inline constexpr int64_t kForkMultiplyAdds = 98304;
inline constexpr int64_t kForkAttention = 40960;
inline constexpr int64_t kForkElements = 20480;
// The integer kernels do some 300 a nanosecond from L2, and 30 from memory.
inline constexpr int64_t kForkIntMultiplyAdds = 262144;

// How the rows of a matrix are cut into tasks.
struct TilePlan {
  int64_t rows = 0;   // of a tile; the last may have fewer
  int64_t tiles = 0;  // of a matrix
};
// For `matrices` like this one, which are multiplied at the same time.
TilePlan PlanTiles(int threads, const WeightMatrix& matrix, int64_t matrices);

// Rows [first, first + rows) of a matrix, cut off at its end.
MatrixTile TileOf(const WeightMatrix& matrix, Planes planes, int64_t first, int64_t rows);

// Groups of 16 rows from row `first` on (a multiple of 16), without activations and outputs.
IntDotArgs IntTileOf(const WeightMatrix& matrix, Planes planes, int64_t first, int64_t rows);

// Whether rows of this type are decoded in registers; others are decoded to floats, tile by tile, where they cannot be interleaved.
bool HasFloatKernel(DType type);

// How the columns of a matrix are cut into tasks of a backward pass; as PlanTiles.
struct ColumnPlan {
  int64_t cols = 0;   // of a tile, a multiple of 32; the last may have fewer
  int64_t tiles = 0;  // of a matrix
};
ColumnPlan PlanColumns(int threads, const WeightMatrix& matrix, int64_t matrices);

class CpuOps final : public Ops {
 public:
  CpuOps(const KernelTable* kernels, ThreadPool* threads);

  std::string_view name() const override { return name_; }
  void Embed(const WeightMatrix& table, std::span<const int32_t> ids, MutRows out) const override;
  void RmsNorm(const RmsNormArgs& args) const override;
  void Linear(const LinearArgs& args) const override;
  void Rope(const RopeArgs& args) const override;
  void StoreKv(const StoreKvArgs& args) const override;
  void Attention(const AttentionArgs& args) const override;
  void Select(const SelectArgs& args) const override;
  void ExpertFfn(const ExpertFfnArgs& args) const override;
  void SwiGlu(const SwiGluArgs& args) const override;
  void Add(const AddArgs& args) const override;

  void AddRow(const AddRowArgs& args) const override;
  void Gain(const GainArgs& args) const override;
  void LowRank(const LowRankArgs& args) const override;
  void ScaleSlots(const ScaleSlotsArgs& args) const override;
  void ExpertInner(const ExpertInnerArgs& args) const override;
  void LinearBackward(const LinearBackwardArgs& args) const override;
  void RmsNormBackward(const RmsNormBackwardArgs& args) const override;
  void GainBackward(const GainBackwardArgs& args) const override;
  void SumRows(const SumRowsArgs& args) const override;
  void RowChange(const RowChangeArgs& args) const override;
  void LowRankBackward(const LowRankBackwardArgs& args) const override;
  void ClampBackward(const ClampBackwardArgs& args) const override;
  void AttentionBackward(const AttentionBackwardArgs& args) const override;
  void ExpertFfnBackward(const ExpertFfnBackwardArgs& args) const override;
  void SelectBackward(const SelectBackwardArgs& args) const override;
  void ScaleSlotsBackward(const ScaleSlotsBackwardArgs& args) const override;
  void SwiGluBackward(const SwiGluBackwardArgs& args) const override;
  void AddBackward(const AddBackwardArgs& args) const override;
  void LossBackward(const LossBackwardArgs& args) const override;
  void Adam(std::span<const AdamArgs> tensors) const override;

 private:
  // Rows of an attention tile: neighbours in the step that belong to one sequence.
  struct RowTile {
    int32_t first = 0;
    int32_t count = 0;
  };

  // body(task, thread) for all tasks, on the team if `fork`.
  template <typename Body>
  void ForEach(int64_t tasks, bool fork, Body&& body) const {
    if (!fork) {
      for (int64_t task = 0; task < tasks; ++task) body(task, 0);
    } else {
      threads_->ParallelFor(tasks, body);
    }
  }
  // body(row) for rows of `cols` elements, in tasks of several rows.
  template <typename Body>
  void ForEachRow(int64_t rows, int64_t cols, Body&& body) const {
    const int64_t step = kForkElements / 8 / cols + 1;  // small enough to even out
    ForEach((rows + step - 1) / step, rows * cols >= kForkElements, [&](int64_t task, int) {
      const int64_t end = (task + 1) * step < rows ? (task + 1) * step : rows;
      for (int64_t row = task * step; row < end; ++row) body(row);
    });
  }

  // A piece of the values of AdamArgs `tensor`.
  struct AdamTask {
    AdamTile tile;
    size_t tensor = 0;
    float sum = 0;  // of v
  };

  ThreadScratch& scratch(int thread) const { return scratch_[static_cast<size_t>(thread)]; }
  // Some rows of a weight matrix times some of the rows that SetRow has set.
  struct ProductTile {
    const WeightMatrix& weight;
    Planes planes;
    int64_t first, rows;    // of the matrix; cut off at its end
    int64_t row, tokens;    // of rows_
    float* const* y;        // [tokens]
    int64_t y_at;
    const float* bias;      // of row `first`, or null
  };
  // Sets what SetRow's x_row counts in: the rows of x, also as codes for the integer kernels.
  void PrepareRows(ConstRows x, bool as_codes) const;
  void SetRow(int64_t at, int64_t x_row, float* y) const;
  void Multiply(const ProductTile& tile, int thread) const;
  static MatrixTile DecodedTile(const ProductTile& tile, FloatBuffer* decoded);
  // `products`: how many rows meet a matrix like this.
  bool WorthForking(const WeightMatrix& weight, int64_t products) const;
  std::byte* codes_row(int64_t t) const { return reinterpret_cast<std::byte*>(codes_.data()) + t * codes_stride_; }
  void PlanRowTiles(const AttentionArgs& args, int32_t most_rows) const;
  void AttendTile(const AttentionArgs& args, const RowTile& tile, int32_t kv_head, ThreadScratch& scratch) const;

  // All rows of a weight matrix, taken transposed, times some of the rows that SetGradient has set.
  struct TransposedTile {
    const WeightMatrix& weight;
    Planes planes;
    int gradient;           // of gradients_
    int64_t first, cols;    // columns of the matrix
    int64_t row, tokens;    // of the gradient
  };
  // Makes room for `count` rows; as_words: also as words, of which there are `words` rows.
  void PrepareGradient(int gradient, int64_t count, int64_t cols, bool as_words, int64_t words) const;
  void SetGradient(int gradient, int64_t at, const float* x, int64_t words_row) const;
  void QuantiseGradient(int gradient, const float* x, int64_t cols, int64_t words_row) const;
  // Adds to the thread's sums, which ClearSums has made.
  void MultiplyTransposed(const TransposedTile& tile, int thread) const;
  void ClearSums(int64_t tokens, int64_t cols, int thread) const;
  void InnerProducts(const ExpertInnerArgs& args, WeightMatrix FfnWeights::*role, MutRows out) const;
  void DownBackward(const ExpertFfnBackwardArgs& args) const;
  void SwiGluOfSlots(const ExpertFfnBackwardArgs& args) const;
  void GateAndUpBackward(const ExpertFfnBackwardArgs& args) const;
  void AttentionTileBackward(const AttentionBackwardArgs& args, int64_t first, int32_t head, ThreadScratch& scratch) const;
  void DotTokens(ConstRows x, ConstRows w, MutRows out, int64_t task, int thread) const;
  void WideLowRankBackward(const LowRankBackwardArgs& args) const;
  void GateAndUp(const ExpertFfnArgs& args) const;
  void Down(const ExpertFfnArgs& args) const;
  void Combine(const ExpertFfnArgs& args) const;

  const KernelTable* kernels_;
  ThreadPool* threads_;
  std::string name_;  // "cpu/avx512"
  // Scratch: written by const operations, which run one at a time.
  mutable std::vector<ThreadScratch> scratch_;  // [threads]
  mutable RowPointers rows_;
  mutable ConstRows prepared_;
  mutable FloatBuffer codes_;           // rows of QuantRowBytes, codes_stride_ apart
  mutable int64_t codes_stride_ = 0;    // 0: the rows are used as floats only
  mutable std::vector<RowTile> row_tiles_;
  mutable GradientRows gradients_[2];
  mutable WordRows word_rows_[2];
  mutable FloatBuffer inner_gradient_;  // [kept slots, F]
  mutable FloatBuffer low_rank_parts_;  // [pieces, T, rank]
  mutable std::vector<AdamTask> adam_tasks_;
};

}  // namespace thermoe::kernels::cpu
