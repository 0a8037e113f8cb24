// SPDX-License-Identifier: Apache-2.0
// The tensors of a model's files under one roof, whatever the format and however many shards.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/formats.h"
#include "thermoe/status.h"

namespace thermoe {

// A tensor as its reader found it: its byte range is inside the file and matches type and shape.
struct FileTensor {
  std::string name;
  std::string type_name;            // as people call it: "q4_k", "bf16"
  std::optional<DType> type;        // none: a type this build cannot read; then data is empty
  std::vector<int64_t> shape;       // row-major, outermost first
  std::span<const std::byte> data;  // may lie at any address: safetensors does not align
  size_t file = 0;                  // set by TensorSource::Add
};

class TensorSource {
 public:
  // kCorrupt when a name is already there.
  Status Add(const std::string& path, std::vector<FileTensor> tensors);

  const FileTensor* Find(std::string_view name) const;
  const std::vector<FileTensor>& tensors() const { return tensors_; }  // in file order
  const std::string& PathOf(const FileTensor& tensor) const { return paths_[tensor.file]; }
  // The file that a message about something absent names: the first.
  const std::string& path() const { return paths_.front(); }

 private:
  std::vector<std::string> paths_;
  std::vector<FileTensor> tensors_;
  std::map<std::string, size_t, std::less<>> index_;
};

}  // namespace thermoe
