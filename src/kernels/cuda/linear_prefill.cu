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
  for (const LinearLaunch& launch : launches) {
    PrefillArgs args;
    args.linear = launch.weight;
    args.rows = launch.rows;
    args.x = x;
    args.unscale = unscale;
    args.k_tiles = launch.weight.k_tiles;
    args.out_rows = launch.weight.rows;
    args.float_out = launch.out;
    args.bias = launch.bias;
    args.taken = taken++;
    const cudaError_t error =
        StartPrefill<Epilogue::kRows>(launch.weight.packing, args, HopperMultiprocessors(), stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace thermoe::cuda
