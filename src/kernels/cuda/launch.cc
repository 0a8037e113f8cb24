// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/launch.h"

namespace thermoe::cuda {
namespace {

cudaError_t LaunchOne(const EmbedNode& n, cudaStream_t stream) { Embed(n.type, n.table, n.cols, n.row_bytes, n.ids, n.out, n.rows, stream); return cudaSuccess; }
cudaError_t LaunchOne(const NormLaunch& n, cudaStream_t stream) { RmsNorm(n, stream); return cudaSuccess; }
cudaError_t LaunchOne(const LinearLaunch& n, cudaStream_t stream) { return Linear(n, stream); }
cudaError_t LaunchOne(const RopeLaunch& n, cudaStream_t stream) { Rope(n, stream); return cudaSuccess; }
cudaError_t LaunchOne(const StoreLaunch& n, cudaStream_t stream) { StoreKv(n, stream); return cudaSuccess; }
cudaError_t LaunchOne(const AttentionLaunch& n, cudaStream_t stream) { Attention(n, stream); return cudaSuccess; }
cudaError_t LaunchOne(const SelectLaunch& n, cudaStream_t stream) { Select(n, stream); return cudaSuccess; }
cudaError_t LaunchOne(const ExpertFfnLaunch& n, cudaStream_t stream) { return ExpertFfn(n, stream); }
cudaError_t LaunchOne(const SwiGluNode& n, cudaStream_t stream) { SwiGlu(n.gate, n.up, n.out, n.size, stream); return cudaSuccess; }
cudaError_t LaunchOne(const AddNode& n, cudaStream_t stream) { Add(n.x, n.gate, n.out, n.rows, n.n, stream); return cudaSuccess; }
cudaError_t LaunchOne(const ClampNode& n, cudaStream_t stream) { Clamp(n.x, n.size, n.limit, stream); return cudaSuccess; }
cudaError_t LaunchOne(const GatherNode& n, cudaStream_t stream) { Gather(n.x, n.picked, n.out, n.rows, n.n, stream); return cudaSuccess; }

// q, k and v: neighbouring products of the same rows.
size_t LinearsTogether(std::span<const Node> nodes, cudaStream_t stream, cudaError_t* error) {
  constexpr size_t kMost = 4;
  LinearLaunch together[kMost];
  size_t count = 0;
  while (count < kMost && count < nodes.size()) {
    const auto* linear = std::get_if<LinearLaunch>(&nodes[count]);
    if (linear == nullptr || (count > 0 && (linear->x != together[0].x || linear->rows != together[0].rows))) break;
    together[count++] = *linear;
  }
  if (count < 2) return 0;
  *error = LinearTogether(std::span(together).first(count), stream);
  return count;
}

// x += y, then out = norm(x): one pass over the rows.
size_t AddThenNorm(std::span<const Node> nodes, cudaStream_t stream) {
  if (nodes.size() < 2) return 0;
  const auto* add = std::get_if<AddNode>(&nodes[0]);
  const auto* norm = std::get_if<NormLaunch>(&nodes[1]);
  if (add == nullptr || norm == nullptr || add->gate != nullptr || norm->x != add->out || norm->out == norm->x || norm->n != add->n) return 0;
  NormLaunch both = *norm;
  both.add = add->x;
  RmsNorm(both, stream);
  return 2;
}

}  // namespace

cudaError_t Launch(std::span<const Node> nodes, cudaStream_t stream) {
  for (size_t i = 0; i < nodes.size();) {
    const std::span<const Node> rest = nodes.subspan(i);
    cudaError_t error = cudaSuccess;
    size_t done = LinearsTogether(rest, stream, &error);
    if (done == 0) done = AddThenNorm(rest, stream);
    if (done == 0) {
      error = std::visit([stream](const auto& node) { return LaunchOne(node, stream); }, rest[0]);
      done = 1;
    }
    if (error != cudaSuccess) return error;
    i += done;
  }
  return cudaGetLastError();
}

}  // namespace thermoe::cuda
