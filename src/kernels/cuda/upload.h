// SPDX-License-Identifier: Apache-2.0
// Weights on their way to the device.
#pragma once

#include <cstddef>
#include <span>

#include "base/mapped_file.h"
#include "kernels/residency.h"
#include "model/formats.h"
#include "runtime/threads.h"

namespace thermoe::cuda {

struct UploadItem {
  const WeightMatrix* matrix = nullptr;  // Layout::kRows
  std::byte* to = nullptr;               // device memory, aligned to 256 bytes
  bool packed = true;                    // [PackedBytes] there; false: its rows as they are
};

// Returns when all are there, and measures the link. What lies in one of `files` is read from it. Errors: kCorrupt (a file cannot be read),
// kResourceExhausted (pinned or device memory), kInternal.
Result<kernels::LoadFacts> Upload(std::span<const UploadItem> items, std::span<const MappedFile> files, ThreadPool* threads);

}  // namespace thermoe::cuda
