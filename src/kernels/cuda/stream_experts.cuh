// SPDX-License-Identifier: Apache-2.0
// Both products of experts in one launch, of rows that stream_rows.cu serves: who does what.
#pragma once

#include "kernels/cuda/launch_early.cuh"
#include "kernels/cuda/stream_warps.cuh"

namespace thermoe::cuda {

inline constexpr int kCutItems = 256;
// Copied before the selection has come: more would only stand in front of what the selection waits for (H100, OLMoE Q4_0, 32 rows, tokens/s: none 16,640, two 17,066,
// four 16,738). A ring has at least so many.
inline constexpr int kGuessedStages = 2;

struct ExpertsArgs {
  StreamArgs up, down;
  uint8_t cuts[2][kCutItems];  // ExpertCuts by the number of items, the last of all more; [1]: where nobody reads lo planes
  bool may_read_hi;
  // Blocks whose first unit is of an expert below `guessed` copy so many stages of it before the selection has come, if the step before read three quarters of all
  // experts.
  int16_t guessed, guessed_stages;
  int32_t experts;
  const int32_t* distinct_before;
  // [2 + items] blocks that wait no more; units claimed; units of each item's first product that are done. Zero between launches.
  uint32_t* met;
};

template <Packing kUp, Packing kDown>
inline constexpr int kPlaceBytes = std::max(kStageBytes<kUp, true>, kStageBytes<kDown, true>);

// Whether a launch may turn out to read hi planes alone, or both everywhere.
template <Packing kUp, Packing kDown>
inline constexpr bool kMayAgree = kUp == Packing::kPlanes8 && kDown == Packing::kPlanes8;

// What a block has to do of both products.
template <Packing kUp, Packing kDown, int NT>
struct ExpertsWork {
  Work<kUp, NT, Stage::kGateUp> up;
  Work<kDown, NT, Stage::kDown> down;

  __device__ ExpertsWork(const ExpertsArgs& args, const Item* items)
      : up{args.up, RingShape(args.up.ring_bytes, kPlaceBytes<kUp, kDown>), items, 0, {}}, down{args.down, RingShape(args.up.ring_bytes, kPlaceBytes<kUp, kDown>), items, 0, {}} {}
  __device__ void CutUp(const ExpertsArgs& args, int item_count) { up.SetCut(item_count, CutsFor(args, item_count).up_way(), 0, 0); }
  template <bool kInTurn>
  __device__ void CutDown(const ExpertsArgs& args) {
    const ExpertCuts cuts = CutsFor(args, up.item_count);
    int light = 0;
    if constexpr (kInTurn) {
      const int blocks = static_cast<int>(gridDim.x), turns = static_cast<int>(args.up.blocks.Quotient(static_cast<uint32_t>(up.cut.units + blocks - 1)));
      light = turns * blocks - up.cut.units;
    }
    down.SetCut(up.item_count, cuts.down_way(), cuts.alone(), light);
    down.before = up.cut.units;
  }
  // As another's, of stages of as many tiles.
  template <Packing kOtherUp, Packing kOtherDown>
  __device__ void CutAs(const ExpertsWork<kOtherUp, kOtherDown, NT>& other) {
    static_assert(kDepth<kUp, true> == kDepth<kOtherUp, true> && kDepth<kDown, true> == kDepth<kOtherDown, true>);
    up.item_count = down.item_count = other.up.item_count;
    up.cut = other.up.cut, down.cut = other.down.cut, down.before = other.down.before;
  }
  static __device__ ExpertCuts CutsFor(const ExpertsArgs& args, int item_count) {
    return {args.cuts[kUp == Packing::kHiPlane ? 1 : 0][min(item_count, kCutItems - 1)]};
  }
};

#if __CUDA_ARCH_FEAT_SM90_ALL
// The expert of this block's first unit, if each has one item; at most the last.
template <Packing kUp, Packing kDown, int NT>
__device__ int GuessedExpert(const ExpertsArgs& args) {
  return min(static_cast<int>(args.up.units_of_item[ExpertsWork<kUp, kDown, NT>::CutsFor(args, args.experts).up_way()].Quotient(blockIdx.x)), args.experts - 1);
}
// Whether what has been copied of it is what the first unit wants.
template <Packing kUp, Packing kDown, int NT>
__device__ bool GuessedRight(const ExpertsArgs& args, const Item* items, int item_count) {
  using Experts = ExpertsWork<kUp, kDown, NT>;
  const int expert = GuessedExpert<kUp, kDown, NT>(args);
  return Experts::CutsFor(args, args.experts).up_way() == Experts::CutsFor(args, item_count).up_way() && expert < item_count && items[expert].expert == expert;
}

// How many stages of it to copy: by the warps that copy tiles, which leave the number for the others.
__device__ inline int AgreeOnGuess(const ExpertsArgs& args, int which, int expert, int32_t* stages) {
  if (which == 0 && threadIdx.x % 32 == 0) *stages = expert < args.guessed && 4 * __ldcg(args.distinct_before) >= 3 * args.experts ? args.guessed_stages : 0;
  MeetCopying();
  return *stages;
}

// By the warps that multiply: goes past stages that were copied for nothing.
__device__ inline void PassStages(const Places& places, const RingShape& ring, int count, Turn* stage) {
#pragma unroll 1
  for (int i = 0; i < count; ++i, stage->Next(ring.stages)) {
    BarrierWait(&places.barriers->full[stage->at], stage->phase);
    __syncwarp();
    WarpArrives(&places.barriers->empty[stage->at], static_cast<int>(threadIdx.x % 32));
  }
}

// By one of the warps that copy tiles. trial: as CopyTiles has it, of the first product. tried: stages that have been copied so; they end at `turn`.
template <bool kPasses, bool kGuesses, Packing kUp, Packing kDown, int NT>
__device__ void CopyExperts(const ExpertsArgs& args, const Item* items, int item_count, const Places& places, int which, const Trial& trial, int tried, Turn* turn) {
  ExpertsWork<kUp, kDown, NT> work(args, items);
  const auto& [up, down] = work;
  Turn stage = *turn;
  work.CutUp(args, item_count);
  work.template CutDown<kPasses>(args);
  Claims claims(args.met + 1, up.cut.units + down.cut.units);
  Claims* const of = kPasses ? nullptr : &claims;
  if (!kPasses && trial.item == nullptr) claims.Begin(which);
  const Pace plain = args.up.kept <= kPassedSlots ? Pace::kHurried : Pace::kSteady;
  constexpr bool kOfBytes = HasLoPlane(kUp) || kUp == Packing::kHiPlane;
  const int copied = kGuesses && tried > 0 && GuessedRight<kUp, kDown, NT>(args, items, item_count) ? tried : 0;
  const Pace first = kPasses && !kOfBytes ? Pace::kSteady : plain;
  CopyTiles<kGuesses>(up, places, which, kGuesses && trial.item != nullptr ? Pace::kHurried : first, trial, copied, &stage, of, [] {});
  if (trial.item != nullptr) {
    if (kGuesses && trial.stages > 0) *turn = stage;
    return;
  }
  // A warp that had no piece of any stage (none of a full one, then) has waited for none: it must not be ahead by more than a parity tells. (Claims keep warps
  // together.)
  if (kPasses && 2 * min(up.cut.share * up.kTiles, args.up.k_tiles) < kTileWarps) MeetCopying();
  // Of so few experts the first products' bytes come first, so that no block is late with what all wait for; unless the second's do not fit the ring.
  const Cut& cut = down.cut;
  const int blocks = static_cast<int>(gridDim.x), most = cut.alone + static_cast<int>(args.up.blocks.Quotient(static_cast<uint32_t>(max(cut.units - cut.alone * cut.light, 0) + blocks - 1)));
  const Pace second = kPasses && most * cut.steps <= down.ring.stages ? Pace::kYielding : plain;
  CopyTiles(down, places, which, second, {}, 0, &stage, of, [] {});
}

// By the others.
template <bool kPasses, bool kGuesses, Packing kUp, Packing kDown, int NT>
__device__ void DoExperts(const ExpertsArgs& args, const ExpertsWork<kUp, kDown, NT>& work, const Places& places, int tried) {
  const auto& [up, down] = work;
  const int warp = WarpNumber(), lane = static_cast<int>(threadIdx.x % 32), item_count = up.item_count;
  if (warp == kWarps + kTileWarps) {
    WaitForBefore();  // for the rows, and so that the block does not end before
    CopyRows<kPasses>(up, down, places, args.met + 2);
    // The last block to have come here clears what was counted: nobody waits for it any more, and all know the launch's number.
    const bool last = __any_sync(kAllLanes, lane == 0 && CountBlock(args.met) + 1 == gridDim.x);
    if (!last) return;
#pragma unroll 1
    for (int i = lane; i <= item_count + 1; i += 32) args.met[i] = 0;
    if (kPasses && lane == 0) *args.up.passed = places.number;
    return;
  }
  Turn stage, rows;
  int claim = 0;
  if (kGuesses && tried > 0 && !GuessedRight<kUp, kDown, NT>(args, up.items, item_count)) PassStages(places, up.ring, tried, &stage);
  if constexpr (kPasses || NT > 1) {
    Consume<kPasses>(up, places, Rehearsal::kFirst, &stage, &rows, &claim, [] {});
    MeetMultiplying();  // warps share tiles, and barriers, otherwise from here on
    Consume<kPasses>(down, places, Rehearsal::kFirst, &stage, &rows, &claim, [] {});
  } else {
    // The end of a unit of the second product, too, is gone through before the first tiles come. A loop, so that its code is there once.
#pragma unroll 1
    for (int phase = 0; phase < 3; ++phase) {
      if (phase == 1) Consume<kPasses>(up, places, Rehearsal::kFirst, &stage, &rows, &claim, [] {});
      else Consume<kPasses>(down, places, phase == 0 ? Rehearsal::kOnly : Rehearsal::kNone, &stage, &rows, &claim, [] {});
      MeetMultiplying();
    }
  }
}
#endif

// Both products of experts. All blocks must run at once: the second of an item begins where its first has ended in all blocks, though tiles come before.
// kPasses: inner values go word by word, each with the launch's number (StreamArgs.passed). kGuesses: ExpertsArgs.guessed.
template <Packing kUp, Packing kDown, int NT, bool kPasses, bool kGuesses>
__global__ void __launch_bounds__(kThreads, 1) ExpertsKernel(const __grid_constant__ ExpertsArgs args) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(128) std::byte shared[];
  __shared__ BlockBarriers barriers;
  __shared__ int32_t item_count;
  __shared__ uint64_t launch_number;
  __shared__ bool all_hi, all_both;
  __shared__ int32_t stages_tried;
  __shared__ Item nothing[kTileWarps];
  const int warp = WarpNumber(), lane = static_cast<int>(threadIdx.x % 32), kept = args.up.kept;
  const bool picked = kPasses && args.up.picked;
  Item* items;
  Places places = MakePlaces(args.up, shared, 2 * args.up.rows_place, &barriers, &items);
  if (kGuesses) __syncthreads();  // barriers are there
  // Until the kernel before has ended or picks come, warps go once through what they do first afterwards, for nothing but its code and constants, which then come
  // meanwhile.
  if (const int which = warp - kWarps; which >= 0 && which < kTileWarps) {
    bool dry = true, of_hi = args.may_read_hi;
    const int expert = kGuesses ? GuessedExpert<kUp, kDown, NT>(args) : 0;
    if (lane == 0) nothing[which] = {expert, 0, 1, 1};
    const Trial trial{&nothing[which], kGuesses ? AgreeOnGuess(args, which, expert, &stages_tried) : 0};
    int count = trial.stages > 0 ? args.experts : kept;
    Turn stage;
    __syncwarp();
    const auto copy = [&]<Packing kFirst, Packing kSecond>() {
      CopyExperts<kPasses, kGuesses, kFirst, kSecond, NT>(args, items, count, places, which, dry ? trial : Trial{}, dry ? 0 : trial.stages, &stage);
    };
    const auto meet = [&] {
      __syncthreads();
      dry = false, of_hi = all_hi, count = item_count;
    };
    if constexpr (kMayAgree<kUp, kDown>) {
#pragma unroll 1
      while (of_hi) {
        copy.template operator()<Packing::kHiPlane, Packing::kHiPlane>();
        if (!dry) return;
        meet();
      }
    }
#pragma unroll 1
    for (;;) {
      copy.template operator()<kUp, kDown>();
      if (!dry) return;
      meet();
    }
  }
  // Of picks the launch before passes, the one before that has long come to its end.
  const uint64_t number = picked && threadIdx.x < 64 ? __ldcg(args.up.passed) + 1 : 0;
  ExpertsWork<kUp, kDown, NT> work(args, items);
  const auto make_cuts = [&](auto* of, int items_there) { of->CutUp(args, items_there), of->template CutDown<kPasses>(args); };
  if (kPasses) make_cuts(&work, kept);  // few slots are mostly an item each: cut for that while there is time
  if (warp == 0) {
    constexpr bool kPlanes = kUp == Packing::kPlanes8;
    bool some_lo = false, some_hi = false;
    int made = 0;
#pragma unroll 1
    for (int pass = 0; pass < 2; ++pass) {
      if (pass > 0 && !picked) WaitForBefore(), LetNextStart();
      made = picked ? TakePicks<kPlanes>(args.up, number, pass == 0, items, &some_lo, &some_hi)
                    : MakeItems<8 * NT, kPlanes, kGuesses>(args.up, pass == 0, args.guessed, items, &some_lo, &some_hi);
    }
    if (lane == 0) item_count = made, all_hi = args.may_read_hi && !some_lo, all_both = !some_hi;
  } else {
    if (!picked) WaitForBefore(), LetNextStart();
    if (kPasses && warp == 1 && lane == 0) launch_number = picked ? number : __ldcg(args.up.passed) + 1;
#pragma unroll 1
    for (int i = warp < kWarps ? static_cast<int>(threadIdx.x) - 32 : kept; i < kept; i += 32 * (kWarps - 1)) {
      places.order[i] = picked ? i : __ldcg(args.up.order + i);
    }
  }
  __syncthreads();
  if (picked) LetNextStart();
  if (kPasses) places.number = launch_number;
  if constexpr (kMayAgree<kUp, kDown>) {
    if (all_hi) {
      ExpertsWork<Packing::kHiPlane, Packing::kHiPlane, NT> of_hi(args, items);
      make_cuts(&of_hi, item_count);
      return DoExperts<kPasses, false>(args, of_hi, places, 0);
    }
  }
  if (!kPasses || item_count != kept) make_cuts(&work, item_count);
  if constexpr (kMayAgree<kUp, kDown>) {
    if (all_both) {  // as native weights: shorter code
      ExpertsWork<Packing::kBothPlanes, Packing::kBothPlanes, NT> of_both(args, items);
      of_both.CutAs(work);
      return DoExperts<kPasses, false>(args, of_both, places, 0);
    }
  }
  DoExperts<kPasses, kGuesses>(args, work, places, kGuesses ? stages_tried : 0);
#endif
}

}  // namespace thermoe::cuda
