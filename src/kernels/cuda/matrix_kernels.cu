// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "kernels/cuda/launches.h"
#include "kernels/cuda/matrix_kernels.h"
#include "kernels/cuda/one_row.h"
#include "kernels/cuda/prefill.h"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/stream_rows.h"

namespace thermoe::cuda {
namespace {

int32_t ChunksOf(int32_t rows) { return (rows + kStreamRows - 1) / kStreamRows; }

// Whether some rows are quicker streamed, at most kStreamRows at a time, than as prefill has them: its blocks take 256 rows of weights by 128 of activations
// each, so of small matrices most multiprocessors have nothing to do. By what 2,048 columns take on an H100: a round of prefill 33 us, or with the columns in parts so many
// times less and 13, whatever the columns, 64 streamed rows 0.48 us times 10 and the blocks' number; the others go by columns. (Of 96 to 128 rows 4,096 columns of 8 bits and
// more take 28 us streamed, 25 as prefill.)
bool InChunks(std::span<const LinearLaunch> launches) {
  constexpr int kRowsOfBlock = 2 * kGroupRows, kFewest = 32, kMost = 128;
  const LinearLaunch& one = launches.front();
  if (one.rows <= kFewest || one.rows > kMost || !MayBeHoppers(one) || one.weight.packing == Packing::kF32) return false;
  const int chunks = ChunksOf(one.rows);
  if (!StreamsAtOnce(launches, (one.rows + chunks - 1) / chunks)) return false;
  if (one.rows > kStreamRows && one.weight.cols > 2048 && MoreThanFourBits(one.weight.packing)) return false;
  int blocks = 0;
  for (const LinearLaunch& l : launches) blocks += (l.weight.rows + kRowsOfBlock - 1) / kRowsOfBlock;
  const int rounds = (blocks + HopperMultiprocessors() - 1) / HopperMultiprocessors();
  const int column_parts = PrefillColumnParts(launches);
  return chunks * 7 * (10 + blocks) < 4 * (column_parts > 1 ? 120 / column_parts + 47 * 2048 / one.weight.cols : 120 * rounds);
}

// False before anything is launched: streaming does not serve these.
bool LinearInChunks(std::span<const LinearLaunch> launches, cudaStream_t stream) {
  const int32_t rows = launches.front().rows, chunks = ChunksOf(rows), each = (rows + chunks - 1) / chunks;
  for (int32_t begin = 0; begin < rows; begin += each) {
    LinearLaunch part[kMostTogether];
    for (size_t i = 0; i < launches.size(); ++i) {
      LinearLaunch& l = part[i] = launches[i];
      l.rows = std::min(each, rows - begin);
      l.x += int64_t{begin} * l.weight.cols, l.out += int64_t{begin} * l.weight.rows;
      if (l.halves != nullptr) l.halves += int64_t{begin} * l.weight.cols;
    }
    if (!LinearOfStreamedRows(std::span(part).first(launches.size()), stream)) return false;  // all chunks or none: they differ in their rows alone
  }
  return true;
}

}  // namespace

size_t LinearScratch(int32_t rows, int32_t in) { return std::max(LinearPrefillScratch(rows, in), StreamedLinearScratch(rows, in)); }

bool PrefillsTogether(std::span<const LinearLaunch> launches) {
  return !InChunks(launches) && std::all_of(launches.begin(), launches.end(), PrefillsLinear);
}

cudaError_t Linear(const LinearLaunch& launch, cudaStream_t stream) { return LinearTogether({&launch, 1}, stream); }

cudaError_t LinearTogether(std::span<const LinearLaunch> launches, cudaStream_t stream) {
  if (launches.empty() || launches.front().rows == 0) return cudaSuccess;
  if (InChunks(launches) && LinearInChunks(launches, stream)) return cudaSuccess;
  if (std::all_of(launches.begin(), launches.end(), PrefillsLinear)) return LinearPrefill(launches, stream);
  if (LinearOfRows(launches, stream)) return cudaSuccess;
  if (launches.size() == 1) return launches.front().weight.packing == Packing::kF32 ? LinearPlain(launches.front(), stream) : cudaErrorNotSupported;
  // Those of one type that follow each other together: in files of mixed types (Q4_K_M) v often has more bits than q and k.
  for (size_t begin = 0, end = 0; begin < launches.size(); begin = end) {
    const auto other = [&](const LinearLaunch& l) { return l.weight.packing != launches[begin].weight.packing; };
    end = static_cast<size_t>(std::find_if(launches.begin() + static_cast<std::ptrdiff_t>(begin), launches.end(), other) - launches.begin());
    if (end - begin == launches.size()) end = 1;  // they do not go together
    if (const cudaError_t error = LinearTogether(launches.subspan(begin, end - begin), stream); error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

size_t ExpertFfnScratch(int32_t hidden, int32_t width, int32_t slots, int32_t rows) {
  return std::max({ExpertPlainScratch(width, slots, rows), PartsOfExpertScratch(hidden, width, slots, rows).total,
                   ExpertPrefillScratch(hidden, width, slots, rows)});
}

cudaError_t ExpertFfn(const ExpertFfnLaunch& launch, cudaStream_t stream) {
  if (launch.rows == 0) return cudaSuccess;
  if (PrefillsExperts(launch)) return ExpertPrefill(launch, nullptr, stream);
  if (ExpertsOfOneRow(launch, stream)) return cudaGetLastError();
  if (SlotSums sums; ExpertsOfRows(launch, &sums, stream)) {
    AddSlots(sums, launch.out, launch.rows, launch.hidden, stream);
    return cudaGetLastError();
  }
  const auto floats = [](Packing packing) { return packing == Packing::kF32; };
  if (!floats(launch.gate_packing) || !floats(launch.up_packing) || !floats(launch.down_packing)) return cudaErrorNotSupported;
  return ExpertPlain(launch, stream);
}

}  // namespace thermoe::cuda
