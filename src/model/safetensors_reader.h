// SPDX-License-Identifier: Apache-2.0
// Reads the header of a safetensors file: a u64 length, then JSON {name: {dtype, shape, data_offsets}}.
// Any bytes at all give a SafetensorsFile or a Status. Source: the safetensors format description.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "model/tensor_source.h"
#include "thermoe/status.h"

namespace thermoe {

struct SafetensorsFile {
  std::span<const std::byte> header;  // the length field and the JSON
  std::vector<FileTensor> tensors;    // in order of their data
};

// `bytes` is the whole file and must outlive the result. Errors: kCorrupt.
Result<SafetensorsFile> ParseSafetensors(const std::string& path, std::span<const std::byte> bytes);

}  // namespace thermoe
