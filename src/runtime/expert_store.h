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
#include "thermoe/model.h"
#include "thermoe/status.h"

namespace thermoe {

class ExpertStore {
 public:
  // Takes views (kNative) or makes planes (kNested), layer by layer, letting go of the mapped pages it replaces.
  // kUnsupported when a type has fewer than 8 bits or a width is not a multiple of 32.
  static Result<ExpertStore> Create(const LoadedModel& model, ExpertStorage storage, const LoadProgress& progress);

  std::span<const FfnWeights> layer(int32_t index) const { return layers_[static_cast<size_t>(index)]; }  // [E]
  ExpertStorage storage() const { return storage_; }
  bool requantised() const { return requantised_; }          // made from wider types than 8 bits
  const std::string& type_name() const { return type_name_; }  // "q8_0", "nested8 (from bf16)"

 private:
  ExpertStorage storage_ = ExpertStorage::kNative;
  bool requantised_ = false;
  std::string type_name_;
  std::vector<std::vector<FfnWeights>> layers_;           // [L][E]
  std::vector<std::unique_ptr<std::byte[]>> planes_;      // one allocation a layer: all hi planes, then all lo planes
};

}  // namespace thermoe
