// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/launch.h"

#include <algorithm>
#include <utility>

#include "kernels/cuda/attend_few.h"
#include "kernels/cuda/attend_many.h"
#include "kernels/cuda/node_patterns.h"
#include "kernels/cuda/one_row.h"
#include "kernels/cuda/prefill_norm.h"
#include "kernels/cuda/stream_rows.h"

namespace thermoe::cuda {
namespace {

void LaunchOne(const InputsLaunch& n, cudaStream_t stream) { TakeInputs(n, stream); }
void LaunchOne(const EmbedLaunch& n, cudaStream_t stream) { Embed(n, stream); }
void LaunchOne(const AnglesLaunch& n, cudaStream_t stream) { Angles(n, stream); }
void LaunchOne(const SummariseLaunch& n, cudaStream_t stream) { Summarise(n, stream); }
void LaunchOne(const RopeLaunch& n, cudaStream_t stream) { Rope(n, stream); }
void LaunchOne(const StoreLaunch& n, cudaStream_t stream) { StoreKv(n, stream); }
void LaunchOne(const SelectLaunch& n, cudaStream_t stream) { Select(n, stream); }
void LaunchOne(const SwiGluNode& n, cudaStream_t stream) { SwiGlu(n.gate, n.up, n.out, n.size, stream); }
void LaunchOne(const AddNode& n, cudaStream_t stream) { Add(n.x, n.gate, n.out, n.rows, n.n, stream); }
void LaunchOne(const ClampNode& n, cudaStream_t stream) { Clamp(n.x, n.size, n.limit, stream); }
void LaunchOne(const GatherNode& n, cudaStream_t stream) { Gather(n.x, n.picked, n.out, n.rows, n.n, stream); }

// Which rows of floats the room has as halves.
class Halves {
 public:
  explicit Halves(const LaunchRoom& room) : room_(room) {}

  // Null where there is no room or nobody would read them.
  __half* Take(const float* rows, int64_t count, int64_t cols) {
    of_ = count <= kHalfRows && cols % kTileCols == 0 && count * cols <= room_.half_count ? rows : nullptr;
    return of_ == nullptr ? nullptr : room_.halves;
  }
  // What attention writes of them.
  __half* Take(const AttentionLaunch& n) {
    if (WritesHalves(n)) return Take(n.out, n.count, int64_t{n.heads} * n.cache.head_dim);
    Forget();
    return nullptr;
  }
  const __half* Of(const float* rows) const { return rows == of_ ? room_.halves : nullptr; }
  void Forget() { of_ = nullptr; }
  // A norm or attention wrote the rows where this prefill launch looks for them.
  void PrefilledFor(const void* reader) { prefilled_for_ = reader; }
  bool Prefilled(const void* launch) const { return launch == prefilled_for_; }

 private:
  LaunchRoom room_;
  const float* of_ = nullptr;
  const void* prefilled_for_ = nullptr;
};

void LaunchOne(NormLaunch n, Halves* halves, cudaStream_t stream) {
  n.halves = halves->Take(n.out, n.rows, n.n);
  RmsNorm(n, stream);
}
cudaError_t LaunchOne(const LinearLaunch& node, Halves* halves, cudaStream_t stream) {
  LinearLaunch n = node;
  n.halves = halves->Of(n.x), n.prefilled = halves->Prefilled(&node);
  return Linear(n, stream);
}
void LaunchOne(AttentionLaunch n, Halves* halves, cudaStream_t stream) {
  n.halves = halves->Take(n);
  Attention(n, stream);
}
cudaError_t LaunchOne(const ExpertFfnLaunch& node, Halves* halves, cudaStream_t stream) {
  ExpertFfnLaunch n = node;
  n.halves = halves->Of(n.x), n.prefilled = halves->Prefilled(&node);
  return ExpertFfn(n, stream);
}
// What else writes rows: none of them are halves afterwards.
template <typename Other>
auto LaunchOne(const Other& n, Halves* halves, cudaStream_t stream) {
  if constexpr (!std::is_same_v<Other, SelectLaunch>) halves->Forget();
  return LaunchOne(n, stream);
}

// What the rows of a step begin with.
size_t EmbedThenAngles(std::span<const Node> nodes, Halves* halves, cudaStream_t stream) {
  const auto* embed = NodeAt<EmbedLaunch>(nodes, 0);
  const auto* angles = NodeAt<AnglesLaunch>(nodes, 1);
  if (embed == nullptr || angles == nullptr || angles->rows != embed->rows) return 0;
  EmbedLaunch both = *embed;
  both.angles = *angles;
  LaunchOne(both, halves, stream);
  return 2;
}

// q, k and v: neighbouring products of the same rows.
size_t LinearsTogether(std::span<const Node> nodes, const Halves& halves, cudaStream_t stream, cudaError_t* error) {
  LinearLaunch together[kMostTogether];
  const size_t count = LinearsAt(nodes, together);
  if (count < 2) return 0;
  for (LinearLaunch& l : together) l.halves = halves.Of(l.x), l.prefilled = halves.Prefilled(NodeAt<LinearLaunch>(nodes, 0));
  *error = LinearTogether(std::span(together).first(count), stream);
  return count;
}

// Of many rows: what experts or a product gave, added to the rows, their norm, and its halves for prefill's next products.
size_t ToPrefill(std::span<const Node> nodes, Halves* halves, cudaStream_t stream, cudaError_t* error) {
  const auto* experts = NodeAt<ExpertFfnLaunch>(nodes, 0);
  const auto* add = NodeAt<AddNode>(nodes, 0);
  const size_t at = experts != nullptr || add != nullptr ? 1 : 0;
  const auto* norm = NodeAt<NormLaunch>(nodes, at);
  if (norm == nullptr) return 0;
  if (add != nullptr && !Norms(*norm, *add)) return 0;
  if (experts != nullptr && (!Norms(*norm, *experts) || !PrefillsExperts(*experts) || experts->slots > 32)) return 0;
  PrefillNormLaunch both;
  both.norm = *norm;
  if (add != nullptr) both.norm.add = add->x;
  const PrefillReader reader = PrefillReaderOf(*norm, nodes.subspan(at + 1));
  if (!NormsForPrefill(both.norm) || (experts == nullptr && reader.node == nullptr)) return 0;
  if (experts != nullptr) {
    ExpertFfnLaunch launch = *experts;
    launch.prefilled = halves->Prefilled(experts);
    *error = ExpertPrefill(launch, &both.slots, stream);
  }
  both.halves = reader.rows;
  if (reader.node != nullptr && OnlyLinearsRead(both.norm, nodes.subspan(at + 1))) both.norm.out = nullptr;
  halves->Forget();
  halves->PrefilledFor(reader.node);
  PrefillNorm(both, stream);
  return at + 1;
}

// x += y, then out = norm(x): one pass over the rows.
size_t AddThenNorm(std::span<const Node> nodes, Halves* halves, cudaStream_t stream) {
  const auto* add = NodeAt<AddNode>(nodes, 0);
  const auto* norm = NodeAt<NormLaunch>(nodes, 1);
  if (add == nullptr || norm == nullptr || !Norms(*norm, *add)) return 0;
  NormLaunch both = *norm;
  both.add = add->x;
  LaunchOne(both, halves, stream);
  return 2;
}

// Norms, clamps and rope of q and k, the cache and, of rows of decoding, attention. first: of the run, inputs may have been written just before.
size_t ProjectionsTogether(std::span<const Node> nodes, bool first, const LaunchRoom& room, Halves* halves, cudaStream_t stream) {
  FinishLaunch finish;
  const size_t count = ProjectionsAt(nodes, &finish);
  if (count == 0) return 0;
  if (const auto* attention = NodeAt<AttentionLaunch>(nodes, count); attention != nullptr && attention->q == finish.q_rope.x) {
    AttentionLaunch launch = *attention;
    launch.halves = halves->Take(launch);
    if (FinishAndAttend(finish, launch, !first, room.attention_done, stream)) return count + 1;
    halves->Forget();
  }
  return FinishProjections(finish, stream) ? count : 0;
}

// Attention of many rows, as halves where the product that follows looks for them.
size_t AttentionToPrefill(std::span<const Node> nodes, Halves* halves, cudaStream_t stream) {
  const auto* attention = NodeAt<AttentionLaunch>(nodes, 0);
  LinearLaunch products[kMostTogether];
  if (attention == nullptr || !attention->unread || attention->heads > 16 * attention->cache.kv_heads || LinearsAt(nodes.subspan(1), products) != 1) return 0;
  const std::span<const LinearLaunch> output(products, 1);
  if (output[0].x != attention->out || output[0].rows != attention->count || output[0].weight.cols != attention->heads * attention->cache.head_dim) return 0;
  const HalfRows rows = HalfRowsOf(output[0]);
  if (!PrefillsTogether(output) || !AttendMany(*attention, &rows, stream)) return 0;
  halves->Forget();
  halves->PrefilledFor(NodeAt<LinearLaunch>(nodes, 1));
  return 1;
}

// The experts of few rows, whose slots a norm that follows adds up. picked: the launch before passes them what it picked.
size_t ExpertsThenNorm(std::span<const Node> nodes, bool picked, const int32_t* distinct_before, Halves* halves, cudaStream_t stream) {
  const auto* experts = NodeAt<ExpertFfnLaunch>(nodes, 0);
  if (experts == nullptr || PrefillsExperts(*experts)) return 0;
  ExpertFfnLaunch launch = *experts;
  launch.halves = halves->Of(launch.x);
  launch.picked = picked, launch.distinct_before = distinct_before;
  if (ExpertsOfOneRow(launch, stream)) return 1;
  SlotSums sums;
  if (!ExpertsOfRows(launch, &sums, stream)) return 0;
  const auto* norm = NodeAt<NormLaunch>(nodes, 1);
  if (norm == nullptr || !Norms(*norm, *experts) || norm->n <= 256) {
    AddSlots(sums, experts->out, experts->rows, experts->hidden, stream);
    return 1;
  }
  NormLaunch both = *norm;
  both.slots = sums;
  LaunchOne(both, halves, stream);
  return 2;
}

// A gate's selection that passes what it picks to the experts that follow, if they take it.
SelectLaunch PassingPicks(const SelectLaunch& select, std::span<const Node> following) {
  SelectLaunch launch = select;
  const auto* experts = NodeAt<ExpertFfnLaunch>(following, 0);
  if (experts != nullptr && experts->jobs == select.jobs && experts->rows == select.rows && experts->slots == select.slots && TakesPicks(*experts)) {
    launch.picks = experts->passed;
  }
  return launch;
}

// Of so many slots nearly all experts are read, whatever is selected; the weights of every so manyth are asked for meanwhile.
ExpertsAhead ExpertsAheadOf(const SelectLaunch& select, std::span<const Node> following) {
  constexpr int64_t kMost = int64_t{24} << 20;  // bytes; no more is gained beyond on an H100, whose L2 cache has 50 MiB
  const auto* e = NodeAt<ExpertFfnLaunch>(following, 0);
  if (e == nullptr || e->jobs != select.jobs || e->stride == 0 || e->gate_packing != e->up_packing || e->gate_packing == Packing::kF32) return {};
  if (const int64_t kept = int64_t{e->rows} * e->slots; kept < 2 * e->experts || kept > kStreamSlots) return {};
  const int64_t tiles = int64_t{e->gate_base.k_tiles} * ((e->width + kGroupRows - 1) / kGroupRows * kGroupTiles);
  int64_t tile_bytes = CodeTileBytes(e->gate_packing);
  if (!e->may_read_hi) tile_bytes += ScaleTileBytes(e->gate_packing) + (HasLoPlane(e->gate_packing) ? kPlaneTileBytes : 0);
  ExpertsAhead ahead;
  ahead.bytes = static_cast<int32_t>(tiles * tile_bytes);
  ahead.count = static_cast<int32_t>(std::min<int64_t>(kMost / (2 * tiles * tile_bytes), e->experts));
  ahead.first[0] = e->gate_base.hi, ahead.first[1] = e->up_base.hi, ahead.stride = e->stride;
  ahead.experts = e->experts, ahead.every = e->experts / std::max(ahead.count, 1);
  ahead.slots_before = select.expert_slots, ahead.distinct_before = &select.counts->distinct;
  return ahead;
}

// The product adds to the rows, and the gate's blocks norm them for themselves. distinct_before: of the experts that follow.
size_t OutputToSelectionTogether(std::span<const Node> nodes, Halves* halves, bool* picks, const int32_t** distinct_before, cudaStream_t stream, cudaError_t* error) {
  OutputToSelection f;
  if (!OutputToSelectionAt(nodes, &f) || !NormsBeforeGate(*f.norm, *f.gate, *f.select)) return 0;
  LinearLaunch adds = *f.output;
  adds.out = f.add->out, adds.adds = adds.spares = true, adds.halves = halves->Of(f.output->x);
  adds.ahead = ExpertsAheadOf(*f.select, nodes.subspan(kOutputToSelection));
  if (!LinearOfStreamedRows(std::span(&adds, 1), stream)) return 0;
  *distinct_before = adds.ahead.distinct_before;
  NormLaunch normed = *f.norm;
  normed.halves = halves->Take(normed.out, normed.rows, normed.n);
  const SelectLaunch select = PassingPicks(*f.select, nodes.subspan(kOutputToSelection));
  if (!NormGateAndSelect(normed, *f.gate, select, stream)) *error = cudaErrorLaunchFailure;  // the rows have the sum already
  *picks = select.picks != nullptr;
  return kOutputToSelection;
}

size_t GateThenSelect(std::span<const Node> nodes, bool* picks, cudaStream_t stream) {
  const auto* gate = NodeAt<LinearLaunch>(nodes, 0);
  const auto* select = NodeAt<SelectLaunch>(nodes, 1);
  if (gate == nullptr || select == nullptr) return 0;
  const SelectLaunch launch = PassingPicks(*select, nodes.subspan(2));
  if (!GateAndSelect(*gate, launch, stream)) return 0;
  *picks = launch.picks != nullptr;
  return 2;
}

}  // namespace

cudaError_t Launch(std::span<const Node> nodes, const LaunchRoom& room, cudaStream_t stream) {
  Halves halves(room);
  bool picks = false;  // the newest launch does
  const int32_t* distinct_before = nullptr;  // that it leaves for the experts that follow
  for (size_t i = 0; i < nodes.size();) {
    const bool picked = std::exchange(picks, false);
    const int32_t* const before = std::exchange(distinct_before, nullptr);
    const std::span<const Node> rest = nodes.subspan(i);
    cudaError_t error = cudaSuccess;
    size_t done = LinearsTogether(rest, halves, stream, &error);
    if (done == 0) done = EmbedThenAngles(rest, &halves, stream);
    if (done == 0) done = OutputToSelectionTogether(rest, &halves, &picks, &distinct_before, stream, &error);
    if (done == 0) done = ToPrefill(rest, &halves, stream, &error);
    if (done == 0) done = AddThenNorm(rest, &halves, stream);
    if (done == 0) done = ProjectionsTogether(rest, i == 0, room, &halves, stream);
    if (done == 0) done = AttentionToPrefill(rest, &halves, stream);
    if (done == 0) done = GateThenSelect(rest, &picks, stream);
    if (done == 0) done = ExpertsThenNorm(rest, picked, before, &halves, stream);
    if (done == 0) {
      error = std::visit(
          [&](const auto& node) {
            if constexpr (std::is_void_v<decltype(LaunchOne(node, &halves, stream))>) {
              LaunchOne(node, &halves, stream);
              return cudaSuccess;
            } else {
              return LaunchOne(node, &halves, stream);
            }
          },
          rest[0]);
      done = 1;
    }
    if (error != cudaSuccess) return error;
    i += done;
  }
  return cudaGetLastError();
}

}  // namespace thermoe::cuda
