// SPDX-License-Identifier: Apache-2.0
#include "runtime/expert_store.h"

#include <algorithm>
#include <cstring>

#include "base/errors.h"
#include "model/interleave.h"

namespace thermoe {
namespace {

constexpr WeightMatrix FfnWeights::* kRoles[] = {&FfnWeights::gate, &FfnWeights::up, &FfnWeights::down};

// Rows [first, first + rows) as Q8_0 blocks: codes as they are, wider types quantised.
void CodesOf(const WeightMatrix& from, int64_t first, int64_t rows, std::vector<std::byte>* codes) {
  const int64_t row_bytes = RowBytes(DType::kQ8_0, from.cols);
  codes->resize(static_cast<size_t>(rows * row_bytes));
  if (from.type == DType::kQ8_0) {
    std::memcpy(codes->data(), from.row(first), codes->size());
    return;
  }
  std::vector<float> values(static_cast<size_t>(from.cols));
  for (int64_t r = 0; r < rows; ++r) {
    DecodeRow(from, first + r, Planes::kBoth, values.data());
    EncodeRow(DType::kQ8_0, values.data(), from.cols, codes->data() + r * row_bytes);
  }
}

// Both planes of a matrix at `hi` and `lo`, interleaved where its rows come in 16s.
Rewrite NestTo(const WeightMatrix& from, bool interleave, std::byte* hi, std::byte* lo, WeightMatrix* result) {
  interleave = interleave && CanInterleave(DType::kNested8, from.rows, from.cols);
  *result = {DType::kNested8, from.rows, from.cols, hi, lo, interleave ? Layout::kInterleaved : Layout::kRows};
  const int64_t step = interleave ? kInterleave : 1;
  const int64_t hi_bytes = result->row_bytes(), lo_bytes = NestedLoRowBytes(from.cols);
  return {from, step, [=](int64_t first) {
            std::vector<std::byte> codes;
            CodesOf(from, first, step, &codes);
            std::byte* hi_at = hi + first * hi_bytes;
            std::byte* lo_at = lo + first * lo_bytes;
            if (interleave) {
              InterleavePlanes(codes.data(), RowBytes(DType::kQ8_0, from.cols), from.cols, hi_at, lo_at);
            } else {
              SplitPlanes(reinterpret_cast<const BlockQ8_0*>(codes.data()), from.cols / kQuantBlock,
                          reinterpret_cast<NestedHi*>(hi_at), reinterpret_cast<NestedLo*>(lo_at));
            }
          }};
}

Status CheckNestable(const LoadedModel& model, const WeightMatrix& matrix) {
  if (TraitsOf(matrix.type).bits < 8) {
    return Unsupported("{}: experts are {}; --experts nested needs 8 bits or more (q8_0, bf16, f16, f32): use --experts native",
                       model.path, TraitsOf(matrix.type).name);
  }
  if (matrix.cols % kQuantBlock != 0) {
    return Unsupported("{}: an expert matrix is {} wide; --experts nested needs a multiple of {}: use --experts native",
                       model.path, matrix.cols, kQuantBlock);
  }
  return Status::Ok();
}

// Experts share a buffer of about this much.
constexpr int64_t kBufferBytes = int64_t{16} << 20;

// What a matrix takes in its new storage; 0: it stays where it is.
struct Regions {
  int64_t hi = 0, lo = 0;
};

Regions RegionsOf(const WeightMatrix& matrix, ExpertStorage storage, bool interleave) {
  if (storage == ExpertStorage::kNative) {
    return {Interleavable(matrix) ? AlignToLine(InterleavedBytes(matrix)) : 0, 0};
  }
  interleave = interleave && CanInterleave(DType::kNested8, matrix.rows, matrix.cols);
  const Layout layout = interleave ? Layout::kInterleaved : Layout::kRows;
  return {AlignToLine(matrix.rows * RowBytes(DType::kNested8, matrix.cols, layout)), AlignToLine(matrix.rows * NestedLoRowBytes(matrix.cols))};
}

// The types of the experts' matrices, each once, in order of appearance.
std::vector<DType> TypesOf(const LoadedModel& model) {
  std::vector<DType> types;
  for (const LayerWeights& layer : model.weights.layers) {
    for (const auto role : kRoles) {
      const DType type = (layer.experts.front().*role).type;
      if (std::find(types.begin(), types.end(), type) == types.end()) types.push_back(type);
    }
  }
  return types;
}

}  // namespace

Result<ExpertStore> ExpertStore::Create(const LoadedModel& model, ExpertStorage storage, bool interleave, ThreadPool* threads,
                                        const LoadProgress& progress) {
  ExpertStore store;
  store.storage_ = storage;
  const std::vector<DType> types = TypesOf(model);
  for (const DType type : types) store.type_name_ += (store.type_name_.empty() ? "" : ", ") + std::string(TraitsOf(type).name);
  for (const LayerWeights& layer : model.weights.layers) store.layers_.push_back(layer.experts);
  if (storage == ExpertStorage::kNative && !interleave) return store;
  if (storage == ExpertStorage::kNested) {
    store.requantised_ = types != std::vector{DType::kQ8_0};
    store.type_name_ = store.requantised_ ? fmt::format("nested8 (from {})", store.type_name_) : "nested8";
  }
  double done = 0;
  for (std::vector<FfnWeights>& experts : store.layers_) {
    THERMOE_RETURN_IF_ERROR(store.RewriteLayer(model, interleave, threads, &experts));
    done += 1.0 / static_cast<double>(store.layers_.size());
    if (progress && !progress(done)) return Status(StatusCode::kCancelled, "loading was stopped");
  }
  return store;
}

Status ExpertStore::RewriteLayer(const LoadedModel& model, bool interleave, ThreadPool* threads, std::vector<FfnWeights>* experts) {
  for (size_t begin = 0, end = 0; begin < experts->size(); begin = end) {
    std::vector<Regions> sizes;  // of the experts of this run
    int64_t bytes = 0;
    for (; end < experts->size() && bytes < kBufferBytes; ++end) {
      Regions sum;
      for (const auto role : kRoles) {
        const WeightMatrix& matrix = (*experts)[end].*role;
        if (storage_ == ExpertStorage::kNested) THERMOE_RETURN_IF_ERROR(CheckNestable(model, matrix));
        const Regions regions = RegionsOf(matrix, storage_, interleave);
        sum.hi += regions.hi;
        sum.lo += regions.lo;
      }
      sizes.push_back(sum);
      bytes += sum.hi + sum.lo;
    }
    if (bytes == 0) continue;
    buffers_.emplace_back(bytes);
    std::byte* at = buffers_.back().data();
    std::vector<Rewrite> rewrites;
    for (size_t e = begin; e < end; ++e) {
      // An expert's hi planes (or whole matrices) come first, so that reading only them is one stream.
      const Regions& size = sizes[e - begin];
      std::byte* hi = at;
      std::byte* lo = at + size.hi;
      at += size.hi + size.lo;
      for (const auto role : kRoles) {
        WeightMatrix& matrix = (*experts)[e].*role;
        const Regions regions = RegionsOf(matrix, storage_, interleave);
        if (regions.hi == 0) continue;
        rewrites.push_back(storage_ == ExpertStorage::kNested ? NestTo(WeightMatrix(matrix), interleave, hi, lo, &matrix)
                                                              : InterleaveTo(matrix, hi, &matrix));
        hi += regions.hi;
        lo += regions.lo;
      }
    }
    RunRewrites(model, rewrites, threads);
  }
  return Status::Ok();
}

}  // namespace thermoe
