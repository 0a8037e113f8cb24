// SPDX-License-Identifier: Apache-2.0
// A matrix of packed weights times many rows: activations to halves, then one product.
#include "kernels/cuda/prefill_kernel.cuh"

namespace thermoe::cuda {
namespace {

int32_t Padded(int32_t cols) { return (cols + kTileCols - 1) / kTileCols * kTileCols; }
size_t HalvesBytes(int32_t rows, int32_t in) {
  return (static_cast<size_t>(rows) * static_cast<size_t>(Padded(in)) * sizeof(__half) + 255) / 256 * 256;
}

}  // namespace

size_t LinearPrefillScratch(int32_t rows, int32_t in) {
  return HalvesBytes(rows, in) + static_cast<size_t>(rows) * sizeof(float);
}

cudaError_t LinearPrefill(std::span<const LinearLaunch> launches, cudaStream_t stream) {
  const LinearLaunch& first = launches.front();
  auto* x = static_cast<__half*>(first.scratch);
  auto* unscale =
      reinterpret_cast<float*>(static_cast<std::byte*>(first.scratch) + HalvesBytes(first.rows, first.weight.cols));
  const cudaError_t made =
      RowsToHalves(first.x, first.rows, first.weight.cols, {x, Padded(first.weight.cols), unscale}, stream);
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
    const cudaError_t error =
        StartPrefill<Epilogue::kRows>(launch.weight.packing, args, HopperMultiprocessors(), stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace thermoe::cuda
