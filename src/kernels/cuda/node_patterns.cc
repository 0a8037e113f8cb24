// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/node_patterns.h"

#include <algorithm>
#include <iterator>

namespace thermoe::cuda {

bool Norms(const NormLaunch& norm, const AddNode& add) {
  return add.gate == nullptr && norm.x == add.out && norm.out != norm.x && norm.n == add.n && norm.rows == add.rows;
}

bool Norms(const NormLaunch& norm, const ExpertFfnLaunch& experts) {
  return norm.x == experts.out && norm.out != norm.x && norm.n == experts.hidden && norm.rows == experts.rows;
}

size_t ProjectionsAt(std::span<const Node> nodes, FinishLaunch* finish) {
  size_t at = 0;
  *finish = {};
  const float *normed_q = nullptr, *normed_k = nullptr;
  if (const auto* norm = NodeAt<NormLaunch>(nodes, at); norm != nullptr && norm->add == nullptr && norm->x == norm->out) {
    finish->q_norm = *norm, normed_q = norm->x, ++at;
    const auto* second = NodeAt<NormLaunch>(nodes, at);
    if (second == nullptr || second->add != nullptr || second->x != second->out) return 0;
    finish->k_norm = *second, normed_k = second->x, ++at;
  }
  const float* clamped[3] = {};
  for (int i = 0; i < 3; ++i) {
    const auto* clamp = NodeAt<ClampNode>(nodes, at);
    if (clamp == nullptr) break;
    finish->limit = clamp->limit, clamped[i] = clamp->x, ++at;
  }
  const auto* q = NodeAt<RopeLaunch>(nodes, at);
  if (q == nullptr) return 0;
  ++at;
  const auto* k = NodeAt<RopeLaunch>(nodes, at);
  if (k == nullptr) return 0;
  ++at;
  const auto* store = NodeAt<StoreLaunch>(nodes, at);
  if (store == nullptr) return 0;
  ++at;
  const bool same = store->k == k->x && q->cosines == k->cosines && q->rope_dim == k->rope_dim &&
                    (!finish->q_norm || (normed_q == q->x && normed_k == k->x)) &&
                    (clamped[0] == nullptr || (clamped[0] == q->x && clamped[1] == k->x && clamped[2] == store->v));
  if (!same) return 0;
  finish->q_rope = *q, finish->k_rope = *k, finish->store = *store;
  return at;
}

size_t LinearsAt(std::span<const Node> nodes, LinearLaunch (&together)[kMostTogether]) {
  size_t count = 0;
  for (; count < kMostTogether; ++count) {
    const auto* linear = NodeAt<LinearLaunch>(nodes, count);
    if (linear == nullptr || (count > 0 && (linear->x != together[0].x || linear->rows != together[0].rows))) break;
    together[count] = *linear;
  }
  return count;
}

PrefillReader PrefillReaderOf(const NormLaunch& norm, std::span<const Node> following) {
  LinearLaunch together[kMostTogether];
  const size_t count = LinearsAt(following, together);
  const auto reads = [&](const float* x, int64_t rows, int32_t cols) { return x == norm.out && rows == norm.rows && cols == norm.n; };
  if (count == 0 || !reads(together[0].x, together[0].rows, together[0].weight.cols)) return {};
  if (PrefillsTogether(std::span(together).first(count))) return {NodeAt<LinearLaunch>(following, 0), HalfRowsOf(together[0])};
  const auto* select = NodeAt<SelectLaunch>(following, 1);
  const auto* experts = NodeAt<ExpertFfnLaunch>(following, 2);
  const bool floats = count == 1 && together[0].weight.packing == Packing::kF32;  // whose product uses no scratch
  if (!floats || select == nullptr || experts == nullptr || select->rows != experts->rows || !reads(experts->x, experts->rows, experts->hidden)) return {};
  return PrefillsExperts(*experts) ? PrefillReader{experts, HalfRowsOf(*experts)} : PrefillReader{};
}

bool OnlyLinearsRead(const NormLaunch& norm, std::span<const Node> following) {
  LinearLaunch together[kMostTogether];
  const size_t count = LinearsAt(following, together);
  FinishLaunch finish;
  const size_t finished = ProjectionsAt(following.subspan(count), &finish);
  const auto* attention = NodeAt<AttentionLaunch>(following, count + finished);
  const auto* output = NodeAt<LinearLaunch>(following, count + finished + 1);
  if (count == 0 || finished == 0 || attention == nullptr || output == nullptr) return false;
  const float* const others[] = {finish.q_rope.x, finish.k_rope.x, finish.store.v, attention->q, attention->out, output->x};
  if (std::find(std::begin(others), std::end(others), norm.out) != std::end(others)) return false;
  return together[0].x == norm.out && output->out == norm.out && output->rows == norm.rows && output->weight.rows == norm.n && !output->adds;
}

bool OutputToSelectionAt(std::span<const Node> nodes, OutputToSelection* found) {
  OutputToSelection f;
  f.output = NodeAt<LinearLaunch>(nodes, 0), f.add = NodeAt<AddNode>(nodes, 1), f.norm = NodeAt<NormLaunch>(nodes, 2);
  f.gate = NodeAt<LinearLaunch>(nodes, 3), f.select = NodeAt<SelectLaunch>(nodes, 4);
  if (f.output == nullptr || f.add == nullptr || f.norm == nullptr || f.gate == nullptr || f.select == nullptr) return false;
  *found = f;
  return f.add->x == f.output->out && f.add->gate == nullptr && f.norm->x == f.add->out && f.norm->out == f.add->x && f.gate->x == f.norm->out &&
         f.gate->out == f.select->logits;
}

}  // namespace thermoe::cuda
