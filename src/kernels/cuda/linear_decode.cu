// SPDX-License-Identifier: Apache-2.0
// Matrices of packed weights times few rows, up to four of them with the same rows in one launch.
#include "kernels/cuda/decode_kernel.cuh"
#include "kernels/cuda/launches.h"

namespace thermoe::cuda {
namespace {

Columns CutLinear(int32_t in, int32_t rows, int32_t row_units) {
  DeviceLimits limits;
  LimitsOfDevice(&limits);  // an error comes back with the launch
  const int groups = RowGroups(rows);
  return CutColumns(in, row_units, groups, CeilDiv(rows, 8 * groups), limits.multiprocessors);
}

}  // namespace

size_t LinearDecodeScratch(int32_t rows, int32_t in, std::span<const int32_t> outs) {
  int32_t row_units = 0;
  size_t sums = 0;
  for (const int32_t out : outs) {
    row_units += RowUnits(out);
    sums += static_cast<size_t>(rows) * static_cast<size_t>(out);
  }
  const Columns columns = CutLinear(in, rows, row_units);
  return columns.pieces == 1 ? 0 : sizeof(float) * sums * static_cast<size_t>(columns.pieces);
}

cudaError_t LinearDecode(std::span<const LinearLaunch> launches, cudaStream_t stream) {
  const LinearLaunch& first = launches.front();
  DecodeArgs args;
  int32_t row_units = 0;
  for (const LinearLaunch& launch : launches) row_units += RowUnits(launch.weight.rows);
  args.columns[0] = CutLinear(first.weight.cols, first.rows, row_units);
  const int groups = RowGroups(first.rows);
  args.row_limit = 8 * groups;
  const int32_t chunks = CeilDiv(first.rows, args.row_limit);
  args.chunk_capacity = static_cast<uint32_t>(static_cast<int32_t>(launches.size()) * chunks);
  args.sync = first.sync;
  args.x = first.x;
  args.rows = first.rows;
  args.partial = static_cast<float*>(first.scratch);
  int64_t at = 0;
  for (const LinearLaunch& launch : launches) {
    const int m = args.linears++;
    args.linear[m] = launch.weight;
    args.bias[m] = launch.bias;
    args.linear_out[m] = launch.out;
    args.partial_at[m] = at;
    at += int64_t{first.rows} * args.columns[0].pieces * launch.weight.rows;
    args.slot_bytes = std::max(args.slot_bytes, SlotBytes(launch.weight.packing));
  }
  return StartDecode<false>(args, groups, int64_t{row_units} * chunks * args.columns[0].pieces, stream);
}

}  // namespace thermoe::cuda
