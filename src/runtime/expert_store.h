// SPDX-License-Identifier: Apache-2.0
// Where every routed expert's weights are, and in which storage: as the file has them, or nested (two planes).
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "model/loaded_model.h"
#include "runtime/repack.h"
#include "runtime/threads.h"
#include "thermoe/model.h"
#include "thermoe/status.h"

namespace thermoe {

class ExpertStore {
 public:
  // kNative: views of the file; kNested: planes. With `interleave` in the layout of the integer kernels where a type has one.
  // Works through some experts at a time, letting go of the mapped pages it replaces.
  // kUnsupported when planes are asked of a type with fewer than 8 bits or of a width that is not a multiple of 32.
  static Result<ExpertStore> Create(const LoadedModel& model, ExpertStorage storage, bool interleave, ThreadPool* threads,
                                    const LoadProgress& progress);

  std::span<const FfnWeights> layer(int32_t index) const { return layers_[static_cast<size_t>(index)]; }  // [E]
  ExpertStorage storage() const { return storage_; }
  bool requantised() const { return requantised_; }          // made from wider types than 8 bits
  const std::string& type_name() const { return type_name_; }  // "q8_0", "nested8 (from bf16)"

 private:
  Status RewriteLayer(const LoadedModel& model, bool interleave, ThreadPool* threads, std::vector<FfnWeights>* experts);

  ExpertStorage storage_ = ExpertStorage::kNative;
  bool requantised_ = false;
  std::string type_name_;
  std::vector<std::vector<FfnWeights>> layers_;           // [L][E]
  std::vector<WeightBuffer> buffers_;                     // what does not lie in the model's files
};

}  // namespace thermoe
