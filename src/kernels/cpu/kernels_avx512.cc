// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/kernel_table.h"

#if defined(__AVX512F__)
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12's own intrinsics (_mm512_undefined_ps) warn here; GCC bug 105593.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include "kernels/cpu/int_avx512.h"
#include "kernels/cpu/make_table.h"
#include "kernels/cpu/vec_avx512.h"

namespace thermoe::kernels::cpu {

const KernelTable* Avx512Kernels() {
  static constexpr KernelTable kTable = MakeTable<avx512::Isa, avx512::Int>();
  return &kTable;
}

}  // namespace thermoe::kernels::cpu

#else

namespace thermoe::kernels::cpu {

const KernelTable* Avx512Kernels() { return nullptr; }

}  // namespace thermoe::kernels::cpu
#endif
