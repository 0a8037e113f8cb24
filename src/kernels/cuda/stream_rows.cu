// SPDX-License-Identifier: Apache-2.0
// One block a multiprocessor works through units of up to 128 rows of weights. A few of its warps bring tiles by bulk copies into a ring
// that runs ahead across the ends of units and kernels, so memory is never idle; the others multiply their tiles of every stage of the
// ring. Activations are halves in the order of half_rows.cuh in shared memory: of a linear all, of more than 16
// as many, or all as stream_wide.cuh has them, of experts the rows that a unit meets, of which one
// or two are made whole numbers (whole_product.cuh). An expert that some rows want with both planes and others with the hi plane alone is read once. Hopper only (bulk copies).
#include <array>
#include <initializer_list>

#include "kernels/cuda/launch_early.cuh"
#include "kernels/cuda/one_row.h"
#include "kernels/cuda/stream_experts.cuh"
#include "kernels/cuda/stream_rows.h"
#include "kernels/cuda/stream_wide.cuh"

namespace thermoe::cuda {
namespace {

#if __CUDA_ARCH_FEAT_SM90_ALL
// This block's share of what will most likely be read soon, by a warp: between one launch of experts and the next memory is idle most of the time. Nothing where
// the step before had left out more than a quarter of the experts.
__device__ inline void AskAhead(const ExpertsAhead& ahead) {
  if (ahead.count == 0 || 4 * __ldcg(ahead.distinct_before) < 3 * ahead.experts) return;
  const auto blocks = static_cast<int>(gridDim.x * gridDim.y), block = static_cast<int>(blockIdx.y * gridDim.x + blockIdx.x);
  const int each = ((ahead.bytes + blocks - 1) / blocks + 127) / 128 * 128, begin = block * each;
  const int bytes = min(each, ahead.bytes - begin);
  if (bytes <= 0) return;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x % 32); i < 2 * ahead.count; i += 32) {
    const int expert = i / 2 * ahead.every;
    if (__ldcg(ahead.slots_before + expert) > 0) BulkPrefetch(ahead.first[i % 2] + expert * ahead.stride + begin, static_cast<uint32_t>(bytes));
  }
}

// By the warps that copy tiles of a linear, and the one that copies nothing here.
template <Packing kPacking, int NT>
__device__ void CopyLinear(const Work<kPacking, NT, Stage::kLinear>& work, const Places& places) {
  const int which = WarpNumber() - kWarps;
  const auto ahead = [&] {
    if (which == 0) AskAhead(work.args.ahead);  // behind this launch's own
    WaitForBefore(), LetNextStart();
  };
  Turn stage;
  if (which < kTileWarps) CopyTiles(work, places, which, Pace::kSteady, {}, 0, &stage, nullptr, ahead);
  else ahead();
}
#endif

// grid: blocks; then, where rows are shared, parts of 8 NT rows.
template <Packing kPacking, int NT, bool kShared>
__global__ void __launch_bounds__(kThreads, 1) LinearKernel(const __grid_constant__ StreamArgs args) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(128) std::byte shared[];
  __shared__ BlockBarriers barriers;
  Item* items;
  const int first_row = kShared ? static_cast<int>(blockIdx.y) * 8 * NT : 0, rows_there = kShared ? min(args.rows - first_row, 8 * NT) : args.rows;
  const Places places = MakePlaces(args, shared, rows_there * args.row_bytes, &barriers, &items);
  __syncthreads();
  const Work<kPacking, NT, Stage::kLinear> work{args, RingShape(args.ring_bytes, kStageBytes<kPacking, false>), items, 0, args.cut, 0, first_row, rows_there};
  if (WarpNumber() >= kWarps) return CopyLinear(work, places);
  Turn stage, rows;
  Consume(work, places, Rehearsal::kFirst, &stage, &rows, nullptr, [&] {
    WaitForBefore();
    LoadRows(args, first_row, rows_there, places.rows);
  });
#endif
}

// More than 16 rows, of large matrices (IsWide).
template <Packing kPacking>
__global__ void __launch_bounds__(kThreads, 1) WideLinearKernel(const __grid_constant__ StreamArgs args) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(128) std::byte shared[];
  __shared__ BlockBarriers barriers;
  Item* items;
  const Places places = MakePlaces(args, SwizzleAligned(shared), args.k_tiles * WideTileBytes(args.rows), &barriers, &items);
  __syncthreads();
  const Work<kPacking, 4, Stage::kLinear> work{args, RingShape(args.ring_bytes, kStageBytes<kPacking, false>), items, 0, args.cut, 0, 0, args.rows};
  if (WarpNumber() >= kWarps) return CopyLinear(work, places);
  ConsumeWide(work, places);
#endif
}

// Rows of floats that nobody left as halves. grid: columns, rows.
__global__ void HalvesKernel(const float* x, __half* out, int cols) {
  WaitForBefore();
  LetNextStart();
  const int column = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int64_t row = static_cast<int64_t>(blockIdx.y) * cols;
  if (column < cols) StoreHalf(out + row, column, x[row + column]);
}

// Of a ring beside `others` bytes of shared memory that has places of any of these sizes; 0: too little.
int RingBytesBeside(int others, std::initializer_list<int> place_bytes) {
  int bytes = 0;
  for (const int each : place_bytes) {
    const int stages = std::min((kSharedRoom - others) / each, kMostStages);
    if (stages < 2) return 0;
    bytes = std::max(bytes, stages * each);
  }
  return bytes;
}

int TilesOf(int rows) { return (rows + kTileRows - 1) / kTileRows; }

// Blocks for so many row tiles: one a multiprocessor; or with two tiles each, so that what follows finds multiprocessors free and begins early.
int BlocksFor(int tiles, bool spares) {
  const int all = Multiprocessors();
  return spares && tiles <= all && tiles > all / 2 ? (tiles + 1) / 2 : std::min(all, tiles);
}

constexpr int LinearRowBytes(int cols) { return cols * static_cast<int>(sizeof(__half)) + kRowPad; }

// Of shared memory, beside the ring.
constexpr int LinearPlaceBytes(int rows, int cols) { return rows * LinearRowBytes(cols) + kPartialBytes; }
constexpr int WidePlaceBytes(int rows, int cols) { return cols / kTileCols * WideTileBytes(rows) + kWideSumBytes + kSwizzleAlign; }

// Rows of a linear that shared memory has room for beside two stages of the ring.
template <Packing kPacking>
constexpr int LinearRowsAtOnce(int cols) {
  return (kSharedRoom - kPartialBytes - 2 * kStageBytes<kPacking, false>) / LinearRowBytes(cols);
}

// Whether warpgroups are quicker: of more than 16 rows, where their units, of 64 rows of weights at least, are more than half as many as blocks (H100, 32 rows, Q4_0 and 2,048
// columns: 6,144 rows of weights 7.8 us instead of 9.4, 50,304 32 instead of 41, but 2,048 9.7 instead of 8.4).
bool IsWide(const StreamArgs& args, int blocks) {
  int units = 0;
  for (int i = 0; i < args.linears; ++i) units += UnitsOf(args.linear[i].rows, kMostTiles - (kWideWays - 1));
  return args.rows > 16 && args.rows <= 8 * kWideEights && 2 * units > blocks;
}

// Of more rows than these, if not by warpgroups, a share of the blocks takes so many each: weights come again for each share, from the L2 cache, but
// bringing all rows into a block's shared memory and adding up the parts of their sums takes longer than multiplying (H100, 32 rows, product after attention of 2,048 rows of
// weights, OLMoE: 8.3 us to 7.4).
constexpr int kSharedRows = 16;

template <Packing kPacking>
bool LaunchPart(int blocks, StreamArgs args, cudaStream_t stream) {
  constexpr int kStage = kStageBytes<kPacking, false>, kDeep = kDepth<kPacking, false>;
  static_assert(kStage % kSwizzleAlign == 0);  // where rows begin behind the ring
  static_assert(kDeep << (FirstShare(1) + kMostTiles) <= 32);  // a lane has at most one piece of a stage to copy
  const auto launch = [&](auto* kernel, int others, int ways, int parts = 1) {
    const int of_part = std::max(blocks / parts, 1);
    args.ring_bytes = RingBytesBeside(others, {kStage});
    args.cut = CutOfLinears(args, of_part, kDeep, ways);
    return args.ring_bytes > 0 && LaunchWithShared(kernel, dim3(static_cast<unsigned>(of_part), static_cast<unsigned>(parts)), dim3(kThreads), others + args.ring_bytes, stream, args);
  };
  if (IsWide(args, blocks) && launch(WideLinearKernel<kPacking>, WidePlaceBytes(args.rows, args.cols), kWideWays)) return true;
  if (args.rows > kSharedRows) {
    return launch(LinearKernel<kPacking, 2, true>, LinearPlaceBytes(kSharedRows, args.cols), kWays, (args.rows + kSharedRows - 1) / kSharedRows);
  }
  const int others = LinearPlaceBytes(args.rows, args.cols);
  return args.rows > 8 ? launch(LinearKernel<kPacking, 2, false>, others, kWays) : launch(LinearKernel<kPacking, 1, false>, others, kWays);
}

// Rows of a linear lie in shared memory; where they do not fit, of many columns, they go in parts, of which all but the first take the weights from the L2 cache
// if these are few enough to stay there. The parts of more than kSharedRows go at once. How many of `rows` a launch takes, with so many row tiles of weights; 0: not these.
template <Packing kPacking>
int RowsOfLaunch(int rows, int cols, int tiles) {
  constexpr int64_t kMostRead = int64_t{24} << 20;  // bytes in parts
  const int room = LinearRowsAtOnce<kPacking>(cols);
  if (room < 1 || (room < rows && int64_t{tiles} * (cols / kTileCols) * Ring<kPacking, false>::kTile > kMostRead)) return 0;
  return rows <= room || (rows > kSharedRows && kSharedRows <= room) ? rows : room < 8 ? room : room / 8 * 8;  // products take 8 rows
}

template <Packing kPacking>
bool LaunchLinear(int blocks, StreamArgs args, cudaStream_t stream) {
  args.row_bytes = LinearRowBytes(args.cols);
  int tiles = 0;
  for (int i = 0; i < args.linears; ++i) tiles += TilesOf(args.linear[i].rows);
  const int rows = args.rows, fit = RowsOfLaunch<kPacking>(rows, args.cols, tiles);
  if (fit == 0) return false;
  for (int begin = 0; begin < rows; begin += fit) {
    StreamArgs part = args;
    part.rows = std::min(fit, rows - begin);
    if (begin > 0) part.ahead = {};
    part.x += int64_t{begin} * args.cols;
    for (int i = 0; i < args.linears; ++i) part.out[i] += int64_t{begin} * args.linear[i].rows;
    if (!LaunchPart<kPacking>(blocks, part, stream)) return false;  // the first or none: they differ in their rows alone
  }
  return true;
}

// The cuts of a launch of experts; kept from one launch to the next, for they depend on the shapes alone, which layers share.
template <Packing kUp, Packing kDown, int NT, bool kPasses>
void SetCuts(int blocks, ExpertsArgs* args) {
  struct Cuts {
    std::array<int, 6> of{};
    uint8_t by_items[kCutItems]{};
  };
  thread_local Cuts last;
  const auto shape_of = [&](const StreamArgs& product, int mats, int depth, int tile_bytes) {
    return CutShape{product.matrix_rows, product.k_tiles, mats, depth, kSliceCols<NT> / kTileCols / depth, tile_bytes};
  };
  const std::array<int, 6> of = {blocks, kPasses ? 0 : args->up.kept, args->up.matrix_rows, args->up.k_tiles, args->down.matrix_rows, args->down.k_tiles};
  if (last.of != of) {
    last.of = of;
    for (int items = 0; items < kCutItems; ++items) {
      const CutShape up = shape_of(args->up, 2, kDepth<kUp, true>, Ring<kUp, false>::kTile);
      const CutShape down = shape_of(args->down, 1, kDepth<kDown, true>, Ring<kDown, false>::kTile);
      last.by_items[items] = (kPasses ? CutsInTurn(items, blocks, up, down) : CutsOfClaims(items, args->up.kept, blocks, up, down)).packed;
    }
  }
  std::copy(std::begin(last.by_items), std::end(last.by_items), args->cuts[kUp == Packing::kHiPlane ? 1 : 0]);
}

template <Packing kUp, Packing kDown, int NT, bool kPasses>
bool LaunchExperts(ExpertsArgs args, cudaStream_t stream) {
  args.up.most_items = args.down.most_items = args.up.most_jobs + args.up.kept / (8 * NT) + 1;
  for (StreamArgs* part : {&args.up, &args.down}) {
    for (int way = 0; way < kWays; ++way) part->units_of_item[way] = Divisor(static_cast<uint32_t>(UnitsOf(part->matrix_rows, kMostTiles - way)));
    part->row_bytes = std::min(part->cols, kSliceCols<NT>) * static_cast<int>(sizeof(__half)) + kRowPad;
  }
  const int blocks = Multiprocessors();
  args.up.blocks = args.down.blocks = Divisor(static_cast<uint32_t>(blocks));
  SetCuts<kUp, kDown, NT, kPasses>(blocks, &args);
  if constexpr (kMayAgree<kUp, kDown>) {
    if (args.may_read_hi) SetCuts<Packing::kHiPlane, Packing::kHiPlane, NT, kPasses>(blocks, &args);
  }
  const int place = 8 * NT * std::max(args.up.row_bytes, args.down.row_bytes);
  const int others = 2 * place + kPartialBytes + args.up.most_items * static_cast<int>(sizeof(Item)) + args.up.kept * static_cast<int>(sizeof(int32_t));
  constexpr int kPlace = kPlaceBytes<kUp, kDown>, kPlaceOfHi = kMayAgree<kUp, kDown> ? kPlaceBytes<Packing::kHiPlane, Packing::kHiPlane> : kPlace;
  static_assert(kPlace % 128 == 0 && kPlaceOfHi % 128 == 0);  // so is what lies behind the ring
  const int ring_bytes = RingBytesBeside(others, {kPlace, kPlaceOfHi});
  if (ring_bytes == 0 || args.up.most_items + 1 >= kExpertCounters) return false;
  args.up.rows_place = args.down.rows_place = place;
  args.up.ring_bytes = args.down.ring_bytes = ring_bytes;
  const dim3 grid(static_cast<unsigned>(blocks));
  if constexpr (NT == 1 && !kPasses && kUp != Packing::kPlanes8) {
    if (args.distinct_before != nullptr) {
      const int way = ExpertCuts{args.cuts[0][std::min(args.experts, kCutItems - 1)]}.up_way(), of_item = UnitsOf(args.up.matrix_rows, kMostTiles - way);
      args.guessed = static_cast<int16_t>(std::min({(blocks + of_item - 1) / of_item, args.experts, kMostFixed}));
      args.guessed_stages = static_cast<int16_t>(std::min(kGuessedStages, StepsOf(args.up.k_tiles, FirstShare(2) + way, kDepth<kUp, true>)));
      return LaunchWithShared(ExpertsKernel<kUp, kDown, NT, false, true>, grid, dim3(kThreads), others + ring_bytes, stream, args);
    }
  }
  return LaunchWithShared(ExpertsKernel<kUp, kDown, NT, kPasses, false>, grid, dim3(kThreads), others + ring_bytes, stream, args);
}

// Beside `first`.
bool Streamed(const LinearLaunch& l, const LinearLaunch& first) {
  return MayBeHoppers(l) && l.weight.packing == first.weight.packing && l.weight.packing != Packing::kF32 && l.weight.cols == first.weight.cols && l.weight.cols % kTileCols == 0 &&
         l.weight.cols <= kSharedRoom / static_cast<int>(sizeof(__half));
}

bool Streams(const ExpertFfnLaunch& l) {
  if (l.gate_packing != l.up_packing || l.gate_packing == Packing::kF32 || l.met == nullptr) return false;
  if (!MayBeHoppers(l) || l.rows * l.slots > kStreamSlots || l.hidden % kTileCols != 0 || l.width % kTileCols != 0) return false;
  // Q4_K or Q5_K and Q6_K, as files often have them.
  return l.gate_packing == l.down_packing ||
         ((l.gate_packing == Packing::kNibbleMin || l.gate_packing == Packing::kByteMin) && l.down_packing == Packing::kByte16);
}

// Inner values word by word.
bool Passes(const ExpertFfnLaunch& l) {
  const int64_t kept = int64_t{l.rows} * l.slots;
  return l.passed != nullptr && kept <= kPassedSlots && kept * l.width <= kPassedValues;
}

}  // namespace

bool StreamsAtOnce(std::span<const LinearLaunch> launches, int32_t rows) {
  const LinearLaunch& one = launches.front();
  int tiles = 0;
  for (const LinearLaunch& l : launches) {
    if (!Streamed(l, one)) return false;
    tiles += TilesOf(l.weight.rows);
  }
  return launches.size() <= kMostTogether && rows <= kStreamRows &&
         ByPacking(one.weight.packing, [&]<Packing kPacking>() { return RowsOfLaunch<kPacking>(rows, one.weight.cols, tiles) == rows; });
}

const __half* HalvesOf(const float* x, const __half* given, void* room, int32_t rows, int32_t cols, cudaStream_t stream) {
  if (given != nullptr) return given;
  auto* out = static_cast<__half*>(room);
  LaunchEarly(HalvesKernel, dim3(static_cast<unsigned>((cols + 255) / 256), static_cast<unsigned>(rows)), dim3(256), 0, stream, x, out, cols);
  return out;
}

size_t StreamedLinearScratch(int32_t rows, int32_t in) {
  return rows > kStreamRows ? 0 : static_cast<size_t>(rows) * static_cast<size_t>(in) * sizeof(__half);
}

bool LinearOfStreamedRows(std::span<const LinearLaunch> launches, cudaStream_t stream) {
  if (LinearOfOneRow(launches, stream)) return true;
  const LinearLaunch& one = launches.front();
  const int32_t cols = one.weight.cols;
  if (one.rows > kStreamRows || launches.size() > kMostTogether) return false;
  StreamArgs args{};
  int tiles = 0;
  for (const LinearLaunch& l : launches) {
    if (!Streamed(l, one)) return false;
    const int i = args.linears++;
    args.linear[i] = l.weight, args.bias[i] = l.bias, args.out[i] = l.out;
    tiles += TilesOf(l.weight.rows);
  }
  args.adds = one.adds, args.ahead = one.ahead;
  args.rows = one.rows, args.cols = cols, args.k_tiles = cols / kTileCols;
  args.x = HalvesOf(one.x, one.halves, one.scratch, one.rows, cols, stream);
  return ByPacking(one.weight.packing, [&]<Packing kPacking>() { return LaunchLinear<kPacking>(BlocksFor(tiles, one.spares), args, stream); });
}

bool TakesPicks(const ExpertFfnLaunch& l) { return l.rows == 1 && l.slots <= kMostPicks && Streams(l) && Passes(l); }

bool ExpertsOfStreamedRows(const ExpertFfnLaunch& l, SlotSums* sums, cudaStream_t stream) {
  if (!Streams(l)) return false;
  const int32_t kept = l.rows * l.slots;
  const ExpertScratchParts parts = PartsOfExpertScratch(l.hidden, l.width, l.slots, l.rows);
  auto* scratch = static_cast<std::byte*>(l.scratch);
  auto* inner = reinterpret_cast<__half*>(scratch);
  auto* slot_out = reinterpret_cast<float*>(scratch + parts.slot_out);
  ExpertsArgs both{};
  StreamArgs& up = both.up;
  up.jobs = l.jobs, up.job_count = l.job_count, up.order = l.order;
  up.slots = l.slots, up.rows = l.rows, up.kept = std::min(kept, l.order_room);
  up.most_jobs = std::min({l.may_read_hi ? 2 * std::min(l.experts, kept) : l.experts, kept, l.jobs_room});
  both.down = up;
  up.x = HalvesOf(l.x, l.halves, scratch + parts.rows, l.rows, l.hidden, stream);
  up.cols = l.hidden, up.k_tiles = l.hidden / kTileCols, up.matrix_rows = l.width;
  up.first = l.gate, up.second = l.up, up.base[0] = l.gate_base, up.base[1] = l.up_base, up.stride = l.stride;
  up.inner = inner;
  StreamArgs& down = both.down;
  down.x = inner, down.slot_out = slot_out;
  down.cols = l.width, down.k_tiles = l.width / kTileCols, down.matrix_rows = l.hidden;
  down.first = l.down, down.base[0] = l.down_base, down.stride = l.stride;
  both.met = l.met, both.may_read_hi = l.may_read_hi;
  both.experts = l.experts, both.distinct_before = l.distinct_before;
  up.passed = down.passed = l.passed, up.picked = l.picked;
  const bool passes = Passes(l);
  const bool many = kept > 5 * l.experts;  // many of an expert's rows would come in two items of 8
  const auto launch_as = [&]<Packing kUp, Packing kDown>() {
    if (many) return LaunchExperts<kUp, kDown, 2, false>(both, stream);
    return passes ? LaunchExperts<kUp, kDown, 1, true>(both, stream) : LaunchExperts<kUp, kDown, 1, false>(both, stream);
  };
  const auto launch = [&]<Packing kUp, Packing kDown>() {
    if constexpr (kUp == Packing::kPlanes8) {
      if (!l.may_read_hi) return launch_as.template operator()<Packing::kBothPlanes, Packing::kBothPlanes>();
    }
    return launch_as.template operator()<kUp, kDown>();
  };
  bool done = false;
  if (l.gate_packing == l.down_packing) {
    done = ByPacking(l.gate_packing, [&]<Packing kPacking>() { return launch.template operator()<kPacking, kPacking>(); });
  } else if (l.gate_packing == Packing::kNibbleMin) {
    done = launch.template operator()<Packing::kNibbleMin, Packing::kByte16>();
  } else {
    done = launch.template operator()<Packing::kByteMin, Packing::kByte16>();
  }
  if (!done) return false;
  *sums = {slot_out, l.weight, l.expert, l.slots};
  return true;
}

}  // namespace thermoe::cuda
