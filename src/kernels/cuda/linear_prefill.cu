// SPDX-License-Identifier: Apache-2.0
// A matrix of packed weights times many rows: activations to halves, then one product.
#include "kernels/cuda/prefill_kernel.cuh"

namespace thermoe::cuda {
namespace {

int32_t Padded(int32_t cols) { return (cols + kTileCols - 1) / kTileCols * kTileCols; }
size_t AlignUp(size_t bytes) { return (bytes + 255) / 256 * 256; }

// Scratch, one part after the other.
struct Parts {
  size_t unscale, taken, all;
};
Parts PartsOf(int32_t rows, int32_t in) {
  const auto t = static_cast<size_t>(rows);
  Parts parts;
  parts.unscale = AlignUp(t * static_cast<size_t>(Padded(in)) * sizeof(__half));
  parts.taken = parts.unscale + AlignUp(t * sizeof(float));
  parts.all = parts.taken + kMostTogether * sizeof(int32_t);
  return parts;
}

}  // namespace

size_t LinearPrefillScratch(int32_t rows, int32_t in) {
  return PartsOf(rows, in).all;
}

cudaError_t LinearPrefill(std::span<const LinearLaunch> launches, cudaStream_t stream) {
  const LinearLaunch& first = launches.front();
  const Parts parts = PartsOf(first.rows, first.weight.cols);
  auto* x = static_cast<__half*>(first.scratch);
  auto* unscale = reinterpret_cast<float*>(static_cast<std::byte*>(first.scratch) + parts.unscale);
  auto* taken = reinterpret_cast<int32_t*>(static_cast<std::byte*>(first.scratch) + parts.taken);
  const cudaError_t made =
      RowsToHalves(first.x, first.rows, first.weight.cols, {x, Padded(first.weight.cols), unscale, taken}, stream);
  if (made != cudaSuccess) return made;
  // Those of one packing together: one launch has more for all multiprocessors to do.
  for (size_t begin = 0, end = 0; begin < launches.size(); begin = end) {
    PrefillArgs args;
    const Packing packing = launches[begin].weight.packing;
    for (; end < launches.size() && launches[end].weight.packing == packing; ++end) {
      args.part[args.parts++] = {launches[end].weight, launches[end].out, launches[end].bias};
    }
    args.rows = first.rows;
    args.x = x;
    args.unscale = unscale;
    args.k_tiles = first.weight.k_tiles;
    args.taken = taken++;
    const cudaError_t error = StartPrefill<Epilogue::kRows>(packing, args, HopperMultiprocessors(), stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace thermoe::cuda
