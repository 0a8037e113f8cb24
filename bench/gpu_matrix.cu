// SPDX-License-Identifier: Apache-2.0
// gpu_matrix [--check] [--time] [--joules] [--seed N] [--only TEXT] [--json FILE]: the matrix kernels against double arithmetic,
// their times (medians of graph replays over weights that do not fit the L2 cache), and what a byte of experts costs where replays
// go on for a second, beside a read of memory. Built by `ninja gpu_matrix`.
#include <algorithm>
#include <cstring>
#include <optional>
#include <set>
#include <string>

#include "gpu_matrix.h"
#include "kernels/cuda/read_speed.h"
#include "kernels/cuda/stream_rows.h"
#include "kernels/cuda/unpacked.h"
#include "power_watch.h"

namespace thermoe::bench {
namespace {

constexpr int kLaunches = 16;  // of a graph

struct Result {
  std::string name;
  double us, bytes, flops;
  PowerWatch::Reading sustained;
};

__global__ void FillRandom(uint32_t* to, int64_t words, uint32_t seed) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < words; i += int64_t{gridDim.x} * blockDim.x) {
    uint32_t v = static_cast<uint32_t>(i) * 2654435761u ^ seed;
    v ^= v >> 15;
    v *= 2246822519u;
    v ^= v >> 13;
    v *= 3266489917u;
    to[i] = v ^ v >> 16;
  }
}
// Scales about 0.01: binary16, or what else a packing has there (bytes of it stay random).
__global__ void FillScales(uint16_t* to, int64_t count, cuda::Packing packing, uint32_t seed) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += int64_t{gridDim.x} * blockDim.x) {
    const uint32_t v = (static_cast<uint32_t>(i) * 2654435761u ^ seed) >> 16;
    const uint32_t half = 0x1c00u + (v & 0x3ffu), brain = 0x3b00u + (v & 0xffu);
    if (packing == cuda::Packing::kMxfp4) to[i] = static_cast<uint16_t>(brain);
    if (packing == cuda::Packing::kPlanes8 || packing == cuda::Packing::kNibble) to[i] = static_cast<uint16_t>(half);
    if (packing == cuda::Packing::kNibbleMin)
      to[i] = static_cast<uint16_t>(i % 4 < 2 ? 0x0800u + (v & 0xffu) : v & 0x3f3fu);
    if (packing == cuda::Packing::kByte16) to[i] = static_cast<uint16_t>(i % 4 < 2 ? 0x0800u + (v & 0xffu) : v);
    if (packing == cuda::Packing::kByteMin || packing == cuda::Packing::kHalf)
      to[i] = static_cast<uint16_t>(i % 2 == 0 ? v : brain);
  }
}
__global__ void FillHalves(uint16_t* to, int64_t count, uint32_t seed) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += int64_t{gridDim.x} * blockDim.x) {
    const uint32_t v = (static_cast<uint32_t>(i) * 2654435761u ^ seed) >> 8;
    to[i] = static_cast<uint16_t>(0x6800u + (v & 0x83ffu));
  }
}
__global__ void FillFloats(float* to, int64_t count, uint32_t seed) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += int64_t{gridDim.x} * blockDim.x) {
    to[i] = static_cast<float>((static_cast<uint32_t>(i) * 2654435761u ^ seed) >> 8) * 6e-9f - 0.05f;
  }
}

// `count` packed matrices of random weights, made on the device.
struct Weights {
  DeviceArray<std::byte> bytes;
  std::vector<cuda::DeviceMatrix> views;
};
Weights RandomWeights(DType type, int64_t rows, int64_t cols, int count, uint32_t seed) {
  const int64_t each = cuda::PackedBytes(type, rows, cols);
  Weights out{DeviceArray<std::byte>(static_cast<size_t>(each * count)), {}};
  FillRandom<<<2048, 256>>>(reinterpret_cast<uint32_t*>(out.bytes.data()), each * count / 4, seed);
  for (int i = 0; i < count; ++i) {
    const std::byte* at = out.bytes.data() + each * i;
    out.views.push_back(cuda::View(type, rows, cols, at));
    const cuda::DeviceMatrix& view = out.views.back();
    if (view.packing == cuda::Packing::kF32) {
      FillFloats<<<256, 256>>>(reinterpret_cast<float*>(const_cast<std::byte*>(view.hi)), rows * cols,
                               seed + static_cast<uint32_t>(i));
      continue;
    }
    if (view.packing == cuda::Packing::kHalf) {
      FillHalves<<<256, 256>>>(reinterpret_cast<uint16_t*>(const_cast<std::byte*>(view.hi)),
                               (view.scales - view.hi) / 2, seed + static_cast<uint32_t>(i));
    }
    FillScales<<<256, 256>>>(reinterpret_cast<uint16_t*>(const_cast<std::byte*>(view.scales)),
                             (at + each - view.scales) / 2, view.packing, seed + static_cast<uint32_t>(i));
  }
  BENCH_CUDA(cudaDeviceSynchronize());
  return out;
}

DeviceArray<float> RandomActivations(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 1.0f);
  std::vector<float> block(65536), x;
  for (float& value : block) value = normal(random);
  x.reserve(static_cast<size_t>(count));
  while (static_cast<int64_t>(x.size()) < count) {
    x.insert(
        x.end(), block.begin(),
        block.begin() + std::min<int64_t>(static_cast<int64_t>(block.size()), count - static_cast<int64_t>(x.size())));
  }
  return DeviceArray<float>(x);
}

class Bench {
 public:
  Bench(std::string only, const PowerWatch* watch) : watch_(watch), only_(std::move(only)) {}
  const std::vector<Result>& results() const { return results_; }

  void ReadBandwidth() {
    const int64_t bytes = int64_t{1} << 30;
    const DeviceArray<std::byte> memory(static_cast<size_t>(bytes));
    FillRandom<<<2048, 256>>>(reinterpret_cast<uint32_t*>(memory.data()), bytes / 4, 1);
    DeviceArray<uint32_t> out(1);
    ReplayedGraph graph(4, [&](int, cudaStream_t s) {
      cuda::ReadAll(memory.data(), bytes, out.data(), s);
    });
    Add("read 1 GiB", &graph, 4, static_cast<double>(bytes), 0);
  }

  struct Shape {
    const char* name;
    int32_t hidden, width, experts, slots;
  };

  void Experts(const Shape& shape, DType type, const std::vector<int32_t>& rows_list,
               const std::vector<int32_t>& full_list) {
    std::string prefix = std::string("experts ") + shape.name + " " + std::string(TraitsOf(type).name);
    const auto name_of = [&](int32_t rows, int32_t full) {
      std::string name = prefix;
      if (type == DType::kNested8) {
        name += full == 0 ? " hi" : full == shape.slots ? " both" : " mixed" + std::to_string(full);
      }
      return name + " T=" + std::to_string(rows);
    };
    const auto wanted = [&](int32_t rows, int32_t full) {
      return (rows <= 256 || full == 0 || full == shape.slots) && name_of(rows, full).find(only_) != std::string::npos;
    };
    bool any = false;
    for (const int32_t rows : rows_list) {
      for (const int32_t full : full_list) any = any || wanted(rows, full);
    }
    if (!any) return;
    const ExpertWeights weights(shape, type);
    std::mt19937 random(5);
    for (const int32_t rows : rows_list) {
      for (const int32_t full : full_list) {
        if (!wanted(rows, full)) continue;
        std::vector<Routing> routings;
        for (int i = 0; i < (rows > 1024 ? 2 : kLaunches); ++i) {
          routings.push_back(RandomRouting(&random, rows, shape.slots, shape.experts, full, false));
        }
        TimeExperts(name_of(rows, full), shape, type, weights, routings);
      }
    }
  }

  // As many of the experts, `each` slots of each.
  void EvenExperts(const Shape& shape, DType type, Planes planes) {
    const std::string prefix = std::string("experts ") + shape.name + " " + std::string(TraitsOf(type).name) +
                               (type != DType::kNested8 ? "" : planes == Planes::kHi ? " hi" : " both");
    if (prefix.find(only_) == std::string::npos) return;  // all of a type or none
    const ExpertWeights weights(shape, type);
    for (const auto& [distinct, each] : {std::pair{8, 1}, {16, 1}, {32, 1}, {64, 1}, {64, 8}, {64, 32}}) {
      std::vector<Routing> routings;
      for (int i = 0; i < kLaunches; ++i) routings.push_back(EvenRouting(i * distinct % shape.experts, distinct, each, shape.slots, shape.experts, planes));
      TimeExperts(prefix + ' ' + std::to_string(distinct) + " of " + std::to_string(each), shape, type, weights, routings);
    }
  }

  void Linear(DType type, int32_t out, int32_t in, const std::vector<int32_t>& rows_list) {
    const std::string prefix =
        "linear " + std::string(TraitsOf(type).name) + " " + std::to_string(out) + "x" + std::to_string(in);
    if (prefix.find(only_) == std::string::npos) return;
    const int copies =
        static_cast<int>(std::clamp<int64_t>((int64_t{200} << 20) / cuda::PackedBytes(type, out, in), 2, 64));
    const Weights weights = RandomWeights(type, out, in, copies, 1);
    for (const int32_t rows : rows_list) {
      const DeviceArray<float> x = RandomActivations(int64_t{rows} * in, 7);
      const DeviceArray<float> y(static_cast<size_t>(rows) * static_cast<size_t>(out));
      const DeviceArray<std::byte> scratch(cuda::LinearScratch(rows, in)), unpacked(cuda::UnpackedRoom(rows));
      ReplayedGraph graph(copies, [&](int i, cudaStream_t s) {
        cuda::LinearLaunch launch{weights.views[static_cast<size_t>(i)], x.data(), nullptr, y.data(), rows, true, scratch.data()};
        launch.unpacked = unpacked.data();
        BENCH_CUDA(cuda::Linear(launch, s));
      });
      Add(prefix + " T=" + std::to_string(rows), &graph, copies, static_cast<double>(cuda::ReadBytes(type, out, in, Planes::kBoth)),
          2.0 * rows * out * in);
    }
  }

  // Matrices of the same rows of activations: q, k and v.
  void Together(DType type, const std::vector<int32_t>& outs, int32_t in, const std::vector<int32_t>& rows_list) {
    std::string prefix = "together " + std::string(TraitsOf(type).name);
    int32_t all = 0;
    int64_t bytes = 0;
    for (const int32_t out : outs) prefix += (all > 0 ? "+" : " ") + std::to_string(out), all += out, bytes += cuda::PackedBytes(type, out, in);
    prefix += "x" + std::to_string(in);
    if (prefix.find(only_) == std::string::npos) return;
    const int copies = static_cast<int>(std::clamp<int64_t>((int64_t{200} << 20) / bytes, 2, 16));
    std::vector<Weights> weights;
    for (const int32_t out : outs) weights.push_back(RandomWeights(type, out, in, copies, static_cast<uint32_t>(weights.size()) + 1));
    for (const int32_t rows : rows_list) {
      const DeviceArray<float> x = RandomActivations(int64_t{rows} * in, 7);
      const DeviceArray<float> y(static_cast<size_t>(rows) * static_cast<size_t>(all));
      const DeviceArray<std::byte> scratch(cuda::LinearScratch(rows, in)), unpacked(cuda::UnpackedRoom(rows));
      ReplayedGraph graph(copies, [&](int i, cudaStream_t s) {
        std::vector<cuda::LinearLaunch> launches;
        float* to = y.data();
        for (size_t m = 0; m < outs.size(); to += int64_t{rows} * outs[m++]) {
          launches.push_back({weights[m].views[static_cast<size_t>(i)], x.data(), nullptr, to, rows, true, scratch.data()});
          launches.back().unpacked = unpacked.data();
        }
        BENCH_CUDA(cuda::LinearTogether(launches, s));
      });
      Add(prefix + " T=" + std::to_string(rows), &graph, copies, static_cast<double>(bytes), 2.0 * rows * all * in);
    }
  }

 private:
  struct ExpertWeights {
    Weights gate, up, down;
    DeviceArray<cuda::DeviceMatrix> gates, ups, downs;
    ExpertWeights(const Shape& shape, DType type)
        : gate(RandomWeights(type, shape.width, shape.hidden, shape.experts, 1)), up(RandomWeights(type, shape.width, shape.hidden, shape.experts, 2)),
          down(RandomWeights(type, shape.hidden, shape.width, shape.experts, 3)), gates(gate.views), ups(up.views), downs(down.views) {}
  };

  // Of launches with these routings, which have the same number of rows.
  void TimeExperts(const std::string& name, const Shape& shape, DType type, const ExpertWeights& weights, const std::vector<Routing>& routings) {
    const auto launches = static_cast<int>(routings.size());
    const int32_t rows = routings.front().rows;
    std::vector<DeviceRouting> on_device;
    double bytes = 0, slots = 0;
    const auto of = [&](Planes planes) {
      return static_cast<double>(2 * cuda::ReadBytes(type, shape.width, shape.hidden, planes) + cuda::ReadBytes(type, shape.hidden, shape.width, planes));
    };
    for (const Routing& routing : routings) {
      on_device.emplace_back(routing);
      std::set<int32_t> hi, lo;
      for (const cuda::Job& job : routing.jobs) {
        hi.insert(job.expert);
        if (job.planes == Planes::kBoth) lo.insert(job.expert);
      }
      bytes += static_cast<double>(hi.size()) * of(Planes::kHi) + static_cast<double>(lo.size()) * (of(Planes::kBoth) - of(Planes::kHi));
      slots += static_cast<double>(routing.order.size());
    }
    const DeviceArray<float> x = RandomActivations(int64_t{rows} * shape.hidden, 7);
    DeviceArray<float> out(static_cast<size_t>(rows) * static_cast<size_t>(shape.hidden));
    out.Fill(0);
    cuda::ExpertFfnLaunch launch;
    launch.gate = weights.gates.data();
    launch.up = weights.ups.data();
    launch.down = weights.downs.data();
    // Experts at a stride, as the engine has them where a matrix of each kind takes as many bytes.
    launch.gate_base = weights.gate.views[0], launch.up_base = weights.up.views[0], launch.down_base = weights.down.views[0];
    const auto stride_of = [](const Weights& of) { return of.views[1].hi - of.views[0].hi; };
    if (stride_of(weights.up) == stride_of(weights.gate) && stride_of(weights.down) == stride_of(weights.gate)) launch.stride = stride_of(weights.gate);
    launch.gate_packing = launch.up_packing = launch.down_packing = cuda::PackingOf(type);
    launch.may_read_hi = type == DType::kNested8;
    launch.experts = shape.experts;
    launch.hidden = shape.hidden;
    launch.width = shape.width;
    launch.slots = shape.slots;
    launch.rows = rows;
    launch.x = x.data();
    launch.out = out.data();
    const ExpertRooms rooms(launch);
    rooms.PutInto(&launch);
    // Rows of decoding come as halves too, as norms leave them in the engine.
    const DeviceArray<__half> halves(static_cast<size_t>(rows) * static_cast<size_t>(shape.hidden));
    if (rows <= cuda::kHalfRows) launch.halves = cuda::HalvesOf(x.data(), nullptr, halves.data(), rows, shape.hidden, nullptr);
    BENCH_CUDA(cudaDeviceSynchronize());
    ReplayedGraph graph(launches, [&](int i, cudaStream_t s) {
      cuda::ExpertFfnLaunch one = launch;
      on_device[static_cast<size_t>(i)].PutInto(&one);
      BENCH_CUDA(cuda::ExpertFfn(one, s));
    });
    Add(name, &graph, launches, bytes / launches, 6.0 * slots / launches * shape.hidden * shape.width);
  }

  // bytes, flops: of one launch.
  void Add(const std::string& name, ReplayedGraph* graph, int launches, double bytes, double flops) {
    Result result{name, graph->MedianUs(), bytes, flops, {}};
    std::printf("%-44s %9.1f us %8.0f GB/s %7.1f TFLOP/s", name.c_str(), result.us, bytes / result.us * 1e-3, flops / result.us * 1e-6);
    if (watch_ != nullptr) {
      const int replays = static_cast<int>(kQueueUs / (result.us * launches)) + 1;
      result.sustained = watch_->Watch(kWatchSeconds, [&] { graph->Queue(replays); });
      result.sustained.us /= replays * launches;
      graph->Finish();
      std::printf("; on and on %9.1f us %5.0f W %5.0f pJ/byte", result.sustained.us, result.sustained.watts,
                  result.sustained.watts * result.sustained.us / bytes * 1e6);
    }
    std::printf("\n");
    std::fflush(stdout);
    results_.push_back(result);
  }

  static constexpr double kQueueUs = 20000, kWatchSeconds = 0.6;
  const PowerWatch* watch_;  // null: joules are not measured
  std::string only_;
  std::vector<Result> results_;
};

constexpr Bench::Shape kShapes[] = {{"olmoe", 2048, 1024, 64, 8}, {"qwen3", 2048, 768, 128, 8}, {"mixtral", 4096, 14336, 8, 2}};

void WatchAll(Bench* bench) {
  bench->ReadBandwidth();
  bench->EvenExperts(kShapes[0], DType::kBF16, Planes::kBoth);
  for (const Planes planes : {Planes::kBoth, Planes::kHi}) bench->EvenExperts(kShapes[0], DType::kNested8, planes);
  bench->EvenExperts(kShapes[0], DType::kQ4_0, Planes::kBoth);
}

void TimeAll(Bench* bench) {
  bench->ReadBandwidth();
  for (const Bench::Shape& shape : kShapes) {
    bench->Experts(shape, DType::kNested8, {1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192},
                   shape.slots == 2 ? std::vector<int32_t>{0, 1, 2} : std::vector<int32_t>{0, 1, 2, shape.slots});
    for (const DType type : {DType::kQ4_0, DType::kQ4K, DType::kQ6K, DType::kMXFP4, DType::kBF16}) {
      if (shape.width == 14336 && type != DType::kQ4_0) continue;
      bench->Experts(shape, type, type == DType::kQ4_0 ? std::vector<int32_t>{1, 8, 32, 256, 512, 1024, 4096, 8192} : std::vector<int32_t>{1, 8, 32, 512, 8192}, {shape.slots});
    }
  }
  for (const DType type : {DType::kQ8_0, DType::kQ4_0, DType::kBF16}) {
    bench->Linear(type, 2048, 2048, {1, 8, 32, 96, 160, 256, 512, 1024, 4096});
    bench->Linear(type, 2048, 4096, {1, 8, 32, 512, 4096});
    bench->Together(type, {2048, 2048, 2048}, 2048, {256, 512, 1024, 4096});
    bench->Together(type, {4096, 512, 512}, 2048, {256, 512, 1024, 4096});
    bench->Linear(type, 512, 2048, {1, 8});
    bench->Linear(type, 50304, 2048, {1, 8, 32});
  }
  bench->Linear(DType::kF32, 64, 2048, {1, 8, 32, 4096});
}

void WriteJson(const std::string& path, const std::vector<Result>& results) {
  std::FILE* file = std::fopen(path.c_str(), "w");
  if (file == nullptr) return;
  cudaDeviceProp properties;
  int driver = 0, runtime = 0;
  BENCH_CUDA(cudaGetDeviceProperties(&properties, 0));
  BENCH_CUDA(cudaDriverGetVersion(&driver));
  BENCH_CUDA(cudaRuntimeGetVersion(&runtime));
  std::fprintf(file, "{\"device\": \"%s\", \"cuda_driver\": %d, \"cuda_runtime\": %d, \"results\": [\n",
               properties.name, driver, runtime);
  for (size_t i = 0; i < results.size(); ++i) {
    const Result& r = results[i];
    std::fprintf(file, "  {\"name\": \"%s\", \"us\": %.2f, \"bytes\": %.0f, \"gbps\": %.1f, \"tflops\": %.2f",
                 r.name.c_str(), r.us, r.bytes, r.bytes / r.us * 1e-3, r.flops / r.us * 1e-6);
    if (r.sustained.us > 0) {
      std::fprintf(file, ", \"sustained_us\": %.2f, \"watts\": %.1f, \"pj_per_byte\": %.1f", r.sustained.us, r.sustained.watts,
                   r.sustained.watts * r.sustained.us / r.bytes * 1e6);
    }
    std::fprintf(file, "}%s\n", i + 1 < results.size() ? "," : "");
  }
  std::fprintf(file, "]}\n");
  std::fclose(file);
}

}  // namespace
}  // namespace thermoe::bench

int main(int argc, char** argv) {
  bool check = false, time = false, joules = false;
  uint32_t seed = 1;
  std::string only, json;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    if (option == "--check") check = true;
    if (option == "--time") time = true;
    if (option == "--joules") joules = true;
    if (option == "--seed" && i + 1 < argc) seed = static_cast<uint32_t>(std::stoul(argv[++i]));
    if (option == "--only" && i + 1 < argc) only = argv[++i];
    if (option == "--json" && i + 1 < argc) json = argv[++i];
  }
  if (!check && !time && !joules) {
    std::fprintf(stderr, "usage: gpu_matrix [--check] [--time] [--joules] [--seed N] [--only TEXT] [--json FILE]\n");
    return 2;
  }
  if (check && thermoe::bench::CheckAll(seed) > 0) return 1;
  if (time || joules) {
    std::optional<thermoe::bench::PowerWatch> watch;
    if (joules && !watch.emplace().there()) return 1;
    thermoe::bench::Bench bench(only, joules ? &*watch : nullptr);
    if (joules) thermoe::bench::WatchAll(&bench);
    if (time) thermoe::bench::TimeAll(&bench);
    if (!json.empty()) thermoe::bench::WriteJson(json, bench.results());
  }
  return 0;
}
