// SPDX-License-Identifier: Apache-2.0
#include "model/loaded_model.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <vector>

#include "base/errors.h"
#include "model/loading.h"

namespace thermoe {
namespace {

// Below this a cold read takes well under a second, and paging in on demand is fine.
constexpr size_t kReadAheadFromBytes = size_t{256} << 20;
// Short enough for a smooth bar and a prompt stop (32 ms at 2 GB/s), long enough for the disk.
constexpr size_t kReadAheadPieceBytes = size_t{64} << 20;

// Whether all pages of the piece are in memory. The system tells only those who may write the file; to others all seem to be.
bool InMemory(std::span<const std::byte> piece, size_t page_bytes) {
  std::vector<unsigned char> pages((piece.size() + page_bytes - 1) / page_bytes);
  if (::mincore(const_cast<std::byte*>(piece.data()), piece.size(), pages.data()) != 0) return false;
  return std::all_of(pages.begin(), pages.end(), [](unsigned char page) { return (page & 1) != 0; });
}

// Brings the pages of one piece into memory. `piece` starts on a page border.
void Populate(std::span<const std::byte> piece, size_t page_bytes) {
#ifdef MADV_POPULATE_READ
  if (::madvise(const_cast<std::byte*>(piece.data()), piece.size(), MADV_POPULATE_READ) == 0) return;
#endif
  // Kernels before 5.14: touch each page.
  for (size_t at = 0; at < piece.size(); at += page_bytes) {
    static_cast<void>(*static_cast<const volatile std::byte*>(&piece[at]));
  }
}

// Reads large files ahead, so that the first tokens do not pay for the disk one page fault at a time. What is in memory is left alone: to map its
// pages, by one thread here, takes longer than to read them where they are wanted.
Status ReadAhead(const LoadedModel& model, const LoadProgress& progress) {
  const auto page_bytes = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const auto memory_bytes = static_cast<size_t>(::sysconf(_SC_PHYS_PAGES)) * page_bytes;
  const auto total = static_cast<size_t>(model.file_bytes);
  // Reading more than fits would only push out what was read first.
  if (!progress || total < kReadAheadFromBytes || total > memory_bytes) return Status::Ok();
  size_t done = 0;
  for (const MappedFile& file : model.files) {
    const bool may_ask = ::access(file.path().c_str(), W_OK) == 0;
    for (size_t at = 0; at < file.bytes().size(); at += kReadAheadPieceBytes) {
      const auto piece = file.bytes().subspan(at, std::min(kReadAheadPieceBytes, file.bytes().size() - at));
      if (!may_ask || !InMemory(piece, page_bytes)) Populate(piece, page_bytes);
      done += piece.size();
      if (!progress(static_cast<double>(done) / static_cast<double>(total))) {
        return {StatusCode::kCancelled, fmt::format("{}: loading was stopped", model.path)};
      }
    }
  }
  return Status::Ok();
}

}  // namespace

void ListTensors(const TensorSource& source, LoadedModel* model) {
  for (const FileTensor& tensor : source.tensors()) {
    model->tensors.push_back({tensor.name, tensor.type_name, tensor.shape, static_cast<int64_t>(tensor.data.size())});
  }
}

Result<std::unique_ptr<LoadedModel>> LoadModelFiles(const std::string& path, const LoadProgress& progress,
                                                    const std::function<Status(const LoadedModel&)>& check) {
  auto model = std::make_unique<LoadedModel>();
  model->path = path;
  std::error_code ignored;
  const bool folder = std::filesystem::is_directory(path, ignored);
  const size_t last = path.find_last_not_of('/');
  THERMOE_RETURN_IF_ERROR(folder ? LoadHuggingFace(path.substr(0, last + 1), model.get())
                                 : LoadGguf(path, model.get()));
  for (const MappedFile& file : model->files) model->file_bytes += static_cast<int64_t>(file.bytes().size());
  if (model->tokenizer->vocab_size() > model->config.vocab) {
    return Corrupt("{}: the tokenizer has {} tokens but the model only {}; get both from the same place", path,
                   model->tokenizer->vocab_size(), model->config.vocab);
  }
  if (check) THERMOE_RETURN_IF_ERROR(check(*model));
  THERMOE_RETURN_IF_ERROR(ReadAhead(*model, progress));
  return model;
}

}  // namespace thermoe
