// SPDX-License-Identifier: Apache-2.0
// Reads the header of a GGUF file: metadata and tensor table. Every count, length, offset and product is checked
// before use, so that any bytes at all give a GgufFile or a Status.
// Source: the GGUF specification (ggml, docs/gguf.md), versions 2 and 3, little endian.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/gguf_format.h"
#include "model/tensor_source.h"
#include "thermoe/status.h"

namespace thermoe {

// One metadata value, still encoded. GgufFields gives typed access.
struct GgufValue {
  GgufType type = GgufType::kU8;
  GgufType item_type = GgufType::kU8;  // of an array; never kArray
  uint64_t count = 1;                  // items of an array
  std::span<const std::byte> bytes;    // the scalar, the text, or all items (texts with their lengths)
};

class GgufFile {
 public:
  // `bytes` is the whole file and must outlive the result.
  // Errors: kCorrupt, kUnsupported (version 1, big endian, not GGUF at all, nested arrays).
  static Result<GgufFile> Parse(const std::string& path, std::span<const std::byte> bytes);

  const std::string& path() const { return path_; }
  uint32_t version() const { return version_; }
  const GgufValue* Find(std::string_view key) const;
  std::span<const std::byte> header() const { return header_; }  // magic to the end of the tensor table
  const std::vector<FileTensor>& tensors() const { return tensors_; }

 private:
  std::string path_;
  uint32_t version_ = 0;
  std::map<std::string, GgufValue, std::less<>> metadata_;
  std::span<const std::byte> header_;
  std::vector<FileTensor> tensors_;
};

}  // namespace thermoe
