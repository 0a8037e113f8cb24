// SPDX-License-Identifier: Apache-2.0
// Rotary position embedding: Su et al. 2021, arXiv 2104.09864.
#include "base/check.h"
#include "kernels/reference/reference.h"

namespace thermoe::kernels::reference {

void Rope(const RopeArgs& args) {
  const int64_t heads = args.x.cols / args.head_dim;
  const int64_t half = args.rope_dim / 2;
  THERMOE_CHECK(args.rope_dim <= args.head_dim && args.cosines.cols == half && args.cosines.rows == args.x.rows);
  const bool halves = args.kind == RopeKind::kHalves;
  for (int64_t t = 0; t < args.x.rows; ++t) {
    for (int64_t h = 0; h < heads; ++h) {
      float* x = args.x.row(t) + h * args.head_dim;
      for (int64_t i = 0; i < half; ++i) {
        float& a = x[halves ? i : 2 * i];
        float& b = x[halves ? i + half : 2 * i + 1];
        const float c = args.cosines.row(t)[i], s = args.sines.row(t)[i];
        const float turned = a * c - b * s;
        b = b * c + a * s;
        a = turned;
      }
    }
  }
}

}  // namespace thermoe::kernels::reference
