// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/int_portable.h"
#include "kernels/cpu/make_table.h"
#include "kernels/cpu/vec_portable.h"

namespace thermoe::kernels::cpu {

const KernelTable* PortableKernels() {
  static constexpr KernelTable kTable = MakeTable<portable::Isa, portable::Int>();
  return &kTable;
}

}  // namespace thermoe::kernels::cpu
