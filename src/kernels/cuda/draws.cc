// SPDX-License-Identifier: Apache-2.0
// CudaOps where tokens are drawn of a step's logits: what a draw needs is read from pinned memory, which nothing else uses until it has been waited for.
#include <algorithm>

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/sample.h"

namespace thermoe::cuda {

bool CudaOps::DrawTokens(const kernels::DrawArgs& args) const {
  std::byte* logits = addresses_.Find(args.logits.data);
  Side& side = newest();
  if (logits == nullptr || args.draws.empty() || args.logits.cols > kMostDrawVocab || side.drawing > 0) return false;
  int64_t recent = 0;
  for (const kernels::TokenDraw& draw : args.draws) recent += draw.repetition_penalty != 1 ? static_cast<int64_t>(draw.recent.size()) : 0;
  if (!EnsureDraws(static_cast<int64_t>(args.draws.size()), recent) || !health_.ok()) return false;
  auto* draws = side.draws.as<DrawRow>();
  recent = 0;
  for (size_t i = 0; i < args.draws.size(); ++i) {
    draws[i] = MakeDraw(args.draws[i], recent);
    std::copy_n(args.draws[i].recent.data(), draws[i].recent, side.recent.as<int32_t>() + recent);
    recent += draws[i].recent;
  }
  LaunchPending();
  side.drawing = args.draws.size(), side.drawn = args.out, side.draws_asked = ++draws_asked_;
  Draw({reinterpret_cast<float*>(logits), args.logits.cols, draws, side.recent.as<int32_t>(), seen_.as<SeenLogit>(), static_cast<int32_t>(side.drawing),
        reinterpret_cast<kernels::DrawnToken*>(draws + draw_room_), draws_done(), draws_told(), draws_asked_, largest_logits()},
       stream_);
  Check(cudaGetLastError(), "drawing tokens");
  return true;
}

void CudaOps::ReadDraws(Side* side) const {
  const auto* draws = side->draws.as<DrawRow>();
  const auto* drawn = reinterpret_cast<const kernels::DrawnToken*>(draws + draw_room_);
  for (size_t i = 0; i < side->drawing; ++i) side->drawn[static_cast<size_t>(draws[i].row)] = drawn[i];
  side->drawing = 0;
}

// False: there is no room, and the host draws.
bool CudaOps::EnsureDraws(int64_t draws, int64_t recent) const {
  if (draws <= draw_room_ && recent <= recent_room_) return true;
  LaunchPending();
  Synchronise();
  draws = std::max(draws, draw_room_), recent = std::max<int64_t>(2 * recent, recent_room_);  // windows grow by a token a step
  Result<DeviceMemory> seen = DeviceMemory::Allocate(std::max<int64_t>(1, Bytes<SeenLogit>(recent)), "recent tokens");
  if (!seen.ok()) return false;
  PinnedMemory rows[std::size(sides_)], ids[std::size(sides_)];
  for (size_t i = 0; i < std::size(sides_); ++i) {
    Result<PinnedMemory> more_rows = PinnedMemory::Allocate(draws * static_cast<int64_t>(sizeof(DrawRow) + sizeof(kernels::DrawnToken)));
    Result<PinnedMemory> more_ids = PinnedMemory::Allocate(std::max<int64_t>(1, Bytes<int32_t>(recent)));
    if (!more_rows.ok() || !more_ids.ok()) return false;
    rows[i] = std::move(more_rows).value(), ids[i] = std::move(more_ids).value();
  }
  for (size_t i = 0; i < std::size(sides_); ++i) sides_[i].draws = std::move(rows[i]), sides_[i].recent = std::move(ids[i]);
  seen_ = std::move(seen).value();
  draw_room_ = draws, recent_room_ = recent;
  return true;
}

}  // namespace thermoe::cuda
