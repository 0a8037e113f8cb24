// SPDX-License-Identifier: Apache-2.0
// The experts of few rows: weights are streamed once, whatever number of rows wants them. Bytes: of the planes read of
// the distinct experts; everything else stays in the L2 cache.
#include "kernels/cuda/decode_launch.cuh"
#include "kernels/cuda/launches.h"

namespace thermoe::cuda {
namespace {

struct Cut {
  int groups;
  Columns gate_up, down;
};

Cut CutExperts(int32_t hidden, int32_t width, int32_t rows) {
  const int groups = RowGroups(rows);
  return {groups, CutColumns(hidden, CeilDiv(width, kTileRows), groups),
          CutColumns(width, CeilDiv(hidden, 2 * kTileRows), groups)};
}

size_t GateUpBytes(const Cut& cut, int32_t slots, int32_t rows) {
  const auto bytes = sizeof(float) * 2 * static_cast<size_t>(rows) * static_cast<size_t>(slots) *
                     static_cast<size_t>(cut.gate_up.slices) * static_cast<size_t>(cut.down.cols);
  return (bytes + 255) / 256 * 256;
}

}  // namespace

size_t ExpertDecodeScratch(int32_t hidden, int32_t width, int32_t slots, int32_t rows) {
  const Cut cut = CutExperts(hidden, width, rows);
  return GateUpBytes(cut, slots, rows) + sizeof(float) * static_cast<size_t>(rows) * static_cast<size_t>(slots) *
                                             static_cast<size_t>(cut.down.slices) * static_cast<size_t>(hidden);
}

cudaError_t ExpertDecode(const ExpertFfnLaunch& launch, cudaStream_t stream) {
  const Cut cut = CutExperts(launch.hidden, launch.width, launch.rows);
  DecodeArgs args;
  args.columns[0] = cut.gate_up;
  args.columns[1] = cut.down;
  args.row_limit = 8 * cut.groups;
  const int32_t kept = launch.rows * launch.slots, distinct = std::min(launch.experts, kept);
  args.chunk_capacity = distinct + kept / args.row_limit;
  args.job_capacity = 2 * distinct;
  args.slot_bytes = std::max({SlotBytes(launch.gate_packing, cut.gate_up), SlotBytes(launch.up_packing, cut.gate_up),
                              SlotBytes(launch.down_packing, cut.down)});
  args.sync = launch.sync;
  args.x = launch.x;
  args.rows = launch.rows;
  args.ffn = launch;
  args.gate_up = static_cast<float*>(launch.scratch);
  args.partial = args.gate_up + GateUpBytes(cut, launch.slots, launch.rows) / sizeof(float);
  return StartDecode<true>(args, cut.groups, INT32_MAX, stream);
}

}  // namespace thermoe::cuda
