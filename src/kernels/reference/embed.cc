// SPDX-License-Identifier: Apache-2.0
#include "base/check.h"
#include "kernels/reference/reference.h"

namespace thermoe::kernels::reference {

void Embed(const WeightMatrix& table, std::span<const int32_t> ids, MutRows out) {
  THERMOE_CHECK(out.rows == static_cast<int64_t>(ids.size()) && out.cols == table.cols);
  for (size_t t = 0; t < ids.size(); ++t) {
    THERMOE_CHECK(ids[t] >= 0 && ids[t] < table.rows);
    DecodeRow(table, ids[t], Planes::kBoth, out.row(static_cast<int64_t>(t)));
  }
}

}  // namespace thermoe::kernels::reference
