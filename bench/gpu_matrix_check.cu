// SPDX-License-Identifier: Apache-2.0
// Every packing and kernel of matrix_kernels.h against a loop in double arithmetic over the exact weights.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <map>
#include <thread>

#include "gpu_matrix.h"
#include "kernels/cuda/unpacked.h"

namespace thermoe::bench {
namespace {

// Of a row's norm: activations rounded to binary16 (2^-12 on average), weights times scales too where rows are many.
constexpr double kTolerance = 1e-3;

struct Matrix {
  DType type;
  int64_t rows, cols;
  std::vector<std::byte> data, lo;
  WeightMatrix host() const { return {type, rows, cols, data.data(), lo.empty() ? nullptr : lo.data(), Layout::kRows}; }
};

Matrix RandomMatrix(std::mt19937* random, DType type, int64_t rows, int64_t cols) {
  std::normal_distribution<float> normal(0.0f, 0.05f);
  std::vector<float> values(static_cast<size_t>(cols));
  const DType stored = type == DType::kNested8 ? DType::kQ8_0 : type;
  Matrix out{type, rows, cols, std::vector<std::byte>(static_cast<size_t>(rows * RowBytes(stored, cols))), {}};
  for (int64_t r = 0; r < rows; ++r) {
    for (float& value : values) value = normal(*random);
    EncodeRow(stored, values.data(), cols, out.data.data() + r * RowBytes(stored, cols));
  }
  if (type == DType::kNested8) {
    const int64_t blocks = rows * cols / kQuantBlock;
    std::vector<std::byte> hi(static_cast<size_t>(blocks) * sizeof(NestedHi)),
        lo(static_cast<size_t>(blocks) * sizeof(NestedLo));
    SplitPlanes(reinterpret_cast<const BlockQ8_0*>(out.data.data()), blocks, reinterpret_cast<NestedHi*>(hi.data()),
                reinterpret_cast<NestedLo*>(lo.data()));
    out.data = hi;
    out.lo = lo;
  }
  return out;
}

// The packed matrices one after the other on the device, and where they are.
struct OnDevice {
  DeviceArray<std::byte> bytes;
  std::vector<cuda::DeviceMatrix> views;
};
OnDevice Upload(const std::vector<Matrix>& matrices) {
  int64_t each = 0;
  for (const Matrix& m : matrices) each = std::max(each, cuda::PackedBytes(m.type, m.rows, m.cols));
  std::vector<std::byte> staging(static_cast<size_t>(each) * matrices.size());
  for (size_t i = 0; i < matrices.size(); ++i)
    cuda::Pack(matrices[i].host(), staging.data() + static_cast<int64_t>(i) * each);
  OnDevice out{DeviceArray<std::byte>(staging), {}};
  for (size_t i = 0; i < matrices.size(); ++i) {
    out.views.push_back(cuda::View(matrices[i].type, matrices[i].rows, matrices[i].cols,
                                   out.bytes.data() + static_cast<int64_t>(i) * each));
  }
  return out;
}

// The weights as floats, decoded once.
std::vector<float> Decode(const Matrix& m, Planes planes) {
  std::vector<float> out(static_cast<size_t>(m.rows * m.cols));
  for (int64_t r = 0; r < m.rows; ++r) DecodeRow(m.host(), r, planes, out.data() + r * m.cols);
  return out;
}

std::vector<double> Multiply(const std::vector<float>& weights, const std::vector<double>& x) {
  std::vector<double> out(weights.size() / x.size());
  const float* w = weights.data();
  for (double& y : out) {
    for (const double value : x) y += static_cast<double>(*w++) * value;
  }
  return out;
}

// Calls body(0..count - 1) on all processors.
void InParallel(int32_t count, const std::function<void(int32_t)>& body) {
  std::atomic<int32_t> next{0};
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < std::max(1u, std::thread::hardware_concurrency()); ++i) {
    threads.emplace_back([&] {
      for (int32_t at = next++; at < count; at = next++) body(at);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// The largest ||out - ref|| / ||ref|| of a row.
double WorstRow(const std::vector<float>& out, const std::vector<double>& ref, int64_t rows, int64_t cols) {
  double worst = 0;
  for (int64_t t = 0; t < rows; ++t) {
    double difference = 0, norm = 0;
    for (int64_t i = t * cols; i < (t + 1) * cols; ++i) {
      const double d = static_cast<double>(out[static_cast<size_t>(i)]) - ref[static_cast<size_t>(i)];
      difference += d * d;
      norm += ref[static_cast<size_t>(i)] * ref[static_cast<size_t>(i)];
    }
    const double error = std::sqrt(difference / std::max(norm, 1e-60));
    if (!(error <= worst)) worst = error;  // not a number stays
  }
  return worst;
}

bool Report(const char* what, DType type, double error, double tolerance, const char* detail) {
  const bool ok = error <= tolerance;
  std::printf("%-7s %-7s %-52s error %.2e%s\n", what, std::string(TraitsOf(type).name).c_str(), detail, error,
              ok ? "" : "  FAILED");
  std::fflush(stdout);
  return ok;
}

std::vector<float> RandomRows(std::mt19937* random, int64_t rows, int64_t cols, float size) {
  std::normal_distribution<float> normal(0.0f, size);
  std::vector<float> x(static_cast<size_t>(rows * cols));
  for (float& value : x) value = normal(*random);
  return x;
}

bool CheckLinear(std::mt19937* random, DType type, int32_t rows, int32_t in, std::vector<int32_t> outs, float size) {
  std::vector<Matrix> matrices;
  for (const int32_t out : outs) matrices.push_back(RandomMatrix(random, type, out, in));
  const std::vector<float> x = RandomRows(random, rows, in, size);
  const DeviceArray<float> device_x(x);
  std::vector<OnDevice> weights;
  std::vector<DeviceArray<float>> results, biases;
  std::vector<std::vector<float>> bias;
  for (size_t m = 0; m < outs.size(); ++m) {
    weights.push_back(Upload({matrices[m]}));
    bias.push_back(RandomRows(random, 1, outs[m], 0.1f));
    biases.emplace_back(bias.back());
    results.emplace_back(static_cast<size_t>(rows * outs[m]));
    results.back().Fill(0x7f);
  }
  DeviceArray<std::byte> scratch(cuda::LinearScratch(rows, in)), unpacked(cuda::UnpackedRoom(rows));
  scratch.Fill(0x7f), unpacked.Fill(0x7f);
  std::vector<cuda::LinearLaunch> launches;
  for (size_t m = 0; m < outs.size(); ++m) {
    launches.push_back({weights[m].views[0], device_x.data(), m % 2 == 0 ? biases[m].data() : nullptr,
                        results[m].data(), rows, true, scratch.data()});
    launches.back().unpacked = unpacked.data();
  }
  double worst = 0;
  for (int repeat = 0; repeat < 2; ++repeat) {  // twice: nothing is left behind
    BENCH_CUDA(cuda::LinearTogether(launches, nullptr));
    BENCH_CUDA(cudaDeviceSynchronize());
  }
  for (size_t m = 0; m < outs.size(); ++m) {
    const std::vector<float> weights_of = Decode(matrices[m], Planes::kBoth);
    std::vector<double> ref(static_cast<size_t>(rows * outs[m]));
    InParallel(rows, [&](int32_t t) {
      const std::vector<double> row(x.begin() + int64_t{t} * in, x.begin() + int64_t{t + 1} * in);
      std::vector<double> y = Multiply(weights_of, row);
      for (size_t r = 0; m % 2 == 0 && r < y.size(); ++r) y[r] += static_cast<double>(bias[m][r]);
      std::copy(y.begin(), y.end(), ref.begin() + int64_t{t} * outs[m]);
    });
    const double error = WorstRow(results[m].Read(), ref, rows, outs[m]);
    if (!(error <= worst)) worst = error;
  }
  char detail[80];
  std::snprintf(detail, sizeof(detail), "%zu x [%d, %d], %d rows, x ~ %.0e", outs.size(), outs[0], in, rows,
                static_cast<double>(size));
  return Report("linear", type, worst, kTolerance, detail);
}

struct Shape {
  int32_t rows, hidden, width, experts, slots, full_slots;
};

bool CheckExperts(std::mt19937* random, DType type, DType down_type, const Shape& shape) {
  std::vector<Matrix> gate, up, down;
  for (int32_t e = 0; e < shape.experts; ++e) {
    gate.push_back(RandomMatrix(random, type, shape.width, shape.hidden));
    up.push_back(RandomMatrix(random, type, shape.width, shape.hidden));
    down.push_back(RandomMatrix(random, down_type, shape.hidden, shape.width));
  }
  const OnDevice gates = Upload(gate), ups = Upload(up), downs = Upload(down);
  const DeviceArray<cuda::DeviceMatrix> gate_views(gates.views), up_views(ups.views), down_views(downs.views);
  const bool nested = type == DType::kNested8;
  const Routing routing =
      RandomRouting(random, shape.rows, shape.slots, shape.experts, nested ? shape.full_slots : shape.slots, true);
  const DeviceRouting device_routing(routing);
  const std::vector<float> x = RandomRows(random, shape.rows, shape.hidden, 1.0f),
                           before = RandomRows(random, shape.rows, shape.hidden, 0.01f);
  const DeviceArray<float> device_x(x);
  cuda::ExpertFfnLaunch launch;
  launch.gate = gate_views.data();
  launch.up = up_views.data();
  launch.down = down_views.data();
  launch.gate_packing = launch.up_packing = cuda::PackingOf(type);
  launch.down_packing = cuda::PackingOf(down_type);
  launch.may_read_hi = nested;
  launch.experts = shape.experts;
  launch.hidden = shape.hidden;
  launch.width = shape.width;
  launch.slots = shape.slots;
  launch.rows = shape.rows;
  launch.x = device_x.data();
  device_routing.PutInto(&launch);
  const ExpertRooms rooms(launch);
  rooms.PutInto(&launch);
  std::vector<float> first;
  double repeats = 0;
  const DeviceArray<float> others(RandomRows(random, shape.rows, shape.hidden, 2.0f));
  for (int repeat = 0; repeat < 3; ++repeat) {
    const DeviceArray<float> out(before);
    launch.out = out.data();
    launch.x = repeat == 1 ? others.data() : device_x.data();  // nothing of another launch is taken for this one's
    BENCH_CUDA(cuda::ExpertFfn(launch, nullptr));
    BENCH_CUDA(cudaDeviceSynchronize());
    if (repeat == 0) first = out.Read();
    if ((out.Read() != first) != (repeat == 1 && !routing.order.empty())) repeats = 1;
  }
  std::vector<double> ref(before.begin(), before.end());
  std::vector<std::vector<float>> decoded(static_cast<size_t>(shape.experts) * 6);  // by expert, matrix, planes
  InParallel(static_cast<int32_t>(decoded.size()), [&](int32_t i) {
    const auto e = static_cast<size_t>(i / 6);
    const Matrix& m = i / 2 % 3 == 0 ? gate[e] : i / 2 % 3 == 1 ? up[e] : down[e];
    decoded[static_cast<size_t>(i)] = Decode(m, i % 2 == 0 ? Planes::kBoth : Planes::kHi);
  });
  InParallel(shape.rows, [&](int32_t t) {
    const std::vector<double> row(x.begin() + int64_t{t} * shape.hidden, x.begin() + int64_t{t + 1} * shape.hidden);
    for (int32_t k = 0; k < shape.slots; ++k) {
      const auto slot = static_cast<size_t>(t * shape.slots + k);
      if (routing.expert[slot] < 0) break;
      const auto* of =
          &decoded[static_cast<size_t>(routing.expert[slot]) * 6 + (routing.planes[slot] == Planes::kBoth ? 0 : 1)];
      std::vector<double> inner = Multiply(of[0], row);
      const std::vector<double> ups_of = Multiply(of[2], row);
      for (size_t f = 0; f < inner.size(); ++f) inner[f] = inner[f] / (1.0 + std::exp(-inner[f])) * ups_of[f];
      const std::vector<double> y = Multiply(of[4], inner);
      for (size_t d = 0; d < y.size(); ++d) {
        ref[static_cast<size_t>(t * shape.hidden) + d] += static_cast<double>(routing.weight[slot]) * y[d];
      }
    }
  });
  char detail[80];
  std::snprintf(detail, sizeof(detail), "%d rows, %d x %d, top %d of %d, %d full%s", shape.rows, shape.hidden,
                shape.width, shape.slots, shape.experts, shape.full_slots, repeats > 0 ? ", NOT REPEATABLE" : "");
  return Report("experts", type, repeats > 0 ? NAN : WorstRow(first, ref, shape.rows, shape.hidden), 2 * kTolerance,
                detail);
}

}  // namespace

Routing RandomRouting(std::mt19937* random, int32_t rows, int32_t slots, int32_t experts, int32_t full_slots,
                      bool some_empty) {
  Routing out{rows, slots, experts, {}, {}, {}, {}, {}};
  std::uniform_real_distribution<float> uniform(0.0f, 1.0f);
  std::map<std::pair<int32_t, int>, std::vector<int32_t>> groups;  // by expert, kBoth first
  std::vector<int32_t> all(static_cast<size_t>(experts));
  for (int32_t e = 0; e < experts; ++e) all[static_cast<size_t>(e)] = e;
  for (int32_t t = 0; t < rows; ++t) {
    for (int32_t k = 0; k < slots; ++k) {
      std::uniform_int_distribution<int32_t> pick(k, experts - 1);
      std::swap(all[static_cast<size_t>(k)], all[static_cast<size_t>(pick(*random))]);
    }
    const int32_t kept = some_empty && t % 3 == 1 ? (t % 2 == 0 ? 0 : slots - 1) : slots;
    for (int32_t k = 0; k < slots; ++k) {
      const bool there = k < kept;
      const Planes planes = k < full_slots ? Planes::kBoth : Planes::kHi;
      out.expert.push_back(there ? all[static_cast<size_t>(k)] : -1);
      out.weight.push_back(there ? uniform(*random) : 0.0f);
      out.planes.push_back(planes);
      if (there) groups[{all[static_cast<size_t>(k)], planes == Planes::kBoth ? 0 : 1}].push_back(t * slots + k);
    }
  }
  for (const auto& [key, members] : groups) {
    out.jobs.push_back({key.first, key.second == 0 ? Planes::kBoth : Planes::kHi,
                        static_cast<int32_t>(out.order.size()), static_cast<int32_t>(members.size())});
    out.order.insert(out.order.end(), members.begin(), members.end());
  }
  return out;
}

Routing EvenRouting(int32_t first, int32_t distinct, int32_t each, int32_t slots, int32_t experts, Planes planes) {
  Routing out{distinct * each / slots, slots, experts, {}, {}, {}, {}, {}};
  for (int32_t slot = 0; slot < distinct * each; ++slot) {
    out.expert.push_back(first + slot % distinct);
    out.weight.push_back(1.0f / static_cast<float>(slots));
    out.planes.push_back(planes);
  }
  for (int32_t e = 0; e < distinct; ++e) {
    out.jobs.push_back({first + e, planes, static_cast<int32_t>(out.order.size()), each});
    for (int32_t i = 0; i < each; ++i) out.order.push_back(i * distinct + e);
  }
  return out;
}

DeviceRouting::DeviceRouting(const Routing& routing)
    : jobs(routing.jobs),
      job_count(std::vector<int32_t>{static_cast<int32_t>(routing.jobs.size())}),
      order(routing.order),
      expert(routing.expert),
      weight(routing.weight) {}

void DeviceRouting::PutInto(cuda::ExpertFfnLaunch* launch) const {
  launch->jobs = jobs.data();
  launch->job_count = job_count.data();
  launch->order = order.data();
  launch->jobs_room = static_cast<int32_t>(jobs.size());
  launch->order_room = static_cast<int32_t>(order.size());
  launch->weight = weight.data();
  launch->expert = expert.data();
}

int CheckAll(uint32_t seed) {
  std::mt19937 random(seed);
  int failures = 0;
  const auto count = [&](bool ok) { failures += ok ? 0 : 1; };
  const DType types[] = {DType::kF32,   DType::kF16,   DType::kBF16,   DType::kQ8_0, DType::kQ4_0,
                         DType::kQ5_0,  DType::kQ5_1,  DType::kQ4K,    DType::kQ5K,  DType::kQ6K,
                         DType::kIQ4NL, DType::kMXFP4, DType::kNested8};
  for (const DType type : types) {
    const bool super = TraitsOf(type).block_elements == 256, plain = TraitsOf(type).block_elements == 1;
    const int32_t tail = super ? 256 : plain ? 37 : 32;
    count(CheckLinear(&random, type, 1, 256, {64}, 1));
    count(CheckLinear(&random, type, 3, 512 + tail, {80, 33, 7}, 1));
    count(CheckLinear(&random, type, 13, 2048 + 2 * tail, {100}, 1e3f));
    count(CheckLinear(&random, type, 30, 3 * 1024, {96, 160}, 1e-2f));
    count(CheckLinear(&random, type, 64, 1024 + tail, {272}, 1));
    count(CheckLinear(&random, type, 77, 512, {128}, 1));
    count(CheckLinear(&random, type, 300, 1024, {320}, 1));
    for (const int32_t full : {0, 1, 4}) {
      if (type != DType::kNested8 && full != 4) continue;
      const int32_t width = super ? 256 : 96, whole = super ? 256 : 192;  // 96: no whole tiles of columns
      count(CheckExperts(&random, type, type, {1, 256, width, 8, 4, full}));
      count(CheckExperts(&random, type, type, {7, 512, width, 8, 4, full}));
      count(CheckExperts(&random, type, type, {14, 2048 + 256, width, 16, 4, full}));
      count(CheckExperts(&random, type, type, {29, 1280, width, 8, 4, full}));
      count(CheckExperts(&random, type, type, {64, 768, width, 6, 4, full}));
      count(CheckExperts(&random, type, type, {130, 512, width, 6, 4, full}));
      count(CheckExperts(&random, type, type, {700, 256, 2 * width, 5, 4, full}));
      count(CheckExperts(&random, type, type, {1, 2048, 4 * whole, 16, 4, full}));
      count(CheckExperts(&random, type, type, {8, 1024, whole, 24, 4, full}));
      count(CheckExperts(&random, type, type, {29, 1280, whole, 8, 4, full}));
      count(CheckExperts(&random, type, type, {64, 768, whole, 6, 4, full}));
    }
  }
  count(CheckExperts(&random, DType::kNested8, DType::kNested8, {5, 256, 2304, 6, 3, 1}));  // rows of down in two slices
  count(CheckExperts(&random, DType::kQ4K, DType::kQ6K, {9, 512, 256, 8, 4, 4}));
  count(CheckExperts(&random, DType::kQ4K, DType::kQ6K, {300, 512, 256, 8, 4, 4}));
  std::printf("%d failures\n", failures);
  return failures;
}

}  // namespace thermoe::bench
