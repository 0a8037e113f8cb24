// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <vector>

#include "base/check.h"
#include "kernels/reference/reference.h"

namespace thermoe::kernels::reference {
namespace {

// Gradients of one kv head's keys and values, [T, head_dim] in double.
struct KvSums {
  std::vector<double> dk, dv;
};

// One query head of row t. With p = softmax(scale q . k): ds = p (dout . v - dout . out),
// dq = scale sum(ds k), dk += scale ds q, dv += p dout.
void BackwardOfQuery(const AttentionBackwardArgs& args, int64_t t, int32_t head, KvSums* sums) {
  const KvLayer& cache = args.cache;
  const int32_t dim = cache.head_dim, kv_head = head / (args.heads / cache.kv_heads);
  const KvRow& row = args.rows[static_cast<size_t>(t)];
  const int32_t first = args.rows[0].position;
  const float *q = args.q.row(t) + int64_t{head} * dim, *out = args.out.row(t) + int64_t{head} * dim;
  const float* dout = args.dout.row(t) + int64_t{head} * dim;
  const auto place = [&](int32_t i) { return cache.offset(row.blocks[i / kKvBlock], kv_head, i % kKvBlock); };
  const auto dot = [dim](const float* a, const float* b) {
    double sum = 0;
    for (int32_t d = 0; d < dim; ++d) sum += static_cast<double>(a[d]) * b[d];
    return sum;
  };
  std::vector<double> p(static_cast<size_t>(row.position) + 1), dq(static_cast<size_t>(dim));
  for (size_t i = 0; i < p.size(); ++i) p[i] = dot(q, cache.keys + place(static_cast<int32_t>(i))) * args.scale;
  const double most = *std::max_element(p.begin(), p.end());
  double total = 0;
  for (double& score : p) total += score = std::exp(score - most);
  const double along = dot(dout, out);
  for (int32_t i = 0; i <= row.position; ++i) {
    const double weight = p[static_cast<size_t>(i)] / total;
    const double ds = weight * (dot(dout, cache.values + place(i)) - along) * args.scale;
    for (int32_t d = 0; d < dim; ++d) dq[static_cast<size_t>(d)] += ds * cache.keys[place(i) + d];
    if (i < first) continue;
    for (int32_t d = 0; d < dim; ++d) {
      const auto at = static_cast<size_t>(int64_t{i - first} * dim + d);
      sums->dk[at] += ds * q[d];
      sums->dv[at] += weight * dout[d];
    }
  }
  for (int32_t d = 0; d < dim; ++d)
    args.dq.row(t)[int64_t{head} * dim + d] = static_cast<float>(dq[static_cast<size_t>(d)]);
}

}  // namespace

void AttentionBackward(const AttentionBackwardArgs& args) {
  const KvLayer& cache = args.cache;
  const int32_t dim = cache.head_dim, group = args.heads / cache.kv_heads;
  const auto tokens = static_cast<int64_t>(args.rows.size());
  THERMOE_CHECK(args.q.rows == tokens && args.q.cols == args.heads * dim && args.heads % cache.kv_heads == 0);
  THERMOE_CHECK(args.out.size() == args.q.size() && args.dout.size() == args.q.size() &&
                args.dq.size() == args.q.size());
  THERMOE_CHECK(args.dk.rows == tokens && args.dk.cols == cache.kv_heads * dim && args.dv.size() == args.dk.size());
  for (int32_t h = 0; h < cache.kv_heads; ++h) {
    const std::vector<double> zeros(static_cast<size_t>(tokens * dim));
    KvSums sums{zeros, zeros};
    for (int64_t t = 0; t < tokens; ++t) {
      THERMOE_CHECK(args.rows[static_cast<size_t>(t)].position == args.rows[0].position + t);
      for (int32_t g = 0; g < group; ++g) BackwardOfQuery(args, t, h * group + g, &sums);
    }
    for (int64_t t = 0; t < tokens; ++t) {
      for (int32_t d = 0; d < dim; ++d) {
        args.dk.row(t)[int64_t{h} * dim + d] = static_cast<float>(sums.dk[static_cast<size_t>(t * dim + d)]);
        args.dv.row(t)[int64_t{h} * dim + d] = static_cast<float>(sums.dv[static_cast<size_t>(t * dim + d)]);
      }
    }
  }
}

}  // namespace thermoe::kernels::reference
