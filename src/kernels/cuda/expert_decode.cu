// SPDX-License-Identifier: Apache-2.0
// The experts of few rows: weights are streamed once, whatever number of rows wants them. Bytes: of the planes read of
// the distinct experts; everything else stays in the L2 cache.
#include "kernels/cuda/decode_kernel.cuh"
#include "kernels/cuda/launches.h"

namespace thermoe::cuda {
namespace {

struct Cut {
  int groups;
  Columns gate_up, down;
};

Cut CutExperts(int32_t experts, int32_t hidden, int32_t width, int32_t slots, int32_t rows) {
  DeviceLimits limits;
  LimitsOfDevice(&limits);  // an error comes back with the launch
  const int groups = ExpertRowGroups(rows, slots, experts);
  const int32_t chunks = ExpectedExperts(rows, slots, experts), blocks = limits.multiprocessors;
  return {groups, CutColumns(hidden, CeilDiv(width, kGroupRows), groups, chunks, blocks),
          CutColumns(width, RowUnits(hidden), groups, chunks, blocks)};
}

// Of all slots: floats for each piece.
size_t SlotBytes(int32_t rows, int32_t slots, const Columns& columns, int32_t floats) {
  const size_t bytes = sizeof(float) * static_cast<size_t>(rows) * static_cast<size_t>(slots) *
                       static_cast<size_t>(columns.pieces) * static_cast<size_t>(floats);
  return (bytes + 255) / 256 * 256;
}

}  // namespace

size_t ExpertDecodeScratch(int32_t experts, int32_t hidden, int32_t width, int32_t slots, int32_t rows) {
  const Cut cut = CutExperts(experts, hidden, width, slots, rows);
  return SlotBytes(rows, slots, cut.gate_up, 2 * width) + SlotBytes(rows, slots, cut.down, hidden);
}

cudaError_t ExpertDecode(const ExpertFfnLaunch& launch, cudaStream_t stream) {
  const Cut cut = CutExperts(launch.experts, launch.hidden, launch.width, launch.slots, launch.rows);
  DecodeArgs args;
  args.columns[0] = cut.gate_up;
  args.columns[1] = cut.down;
  args.row_limit = 8 * cut.groups;
  const int32_t kept = launch.rows * launch.slots, distinct = std::min(launch.experts, kept);
  args.chunk_capacity = static_cast<uint32_t>(distinct + kept / args.row_limit);
  args.job_capacity = static_cast<uint32_t>(2 * distinct);
  args.slot_bytes =
      std::max({SlotBytes(launch.gate_packing), SlotBytes(launch.up_packing), SlotBytes(launch.down_packing)});
  args.sync = launch.sync;
  args.x = launch.x;
  args.rows = launch.rows;
  args.ffn = launch;
  args.gate_up = static_cast<float*>(launch.scratch);
  args.partial = args.gate_up + SlotBytes(launch.rows, launch.slots, cut.gate_up, 2 * launch.width) / sizeof(float);
  return StartDecode<true>(args, cut.groups, INT32_MAX, stream);
}

}  // namespace thermoe::cuda
