// SPDX-License-Identifier: Apache-2.0
#include "model/bind_weights.h"

#include <cstdint>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <utility>

#include "base/errors.h"
#include "model/file_errors.h"

namespace thermoe {
namespace {

// "f32, f16, ... or mxfp4": every type that files may have.
std::string ReadableTypes() {
  std::string names;
  for (int t = 0; t < kDTypes; ++t) {
    if (static_cast<DType>(t) == DType::kNested8) continue;
    const bool last = t == static_cast<int>(DType::kNested8) - 1;
    names += (names.empty() ? "" : last ? " or " : ", ") + std::string(TraitsOf(static_cast<DType>(t)).name);
  }
  return names;
}
static_assert(static_cast<int>(DType::kNested8) == kDTypes - 1);

// What kernels may assume of a row's address: floats are loaded whole, blocks begin with a 16-bit scale.
size_t AlignmentOf(DType type) { return type == DType::kF32 ? alignof(float) : alignof(uint16_t); }

class Binder {
 public:
  Binder(const TensorSource& source, const ModelConfig& config, const NameMap& names, ModelWeights* weights,
         std::vector<std::unique_ptr<std::byte[]>>* owned)
      : source_(source), config_(config), names_(names), weights_(*weights), owned_(*owned) {}

  Status Bind() {
    // Each layer has tensors of its own: a config with absurd numbers ends here, before anything is allocated.
    if (static_cast<size_t>(config_.layers) > source_.tensors().size()) {
      return Corrupt("{}: has {} tensors, too few for {} layers; download or convert the model again", source_.path(),
                     source_.tensors().size(), config_.layers);
    }
    weights_.layers.resize(static_cast<size_t>(config_.layers));
    for (const RoleSpec& role : RoleTable()) {
      if (!role.present(config_)) continue;
      const int32_t layers = role.scope == Scope::kModel ? 1 : config_.layers;
      for (int32_t layer = 0; layer < layers; ++layer) THERMOE_RETURN_IF_ERROR(BindRole(role, layer));
    }
    if (config_.tied_embeddings) weights_.output = weights_.embedding;
    return CheckNothingLeft();
  }

 private:
  // Uses the first of the role's names that the files have.
  Status BindRole(const RoleSpec& role, int32_t layer) {
    const TensorName* first = nullptr;
    for (const TensorName& name : names_) {
      if (name.role != role.role) continue;
      if (first == nullptr) first = &name;
      if (source_.Find(TensorNameOf(name, layer, 0)) != nullptr) return BindAs(role, name, layer);
    }
    if (first == nullptr) {
      return Unsupported("{}: architecture {} is not read from this format with these options", source_.path(),
                         config_.architecture);
    }
    return Missing(TensorNameOf(*first, layer, 0));
  }

  Status BindAs(const RoleSpec& role, const TensorName& name, int32_t layer) {
    if (role.scope != Scope::kExpert) return BindOne(role, TensorNameOf(name, layer, 0), layer, 0);
    if (!NamesEachExpert(name)) return BindMerged(role, name, layer);
    for (int32_t expert = 0; expert < config_.experts; ++expert) {
      THERMOE_RETURN_IF_ERROR(BindOne(role, TensorNameOf(name, layer, expert), layer, expert));
    }
    return Status::Ok();
  }

  // A tensor that is one matrix or one vector.
  Status BindOne(const RoleSpec& role, const std::string& name, int32_t layer, int32_t expert) {
    const FileTensor* tensor = source_.Find(name);
    if (tensor == nullptr) return Missing(name);
    const MatrixShape shape = role.shape(config_);
    // A matrix of one row may be stored as a vector (Qwen2-MoE's shared gate is, in GGUF).
    const bool flat = role.vector != nullptr || (shape.rows == 1 && tensor->shape.size() == 1);
    THERMOE_RETURN_IF_ERROR(
        Check(*tensor, flat ? std::vector<int64_t>{shape.cols} : std::vector<int64_t>{shape.rows, shape.cols}));
    const WeightMatrix matrix{*tensor->type, shape.rows, shape.cols, Aligned(*tensor), nullptr};
    if (role.vector == nullptr) {
      *role.matrix(weights_, layer, expert) = matrix;
      return Status::Ok();
    }
    std::vector<float>& values = *role.vector(weights_, layer);
    values.resize(static_cast<size_t>(shape.cols));
    DecodeRow(matrix, 0, Planes::kBoth, values.data());
    return Status::Ok();
  }

  // A tensor [experts, rows, cols] of all experts; with Part, [experts, 2 * rows, cols].
  Status BindMerged(const RoleSpec& role, const TensorName& name, int32_t layer) {
    const FileTensor* tensor = source_.Find(TensorNameOf(name, layer, 0));
    const MatrixShape shape = role.shape(config_);
    const int64_t tensor_rows = name.part == Part::kAll ? shape.rows : 2 * shape.rows;
    THERMOE_RETURN_IF_ERROR(Check(*tensor, {config_.experts, tensor_rows, shape.cols}));
    const int64_t row_bytes = RowBytes(*tensor->type, shape.cols);
    const std::byte* data = Aligned(*tensor) + (name.part == Part::kSecondHalf ? shape.rows * row_bytes : 0);
    for (int32_t expert = 0; expert < config_.experts; ++expert) {
      *role.matrix(weights_, layer, expert) = {*tensor->type, shape.rows, shape.cols,
                                               data + expert * tensor_rows * row_bytes, nullptr};
    }
    return Status::Ok();
  }

  Status Check(const FileTensor& tensor, const std::vector<int64_t>& shape) {
    used_.insert(&tensor);
    if (tensor.shape != shape) {
      return Corrupt("{}: tensor {} has shape {} but the configuration needs {}; download or convert the model again",
                     source_.PathOf(tensor), tensor.name, ShapeText(tensor.shape), ShapeText(shape));
    }
    if (!tensor.type) {
      return Unsupported(
          "{}: tensor {} has type {}, which this build cannot read; use a file with {}", source_.PathOf(tensor), tensor.name,
          tensor.type_name, ReadableTypes());
    }
    return Status::Ok();
  }

  const std::byte* Aligned(const FileTensor& tensor) {
    const std::byte* data = tensor.data.data();
    if (reinterpret_cast<uintptr_t>(data) % AlignmentOf(*tensor.type) == 0) return data;
    const std::byte*& copy = copies_[&tensor];
    if (copy == nullptr) {
      owned_.push_back(std::make_unique<std::byte[]>(tensor.data.size()));
      std::memcpy(owned_.back().get(), data, tensor.data.size());
      copy = owned_.back().get();
    }
    return copy;
  }

  Status Missing(const std::string& name) const {
    return Corrupt(
        "{}: has no tensor {}, which architecture {} with {} layers needs; download or convert the model again",
        source_.path(), name, config_.architecture, config_.layers);
  }

  // Tensors that may be there and change nothing: rope frequencies, and the output matrix of a tied model.
  std::set<std::string> Ignorable() const {
    std::set<std::string> ignorable;
    for (const TensorName& name : names_) {
      if (name.role != Role::kIgnored && name.role != Role::kOutput) continue;
      for (int32_t layer = 0; layer < config_.layers; ++layer) ignorable.insert(TensorNameOf(name, layer, 0));
    }
    return ignorable;
  }

  Status CheckNothingLeft() const {
    const std::set<std::string> ignorable = Ignorable();
    for (const FileTensor& tensor : source_.tensors()) {
      if (used_.count(&tensor) > 0 || ignorable.count(tensor.name) > 0) continue;
      return Unsupported("{}: tensor {} has no place in architecture {} as this build runs it; use the original model",
                         source_.PathOf(tensor), tensor.name, config_.architecture);
    }
    return Status::Ok();
  }

  const TensorSource& source_;
  const ModelConfig& config_;
  const NameMap& names_;
  ModelWeights& weights_;
  std::vector<std::unique_ptr<std::byte[]>>& owned_;
  std::set<const FileTensor*> used_;
  std::map<const FileTensor*, const std::byte*> copies_;
};

}  // namespace

Status BindWeights(const TensorSource& source, const ModelConfig& config, const NameMap& names, ModelWeights* weights,
                   std::vector<std::unique_ptr<std::byte[]>>* owned) {
  return Binder(source, config, names, weights, owned).Bind();
}

}  // namespace thermoe
