// SPDX-License-Identifier: Apache-2.0
// What the warps of a block of stream_rows.cu do: copy tiles, copy rows, multiply.
#pragma once

#include "kernels/cuda/half_rows.cuh"
#include "kernels/cuda/shared.cuh"
#include "kernels/cuda/stream_work.cuh"
#include "kernels/cuda/wgmma.cuh"
#include "kernels/cuda/whole_product.cuh"

#if __CUDA_ARCH_FEAT_SM90_ALL
namespace thermoe::cuda {

constexpr int kRowTileBytes = kTileCols * static_cast<int>(sizeof(__half));

// Barriers of the ring, of the rows' two places, of units whose results are written and of claims; those of bytes and of claims have one arrival.
struct Barriers {
  uint64_t full[kMostStages], empty[kMostStages], rows_full[2], rows_empty[2], unit_done[kUnitsAhead], claimed[kUnitsAhead];
};
inline constexpr int kBarriers = sizeof(Barriers) / sizeof(uint64_t);
struct BlockBarriers : Barriers {
  int32_t claims[kUnitsAhead];  // Claims
};

// Where things are in shared memory.
struct Places {
  std::byte *ring, *rows;
  float* partial;  // [warps][4][32]
  int32_t* order;
  BlockBarriers* barriers;
  uint64_t number = 0;  // of this launch, where values are passed
};

// Lays out shared memory and makes barriers; afterwards all threads must meet.
__device__ inline Places MakePlaces(const StreamArgs& args, std::byte* shared, int rows_bytes, BlockBarriers* barriers, Item** items) {
  Places places;
  shared = Held(shared), barriers = Held(barriers);
  places.ring = shared;
  places.rows = shared + args.ring_bytes;
  places.partial = reinterpret_cast<float*>(places.rows + rows_bytes);
  *items = reinterpret_cast<Item*>(reinterpret_cast<std::byte*>(places.partial) + kPartialBytes);
  places.order = reinterpret_cast<int32_t*>(*items + args.most_items);
  places.barriers = barriers;
  // By all warps: the lanes of one would make them one after the other.
#pragma unroll 1
  for (int i = WarpNumber(); i < kBarriers; i += kThreads / 32) {
    const bool of_one = i < kMostStages || (i >= 2 * kMostStages && i < 2 * kMostStages + 2) || i >= kBarriers - kUnitsAhead;
    if (threadIdx.x % 32 == 0) BarrierInit(&barriers->full[0] + i, of_one ? 1 : kWarps * kArrivalsOfWarp);
  }
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  return places;
}

// All warps that multiply.
__device__ inline void MeetMultiplying() {
  __syncwarp();
  asm volatile("bar.sync 15, %0;" ::"n"(32 * kWarps) : "memory");
}

// All warps that copy tiles.
__device__ inline void MeetCopying() {
  __syncwarp();
  asm volatile("bar.sync 14, %0;" ::"n"(32 * kTileWarps) : "memory");
}

// The units of both products that a block claims, one ahead of what it copies: the first warp that copies tiles does, the others read it. Blocks are slow and
// quick by when they begin and by what others leave them of memory, and units of a launch are few.
struct Claims {
  uint32_t* counter;  // units claimed beside every block's first
  int total;
  int k = 0, unit = static_cast<int>(blockIdx.x);  // unit: claim k; at least `total`: there are no more
  uint32_t next = 0;

  __device__ Claims(uint32_t* counter, int total) : counter(counter), total(total) {}
  // By the warps that copy: the first unit is every block's own. Asks for the next.
  __device__ void Begin(int which) {
    // As a counter that goes round, for of an addition the assembler makes one for all lanes, and a shuffle that waits for it here.
    if (which == 0 && threadIdx.x % 32 == 0 && unit < total) {
      asm volatile("atom.relaxed.gpu.global.inc.u32 %0, [%1], 0x7fffffff;" : "=r"(next) : "l"(counter) : "memory");
    }
  }
  // Goes to the next. The warps are thereby never a unit apart.
  __device__ void Claim(int which, BlockBarriers* b) {
    ++k;
    if (which == 0 && threadIdx.x % 32 == 0) {
      unit = static_cast<int>(gridDim.x + next);
      b->claims[k % kUnitsAhead] = unit;
      BarrierArrive(&b->claimed[k % kUnitsAhead]);
    }
    Begin(which);
    MeetCopying();
    unit = b->claims[k % kUnitsAhead];
  }
};
// Claim k, by the other warps.
__device__ inline int Claimed(BlockBarriers* b, int k) {
  if (k == 0) return static_cast<int>(blockIdx.x);
  const unsigned place = static_cast<unsigned>(k) % kUnitsAhead, round = static_cast<unsigned>(k) / kUnitsAhead;
  BarrierWait(&b->claimed[place], (round ^ (place == 0 ? 1u : 0u)) % 2);  // the first of all is not told
  return b->claims[place];
}

// Position in a ring of `size`: the place, and how often it has been round.
struct Turn {
  int at = 0;
  uint32_t phase = 0;
  bool again = false;  // the place has been used
  __device__ void Next(int size) {
    if (++at == size) at = 0, phase ^= 1, again = true;
  }
};

// What a lane copies of the stages of a unit: the row tiles of one matrix and column tile (of each, in a stage: codes, lo planes, scales).
template <Packing kPacking, int NT, Stage kStage>
struct Copier {
  using R = Ring<kPacking, false>;
  static constexpr int kMats = Work<kPacking, NT, kStage>::kMats;
  const std::byte *codes, *lo, *scales;
  int tiles, k, step_tiles, k_tiles, chunk_place;
  uint32_t chunk_bytes;
  bool hi, first;

  // which: of the warps that copy; each takes some of a stage's pieces, for a warp asks for one after the other. dry: of a unit without columns.
  __device__ Copier(const Work<kPacking, NT, kStage>& work, const Unit<kMats>& unit, int which, bool dry) : first(which == 0) {
    const Cut& cut = work.cut;
    const int lane = static_cast<int>(threadIdx.x % 32), part = lane & ((kMats << cut.share_log) - 1);
    const DeviceMatrix m = kMats == 2 && part >> cut.share_log != 0 ? unit.m[kMats - 1] : unit.m[0];
    tiles = cut.tiles, k_tiles = dry ? 0 : work.args.k_tiles, step_tiles = cut.share * Work<kPacking, NT, kStage>::kTiles;
    chunk_place = lane * tiles * R::kTile;
    k = lane < kMats * step_tiles && lane % kTileWarps == which ? lane / (kMats << cut.share_log) * cut.share + (part & (cut.share - 1)) : k_tiles;
    hi = kPacking == Packing::kPlanes8 && kStage != Stage::kLinear && unit.item.both == 0;
    chunk_bytes = static_cast<uint32_t>(tiles * (R::kTile - (hi ? R::kLo : 0)));
    const int64_t tile = (int64_t{unit.tile / kGroupTiles} * k_tiles + k) * kGroupTiles + unit.tile % kGroupTiles;
    codes = m.hi + tile * R::kCodes, lo = m.lo + tile * R::kLo, scales = m.scales + tile * R::kScales;
  }
  // Of a full one.
  __device__ int StageBytes(const RingShape& ring) const { return hi ? kWarps * Work<kPacking, NT, kStage>::kTiles * (R::kTile - R::kLo) : ring.stage_bytes; }
  // Whether a stage takes this warp: another must not wait for the stage's barriers, for nothing keeps it from being a round behind, which a parity cannot tell.
  __device__ bool Takes(int step) const { return first || __any_sync(kAllLanes, step * step_tiles + k < k_tiles); }
  __device__ void Copy(int step, std::byte* ring_stage, uint64_t* full) const {
    const int lane = static_cast<int>(threadIdx.x % 32), before = step * step_tiles;
    if (first && lane == 0 && before < k_tiles) ExpectBytes(full, chunk_bytes * static_cast<uint32_t>(kMats * min(step_tiles, k_tiles - before)));
    __syncwarp();
    if (before + k >= k_tiles) return;
    const int64_t tile = int64_t{before} * kGroupTiles;
    std::byte* to = ring_stage + chunk_place;
    BulkCopyOnce(to, codes + tile * R::kCodes, static_cast<uint32_t>(tiles * R::kCodes), full);
    if (R::kLo > 0 && !hi) BulkCopyOnce(to + tiles * R::kCodes, lo + tile * R::kLo, static_cast<uint32_t>(tiles * R::kLo), full);
    if (R::kScales > 0) BulkCopyOnce(to + tiles * (R::kCodes + R::kLo), scales + tile * R::kScales, static_cast<uint32_t>(tiles * R::kScales), full);
  }
};

// How many stages are asked for at once: some, as many as there is room for, or one, where others wait for what slower blocks have yet to copy.
enum class Pace { kSteady, kHurried, kYielding };

// Steady: 64 to 80 KiB on their way, of a unit whose stages have so many bytes; more would only wait in front of memory, and what else is loaded (sums, activations, code)
// behind them. A stage is asked for when the one so many before it has come, or after some 13 us: the wait is bounded, for a barrier that went round twice meanwhile looks
// as if that had not come.
__device__ inline void WaitUnderWay(const RingShape& ring, int stage_bytes, uint64_t* full, const Turn& stage, Pace pace) {
  constexpr int kTries = 128;
  const int under_way = pace == Pace::kYielding ? 1 : stage_bytes <= 24 << 10 ? 4 : 2;
  const bool round = stage.at < under_way;  // that stage was of the round before
  if (pace == Pace::kHurried || ring.stages <= under_way || (round && !stage.again)) return;
  uint64_t* barrier = full + stage.at - under_way + (round ? ring.stages : 0);
#pragma unroll 1
  for (int i = 0; i < kTries && !BarrierDone(barrier, stage.phase ^ (round ? 1 : 0)); ++i) {}
}

// Before it is known what there is to do: once through for nothing but the code, or `stages` of the block's first unit, of an expert that will most likely be there.
struct Trial {
  const Item* item = nullptr;  // null: it is known
  int stages = 0;              // 0: nothing
};

// By one of the warps that copy tiles. `ahead` is called once, when as many stages as there are places have been asked for, or all of them. trial: that alone. copied: stages
// of the first unit that have been.
template <bool kGuesses = false, Packing kPacking, int NT, Stage kStage, typename Ahead>
__device__ void CopyTiles(const Work<kPacking, NT, kStage>& work, const Places& places, int which, Pace pace, const Trial& trial, int copied, Turn* stage, Claims* claims,
                          const Ahead& ahead) {
  BlockBarriers& b = *places.barriers;
  bool called = false;
  int k = 0;
  const auto unit_now = [&] { return claims != nullptr ? claims->unit - work.before : work.UnitAt(k); };
#pragma unroll 1
  for (; trial.item != nullptr || unit_now() < work.cut.units; claims != nullptr ? claims->Claim(which, &b) : static_cast<void>(++k)) {
    const int unit = trial.item == nullptr ? unit_now() : kGuesses ? static_cast<int>(blockIdx.x) : 0;
    const Item item = trial.item == nullptr ? work.ItemAt(unit) : *trial.item;
    const Copier<kPacking, NT, kStage> copier(work, work.Open(unit, item), which, trial.item != nullptr && trial.stages == 0);
#pragma unroll 1
    for (int step = copied; step < work.cut.steps; ++step, stage->Next(work.ring.stages)) {
      if (kGuesses && trial.item != nullptr && step > 0 && step >= trial.stages) return;
      if (stage->again && !called) ahead(), called = true;
      if (copier.Takes(step)) {
        WaitUnderWay(work.ring, copier.StageBytes(work.ring), b.full, *stage, pace);
        if (stage->again) BarrierWait(&b.empty[stage->at], stage->phase ^ 1);
        copier.Copy(step, places.ring + stage->at * work.ring.stage_bytes, &b.full[stage->at]);
      }
      if (!kGuesses && trial.item != nullptr) return;
    }
    if (kGuesses && trial.item != nullptr) return;
    copied = 0;
  }
  if (!called) ahead();
}

// Whether as many units of an item are done as there are, asked by a warp. What they wrote may then be copied.
__device__ inline bool UnitsDone(const uint32_t* of_item, uint32_t all) {
  uint32_t done = 0;
  if (threadIdx.x % 32 == 0) asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(done) : "l"(of_item) : "memory");
  if (!__any_sync(kAllLanes, done >= all)) return false;
  __syncwarp();
  asm volatile("fence.proxy.async;" ::: "memory");
  return true;
}

// Whether rows of an item may be multiplied as whole numbers.
template <Packing kPacking, int NT, Stage kStage>
inline constexpr bool kMayBeWhole = NT == 1 && kStage != Stage::kLinear && kHasWholeCodes<kPacking>;
// How many. Of few slots of which some read both planes and others one, registers do not suffice for two.
template <bool kPasses, Packing kPacking>
inline constexpr int kMostWhole = kPasses && kPacking == Packing::kPlanes8 ? 1 : kWholeRows;
// They are where they are few and all read the same planes (a single one does; asked for nevertheless, that makes the compiler spill): of 1 and 2 rows 0 and 1; otherwise -1.
template <bool kPasses, Packing kPacking>
__device__ inline int WholeRowsLog(const Item& item) {
  if constexpr (kMostWhole<kPasses, kPacking> == 1) return item.count > 1 ? -1 : 0;
  return item.count > kWholeRows || (kPacking == Packing::kPlanes8 && item.both > 0 && item.both < item.count) ? -1 : item.count - 1;
}

// An item's rows, a slice of their columns, as whole numbers, by the warps that multiply: once they are there and before they are multiplied. Their notes lie behind them, in a
// place that has room for eight rows.
static_assert(2 * kWholeRows <= 8);
template <Packing kPacking>
__device__ void MakeWhole(std::byte* rows, int row_bytes, const Item& item, int columns, int warp) {
  const int pieces = columns / 8, lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll 1
  for (int row = 0; row < item.count; ++row, rows += row_bytes) {
#pragma unroll 1
    for (int first = 32 * warp; first < pieces; first += 32 * kWarps) {
      const int piece = first + lane;
      auto* place = reinterpret_cast<uint4*>(rows) + piece;
      uint4 halves{};
      if (piece < pieces) halves = *place;
      WholeNote note;
      const uint4 bytes = WholeBytes<kPacking>(halves, item.both == 0, &note);
      if (piece < pieces) {
        *place = bytes;
        if (piece % 4 == 0) reinterpret_cast<WholeNote*>(rows + kWholeRows * row_bytes)[piece / 4] = note;
      }
    }
  }
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // copies will take the place
  MeetMultiplying();
}

// The rows of a unit, a slice of the columns at a time, by one warp.
template <Packing kPacking, int NT, Stage kStage>
__device__ void CopyUnitRows(const Work<kPacking, NT, kStage>& work, const Places& places, int unit, Turn* rows) {
  const StreamArgs& args = work.args;
  Barriers& b = *places.barriers;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const Item item = work.Open(unit).item;
  const int64_t row = kStage == Stage::kGateUp && lane < item.count ? places.order[item.first + lane] / args.slots : item.first + lane;
#pragma unroll 1
  for (int begin = 0; begin < args.cols; begin += kSliceCols<NT>) {
    const auto bytes = static_cast<uint32_t>(min(kSliceCols<NT>, args.cols - begin) * static_cast<int>(sizeof(__half)));
    uint64_t* full = &b.rows_full[rows->at];
    if (rows->again) BarrierWait(&b.rows_empty[rows->at], rows->phase ^ 1);
    if (lane == 0) ExpectBytes(full, bytes * static_cast<uint32_t>(item.count));
    __syncwarp();
    if (lane < item.count) BulkCopy(places.rows + rows->at * args.rows_place + lane * args.row_bytes, reinterpret_cast<const std::byte*>(args.x + row * args.cols + begin), bytes, full);
    rows->Next(2);
  }
}

// All rows that this block's units meet, by one warp, which also tells of units of the first product that are done, so that those that multiply need not wait
// for what they wrote to be seen. of_items: how many units of an item's first product are done.
template <bool kPasses, Packing kUp, Packing kDown, int NT>
__device__ void CopyRows(const Work<kUp, NT, Stage::kGateUp>& up, const Work<kDown, NT, Stage::kDown>& down, const Places& places, uint32_t* of_items) {
  BlockBarriers& b = *places.barriers;
  Turn rows;
  const auto tell = [&](int k, int unit) {
    if (kPasses || k < 0) return;
    BarrierWait(&b.unit_done[k % kUnitsAhead], k / kUnitsAhead % 2);
    if (threadIdx.x % 32 == 0) asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(of_items + up.ItemOf(unit)) : "memory");
  };
  int k = 0, unit, last = 0;
#pragma unroll 1
  for (; (unit = kPasses ? up.UnitAt(k) : Claimed(&b, k)) < up.cut.units; ++k) {
    CopyUnitRows(up, places, unit, &rows);
    tell(k - 1, last);  // this unit's rows are on their way
    last = unit;
  }
  if constexpr (!kPasses) {
    unit -= down.before;
    const auto all = static_cast<uint32_t>(UnitsOf(up.args.matrix_rows, up.cut.tiles_log));
    // To tell takes long while tiles come: the second product's first rows, if they are there while the last unit of the first one is multiplied, come before that
    // is told of.
    bool copied = false;
    if (k > 0 && down.args.cols <= kSliceCols<NT> && unit < down.cut.units) {
      const uint32_t* of_item = of_items + down.ItemOf(unit);
#pragma unroll 1
      while (!copied && !BarrierDone(&b.unit_done[(k - 1) % kUnitsAhead], (k - 1) / kUnitsAhead % 2)) copied = UnitsDone(of_item, all);
      if (copied) CopyUnitRows(down, places, unit, &rows);
    }
    tell(k - 1, last);
    if (copied) unit = Claimed(&b, ++k) - down.before;
    int seen = -1;
#pragma unroll 1
    for (; unit < down.cut.units; unit = Claimed(&b, ++k) - down.before) {
      const int item = down.ItemOf(unit);
#pragma unroll 1
      while (item != seen && !UnitsDone(of_items + item, all)) {}
      seen = item;
      CopyUnitRows(down, places, unit, &rows);
    }
  }
}

// A value of an inner product, and that it is of this launch, in one store.
__device__ inline void Pass(uint64_t* to, uint64_t number, float value) {
  PutWord(to, number << kNumberShift | __half_as_ushort(SaturatedHalf(value)));
}

// Columns [first, first + most) of an item's rows as others pass them, to a place of rows, by the warps that multiply.
__device__ inline void TakePassed(const StreamArgs& args, const Places& places, const Item& item, int first, int most, std::byte* to) {
  const int pairs = min(most, args.cols - first) / 2;
  MeetMultiplying();  // what was there has been multiplied
#pragma unroll 1
  for (int row = 0; row < item.count; ++row) {
    const uint64_t* from = args.passed + kPassedFirst + int64_t{item.first + row} * args.cols + first;
#pragma unroll 1
    for (int pair = static_cast<int>(threadIdx.x); pair < pairs; pair += 32 * kWarps) {
      uint64_t low, high;
      do {
        asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];" : "=l"(low), "=l"(high) : "l"(from + 2 * pair) : "memory");
      } while (low >> kNumberShift != places.number || high >> kNumberShift != places.number);
      *reinterpret_cast<uint32_t*>(to + row * args.row_bytes + pair * 4) = static_cast<uint32_t>(low & 0xffffu) | static_cast<uint32_t>(high) << 16;
    }
  }
  MeetMultiplying();
}

// Whether the end of a unit is gone through for nothing before units are multiplied, or nothing else is done, or it has been: its code would otherwise come when
// weights keep memory busy, a line of instructions after the other. Of up to 8 rows; there is no rehearsal of more.
enum class Rehearsal { kFirst, kOnly, kNone };

// Multiplies this block's units, after the rehearsal and then `begin`, which makes the rows be there. kPasses: inner values go by `passed`.
template <bool kPasses = false, Packing kPacking, int NT, Stage kStage, typename Begin>
__device__ void Consume(const Work<kPacking, NT, kStage>& work, const Places& places, Rehearsal rehearsal, Turn* stages, Turn* row_places, int* claim, const Begin& begin) {
  using R = Ring<kPacking, false>;
  constexpr int kMats = Work<kPacking, NT, kStage>::kMats;
  constexpr bool kPlanes = kPacking == Packing::kPlanes8 && kStage != Stage::kLinear, kExperts = kStage != Stage::kLinear;
  constexpr bool kWhole = kMayBeWhole<kPacking, NT, kStage>;
  const StreamArgs& args = work.args;
  const Cut cut = work.cut;
  BlockBarriers& b = *places.barriers;
  const int warp = WarpNumber(), lane = static_cast<int>(threadIdx.x % 32);
  constexpr int kTiles = Work<kPacking, NT, kStage>::kTiles;
  const int together = kMats << cut.share_log, tile = warp / together, part = warp % together;  // part: matrix by matrix, share by share
  const int own_k = part & (cut.share - 1), step_k = kTiles << cut.share_log;
  // This lane's of the warp's first tile in a stage: codes, lo plane, scales; the others follow `next` bytes further on.
  const LaneOffsets<kPacking> lanes(lane);
  const RingShape ring = work.ring;
  const std::byte* chunk = places.ring + part * cut.tiles * R::kTile;
  const std::byte* codes = chunk + tile * R::kCodes + lanes.code;
  const std::byte* lo = chunk + cut.tiles * R::kCodes + tile * R::kLo + lanes.code;
  const std::byte* records = chunk + cut.tiles * (R::kCodes + R::kLo) + tile * R::kScales;  // of all the tile's rows
  const std::byte* scales = records + lanes.scale;
  const int next = together * cut.tiles * R::kTile;
  const int slice_steps = kExperts ? kSliceCols<NT> / kTileCols / kTiles >> cut.share_log : cut.steps;
  Turn stage = *stages, rows = *row_places;
  int stage_at = stage.at * ring.stage_bytes;
  constexpr bool kRehearses = NT == 1;
  constexpr bool kClaims = kExperts && !kPasses;
  const int first = kClaims ? rehearsal == Rehearsal::kOnly ? 0 : Claimed(&b, *claim) - work.before : work.UnitAt(0);
  if (first >= cut.units) return WaitForBefore();
  if (!kRehearses || rehearsal == Rehearsal::kNone) begin();
  Unit<kMats> u{};
#pragma unroll 1
  for (int k = kRehearses && rehearsal != Rehearsal::kNone ? -1 : 0, unit = first; unit < cut.units;) {
    const bool real = !kRehearses || k >= 0;
    if (!kRehearses || k != 0 || rehearsal == Rehearsal::kNone) u = work.Open(unit);  // or the first has been opened while there was time
    const int count = real ? u.item.count : 0, both = u.item.both, groups = real ? (count + 7) / 8 : 1, steps = real ? cut.steps : 0;
    int row_at[NT];  // rows that there are not are the last once more: nobody reads what comes of them
#pragma unroll
    for (int nt = 0; nt < NT; ++nt) row_at[nt] = min(nt * 8 + lane / 4, count - 1) * args.row_bytes + lane % 4 * 16 + own_k * kRowTileBytes;
    float sum[NT][4] = {};
    const int rows_log = kWhole && real ? WholeRowsLog<kPasses, kPacking>(u.item) : -1;
    const WholeLane whole_lane(max(rows_log, 0), args.row_bytes, kRowTileBytes << cut.share_log, next, R::kScales / kTileRows);
    float whole_sum[2] = {};
    const std::byte* x_rows = places.rows;
    int left = args.k_tiles - own_k;  // column tiles from this warp's next to the end
#pragma unroll 1
    for (int step = 0; step < steps;) {
      const int slice_end = min(steps, step + slice_steps);
      if constexpr (kStage == Stage::kDown && kPasses) {
        TakePassed(args, places, u.item, step * step_k * kTileCols, kSliceCols<NT>, places.rows + rows.at * args.rows_place);
        x_rows = places.rows + rows.at * args.rows_place;
      } else if constexpr (kExperts) {
        BarrierWait(&b.rows_full[rows.at], rows.phase);
        x_rows = places.rows + rows.at * args.rows_place;
      }
      if constexpr (kWhole) {
        if (rows_log >= 0) MakeWhole<kPacking>(places.rows + rows.at * args.rows_place, args.row_bytes, u.item, min(kSliceCols<NT>, args.cols - step * step_k * kTileCols), warp);
      }
      const std::byte* note_rows = x_rows + own_k * kNoteTileBytes;
#pragma unroll 1
      for (; step < slice_end; ++step, left -= step_k, x_rows += step_k * kRowTileBytes, note_rows += step_k * kNoteTileBytes) {
        BarrierWait(&b.full[stage.at], stage.phase);
        const auto multiply = [&](int h, auto&& product) {
          const int from = stage_at + h * next;
          uint4 x[2][NT];
#pragma unroll
          for (int i = 0; i < 2 * NT; ++i) {
            x[i / NT][i % NT] = *reinterpret_cast<const uint4*>(x_rows + row_at[i % NT] + (h << cut.share_log) * kRowTileBytes + i / NT * 64);
          }
          product(from, x);
        };
        const auto multiply_all = [&](auto&& product) {
          if (left > (kTiles - 1) << cut.share_log) {
#pragma unroll
            for (int h = 0; h < kTiles; ++h) multiply(h, product);  // nothing between them: they do not wait for each other
          } else {
#pragma unroll 1
            for (int h = 0; h < kTiles && left > h << cut.share_log; ++h) multiply(h, product);
          }
        };
        const auto multiply_tiles = [&]<bool kHi>() {
          multiply_all([&](int from, const uint4(&x)[2][NT]) {
            Multiply<kPacking, kHi, NT>(ReadTile<kPacking, kHi>(codes + from, lo + from, scales + from), x, sum, groups);
          });
        };
        const auto multiply_whole = [&]<bool kBoth, int kRows>() {
          constexpr int kGroup = kRows == 1 ? 2 : 1;  // tiles
          static_assert(kTiles % kGroup == 0);
          const int own = own_k * kRowTileBytes, x_next = kRowTileBytes << cut.share_log;
          const auto group = [&](int h, int there) {
            const int from = stage_at + h * next;
            MultiplyWhole<kPacking, kBoth, kGroup>(codes + from, lo + from, records + from + whole_lane.record, next, x_rows + own + h * x_next + whole_lane.x,
                                                 note_rows + h * x_next / 4 + whole_lane.note, whole_lane, there, whole_sum);
          };
          if (left > (kTiles - 1) << cut.share_log) {
#pragma unroll
            for (int h = 0; h < kTiles; h += kGroup) group(h, kGroup);
          } else {
#pragma unroll 1
            for (int h = 0; h < kTiles && left > h << cut.share_log; h += kGroup) group(h, left > (h + kGroup - 1) << cut.share_log ? kGroup : 1);
          }
        };
        const auto multiply_rows = [&]<bool kBoth>() {
          if (kMostWhole<kPasses, kPacking> == 1 || rows_log == 0) multiply_whole.template operator()<kBoth, 1>();
          else multiply_whole.template operator()<kBoth, 2>();
        };
        if (kWhole && rows_log >= 0) {
          if constexpr (kWhole) {
            constexpr bool kBoth = HasLoPlane(kPacking);
            if (kPlanes && both == 0) multiply_rows.template operator()<false>();
            else multiply_rows.template operator()<kBoth>();
          }
        } else if (kPlanes && both == 0) {
          multiply_tiles.template operator()<kPlanes>();
        } else if (kPlanes && both < count) {
          multiply_all([&](int from, const uint4(&x)[2][NT]) {
            if constexpr (kPlanes) MultiplyMixed<NT>(ReadTile<kPacking, false>(codes + from, lo + from, scales + from), x, sum, both, groups);
          });
        } else {
          multiply_tiles.template operator()<false>();
        }
        __syncwarp();
        WarpArrives(&b.empty[stage.at], lane);
        stage.Next(ring.stages);
        stage_at = stage.at == 0 ? 0 : stage_at + ring.stage_bytes;
      }
      if constexpr (kExperts && !(kPasses && kStage == Stage::kDown)) {
        WarpArrives(&b.rows_empty[rows.at], lane);
        rows.Next(2);
      }
    }
    // The parts of a tile, added in order, a value a thread of its warps.
#pragma unroll
    for (int nt = 0; nt < NT; ++nt) {
      if (nt >= groups) break;
      const auto meet = [&] { asm volatile("bar.sync %0, %1;" ::"r"(1 + tile), "r"(32 * together) : "memory"); };
      meet();  // those before have been added
      if (kWhole && rows_log >= 0) {
        PutWholeSums(rows_log, whole_sum, places.partial + warp * 4 * 32);
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) places.partial[(warp * 4 + i) * 32 + lane] = sum[nt][i];
      }
      meet();
      const int columns = real ? min(count - nt * 8, 8) : 1;
#pragma unroll 1
      for (int value = part * 32 + lane; value < kTileRows * columns; value += 32 * together) {
        const unsigned in_tile = static_cast<unsigned>(value) % kTileRows, in_group = static_cast<unsigned>(value) / kTileRows;
        const float* parts = places.partial + (warp - part) * 128 + (in_tile / 8 * 2 + in_group % 2) * 32 + in_tile % 8 * 4 + in_group / 2;
        float total[kMats];
#pragma unroll
        for (int j = 0; j < kMats; ++j) {
          const float* of_matrix = parts + (j << cut.share_log) * 4 * 32;
          total[j] = of_matrix[0];
#pragma unroll
          for (int first = 1; first < kWarps / kMats; first *= 2) {
            if (first >= cut.share) break;
#pragma unroll
            for (int share = first; share < 2 * first; ++share) total[j] += of_matrix[share * 4 * 32];
          }
        }
        const int row = (u.tile + tile) * kTileRows + static_cast<int>(in_tile), column = nt * 8 + static_cast<int>(in_group);
        if (row >= u.m[0].rows || !real) continue;
        if constexpr (kPacking == Packing::kHalf) {
#pragma unroll
          for (int j = 0; j < kMats; ++j) total[j] *= reinterpret_cast<const float*>(u.m[j].scales)[row];
        }
        if constexpr (kStage == Stage::kLinear) {
          const float* bias = args.bias[u.which];
          float* to = args.out[u.which] + int64_t{u.item.first + column} * u.m[0].rows + row;
          const float whole = total[0] + (bias != nullptr ? bias[row] : 0.0f);
          if (args.adds) atomicAdd(to, whole);  // nobody else adds there: the same sum, but nothing waits for what was there
          else *to = whole;
        } else if constexpr (kStage == Stage::kGateUp) {
          const float inner = Silu(total[0]) * total[kMats - 1];
          const int64_t at = int64_t{u.item.first + column} * args.matrix_rows;
          if constexpr (!kPasses) StoreHalf(args.inner + at, row, inner);
          else Pass(args.passed + kPassedFirst + at + HalfPlace(row), places.number, inner);
        } else {
          args.slot_out[int64_t{places.order[u.item.first + column]} * args.matrix_rows + row] = total[0];
        }
      }
    }
    if (!real) {
      begin();
      if (rehearsal == Rehearsal::kOnly) return;
    } else if (kStage == Stage::kGateUp && !kPasses) {
      __syncwarp();
      WarpArrives(&b.unit_done[k % kUnitsAhead], lane);
    }
    ++k;
    if constexpr (!kClaims) unit = work.UnitAt(k);
    else if (real) unit = Claimed(&b, ++*claim) - work.before;
  }
  *stages = stage, *row_places = rows;
}

// Rows of a linear, by the warps that multiply.
__device__ inline void LoadRows(const StreamArgs& args, int first_row, int rows, std::byte* to) {
  constexpr int kThreadsOfRows = 32 * kWarps, kTogether = 8;  // loads that do not wait for each other
  const int each = args.cols / 8, at_once = max(kThreadsOfRows / each, 1), thread = static_cast<int>(threadIdx.x);
  const int first = each < kThreadsOfRows ? thread / each : 0;  // row, of so many at once
#pragma unroll 1
  for (int at = first < at_once ? thread - first * each : each; at < each; at += kThreadsOfRows) {
    const uint4* from = reinterpret_cast<const uint4*>(args.x + int64_t{first_row} * args.cols) + at;
    std::byte* place = to + at * 16;
#pragma unroll 1
    for (int row = first; row < rows; row += kTogether * at_once) {
      uint4 v[kTogether];
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        if (row + j * at_once < rows) v[j] = __ldcg(from + (row + j * at_once) * each);
      }
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        if (row + j * at_once < rows) *reinterpret_cast<uint4*>(place + (row + j * at_once) * args.row_bytes) = v[j];
      }
    }
  }
  MeetMultiplying();
}

}  // namespace thermoe::cuda
#endif  // __CUDA_ARCH_FEAT_SM90_ALL
