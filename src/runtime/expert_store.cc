// SPDX-License-Identifier: Apache-2.0
#include "runtime/expert_store.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "base/errors.h"

namespace thermoe {
namespace {

constexpr WeightMatrix FfnWeights::* kRoles[] = {&FfnWeights::gate, &FfnWeights::up, &FfnWeights::down};

// Row by row: Q8_0 codes as they are, wider types quantised first.
void MakePlanes(const WeightMatrix& from, std::byte* hi, std::byte* lo) {
  const int64_t blocks = from.cols / kQuantBlock;
  std::vector<float> values(static_cast<size_t>(from.cols));
  std::vector<BlockQ8_0> codes(static_cast<size_t>(blocks));
  for (int64_t r = 0; r < from.rows; ++r) {
    if (from.type == DType::kQ8_0) {
      std::memcpy(codes.data(), from.row(r), codes.size() * sizeof(BlockQ8_0));
    } else {
      DecodeRow(from, r, Planes::kBoth, values.data());
      EncodeRow(DType::kQ8_0, values.data(), from.cols, reinterpret_cast<std::byte*>(codes.data()));
    }
    SplitPlanes(codes.data(), blocks, reinterpret_cast<NestedHi*>(hi + r * RowBytes(DType::kNested8, from.cols)),
                reinterpret_cast<NestedLo*>(lo + r * NestedLoRowBytes(from.cols)));
  }
}

// The mapped pages wholly inside a replaced matrix; they come back from the file should anyone read them.
void Forget(const WeightMatrix& matrix) {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<uintptr_t>(matrix.data) + page - 1) / page * page;
  const auto end = (reinterpret_cast<uintptr_t>(matrix.data) + static_cast<uintptr_t>(matrix.bytes())) / page * page;
  if (end > begin) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

bool InFile(const LoadedModel& model, const WeightMatrix& matrix) {
  for (const MappedFile& file : model.files) {
    const std::span<const std::byte> bytes = file.bytes();
    if (matrix.data >= bytes.data() && matrix.data < bytes.data() + bytes.size()) return true;
  }
  return false;
}

Status CheckNestable(const LoadedModel& model, const WeightMatrix& matrix) {
  if (matrix.type == DType::kQ4_0) {
    return Unsupported("{}: experts are {}; --experts nested needs 8 bits or more (q8_0, bf16, f16, f32): use --experts native",
                       model.path, TraitsOf(matrix.type).name);
  }
  if (matrix.cols % kQuantBlock != 0) {
    return Unsupported("{}: an expert matrix is {} wide; --experts nested needs a multiple of {}: use --experts native",
                       model.path, matrix.cols, kQuantBlock);
  }
  return Status::Ok();
}

}  // namespace

Result<ExpertStore> ExpertStore::Create(const LoadedModel& model, ExpertStorage storage, const LoadProgress& progress) {
  ExpertStore store;
  store.storage_ = storage;
  const DType type = model.weights.layers.front().experts.front().gate.type;
  store.type_name_ = TraitsOf(type).name;
  for (const LayerWeights& layer : model.weights.layers) store.layers_.push_back(layer.experts);
  if (storage == ExpertStorage::kNative) return store;

  if (type != DType::kQ8_0) {
    store.requantised_ = true;
    store.type_name_ = fmt::format("nested8 (from {})", store.type_name_);
  } else {
    store.type_name_ = "nested8";
  }
  for (std::vector<FfnWeights>& experts : store.layers_) {
    int64_t hi_bytes = 0, lo_bytes = 0;
    for (const FfnWeights& expert : experts) {
      for (const auto role : kRoles) {
        const WeightMatrix& matrix = expert.*role;
        THERMOE_RETURN_IF_ERROR(CheckNestable(model, matrix));
        hi_bytes += matrix.rows * RowBytes(DType::kNested8, matrix.cols);
        lo_bytes += matrix.rows * NestedLoRowBytes(matrix.cols);
      }
    }
    store.planes_.push_back(std::make_unique_for_overwrite<std::byte[]>(static_cast<size_t>(hi_bytes + lo_bytes)));
    std::byte* hi = store.planes_.back().get();
    std::byte* lo = hi + hi_bytes;
    for (FfnWeights& expert : experts) {
      for (const auto role : kRoles) {
        const WeightMatrix from = expert.*role;
        MakePlanes(from, hi, lo);
        if (InFile(model, from)) Forget(from);
        expert.*role = {DType::kNested8, from.rows, from.cols, hi, lo};
        hi += from.rows * RowBytes(DType::kNested8, from.cols);
        lo += from.rows * NestedLoRowBytes(from.cols);
      }
    }
    const double done = static_cast<double>(store.planes_.size()) / static_cast<double>(store.layers_.size());
    if (progress && !progress(done)) return Status(StatusCode::kCancelled, "loading was stopped");
  }
  return store;
}

}  // namespace thermoe
