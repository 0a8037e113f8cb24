// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/cuda_ops.h"

#include <cmath>
#include <cstring>
#include <optional>

#include "base/check.h"
#include "base/errors.h"
#include "kernels/cuda/attend_few.h"
#include "kernels/cuda/prefill.h"

namespace thermoe::cuda {
namespace {

constexpr int64_t kStagingBytes = int64_t{4} << 20;
constexpr int64_t kScatterBytes = 32 << 10;  // more goes by a copy of its own
// Of blocks: the gate's one, the experts', attention's; then what experts pass and what the gate does, aligned to 16 bytes; launches of summaries; draws; the largest logits; what the gate's
// selections of many rows count, on lines of 128 bytes.
constexpr int64_t kExpertsAt = 1, kAttendAt = kExpertsAt + kExpertCounters;
constexpr int64_t kPassedAt = (kAttendAt + kAttendCounters + 3) / 4 * 4, kGateAt = kPassedAt + 2 * kPassedWords, kLaunchesAt = kGateAt + kGatePassed;
constexpr int64_t kDrawsAt = kLaunchesAt + 1, kLargestAt = kDrawsAt + 1, kInputsAt = kLargestAt + kernels::kMostAhead, kCountedAt = (kInputsAt + 1 + 31) / 32 * 32;
constexpr int64_t kCounters = kCountedAt + 2 * kSelectCounted;

}  // namespace

// Device addresses of one operation's operands. What is not resident is copied there, and back when the call ends.
class CudaOps::Call {
 public:
  explicit Call(const CudaOps& ops) : ops_(ops) {}
  ~Call() {
    if (temporaries_.empty() && results_.empty()) {
      if (!ops_.in_step_) ops_.LaunchPending();
      return;
    }
    ops_.LaunchPending();
    for (const Result& r : results_) ops_.Check(cudaMemcpyAsync(r.host, r.device, r.bytes, cudaMemcpyDefault, ops_.stream_), "reading a result");
    ops_.Synchronise();
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  template <typename T>
  const T* In(const T* host, int64_t count) {
    if (host == nullptr) return nullptr;
    if (std::byte* at = ops_.addresses_.Find(host); at != nullptr) return reinterpret_cast<const T*>(at);
    T* at = New<T>(count);
    if (at == nullptr) return nullptr;
    ops_.LaunchPending();
    ops_.Check(cudaMemcpyAsync(at, host, static_cast<size_t>(Bytes<T>(count)), cudaMemcpyDefault, ops_.stream_), "writing an operand");
    ops_.Synchronise();
    return at;
  }
  // Read and written; what is there before counts only where it is read.
  template <typename T>
  T* Out(T* host, int64_t count) {
    T* at = const_cast<T*>(In(static_cast<const T*>(host), count));
    if (at != nullptr && ops_.addresses_.Find(host) == nullptr) results_.push_back({host, at, static_cast<size_t>(Bytes<T>(count))});
    return at;
  }
  template <typename T>
  T* New(int64_t count) {
    thermoe::Result<DeviceMemory> memory = DeviceMemory::Allocate(std::max<int64_t>(Bytes<T>(count), 1), "an operand");
    if (!memory.ok()) return ops_.Check(memory.status()), nullptr;
    temporaries_.push_back(std::move(memory).value());
    return temporaries_.back().as<T>();
  }

 private:
  struct Result {
    void* host;
    const void* device;
    size_t bytes;
  };
  const CudaOps& ops_;
  std::vector<DeviceMemory> temporaries_;
  std::vector<Result> results_;
};

Result<std::unique_ptr<kernels::Ops>> CudaOps::Create(ThreadPool* threads, std::string_view isa, std::string_view wish) {
  const std::vector<DeviceFacts> devices = Devices();
  const Result<DeviceFacts> device = ChooseDevice(devices, wish);
  if (!device.ok()) return device.status();
  if (device->capability < 80) {
    return Unsupported("{} has compute capability {}.{}; the cuda backend needs 8.0 or later; use --backend cpu (or THERMOE_BACKEND=cpu)",
                       device->name, device->capability / 10, device->capability % 10);
  }
  THERMOE_RETURN_IF_ERROR(CudaStatus(cudaSetDevice(device->index), "choosing the device"));
  const bool hopper = HopperMultiprocessors() > 0;
  if (!isa.empty() && isa != "mma" && (isa != "wgmma" || !hopper)) {
    return InvalidArgument("{} instruction set \"{}\" (option isa, or THERMOE_ISA): the cuda backend on {} has mma{}; leave it empty for the best",
                           isa == "wgmma" ? "unavailable" : "unknown", isa, device->name, hopper ? " and wgmma" : "");
  }
  std::unique_ptr<CudaOps> ops(new CudaOps(*device, threads));
  ops->wgmma_ = hopper && isa != "mma";
  THERMOE_RETURN_IF_ERROR(ops->Start());
  return std::unique_ptr<kernels::Ops>(std::move(ops));
}

CudaOps::CudaOps(const DeviceFacts& device, ThreadPool* threads)
    : device_(device), threads_(threads), name_(EngineName(device.name)) {
  pending_.reserve(4096);
}

Status CudaOps::Start() {
  THERMOE_RETURN_IF_ERROR(CudaStatus(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream"));
  THERMOE_RETURN_IF_ERROR(CudaStatus(cudaStreamCreateWithFlags(&copies_, cudaStreamNonBlocking), "making a stream"));
  Result<PinnedMemory> staging = PinnedMemory::Allocate(kStagingBytes);
  if (!staging.ok()) return staging.status();
  staging_ = std::move(staging).value();
  Result<PinnedMemory> told = PinnedMemory::Allocate(2 * sizeof(uint32_t));
  if (!told.ok()) return told.status();
  told_ = std::move(told).value();
  *told_.as<uint32_t>() = *draws_told() = 0;
  for (Side& side : sides_) {
    Result<PinnedMemory> inputs = PinnedMemory::Allocate(static_cast<int64_t>(sizeof(StepInputs)) + kStepInputBytes);
    if (!inputs.ok()) return inputs.status();
    Result<DeviceMemory> copied = DeviceMemory::Allocate(static_cast<int64_t>(sizeof(StepInputs)) + kStepInputBytes, "a step's inputs");
    if (!copied.ok()) return copied.status();
    side.inputs = std::move(inputs).value(), side.copied = std::move(copied).value();
    THERMOE_RETURN_IF_ERROR(CudaStatus(cudaMemsetAsync(side.copied.data(), 0, sizeof(StepInputs), stream_), "clearing memory"));
  }
  Result<DeviceMemory> done = DeviceMemory::Allocate(Bytes<uint32_t>(kCounters), "synchronisation");
  if (!done.ok()) return done.status();
  counters_ = std::move(done).value();
  return CudaStatus(cudaMemsetAsync(counters_.data(), 0, kCounters * sizeof(uint32_t), stream_), "clearing memory");
}

CudaOps::~CudaOps() {
  if (stream_ != nullptr) cudaStreamSynchronize(stream_);  // a step may be under way that nobody waits for
  DropGraphs();
  for (cudaStream_t stream : {stream_, copies_}) {
    if (stream != nullptr) cudaStreamDestroy(stream);
  }
}

void CudaOps::Check(cudaError_t error, const char* what) const {
  if (error != cudaSuccess && health_.ok()) health_ = CudaStatus(error, what);
}

void CudaOps::Check(const Status& status) const {
  if (!status.ok() && health_.ok()) health_ = status;
}

void CudaOps::LaunchPending() const {
  FlushStaged();
  if (pending_.empty()) return;
  Check(Launch(pending_, {halves_.as<__half>(), half_count_, counters_.as<uint32_t>() + kAttendAt}, stream_), "launching operations");
  pending_.clear();
}

void CudaOps::Synchronise() const {
  FlushStaged();
  Check(cudaStreamSynchronize(stream_), "computing");
  Reuse();
}

uint32_t* CudaOps::draws_done() const { return counters_.as<uint32_t>() + kDrawsAt; }
uint32_t* CudaOps::summaries_launched() const { return counters_.as<uint32_t>() + kLaunchesAt; }
uint32_t* CudaOps::inputs_taken() const { return counters_.as<uint32_t>() + kInputsAt; }
int32_t* CudaOps::largest_logits() const { return counters_.as<int32_t>() + kLargestAt; }

void CudaOps::Reuse() const {
  staging_used_ = 0, staging_read_ = false;
  for (Side& side : sides_) side.under_way = false;
}

void CudaOps::Stage(void* to, const void* from, int64_t bytes) const {
  if (bytes == 0 || to == nullptr) return;
  if (!pending_.empty()) LaunchPending();  // what was called before must not see it
  if (bytes > kStagingBytes) {
    Synchronise();
    Check(cudaMemcpy(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault), "writing a step's inputs");
    return;
  }
  if (staging_used_ + bytes > kStagingBytes) Synchronise();
  std::byte* at = staging_.data() + staging_used_;
  std::memcpy(at, from, static_cast<size_t>(bytes));
  staging_used_ += (bytes + 63) / 64 * 64;
  if (bytes > kScatterBytes) {
    FlushStaged();
    staged_since_ = staging_read_ = true;
    Check(cudaMemcpyAsync(to, at, static_cast<size_t>(bytes), cudaMemcpyDefault, stream_), "writing a step's inputs");
    return;
  }
  staged_.pieces[staged_.count++] = {static_cast<std::byte*>(to), at, bytes};
  if (staged_.count == kMostPieces) FlushStaged();
}

void CudaOps::FlushStaged() const {
  if (staged_.count == 0) return;
  staged_since_ = staging_read_ = true;
  Scatter(staged_, stream_);
  staged_.count = 0;
  Check(cudaGetLastError(), "writing a step's inputs");
}

DeviceMatrix CudaOps::MatrixOf(const WeightMatrix& matrix, Call* call) const {
  if (const auto resident = matrices_.find(matrix.data); resident != matrices_.end()) return resident->second;
  THERMOE_CHECK(call != nullptr);
  std::vector<std::byte> packed(static_cast<size_t>(PackedBytes(matrix.type, matrix.rows, matrix.cols)));
  Pack(matrix, packed.data());
  return View(matrix.type, matrix.rows, matrix.cols, call->In(packed.data(), static_cast<int64_t>(packed.size())));
}

// --- Memory and steps. ---

void CudaOps::Adopt(std::span<std::byte> buffer) {
  if (buffer.empty()) return;
  Result<DeviceMemory> memory = DeviceMemory::Allocate(static_cast<int64_t>(buffer.size()), "the buffers of a step");
  if (!memory.ok()) return Check(memory.status());
  Check(cudaMemsetAsync(memory->data(), 0, buffer.size(), stream_), "clearing memory");
  addresses_.Add(buffer.data(), buffer.size(), memory->data());
  owned_.push_back(std::move(memory).value());
}

void CudaOps::Publish(std::span<const std::byte> bytes) const {
  Stage(addresses_.Find(bytes.data()), bytes.data(), static_cast<int64_t>(bytes.size()));
}

void CudaOps::Fetch(std::span<std::byte> bytes) const {
  LaunchPending();
  const std::byte* from = addresses_.Find(bytes.data());
  THERMOE_CHECK(from != nullptr);
  Check(cudaMemcpyAsync(bytes.data(), from, bytes.size(), cudaMemcpyDefault, stream_), "reading results");
  Synchronise();
}

void CudaOps::CopyKv(float* to, const float* from, int64_t floats) const {
  LaunchPending();
  auto* halves = kv_.as<__half>();
  Check(cudaMemcpyAsync(halves + (to - kv_host_), halves + (from - kv_host_), static_cast<size_t>(Bytes<__half>(floats)), cudaMemcpyDeviceToDevice,
                        stream_),
        "copying keys and values");
}

// --- Operations. ---

void CudaOps::Embed(const WeightMatrix& table, std::span<const int32_t> ids, MutRows out) const {
  if (replaying_) return;
  Call call(*this);
  const auto resident = tables_of_rows_.find(table.data);
  const std::byte* data = resident != tables_of_rows_.end() ? resident->second : call.In(table.data, table.rows * table.row_bytes());
  pending_.push_back(EmbedLaunch{table.type, data, table.cols, table.row_bytes(), call.In(ids.data(), static_cast<int64_t>(ids.size())),
                               call.Out(out.data, out.size()), out.rows, largest_logits()});
}

void CudaOps::Angles(const kernels::AnglesArgs& args) const {
  if (replaying_) return;
  Call call(*this);
  if (rows_set_ != args.rows.data() || !in_step_) SetRows(args.rows);
  const auto half = static_cast<int64_t>(args.inverse_frequency.size());
  pending_.push_back(AnglesLaunch{rows_.position, call.In(args.inverse_frequency.data(), half), call.Out(args.cosines.data, args.cosines.size()),
                                  call.Out(args.sines.data, args.sines.size()), args.cosines.rows, static_cast<int32_t>(half)});
}

void CudaOps::RmsNorm(const kernels::RmsNormArgs& args) const {
  if (replaying_) return;
  Call call(*this);
  const float* gain = call.In(args.gain.data(), static_cast<int64_t>(args.gain.size()));
  float* out = call.Out(args.out.data, args.out.size());
  const float* x = args.x.data == args.out.data ? out : call.In(args.x.data, args.x.size());
  pending_.push_back(NormLaunch{x, gain, out, args.x.rows, static_cast<int32_t>(args.x.cols), args.epsilon, nullptr, {}});
}

void CudaOps::Linear(const kernels::LinearArgs& args) const {
  if (replaying_) return;
  Call call(*this);
  const DeviceMatrix weight = MatrixOf(args.weight, &call);
  const auto rows = static_cast<int32_t>(args.x.rows);
  EnsureScratch(static_cast<int64_t>(LinearScratch(rows, static_cast<int32_t>(args.weight.cols))));
  const float* bias = args.bias.empty() ? nullptr : call.In(args.bias.data(), static_cast<int64_t>(args.bias.size()));
  LinearLaunch launch{weight, call.In(args.x.data, args.x.size()), bias, call.Out(args.out.data, args.out.size()), rows, wgmma_, scratch_.data()};
  launch.unpacked = unpacked_.data();
  pending_.push_back(launch);
}

void CudaOps::Rope(const kernels::RopeArgs& args) const {
  if (replaying_) return;
  Call call(*this);
  float* x = call.Out(args.x.data, args.x.size());
  pending_.push_back(RopeLaunch{x, call.In(args.cosines.data, args.cosines.size()), call.In(args.sines.data, args.sines.size()), args.x.rows,
                                static_cast<int32_t>(args.x.cols / args.head_dim), args.head_dim, args.rope_dim,
                                args.kind == RopeKind::kHalves});
}

namespace {

// The part of the pool that is a layer's, in halves.
HalfKv LayerOf(const KvLayer& cache, const float* pool, __half* halves) {
  return {halves + (cache.keys - pool), halves + (cache.values - pool), cache.kv_heads, cache.head_dim};
}

}  // namespace

// Keys and values that are not in the pool: a copy in halves, for the one call.
struct CudaOps::ForeignKv {
  std::vector<__half> keys, values;
  KvLayer host;
  HalfKv device;

  ForeignKv(const KvLayer& cache, std::span<const KvRow> rows, Call* call) : host(cache) {
    int64_t blocks = 0;
    for (const KvRow& row : rows) {
      for (int32_t b = 0; b <= row.position / kKvBlock; ++b) blocks = std::max<int64_t>(blocks, row.blocks[b] + 1);
    }
    const auto floats = static_cast<size_t>(blocks * kKvBlock * cache.kv_heads * cache.head_dim);
    const auto halves = [floats](const float* from) {
      std::vector<__half> to(floats);
      for (size_t i = 0; i < floats; ++i) to[i] = __float2half_rn(std::isfinite(from[i]) ? from[i] : 0.0f);
      return to;
    };
    keys = halves(cache.keys), values = halves(cache.values);
    device = {call->Out(keys.data(), static_cast<int64_t>(floats)), call->Out(values.data(), static_cast<int64_t>(floats)), cache.kv_heads,
              cache.head_dim};
  }
  // After the call: what the rows stored, as floats.
  void Return(std::span<const KvRow> rows) const {
    for (const KvRow& row : rows) {
      for (int32_t h = 0; h < host.kv_heads; ++h) {
        const int64_t at = host.offset(row.blocks[row.position / kKvBlock], h, row.position % kKvBlock);
        for (int64_t d = at; d < at + host.head_dim; ++d) {
          host.keys[d] = __half2float(keys[static_cast<size_t>(d)]), host.values[d] = __half2float(values[static_cast<size_t>(d)]);
        }
      }
    }
  }
};

bool CudaOps::Holds(const KvLayer& cache) const { return kv_host_ != nullptr && cache.keys >= kv_host_ && cache.keys < kv_host_ + kv_floats_; }

void CudaOps::StoreKv(const kernels::StoreKvArgs& args) const {
  if (replaying_) return;
  std::optional<ForeignKv> foreign;
  {
    Call call(*this);
    if (rows_set_ != args.rows.data() || !in_step_) SetRows(args.rows);
    if (!Holds(args.cache)) foreign.emplace(args.cache, args.rows, &call);
    pending_.push_back(StoreLaunch{call.In(args.k.data, args.k.size()), call.In(args.v.data, args.v.size()), rows_,
                                   foreign ? foreign->device : LayerOf(args.cache, kv_host_, kv_.as<__half>()),
                                   static_cast<int64_t>(args.rows.size())});
  }
  if (foreign) foreign->Return(args.rows);
}

void CudaOps::Attention(const kernels::AttentionArgs& args) const {
  if (replaying_) return;
  std::optional<ForeignKv> foreign;
  Call call(*this);
  if (rows_set_ != args.rows.data() || !in_step_) SetRows(args.rows);
  if (!Holds(args.cache)) foreign.emplace(args.cache, args.rows, &call);
  EnsureScratch(AttentionScratch(single_rows_, args.heads, args.cache.head_dim));
  AttentionLaunch launch;
  launch.q = call.In(args.q.data, args.q.size()), launch.out = call.Out(args.out.data, args.out.size()), launch.rows = rows_;
  launch.cache = foreign ? foreign->device : LayerOf(args.cache, kv_host_, kv_.as<__half>());
  launch.heads = args.heads, launch.scale = args.scale, launch.count = static_cast<int64_t>(args.rows.size()), launch.single = single_rows_, launch.longest = planned_length_;
  launch.scratch = scratch_.data(), launch.wgmma = wgmma_;
  launch.taken = counters_.as<uint32_t>() + kAttendAt;  // the decode rows' counters: theirs is another launch
  launch.unread = in_step_;  // test-time training, whose deltas read it too, is not for devices
  pending_.push_back(launch);
}

void CudaOps::Select(const kernels::SelectArgs& args) const {
  if (replaying_) return;
  THERMOE_CHECK(args.slots <= kMaxDeviceSlots);
  const kernels::Selection& out = *args.out;
  size_t index = 0;
  while (index < select_slots_.size() && select_slots_[index].record != out.record) ++index;
  const bool alone = index == select_slots_.size();
  const auto experts = static_cast<int32_t>(args.logits.cols);
  if (alone) {  // not of a step: the operation by itself
    EnsureSelectSlots(1, experts);
    index = 0;
    select_slots_[0].record = out.record;
    WriteRules(0, args.steering, experts, args.slots, args.nested);
  }
  {
    Call call(*this);
    SelectLaunch launch;
    launch.logits = call.In(args.logits.data, args.logits.size());
    launch.kinds = call.In(args.kinds.data(), static_cast<int64_t>(args.kinds.size()));
    launch.rules = rules_ + index;
    launch.bias = biases_ + static_cast<int64_t>(index) * experts;
    launch.plane_cap = caps_ + static_cast<int64_t>(index) * experts;
    launch.rows = static_cast<int32_t>(args.logits.rows), launch.experts = experts, launch.slots = args.slots;
    launch.normalise = args.options.normalise;
    if (!in_step_) launch.scores = call.Out(out.scores.data, out.scores.size());  // scratch, which nobody reads in a step: 2 MiB of 4,096 rows
    launch.expert = call.Out(out.expert.data, out.expert.size());
    launch.weight = call.Out(out.weight.data, out.weight.size());
    launch.planes = call.Out(out.planes.data, out.planes.size());
    launch.jobs = reinterpret_cast<Job*>(call.Out(out.jobs.data(), static_cast<int64_t>(out.jobs.size())));
    launch.job_count = job_counts_ + index;
    launch.order = call.Out(out.order.data(), static_cast<int64_t>(out.order.size()));
    launch.counts = counts_ + index;
    launch.expert_slots = expert_slots_ + static_cast<int64_t>(index) * experts;
    EnsureScratch(SelectScratch(launch.rows));
    launch.scratch = scratch_.data(), launch.done = counters_.as<uint32_t>();
    launch.passed = counters_.as<uint32_t>() + kGateAt;
    launch.counted = reinterpret_cast<uint64_t*>(counters_.as<uint32_t>() + kCountedAt);
    pending_.push_back(launch);
  }
  selected_ = index;
  if (!alone) return;
  LaunchPending();
  SelectCounts counts;
  std::vector<int32_t> slots(static_cast<size_t>(experts));
  Check(cudaMemcpyAsync(&counts, counts_, sizeof(counts), cudaMemcpyDefault, stream_), "reading what the gate chose");
  Check(cudaMemcpyAsync(slots.data(), expert_slots_, slots.size() * sizeof(int32_t), cudaMemcpyDefault, stream_), "reading what the gate chose");
  Check(cudaMemcpyAsync(&args.out->job_count, job_counts_, sizeof(int32_t), cudaMemcpyDefault, stream_), "reading what the gate chose");
  Synchronise();
  ReadRecord(counts, slots.data(), out.record);
  select_slots_.clear();
}

void CudaOps::ExpertFfn(const kernels::ExpertFfnArgs& args) const {
  if (replaying_) return;
  THERMOE_CHECK(args.keep_gate.data == nullptr);
  const kernels::Selection& selection = *args.selection;
  THERMOE_CHECK(selection.slots <= kMaxDeviceSlots);
  Call call(*this);
  ExpertTables made;
  const ExpertTables* tables = &made;
  if (const auto resident = experts_.find(args.experts.data()); resident != experts_.end()) {
    tables = &resident->second;
  } else {
    Result<ExpertTables> result = MakeTables(args.experts, &call);
    if (!result.ok()) return Check(result.status());
    made = std::move(result).value();
  }
  // Jobs that a Select made are counted on the device, others where the selection says.
  const bool in_step = addresses_.Find(selection.jobs.data()) != nullptr && addresses_.Find(&selection.job_count) == nullptr;
  ExpertFfnLaunch launch;
  launch.gate = tables->gate, launch.up = tables->up, launch.down = tables->down;
  launch.gate_packing = tables->gate_packing, launch.up_packing = tables->up_packing, launch.down_packing = tables->down_packing;
  launch.gate_base = tables->gate_base, launch.up_base = tables->up_base, launch.down_base = tables->down_base;
  launch.stride = tables->stride;
  launch.experts = static_cast<int32_t>(args.experts.size());
  launch.hidden = static_cast<int32_t>(args.x.cols);
  launch.width = static_cast<int32_t>(args.experts[0].gate.rows);
  launch.slots = selection.slots;
  launch.wgmma = wgmma_;
  launch.may_read_hi = args.experts[0].gate.type == DType::kNested8;
  launch.rows = static_cast<int32_t>(args.x.rows);
  launch.x = call.In(args.x.data, args.x.size());
  launch.jobs = reinterpret_cast<const Job*>(call.In(selection.jobs.data(), static_cast<int64_t>(selection.jobs.size())));
  launch.job_count = in_step ? job_counts_ + selected_ : call.In(&selection.job_count, 1);
  launch.order = call.In(selection.order.data(), static_cast<int64_t>(selection.order.size()));
  launch.jobs_room = static_cast<int32_t>(selection.jobs.size());
  launch.order_room = static_cast<int32_t>(selection.order.size());
  launch.weight = call.In(selection.weight.data, selection.weight.size());
  launch.expert = call.In(selection.expert.data, selection.expert.size());
  launch.out = call.Out(args.out.data, args.out.size());
  EnsureScratch(static_cast<int64_t>(ExpertFfnScratch(launch.hidden, launch.width, launch.slots, launch.rows)));
  launch.scratch = scratch_.data();
  launch.met = counters_.as<uint32_t>() + kExpertsAt;
  launch.passed = reinterpret_cast<uint64_t*>(counters_.as<uint32_t>() + kPassedAt);
  pending_.push_back(launch);
  if (tables == &made) {  // before the tables go
    LaunchPending();
    Synchronise();
  }
}

void CudaOps::SwiGlu(const kernels::SwiGluArgs& args) const {
  if (replaying_) return;
  Call call(*this);
  float* out = call.Out(args.out.data, args.out.size());
  const float* gate = args.gate.data == args.out.data ? out : call.In(args.gate.data, args.gate.size());
  pending_.push_back(SwiGluNode{gate, call.In(args.up.data, args.up.size()), out, args.out.size()});
}

void CudaOps::Add(const kernels::AddArgs& args) const {
  if (replaying_) return;
  Call call(*this);
  pending_.push_back(AddNode{call.In(args.x.data, args.x.size()), call.In(args.gate.data, args.out.rows), call.Out(args.out.data, args.out.size()),
                             args.out.rows, args.out.cols});
}

void CudaOps::Clamp(MutRows x, float limit) const {
  if (replaying_) return;
  Call call(*this);
  pending_.push_back(ClampNode{call.Out(x.data, x.size()), x.size(), limit});
}

void CudaOps::Gather(const kernels::GatherArgs& args) const {
  if (replaying_) return;
  Call call(*this);
  const auto count = static_cast<int64_t>(args.picked.size());
  pending_.push_back(GatherNode{call.In(args.x.data, args.x.size()), call.In(args.picked.data(), count), call.Out(args.out.data, args.out.size()),
                                count, args.out.cols});
}

bool CudaOps::Summarise(const kernels::SummariseArgs& args) const {
  const auto rows = args.logits.rows;
  if (!replaying_) EnsureSummaries(rows);
  if (!health_.ok()) return false;
  Side& side = newest();
  side.summarised = args.out, side.summaries_asked = ++summaries_asked_, staged_since_ = false;
  side.records_under_way = in_step_ && !side.record.empty();
  if (replaying_) return true;
  Call call(*this);
  SummariseLaunch launch{call.In(args.logits.data, args.logits.size()), call.In(args.asked.data(), rows), rows, args.logits.cols,
                         side.summaries.as<kernels::LogitSummary>(), summary_memory_.data(),
                         reinterpret_cast<uint32_t*>(summary_memory_.data() + SummaryScratch(summary_rows_)), summaries_launched(),
                         told_.as<uint32_t>(), largest_logits()};
  if (side.records_under_way) launch.also = Records();
  pending_.push_back(launch);
  return true;
}

}  // namespace thermoe::cuda
