// SPDX-License-Identifier: Apache-2.0
// Cases of StoreKv and Attention over several sequences with scattered blocks. Places that no row may see hold NaN.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "kernels/op_cases.h"
#include "kernels/op_table.h"

namespace thermoe::kernels {

// Rows [first, first + count) of a sequence in one step.
struct SequenceRows {
  int32_t first = 0, count = 0;
};

struct AttentionShape {
  int32_t heads = 0, kv_heads = 0, head_dim = 0;
  std::vector<SequenceRows> sequences;
  double rounding = 0;  // of queries, keys, weights and values, as RoundedSumBound

  std::string text() const {
    std::string rows;
    for (const SequenceRows& s : sequences)
      rows.append(" ").append(std::to_string(s.first)).append("+").append(std::to_string(s.count));
    return Shape({heads, kv_heads, head_dim}) + " rows" + rows;
  }
};

// A cache with its sequences' contents, and the rows of a step.
struct AttentionFixture {
  AttentionShape shape;
  std::vector<std::vector<int32_t>> tables;  // per sequence
  std::vector<float> keys, values, q;
  std::vector<KvRow> rows;
  float scale = 0;

  KvLayer cache() { return {keys.data(), values.data(), shape.kv_heads, shape.head_dim}; }
  int64_t tokens() const { return static_cast<int64_t>(rows.size()); }
  int64_t q_cols() const { return int64_t{shape.heads} * shape.head_dim; }
};

inline std::shared_ptr<AttentionFixture> MakeAttention(Random& random, const AttentionShape& shape) {
  auto f = std::make_shared<AttentionFixture>();
  f->shape = shape;
  f->scale = static_cast<float>(1 / std::sqrt(static_cast<double>(shape.head_dim)));
  std::vector<int32_t> free_blocks;
  for (const SequenceRows& s : shape.sequences) {
    for (int32_t b = 0; b <= (s.first + s.count - 1) / kKvBlock + 1; ++b)
      free_blocks.push_back(static_cast<int32_t>(free_blocks.size()));
  }
  for (size_t i = free_blocks.size(); i > 1; --i) std::swap(free_blocks[i - 1], free_blocks[random.Below(i)]);
  const KvLayer sizes{nullptr, nullptr, shape.kv_heads, shape.head_dim};
  const auto floats = static_cast<size_t>(sizes.offset(static_cast<int32_t>(free_blocks.size()), 0, 0));
  f->keys.assign(floats, kPoison);
  f->values.assign(floats, kPoison);
  size_t taken = 0;
  for (const SequenceRows& s : shape.sequences) {
    const int32_t length = s.first + s.count;
    std::vector<int32_t>& table = f->tables.emplace_back();
    for (int32_t b = 0; b <= (length - 1) / kKvBlock; ++b) table.push_back(free_blocks[taken++]);
    for (int32_t position = 0; position < length; ++position) {
      for (int32_t h = 0; h < shape.kv_heads; ++h) {
        const int64_t at = sizes.offset(table[static_cast<size_t>(position / kKvBlock)], h, position % kKvBlock);
        for (int32_t d = 0; d < shape.head_dim; ++d) {
          f->keys[static_cast<size_t>(at + d)] = static_cast<float>(random.Normal());
          f->values[static_cast<size_t>(at + d)] = static_cast<float>(random.Normal());
        }
      }
    }
  }
  for (size_t i = 0; i < shape.sequences.size(); ++i) {
    for (int32_t r = 0; r < shape.sequences[i].count; ++r)
      f->rows.push_back({f->tables[i].data(), shape.sequences[i].first + r});
  }
  f->q = RandomFloats(random, f->tokens() * f->q_cols(), 1.5);
  return f;
}

// One head of one row, and the bound of each output.
// A score's error is that of its dot product plus two roundings; a softmax weight p / sum p then has the relative error
// e = 2 max (score error) + roundings of exp and of each block's rescaling (5 u a block, from both p and the sum); the
// weighted sum rounds a term once per position and block after it.
inline void AttendInDouble(AttentionFixture& f, size_t row, int32_t head, OpCase* c) {
  const KvLayer cache = f.cache();
  const int32_t dim = cache.head_dim, kv_head = head / (f.shape.heads / cache.kv_heads);
  const KvRow& place = f.rows[row];
  const float* q = f.q.data() + static_cast<int64_t>(row) * f.q_cols() + int64_t{head} * dim;
  std::vector<double> p;
  double most = -1e300, largest = 0, score_error = 0;
  const auto at = [&](int32_t i) { return cache.offset(place.blocks[i / kKvBlock], kv_head, i % kKvBlock); };
  for (int32_t i = 0; i <= place.position; ++i) {
    double dot = 0, magnitude = 0;
    for (int32_t d = 0; d < dim; ++d) {
      const double term = static_cast<double>(q[d]) * cache.keys[at(i) + d];
      dot += term;
      magnitude += std::fabs(term);
    }
    p.push_back(dot * f.scale);
    most = std::max(most, p.back());
    largest = std::max(largest, std::fabs(p.back()));
    score_error = std::max(score_error, RoundedSumBound(dim, magnitude, 2 * f.shape.rounding) * f.scale);
  }
  double total = 0;
  for (double& score : p) total += score = std::exp(score - most);
  const double blocks = place.position / kKvBlock + 1;
  const double weight_error = 2 * (score_error + 4 * kUnit * largest) + (8 + 5 * blocks) * 2 * kUnit;
  for (int32_t d = 0; d < dim; ++d) {
    double sum = 0, magnitude = 0;
    for (int32_t i = 0; i <= place.position; ++i) {
      const double term = p[static_cast<size_t>(i)] / total * cache.values[at(i) + d];
      sum += term;
      magnitude += std::fabs(term);
    }
    c->want.push_back(sum);
    c->bound.push_back((weight_error + 2 * f.shape.rounding + (place.position + 1 + blocks + 8) * kUnit) * magnitude);
  }
}

inline std::vector<float> RunAttention(const Ops& ops, AttentionFixture& f) {
  std::vector<float> out(f.q.size(), kPoison);
  ops.Attention({{f.q.data(), f.tokens(), f.q_cols()},
                 f.rows,
                 f.cache(),
                 f.shape.heads,
                 f.scale,
                 {out.data(), f.tokens(), f.q_cols()}});
  return out;
}

inline OpCase AttentionCase(Random& random, const AttentionShape& shape) {
  OpCase c;
  c.name = "Attention " + shape.text();
  const std::shared_ptr<AttentionFixture> f = MakeAttention(random, shape);
  c.inputs = {{"q", f->q}};
  for (size_t row = 0; row < f->rows.size(); ++row) {
    for (int32_t h = 0; h < shape.heads; ++h) AttendInDouble(*f, row, h, &c);
  }
  c.run = [f](const Ops& ops) { return RunAttention(ops, *f); };
  return c;
}

// The result is the whole cache, keys then values: rows in their places, everything else untouched.
inline OpCase StoreKvCase(Random& random, const AttentionShape& shape) {
  OpCase c;
  c.name = "StoreKv " + shape.text();
  const std::shared_ptr<AttentionFixture> f = MakeAttention(random, shape);
  for (float& value : f->keys) value = static_cast<float>(random.Normal());
  for (float& value : f->values) value = static_cast<float>(random.Normal());
  const int64_t cols = int64_t{shape.kv_heads} * shape.head_dim;
  const std::vector<float> k = RandomFloats(random, f->tokens() * cols), v = RandomFloats(random, f->tokens() * cols);
  c.inputs = {{"k", k}, {"v", v}};
  std::vector<float> keys = f->keys, values = f->values;
  for (size_t t = 0; t < f->rows.size(); ++t) {
    const KvRow& row = f->rows[t];
    for (int64_t i = 0; i < cols; ++i) {
      const int64_t block = row.blocks[row.position / 16], head = i / shape.head_dim;
      const int64_t at =
          ((block * shape.kv_heads + head) * 16 + row.position % 16) * shape.head_dim + i % shape.head_dim;
      keys[static_cast<size_t>(at)] = k[t * static_cast<size_t>(cols) + static_cast<size_t>(i)];
      values[static_cast<size_t>(at)] = v[t * static_cast<size_t>(cols) + static_cast<size_t>(i)];
    }
  }
  c.want.assign(keys.begin(), keys.end());
  c.want.insert(c.want.end(), values.begin(), values.end());
  c.bound.assign(c.want.size(), 0.0);
  c.run = [=](const Ops& ops) {
    std::vector<float> out = f->keys, out_values = f->values;
    ops.StoreKv({{k.data(), f->tokens(), cols},
                 {v.data(), f->tokens(), cols},
                 f->rows,
                 {out.data(), out_values.data(), shape.kv_heads, shape.head_dim}});
    out.insert(out.end(), out_values.begin(), out_values.end());
    return out;
  };
  return c;
}

}  // namespace thermoe::kernels
