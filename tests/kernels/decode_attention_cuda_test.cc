// SPDX-License-Identifier: Apache-2.0
// Attention of rows of decoding with all that comes before it (attend_few.h), against launches of their own, and both against the formula in double.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>

#include "kernels/attention_cases.h"
#include "kernels/cuda/attend_few.h"
#include "kernels/on_device.h"

namespace thermoe::cuda {
namespace {

using kernels::kHalfUnit, kernels::RandomFloats;

class CudaDecodeAttention : public DeviceTest {};

enum class Norms { kNone, kHead, kAll };

struct DecodeCase {
  int32_t dim = 0, kv_heads = 0, per_kv = 0;
  Norms norms = Norms::kNone;
  float limit = 0;
  int32_t rope_dim = 0;
  bool halves_turn = true;
  std::vector<int32_t> lengths;  // of each row's sequence, the row's own position counted

  int32_t heads() const { return kv_heads * per_kv; }
  int32_t normed(int32_t of_heads) const { return norms == Norms::kNone ? 0 : norms == Norms::kHead ? dim : of_heads * dim; }
  std::string text() const {
    std::string all = "dim " + std::to_string(dim) + ", heads " + std::to_string(heads()) + "/" + std::to_string(kv_heads) + ", normed " +
                      std::to_string(normed(heads())) + ", limit " + std::to_string(limit) + ", rope " + std::to_string(rope_dim) +
                      (halves_turn ? " halves" : " pairs") + ", lengths";
    for (const int32_t length : lengths) all += " " + std::to_string(length);
    return all;
  }
};

// What the launches of a case read, on the device.
struct DecodeInputs {
  DecodeInputs(const DecodeCase& of, Random& random)
      : c(of), count(static_cast<int64_t>(c.lengths.size())), fixture(Fixture(random)), stride(static_cast<int32_t>(Longest())), keys(Stored(fixture->keys)),
        values(Stored(fixture->values)), q(RandomFloats(random, count * c.heads() * c.dim, 1.5)), k(RandomFloats(random, count * c.kv_heads * c.dim, 1.5)),
        v(RandomFloats(random, count * c.kv_heads * c.dim, 1.5)), q_gain(RandomFloats(random, c.normed(c.heads()))),
        k_gain(RandomFloats(random, c.normed(c.kv_heads))), places(Places()), angles(RandomFloats(random, count * c.rope_dim / 2, 30)),
        cosines(OfAngles([](float angle) { return std::cos(angle); })), sines(OfAngles([](float angle) { return std::sin(angle); })) {
    while (planned < stride * kKvBlock) planned *= 2;  // as CudaOps::SetRows plans
  }
  std::shared_ptr<kernels::AttentionFixture> Fixture(Random& random) const {
    // Keys and values are halves already: what is rounded is one factor of a score, the query, and one of a sum, the weight; attention_cases.h
    // takes twice `rounding` for the two. Finished queries may differ by what norms and rope round, too.
    const double rounding = kHalfUnit / 2 + kernels::SumBound(c.heads() * c.dim, 1);
    kernels::AttentionShape shape{c.heads(), c.kv_heads, c.dim, {}, rounding};
    for (const int32_t length : c.lengths) shape.sequences.push_back({length - 1, 1});
    return kernels::MakeAttention(random, shape);
  }
  int64_t Longest() const { return (*std::max_element(c.lengths.begin(), c.lengths.end()) + kKvBlock - 1) / kKvBlock; }
  // Places that no row may see hold what would show.
  static std::vector<uint16_t> Stored(const std::vector<float>& from) {
    std::vector<uint16_t> to;
    for (const float value : from) to.push_back(FloatToHalf(std::isfinite(value) ? value : 1000.0f));
    return to;
  }
  OnDevice<int32_t> Places() const {
    std::vector<int32_t> words;
    for (int32_t t = 0; t < count; ++t) words.push_back(t);
    for (const int32_t length : c.lengths) words.push_back(length - 1);
    for (std::vector<int32_t> table : fixture->tables) {
      table.resize(static_cast<size_t>(stride), 0);
      words.insert(words.end(), table.begin(), table.end());
    }
    return OnDevice<int32_t>(words);
  }
  template <typename F>
  std::vector<float> OfAngles(F&& f) const {
    std::vector<float> all;
    for (const float angle : angles) all.push_back(f(angle));
    return all;
  }
  RowTable rows() const { return {places.data(), places.data() + count, places.data() + 2 * count, stride}; }

  DecodeCase c;
  int64_t count;
  std::shared_ptr<kernels::AttentionFixture> fixture;
  int32_t stride, planned = 8 * kKvBlock;
  std::vector<uint16_t> keys, values;  // before the step
  OnDevice<float> q, k, v, q_gain, k_gain;
  OnDevice<int32_t> places;
  std::vector<float> angles;
  OnDevice<float> cosines, sines;
};

// What one way of doing it writes.
struct Decoded {
  explicit Decoded(const DecodeInputs& of)
      : in(of), width(of.c.heads() * of.c.dim), kv_width(of.c.kv_heads * of.c.dim), q(of.count * width), k(of.count * kv_width), v(of.count * kv_width),
        out(of.count * width), halves(of.count * width), keys(of.keys), values(of.values),
        scratch(AttentionScratch(of.count, of.c.heads(), of.c.dim)), counters(std::vector<uint32_t>(kAttendCounters, 0)) {}

  // Copies q, k and v there by kernels that let the next begin early.
  void Fill(cudaStream_t stream) const {
    const int32_t* picked = in.places.data();
    Gather(in.k.data(), picked, k.data(), in.count, kv_width, stream);
    Gather(in.v.data(), picked, v.data(), in.count, kv_width, stream);
    Gather(in.q.data(), picked, q.data(), in.count, width, stream);
  }
  HalfKv cache() const { return {keys.halves(), values.halves(), in.c.kv_heads, in.c.dim}; }
  FinishLaunch Finish() const {
    const DecodeCase& c = in.c;
    FinishLaunch f;
    const auto norm = [&](const OnDevice<float>& x, const OnDevice<float>& gain, int32_t heads) {
      NormLaunch n;
      n.x = n.out = x.data(), n.gain = gain.data(), n.n = c.normed(heads), n.rows = in.count * heads * c.dim / n.n, n.epsilon = 1e-5f;
      return n;
    };
    if (c.norms != Norms::kNone) f.q_norm = norm(q, in.q_gain, c.heads()), f.k_norm = norm(k, in.k_gain, c.kv_heads);
    f.limit = c.limit;
    f.q_rope = {q.data(), in.cosines.data(), in.sines.data(), in.count, c.heads(), c.dim, c.rope_dim, c.halves_turn};
    f.k_rope = f.q_rope, f.k_rope.x = k.data(), f.k_rope.heads = c.kv_heads;
    f.store = {k.data(), v.data(), in.rows(), cache(), in.count};
    return f;
  }
  AttentionLaunch Attend(bool with_halves) const {
    AttentionLaunch l;
    l.q = q.data(), l.rows = in.rows(), l.cache = cache(), l.heads = in.c.heads(), l.scale = in.fixture->scale, l.out = out.data();
    l.count = l.single = in.count, l.longest = in.planned, l.scratch = scratch.data(), l.halves = with_halves ? halves.halves() : nullptr;
    return l;
  }

  const DecodeInputs& in;
  int32_t width, kv_width;
  OnDevice<float> q, k, v, out;
  OnDevice<uint16_t> halves, keys, values;
  OnDevice<std::byte> scratch;
  OnDevice<uint32_t> counters;
};

// The formula for what lies in the cache and for finished queries. Weights of softmax are halves: beside their rounding, in the bound already, those below
// the least normal one are off by 2^-25 of the largest, whose sum with the others is at least 1.
kernels::OpCase FormulaOf(const DecodeInputs& in, const Decoded& plain) {
  kernels::AttentionFixture f = *in.fixture;
  kernels::OpCase want;
  want.name = in.c.text();
  f.q = plain.q.Read();
  const auto floats = [](const std::vector<uint16_t>& from, std::vector<float>* to) {
    std::transform(from.begin(), from.end(), to->begin(), [](uint16_t h) { return HalfToFloat(h); });
  };
  floats(plain.keys.Read(), &f.keys), floats(plain.values.Read(), &f.values);
  const float most_value = 8.0f;  // of normal numbers times 1.5, and what is not seen counts for nothing
  for (size_t row = 0; row < f.rows.size(); ++row) {
    for (int32_t h = 0; h < in.c.heads(); ++h) kernels::AttendInDouble(f, row, h, &want);
  }
  const auto width = static_cast<size_t>(plain.width);
  for (size_t i = 0; i < want.bound.size(); ++i) want.bound[i] += 0x1p-25 * most_value * in.c.lengths[i / width];
  return want;
}

// Values as they came, within the limit; keys as halves of floats that differ by what norms and rope round; nothing written but the new positions.
void ExpectSameCache(const DecodeInputs& in, const Decoded& plain, const Decoded& one) {
  const std::vector<uint16_t> a = plain.keys.Read(), b = one.keys.Read();
  const std::vector<float> v = in.v.Read();
  std::vector<uint16_t> values = in.values;
  std::vector<bool> stored(a.size());
  float most = 0;
  for (size_t i = 0; i < v.size(); ++i) {
    const auto column = static_cast<int32_t>(i) % plain.kv_width;
    const KvRow& row = in.fixture->rows[i / static_cast<size_t>(plain.kv_width)];
    const int64_t cell = in.fixture->cache().offset(row.blocks[row.position / kKvBlock], column / in.c.dim, row.position % kKvBlock);
    const auto at = static_cast<size_t>(cell + column % in.c.dim);
    values[at] = FloatToHalf(in.c.limit > 0 ? std::clamp(v[i], -in.c.limit, in.c.limit) : v[i]);
    stored[at] = true, most = std::max(most, std::fabs(HalfToFloat(a[at])));
  }
  EXPECT_EQ(plain.values.Read(), values);
  EXPECT_EQ(one.values.Read(), values);
  size_t written = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (stored[i]) {
      // Each is rounded once (2^-11, or half of the least half's 2^-24) from floats whose sums of squares were added up in other orders.
      const double x = HalfToFloat(a[i]), bound = 2 * kHalfUnit * std::fabs(x) + 0x1p-24 + kernels::SumBound(plain.kv_width, most);
      ASSERT_LE(std::fabs(x - HalfToFloat(b[i])), bound) << "key " << i;
    } else {
      ASSERT_TRUE(a[i] == in.keys[i] && b[i] == in.keys[i]) << "key " << i;
    }
    written += b[i] != in.keys[i];
  }
  EXPECT_GT(written, v.size() * 9 / 10);
}

void ExpectOneLaunchDoesAll(const DecodeInputs& in, cudaStream_t stream, std::vector<float>* out, std::vector<uint16_t>* halves) {
  const Decoded plain(in), early(in), waits(in), small(in);
  plain.Fill(stream);
  ASSERT_TRUE(FinishProjections(plain.Finish(), stream));
  Attention(plain.Attend(false), stream);
  const kernels::OpCase want = FormulaOf(in, plain);
  ExpectWithinBounds(want, "launches of their own", plain.out.Read());
  // Of blocks as large as this device's, and of as small ones as devices of compute capability 8.6 have, for which warps are fewer.
  constexpr int kSmallBlock = 99 << 10, kTooSmall = 20 << 10;
  for (const Decoded* one : {&early, &waits, &small}) {
    const bool begins_early = one != &waits;
    const int block_bytes = one == &small ? kSmallBlock : 0;
    one->Fill(stream);
    EXPECT_FALSE(FinishAndAttend(one->Finish(), one->Attend(true), begins_early, nullptr, stream, block_bytes));
    EXPECT_FALSE(FinishAndAttend(one->Finish(), one->Attend(true), begins_early, one->counters.data(), stream, kTooSmall));
    ASSERT_TRUE(FinishAndAttend(one->Finish(), one->Attend(true), begins_early, one->counters.data(), stream, block_bytes));
    ExpectWithinBounds(want, one == &early ? "one launch that begins early" : one == &waits ? "one launch" : "small blocks", one->out.Read());
    ExpectSameCache(in, plain, *one);
    EXPECT_EQ(one->counters.Read(), std::vector<uint32_t>(kAttendCounters, 0));
    EXPECT_EQ(one->q.Read(), in.q.Read());
    EXPECT_EQ(one->k.Read(), in.k.Read());
    EXPECT_EQ(one->v.Read(), in.v.Read());
  }
  *out = early.out.Read(), *halves = early.halves.Read();
  EXPECT_EQ(*out, waits.out.Read());
  EXPECT_EQ(*halves, waits.halves.Read());
}

TEST_F(CudaDecodeAttention, OneLaunchIsWhatItsPartsAre) {
  Random random(1);
  // The last two have more blocks than a device has multiprocessors, and than it takes at once, which are then smaller ones; of those before, as of these, a warp has up
  // to five tiles. The newest positions are first, last and others of a tile, some just behind where a warp's next tile begins.
  const auto with_more = [](std::vector<int32_t> lengths, size_t count, int32_t below) {
    while (lengths.size() < count) lengths.push_back(static_cast<int32_t>(1 + 53 * lengths.size() % static_cast<size_t>(below)));
    return lengths;
  };
  const std::vector<int32_t> sets[] = {{1},
                                       {700},
                                       {15, 16, 17},
                                       {1, 15, 16, 17, 130, 700, 256, 257},
                                       with_more({1025, 519}, 16, 20),
                                       with_more({1027, 514, 782}, 60, 3),
                                       with_more({641, 390, 260, 131}, 70, 250),
                                       with_more({260, 197, 130, 67}, 141, 100)};
  int number = 0;
  for (const int32_t dim : {64, 128}) {
    for (const int32_t per_kv : {1, 2, 6, 7, 8}) {
      for (const Norms norms : {Norms::kNone, Norms::kHead, Norms::kAll}) {
        for (const std::vector<int32_t>& lengths : sets) {
          // Limits, parts that turn and how they do: all eight of them at each dim, with other heads, norms and lengths each.
          const int which = number++ / static_cast<int>(std::size(sets));
          const float limit = which % 2 == 0 ? 0.0f : 0.8f;
          const int32_t kv_heads = per_kv == 1 ? 3 : 2, rope_dim = which / 2 % 2 == 0 ? dim : dim / 2;
          const DecodeCase c{dim, kv_heads, per_kv, norms, limit, rope_dim, which / 4 % 2 == 0, lengths};
          if (!share_.Takes()) continue;
          SCOPED_TRACE(c.text());
          const DecodeInputs in(c, random);
          std::vector<float> out;
          std::vector<uint16_t> halves;
          ExpectOneLaunchDoesAll(in, stream_, &out, &halves);
          ExpectHalvesOf(out, halves, c.text());
          if (HasFailure()) return;
        }
      }
    }
  }
}

}  // namespace
}  // namespace thermoe::cuda
