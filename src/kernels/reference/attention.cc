// SPDX-License-Identifier: Apache-2.0
// Causal attention over a block-table KV cache, with grouped query heads (Ainslie et al. 2023, arXiv 2305.13245).
#include <algorithm>
#include <cmath>
#include <vector>

#include "base/check.h"
#include "kernels/reference/reference.h"

namespace thermoe::kernels::reference {

void StoreKv(const StoreKvArgs& args) {
  const KvLayer& cache = args.cache;
  THERMOE_CHECK(args.k.cols == cache.kv_heads * cache.head_dim && args.v.cols == args.k.cols);
  for (size_t t = 0; t < args.rows.size(); ++t) {
    const KvRow& row = args.rows[t];
    const int32_t block = row.blocks[row.position / kKvBlock];
    for (int32_t h = 0; h < cache.kv_heads; ++h) {
      const int64_t at = cache.offset(block, h, row.position % kKvBlock);
      std::copy_n(args.k.row(static_cast<int64_t>(t)) + h * cache.head_dim, cache.head_dim, cache.keys + at);
      std::copy_n(args.v.row(static_cast<int64_t>(t)) + h * cache.head_dim, cache.head_dim, cache.values + at);
    }
  }
}

void Attention(const AttentionArgs& args) {
  const KvLayer& cache = args.cache;
  const int32_t dim = cache.head_dim, group = args.heads / cache.kv_heads;
  THERMOE_CHECK(args.q.cols == args.heads * dim && args.heads % cache.kv_heads == 0);
  std::vector<double> p, sum(static_cast<size_t>(dim));
  for (size_t t = 0; t < args.rows.size(); ++t) {
    const KvRow& row = args.rows[t];
    p.resize(static_cast<size_t>(row.position) + 1);
    for (int32_t h = 0; h < args.heads; ++h) {
      const float* q = args.q.row(static_cast<int64_t>(t)) + h * dim;
      const auto place = [&](size_t i) {
        const auto position = static_cast<int32_t>(i);
        return cache.offset(row.blocks[position / kKvBlock], h / group, position % kKvBlock);
      };
      for (size_t i = 0; i < p.size(); ++i) {
        const float* key = cache.keys + place(i);
        double dot = 0;
        for (int32_t d = 0; d < dim; ++d) dot += static_cast<double>(q[d]) * key[d];
        p[i] = dot * args.scale;
      }
      const double most = *std::max_element(p.begin(), p.end());
      double total = 0;
      for (double& score : p) total += score = std::exp(score - most);
      std::fill(sum.begin(), sum.end(), 0.0);
      for (size_t i = 0; i < p.size(); ++i) {
        const float* value = cache.values + place(i);
        for (int32_t d = 0; d < dim; ++d) sum[static_cast<size_t>(d)] += p[i] * value[d];
      }
      float* out = args.out.row(static_cast<int64_t>(t)) + h * dim;
      for (int32_t d = 0; d < dim; ++d) out[d] = static_cast<float>(sum[static_cast<size_t>(d)] / total);
    }
  }
}

}  // namespace thermoe::kernels::reference
