// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/cpu_ops.h"

#include <cmath>
#include <cstring>

#include "base/check.h"
#include "kernels/select.h"

namespace thermoe::kernels::cpu {

CpuOps::CpuOps(const KernelTable* kernels, ThreadPool* threads)
    : kernels_(kernels),
      threads_(threads),
      name_(std::string("cpu/") + kernels->name),
      scratch_(static_cast<size_t>(threads->size())) {
  for (ThreadScratch& scratch : scratch_) scratch.dot.Reserve(kDotScratchFloats);
}

void CpuOps::Embed(const WeightMatrix& table, std::span<const int32_t> ids, MutRows out) const {
  THERMOE_CHECK(out.rows == static_cast<int64_t>(ids.size()) && out.cols == table.cols);
  ForEachRow(out.rows, out.cols, [&](int64_t t) {
    const int32_t id = ids[static_cast<size_t>(t)];
    THERMOE_CHECK(id >= 0 && id < table.rows);
    DecodeRow(table, id, Planes::kBoth, out.row(t));
  });
}

void CpuOps::RmsNorm(const RmsNormArgs& args) const {
  const int64_t n = args.x.cols;
  THERMOE_CHECK(static_cast<int64_t>(args.gain.size()) == n && args.out.rows == args.x.rows && args.out.cols == n);
  ForEachRow(args.x.rows, n,
             [&](int64_t t) { kernels_->rms_norm(args.x.row(t), args.gain.data(), n, args.epsilon, args.out.row(t)); });
}

void CpuOps::Rope(const RopeArgs& args) const {
  const int32_t half = args.rope_dim / 2;
  const auto heads = static_cast<int32_t>(args.x.cols / args.head_dim);
  THERMOE_CHECK(args.rope_dim <= args.head_dim && args.rope_dim % 2 == 0 && args.x.cols == heads * args.head_dim);
  THERMOE_CHECK(args.cosines.cols == half && args.cosines.rows == args.x.rows && args.sines.cols == half &&
                args.sines.rows == args.x.rows);
  ForEachRow(args.x.rows, args.x.cols, [&](int64_t t) {
    kernels_->rope(args.x.row(t), heads, args.head_dim, args.rope_dim, args.kind == RopeKind::kHalves,
                   args.cosines.row(t), args.sines.row(t));
  });
}

void CpuOps::StoreKv(const StoreKvArgs& args) const {
  const KvLayer& cache = args.cache;
  const auto tokens = static_cast<int64_t>(args.rows.size());
  THERMOE_CHECK(args.k.cols == int64_t{cache.kv_heads} * cache.head_dim && args.v.cols == args.k.cols);
  THERMOE_CHECK(args.k.rows == tokens && args.v.rows == tokens);
  const size_t bytes = static_cast<size_t>(cache.head_dim) * sizeof(float);
  ForEachRow(tokens, 2 * args.k.cols, [&](int64_t t) {
    const KvRow& row = args.rows[static_cast<size_t>(t)];
    const int32_t block = row.blocks[row.position / kKvBlock];
    for (int32_t h = 0; h < cache.kv_heads; ++h) {
      const int64_t at = cache.offset(block, h, row.position % kKvBlock);
      std::memcpy(cache.keys + at, args.k.row(t) + int64_t{h} * cache.head_dim, bytes);
      std::memcpy(cache.values + at, args.v.row(t) + int64_t{h} * cache.head_dim, bytes);
    }
  });
}

void CpuOps::Select(const SelectArgs& args) const { SelectExperts(args); }

void CpuOps::SwiGlu(const SwiGluArgs& args) const {
  const int64_t n = args.out.cols;
  THERMOE_CHECK(args.gate.rows == args.out.rows && args.gate.cols == n && args.up.rows == args.out.rows &&
                args.up.cols == n);
  // An exp and a division cost about eight multiply-adds.
  ForEachRow(args.out.rows, n * 8,
             [&](int64_t t) { kernels_->swiglu(args.gate.row(t), args.up.row(t), n, args.out.row(t)); });
}

void CpuOps::Add(const AddArgs& args) const {
  const int64_t n = args.out.cols;
  THERMOE_CHECK(args.x.rows == args.out.rows && args.x.cols == n);
  THERMOE_CHECK(args.gate.data == nullptr || (args.gate.rows == args.out.rows && args.gate.cols == 1));
  ForEachRow(args.out.rows, n, [&](int64_t t) {
    const float scale = args.gate.data == nullptr ? 1.0f : 1.0f / (1.0f + std::exp(-args.gate.row(t)[0]));
    kernels_->add_scaled(args.x.row(t), scale, n, args.out.row(t));
  });
}

}  // namespace thermoe::kernels::cpu
