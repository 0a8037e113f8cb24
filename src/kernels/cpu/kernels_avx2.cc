// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/kernel_table.h"

#if defined(__AVX2__)
#include "kernels/cpu/int_avx2.h"
#include "kernels/cpu/make_table.h"
#include "kernels/cpu/vec_avx2.h"

namespace thermoe::kernels::cpu {

const KernelTable* Avx2Kernels() {
  static constexpr KernelTable kTable = MakeTable<avx2::Isa, avx2::Int>();
  return &kTable;
}

}  // namespace thermoe::kernels::cpu

#else

namespace thermoe::kernels::cpu {

const KernelTable* Avx2Kernels() { return nullptr; }

}  // namespace thermoe::kernels::cpu
#endif
