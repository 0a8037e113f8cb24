// SPDX-License-Identifier: Apache-2.0
// Writes GGUF version 3. Tensor data comes from callbacks a few megabytes at a time, so that a file of 30 GB needs
// little memory. Source: the GGUF specification (ggml, docs/gguf.md).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "model/formats.h"
#include "thermoe/status.h"

namespace thermoe {

class GgufWriter {
 public:
  // Encodes rows [first_row, first_row + rows) of a tensor into `out`. Rows run over all outer dimensions.
  using Fill = std::function<void(int64_t first_row, int64_t rows, std::byte* out)>;
  // Returns false to stop.
  using Progress = std::function<bool(double done_frac)>;

  // Metadata; each key once.
  void SetInt(std::string_view key, uint32_t value);
  void SetFloat(std::string_view key, float value);
  void SetBool(std::string_view key, bool value);
  void SetText(std::string_view key, std::string_view value);
  void SetTexts(std::string_view key, const std::vector<std::string>& values);
  void SetInts(std::string_view key, const std::vector<int32_t>& values);

  // `shape`: row-major, outermost first, 1 to 4 dimensions of at least 1.
  // kInvalidArgument when the last one does not divide into the type's blocks.
  Status AddTensor(std::string name, DType type, std::vector<int64_t> shape, Fill fill);

  // Writes beside `path` and renames at the end: either the whole file is there or none.
  // Errors: kNotFound (no such folder), kInvalidArgument (not writable), kResourceExhausted (disk full), kCancelled.
  Status Write(const std::string& path, const Progress& progress = {}) const;

 private:
  struct Tensor {
    std::string name;
    DType type;
    std::vector<int64_t> shape;
    Fill fill;
    int64_t rows = 0;
    int64_t row_bytes = 0;
    uint64_t offset = 0;  // from the start of the data
  };

  std::string Header() const;

  std::string metadata_;
  uint64_t metadata_count_ = 0;
  std::vector<Tensor> tensors_;
  uint64_t data_bytes_ = 0;
};

}  // namespace thermoe
