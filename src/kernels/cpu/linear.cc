// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "base/check.h"
#include "kernels/cpu/cpu_ops.h"
#include "model/interleave.h"

namespace thermoe::kernels::cpu {
namespace {

// Least weights of a task: 1 us at 16 GB/s, some twenty times the cost of taking a task.
constexpr int64_t kTaskBytes = 16 * 1024;
// Most rows of a task: bounds the scratch of gate and up, [tokens of a job, rows] floats.
constexpr int64_t kMostTaskRows = 128;
// Tasks per thread: the last one to finish then costs at most about an eighth.
constexpr int64_t kTasksPerThread = 8;

int64_t RoundUp(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

Packing PackingOf(DType type, Planes planes) {
  switch (type) {
    case DType::kF32: return Packing::kF32;
    case DType::kF16: return Packing::kF16;
    case DType::kBF16: return Packing::kBF16;
    case DType::kQ8_0: return Packing::kQ8_0;
    case DType::kQ4_0: return Packing::kQ4_0;
    case DType::kNested8: return planes == Planes::kBoth ? Packing::kNestedBoth : Packing::kNestedHi;
    default: break;  // HasFloatKernel
  }
  THERMOE_CHECK(false);
  return Packing::kF32;
}

IntPacking IntPackingOf(DType type, Planes planes) {
  switch (type) {
    case DType::kQ8_0: return IntPacking::kQ8_0;
    case DType::kQ4_0: return IntPacking::kQ4_0;
    case DType::kQ5_0: return IntPacking::kQ5_0;
    case DType::kQ5_1: return IntPacking::kQ5_1;
    case DType::kQ4K: return IntPacking::kQ4K;
    case DType::kQ5K: return IntPacking::kQ5K;
    case DType::kQ6K: return IntPacking::kQ6K;
    case DType::kIQ4NL: return IntPacking::kIQ4NL;
    case DType::kMXFP4: return IntPacking::kMXFP4;
    case DType::kNested8: return planes == Planes::kBoth ? IntPacking::kBoth : IntPacking::kHi;
    default: break;
  }
  THERMOE_CHECK(false);
  return IntPacking::kQ8_0;
}

}  // namespace

bool HasFloatKernel(DType type) { return type <= DType::kQ4_0 || type == DType::kNested8; }

TilePlan PlanTiles(int threads, const WeightMatrix& matrix, int64_t matrices) {
  const int64_t tasks = std::max<int64_t>(1, kTasksPerThread * threads / matrices);
  const int64_t balanced = (matrix.rows + tasks - 1) / tasks;
  const int64_t least = kTaskBytes / std::max<int64_t>(1, matrix.row_bytes());
  TilePlan plan;
  // Tiles begin where both kinds of kernels may: the matrices of a layer's experts may differ in type.
  static_assert(kInterleave % kPanelRows == 0);
  plan.rows = std::min(RoundUp(std::max(balanced, least), kInterleave), kMostTaskRows);
  plan.tiles = (matrix.rows + plan.rows - 1) / plan.rows;
  return plan;
}

MatrixTile TileOf(const WeightMatrix& matrix, Planes planes, int64_t first, int64_t rows) {
  MatrixTile tile;
  tile.packing = PackingOf(matrix.type, planes);
  tile.rows = std::min(rows, matrix.rows - first);
  tile.cols = matrix.cols;
  tile.data = matrix.row(first);
  tile.row_bytes = matrix.row_bytes();
  if (tile.packing == Packing::kNestedBoth) {
    tile.lo = matrix.lo_row(first);
    tile.lo_row_bytes = NestedLoRowBytes(matrix.cols);
  }
  return tile;
}

IntDotArgs IntTileOf(const WeightMatrix& matrix, Planes planes, int64_t first, int64_t rows) {
  IntDotArgs tile;
  const GroupShape shape = GroupShapeOf(matrix.type, matrix.cols);
  tile.packing = IntPackingOf(matrix.type, planes);
  tile.groups = std::min(rows, matrix.rows - first) / kInterleave;
  tile.blocks = matrix.cols / kQuantBlock;
  tile.group_bytes = shape.bytes;
  tile.scales_at = shape.scales_at;
  tile.codes_at = shape.codes_at;
  tile.data = matrix.data + first / kInterleave * tile.group_bytes;
  if (tile.packing == IntPacking::kBoth) {
    tile.lo_group_bytes = kInterleave * NestedLoRowBytes(matrix.cols);
    tile.lo = matrix.lo + first / kInterleave * tile.lo_group_bytes;
  }
  return tile;
}

void CpuOps::PrepareRows(ConstRows x, bool as_codes) const {
  prepared_ = x;
  codes_stride_ = 0;
  if (!as_codes) return;
  codes_stride_ = (QuantRowBytes(x.cols) + 63) / 64 * 64;
  codes_.Reserve(x.rows * codes_stride_ / static_cast<int64_t>(sizeof(float)));
  ForEachRow(x.rows, x.cols, [&](int64_t t) { kernels_->quantise_row(x.row(t), x.cols, codes_row(t)); });
}

void CpuOps::SetRow(int64_t at, int64_t x_row, float* y) const {
  const auto i = static_cast<size_t>(at);
  rows_.x[i] = prepared_.row(x_row);
  rows_.codes[i] = codes_stride_ > 0 ? codes_row(x_row) : nullptr;
  rows_.y[i] = y;
}

MatrixTile CpuOps::DecodedTile(const ProductTile& tile, FloatBuffer* decoded) {
  const WeightMatrix& weight = tile.weight;
  MatrixTile floats;
  floats.rows = std::min(tile.rows, weight.rows - tile.first);
  floats.cols = weight.cols;
  floats.row_bytes = weight.cols * static_cast<int64_t>(sizeof(float));
  decoded->Reserve(floats.rows * weight.cols);
  for (int64_t r = 0; r < floats.rows; ++r) DecodeRow(weight, tile.first + r, tile.planes, decoded->data() + r * weight.cols);
  floats.data = reinterpret_cast<const std::byte*>(decoded->data());
  return floats;
}

void CpuOps::Multiply(const ProductTile& tile, int thread) const {
  if (tile.weight.interleaved()) {
    IntDotArgs dot = IntTileOf(tile.weight, tile.planes, tile.first, tile.rows);
    dot.x = rows_.codes.data() + tile.row;
    dot.y = tile.y;
    dot.y_at = tile.y_at;
    dot.tokens = tile.tokens;
    dot.bias = tile.bias;
    kernels_->int_dot(dot);
    return;
  }
  DotArgs dot;
  if (HasFloatKernel(tile.weight.type)) {
    dot.weight = TileOf(tile.weight, tile.planes, tile.first, tile.rows);
  } else {
    dot.weight = DecodedTile(tile, &scratch(thread).decoded);
  }
  dot.x = rows_.x.data() + tile.row;
  dot.y = tile.y;
  dot.y_at = tile.y_at;
  dot.tokens = tile.tokens;
  dot.bias = tile.bias;
  dot.scratch = scratch(thread).dot.data();
  kernels_->dot(dot);
}

bool CpuOps::WorthForking(const WeightMatrix& weight, int64_t products) const {
  return products * weight.rows * weight.cols >= (weight.interleaved() ? kForkIntMultiplyAdds : kForkMultiplyAdds);
}

void CpuOps::Linear(const LinearArgs& args) const {
  const WeightMatrix& weight = args.weight;
  const int64_t tokens = args.x.rows;
  THERMOE_CHECK(args.x.cols == weight.cols && args.out.cols == weight.rows && args.out.rows == tokens);
  THERMOE_CHECK(args.bias.empty() || static_cast<int64_t>(args.bias.size()) == weight.rows);
  const TilePlan plan = PlanTiles(threads_->size(), weight, 1);
  rows_.Reserve(tokens);
  PrepareRows(args.x, weight.interleaved());
  for (int64_t t = 0; t < tokens; ++t) SetRow(t, t, args.out.row(t));
  ForEach(plan.tiles, WorthForking(weight, tokens), [&](int64_t tile, int thread) {
    const int64_t first = tile * plan.rows;
    const float* bias = args.bias.empty() ? nullptr : args.bias.data() + first;
    Multiply({weight, Planes::kBoth, first, plan.rows, 0, tokens, rows_.y.data(), first, bias}, thread);
  });
}

}  // namespace thermoe::kernels::cpu
