// SPDX-License-Identifier: Apache-2.0
#include "model/tensor_source.h"

#include <utility>

#include "base/errors.h"

namespace thermoe {

Status TensorSource::Add(const std::string& path, std::vector<FileTensor> tensors) {
  paths_.push_back(path);
  for (FileTensor& tensor : tensors) {
    tensor.file = paths_.size() - 1;
    if (!index_.emplace(tensor.name, tensors_.size()).second) {
      return Corrupt("{}: tensor {} is there twice; download the model again", path, tensor.name);
    }
    tensors_.push_back(std::move(tensor));
  }
  return Status::Ok();
}

const FileTensor* TensorSource::Find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

}  // namespace thermoe
