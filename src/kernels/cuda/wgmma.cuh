// SPDX-License-Identifier: Apache-2.0
// Hopper's warpgroup product: 64 rows from registers times N columns from shared memory; and what brings those there:
// barriers that count bytes, and bulk copies. Only on sm_90a.
#pragma once

#include "kernels/cuda/fragments.cuh"

namespace thermoe::cuda {

__device__ inline void BarrierInit(uint64_t* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(barrier)), "r"(arrivals) : "memory");
}
// One arrival, and `bytes` of copies to come.
__device__ inline void ExpectBytes(uint64_t* barrier, uint32_t bytes) {
  asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1;\n}" ::"r"(
                   SharedAddress(barrier)),
               "r"(bytes)
               : "memory");
}
__device__ inline void BarrierArrive(uint64_t* barrier) {
  asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared::cta.b64 state, [%0];\n}" ::"r"(SharedAddress(barrier)) : "memory");
}
// How often a warp arrives. Once it has met, one lane does for all: one transaction. compute-sanitizer's racecheck takes that for an order of this lane alone, and is
// told of the others where THERMOE_RACECHECK is defined.
#ifdef THERMOE_RACECHECK
inline constexpr uint32_t kArrivalsOfWarp = 32;
#else
inline constexpr uint32_t kArrivalsOfWarp = 1;
#endif
// By all lanes of a warp that has met.
__device__ inline void WarpArrives(uint64_t* barrier, int lane) {
  if (kArrivalsOfWarp > 1 || lane == 0) BarrierArrive(barrier);
}
// Whether it is, or becomes so in some 100 ns.
__device__ inline bool BarrierDone(uint64_t* barrier, uint32_t parity) {
  constexpr uint32_t kNanoseconds = 100;
  uint32_t done;
  asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2, %3;\nselp.u32 %0, 1, 0, p;\n}"
               : "=r"(done)
               : "r"(SharedAddress(barrier)), "r"(parity), "n"(kNanoseconds)
               : "memory");
  return done != 0;
}
__device__ inline void BarrierWait(uint64_t* barrier, uint32_t parity) {
  uint32_t done = 0;
  while (done == 0) {
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(SharedAddress(barrier)), "r"(parity)
                 : "memory");
  }
}
// True for one lane of a warp that is all there. The compiler then knows that there is one: of bulk copies behind another condition it makes loops over lanes.
__device__ inline bool ElectLane() {
  uint32_t elected;
  asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(elected));
  return elected != 0;
}
// `bytes`: a multiple of 16.
__device__ inline void BulkCopy(void* to, const std::byte* from, uint32_t bytes, uint64_t* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   SharedAddress(to)),
               "l"(from), "r"(bytes), "r"(SharedAddress(barrier))
               : "memory");
}

// The same of weights, which a step reads once: they are the first to leave the L2 cache, so that activations, gains and the kernels' code stay.
__device__ inline void BulkCopyOnce(void* to, const std::byte* from, uint32_t bytes, uint64_t* barrier) {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(
                   SharedAddress(to)),
               "l"(from), "r"(bytes), "r"(SharedAddress(barrier)), "l"(policy)
               : "memory");
}

// Brings bytes to the L2 cache; both multiples of 16.
__device__ inline void BulkPrefetch(const std::byte* from, uint32_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
}

// Operands of a product: the registers of d, and their places in its text.
#define THERMOE_SUMS_4(d, i) "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define THERMOE_SUMS_16(d, i) THERMOE_SUMS_4(d, i), THERMOE_SUMS_4(d, (i) + 4), THERMOE_SUMS_4(d, (i) + 8), THERMOE_SUMS_4(d, (i) + 12)
#define THERMOE_SUMS_32(d, i) THERMOE_SUMS_16(d, i), THERMOE_SUMS_16(d, (i) + 16)
#define THERMOE_SUMS_64(d, i) THERMOE_SUMS_32(d, i), THERMOE_SUMS_32(d, (i) + 32)
#define THERMOE_SUMS_128(d, i) THERMOE_SUMS_64(d, i), THERMOE_SUMS_64(d, (i) + 64)
#define THERMOE_REGISTERS_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define THERMOE_REGISTERS_32 THERMOE_REGISTERS_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define THERMOE_REGISTERS_64 THERMOE_REGISTERS_32 ", " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define THERMOE_REGISTERS_128 THERMOE_REGISTERS_64 ", " \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// d (64 by N: of warp w of four, rows 16 w + g and 16 w + g + 8; d[4 j..4 j + 3] are columns 8 j + 2 t, + 1 of either)
// = a b, or
// += where `accumulate`; the first N / 2 of d. b: a descriptor of N rows of 64 halves; kTransposed: of 16 rows of N halves.
template <int N>
struct Wgmma;

template <>
struct Wgmma<32> {
  template <int kTransposed = 0>
  __device__ static void Multiply(float (&d)[64], const Fragment& a, uint64_t b, int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %21, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {"
        THERMOE_REGISTERS_16 "}, "
        "{%16, %17, %18, %19}, %20, p, 1, 1, %22;\n}"
        : THERMOE_SUMS_16(d, 0)
        : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "l"(b), "r"(accumulate), "n"(kTransposed));
  }
};

template <>
struct Wgmma<64> {
  template <int kTransposed = 0>
  __device__ static void Multiply(float (&d)[64], const Fragment& a, uint64_t b, int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {"
        THERMOE_REGISTERS_32 "}, "
        "{%32, %33, %34, %35}, %36, p, 1, 1, %38;\n}"
        : THERMOE_SUMS_32(d, 0)
        : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "l"(b), "r"(accumulate), "n"(kTransposed));
  }
};

template <>
struct Wgmma<128> {
  template <int kTransposed = 0>
  __device__ static void Multiply(float (&d)[64], const Fragment& a, uint64_t b, int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
        THERMOE_REGISTERS_64 "}, "
        "{%64, %65, %66, %67}, %68, p, 1, 1, %70;\n}"
        : THERMOE_SUMS_64(d, 0)
        : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "l"(b), "r"(accumulate), "n"(kTransposed));
  }
};

// Likewise of 128 and 256 columns, of both factors from shared memory: a is a descriptor of 64 rows of 64 halves.
__device__ inline void WgmmaOfShared(float (&d)[64], uint64_t a, uint64_t b, int accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
      THERMOE_REGISTERS_64 "}, "
      "%64, %65, p, 1, 1, 0, 0;\n}"
      : THERMOE_SUMS_64(d, 0)
      : "l"(a), "l"(b), "r"(accumulate));
}
__device__ inline void WgmmaOfShared(float (&d)[128], uint64_t a, uint64_t b, int accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 {"
      THERMOE_REGISTERS_128 "}, "
      "%128, %129, p, 1, 1, 0, 0;\n}"
      : THERMOE_SUMS_128(d, 0)
      : "l"(a), "l"(b), "r"(accumulate));
}

#undef THERMOE_SUMS_4
#undef THERMOE_SUMS_16
#undef THERMOE_SUMS_32
#undef THERMOE_SUMS_64
#undef THERMOE_SUMS_128
#undef THERMOE_REGISTERS_16
#undef THERMOE_REGISTERS_32
#undef THERMOE_REGISTERS_64
#undef THERMOE_REGISTERS_128

__device__ inline void WgmmaFence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void WgmmaCommit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// What a product under way reads or writes stays where it is until here.
template <int kCount>
__device__ inline void WgmmaHold(float (&sums)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}
__device__ inline void WgmmaHold(Fragment& a) { asm volatile("" : "+r"(a.r[0]), "+r"(a.r[1]), "+r"(a.r[2]), "+r"(a.r[3])::"memory"); }
// At most kPending groups are still at work.
template <int kPending>
__device__ inline void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Four 8 by 8 matrices of halves to shared memory: a lane has of each the row lane / 4, two columns; the address is that of row lane % 8 of
// matrix lane / 8.
__device__ inline void StoreMatrices(void* to, const uint32_t (&halves)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(SharedAddress(to)), "r"(halves[0]), "r"(halves[1]), "r"(halves[2]),
               "r"(halves[3])
               : "memory");
}
// Four 8 by 8 matrices of halves to shared memory, each transposed: a lane has of each the row lane / 4, two columns; the
// address is that of 8 halves, lane % 8 of matrix lane / 8.
__device__ inline void StoreTransposed(void* to, const uint32_t (&halves)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(SharedAddress(to)),
               "r"(halves[0]), "r"(halves[1]), "r"(halves[2]), "r"(halves[3])
               : "memory");
}

// Rows of 128 bytes, 16-byte pieces of row r exchanged by r % 8 (128-byte swizzle), each eight of them `eight_bytes` after the other; aligned
// to 1024 bytes. Step s of 16 halves begins 32 s bytes further.
__device__ inline uint64_t WgmmaDescriptor(const void* rows, uint32_t eight_bytes = 1024) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kUnused = uint64_t{1} << 16;
  return kSwizzle128 | uint64_t{eight_bytes >> 4} << 32 | kUnused | (SharedAddress(rows) >> 4 & 0x3fff);
}

// Such rows as the second factor transposed: of a row, 64 columns and, `columns_bytes` further, the next 64. Step s of 16 rows begins
// 2 eight_bytes s further.
__device__ inline uint64_t WgmmaTransposed(const void* rows, uint32_t eight_bytes, uint32_t columns_bytes) {
  return (WgmmaDescriptor(rows, eight_bytes) & ~(uint64_t{0x3fff} << 16)) | uint64_t{columns_bytes >> 4} << 16;
}

}  // namespace thermoe::cuda
