// SPDX-License-Identifier: Apache-2.0
// Matrices of packed weights times few rows, up to four of them with the same rows in one launch.
#include "kernels/cuda/decode_launch.cuh"
#include "kernels/cuda/launches.h"

namespace thermoe::cuda {
namespace {

Columns CutLinear(int32_t in, int32_t rows) { return CutColumns(in, 0, RowGroups(rows)); }

}  // namespace

size_t LinearDecodeScratch(int32_t rows, int32_t in, int32_t out) {
  const Columns columns = CutLinear(in, rows);
  if (columns.slices == 1) return 0;
  return sizeof(float) * static_cast<size_t>(rows) * static_cast<size_t>(columns.slices) * static_cast<size_t>(out);
}

cudaError_t LinearDecode(std::span<const LinearLaunch> launches, cudaStream_t stream) {
  const LinearLaunch& first = launches.front();
  DecodeArgs args;
  args.columns[0] = CutLinear(first.weight.cols, first.rows);
  const int groups = RowGroups(first.rows);
  args.row_limit = 8 * groups;
  args.chunk_capacity = static_cast<int32_t>(launches.size()) * CeilDiv(first.rows, args.row_limit);
  args.sync = first.sync;
  args.x = first.x;
  args.rows = first.rows;
  args.partial = static_cast<float*>(first.scratch);
  int64_t at = 0, pairs = 0;
  for (const LinearLaunch& launch : launches) {
    const int m = args.linears++;
    args.linear[m] = launch.weight;
    args.bias[m] = launch.bias;
    args.linear_out[m] = launch.out;
    args.partial_at[m] = at;
    at += int64_t{first.rows} * args.columns[0].slices * launch.weight.rows;
    pairs += CeilDiv(launch.weight.rows, 2 * kTileRows);
    args.slot_bytes = std::max(args.slot_bytes, SlotBytes(launch.weight.packing, args.columns[0]));
  }
  return StartDecode<false>(args, groups, pairs * args.columns[0].slices, stream);
}

}  // namespace thermoe::cuda
