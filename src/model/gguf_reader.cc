// SPDX-License-Identifier: Apache-2.0
#include "model/gguf_reader.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "base/errors.h"
#include "model/file_errors.h"

namespace thermoe {
namespace {

static_assert(std::endian::native == std::endian::little, "the readers map little-endian files as they are");

// A position in the file that never passes its end. After a failed read ok() is false for good.
class Cursor {
 public:
  explicit Cursor(std::span<const std::byte> bytes) : bytes_(bytes) {}

  bool ok() const { return ok_; }
  uint64_t at() const { return at_; }

  std::span<const std::byte> Take(uint64_t count) {
    if (!ok_ || count > bytes_.size() - at_) {
      ok_ = false;
      return {};
    }
    const auto taken = bytes_.subspan(at_, count);
    at_ += count;
    return taken;
  }

  template <typename T>
  T Number() {
    T value{};
    if (const auto taken = Take(sizeof(T)); ok_) std::memcpy(&value, taken.data(), sizeof(T));
    return value;
  }

  std::string_view Text() {
    const auto taken = Take(Number<uint64_t>());
    return {reinterpret_cast<const char*>(taken.data()), taken.size()};
  }

  // The bytes from `begin` to here.
  std::span<const std::byte> Since(uint64_t begin) const { return bytes_.subspan(begin, at_ - begin); }

 private:
  std::span<const std::byte> bytes_;
  uint64_t at_ = 0;
  bool ok_ = true;
};

// A position and length of one tensor's data, not yet known to lie inside the file.
struct Extent {
  uint64_t offset = 0;  // from the start of the tensor data
  uint64_t bytes = 0;   // 0 when the type is unknown
};

bool IsKnown(GgufType type) { return type == GgufType::kText || type == GgufType::kArray || GgufScalarBytes(type) > 0; }

Status ReadValue(const std::string& path, std::string_view key, Cursor& cursor, GgufValue* value) {
  value->type = static_cast<GgufType>(cursor.Number<uint32_t>());
  if (!cursor.ok()) return Status::Ok();  // the caller reports the end of the file
  if (!IsKnown(value->type)) {
    return Corrupt("{}: metadata {} has the unknown type {}; download it again", path, key,
                   static_cast<uint32_t>(value->type));
  }
  if (value->type == GgufType::kText) {
    const std::string_view text = cursor.Text();
    value->bytes = std::as_bytes(std::span(text));
    return Status::Ok();
  }
  if (value->type != GgufType::kArray) {
    value->bytes = cursor.Take(GgufScalarBytes(value->type));
    return Status::Ok();
  }
  value->item_type = static_cast<GgufType>(cursor.Number<uint32_t>());
  value->count = cursor.Number<uint64_t>();
  if (!cursor.ok()) return Status::Ok();
  if (value->item_type == GgufType::kArray || !IsKnown(value->item_type)) {
    return Unsupported("{}: metadata {} is an array of items of type {}, which no model here needs; convert it again",
                       path, key, static_cast<uint32_t>(value->item_type));
  }
  const uint64_t begin = cursor.at();
  if (value->item_type == GgufType::kText) {
    // Each text takes at least its length field, so a hostile count ends at the end of the file.
    for (uint64_t i = 0; i < value->count && cursor.ok(); ++i) cursor.Text();
  } else {
    uint64_t bytes = 0;
    if (__builtin_mul_overflow(value->count, GgufScalarBytes(value->item_type), &bytes)) bytes = UINT64_MAX;
    cursor.Take(bytes);
  }
  if (cursor.ok()) value->bytes = cursor.Since(begin);
  return Status::Ok();
}

Status ReadTensorEntry(const std::string& path, Cursor& cursor, FileTensor* tensor, Extent* extent) {
  tensor->name = cursor.Text();
  const uint32_t dimensions = cursor.Number<uint32_t>();
  if (!cursor.ok()) return Status::Ok();
  if (dimensions == 0 || dimensions > kGgufMostDimensions) {
    return Corrupt("{}: tensor {} has {} dimensions, the format allows 1 to {}; download it again", path, tensor->name,
                   dimensions, kGgufMostDimensions);
  }
  for (uint32_t i = 0; i < dimensions; ++i) tensor->shape.push_back(static_cast<int64_t>(cursor.Number<uint64_t>()));
  std::reverse(tensor->shape.begin(), tensor->shape.end());  // the file has the innermost first
  const uint32_t ggml_type = cursor.Number<uint32_t>();
  extent->offset = cursor.Number<uint64_t>();
  if (!cursor.ok()) return Status::Ok();

  tensor->type_name = GgmlTypeName(ggml_type);
  tensor->type = DTypeOfGgml(ggml_type);
  const int64_t elements = CheckedElements(tensor->shape);
  if (elements < 0) {
    return Corrupt("{}: tensor {} has an impossible shape {}; download it again", path, tensor->name,
                   ShapeText(tensor->shape));
  }
  if (!tensor->type) return Status::Ok();
  const DTypeTraits& traits = TraitsOf(*tensor->type);
  const int64_t row = tensor->shape.back();
  if (row % traits.block_elements != 0) {
    return Corrupt("{}: tensor {} has rows of {} weights, but {} comes in blocks of {}; convert it again", path,
                   tensor->name, row, traits.name, traits.block_elements);
  }
  int64_t bytes = 0;
  if (__builtin_mul_overflow(elements / traits.block_elements, int64_t{traits.block_bytes}, &bytes)) bytes = INT64_MAX;
  extent->bytes = static_cast<uint64_t>(bytes);
  return Status::Ok();
}

// Data that two tensors share would be a defect of the writer, or an attempt to make readers copy it many times.
Status CheckNoOverlap(const std::string& path, const std::vector<FileTensor>& tensors) {
  std::vector<const FileTensor*> order;
  for (const FileTensor& tensor : tensors) {
    if (!tensor.data.empty()) order.push_back(&tensor);
  }
  std::sort(order.begin(), order.end(), [](auto* a, auto* b) { return a->data.data() < b->data.data(); });
  for (size_t i = 1; i < order.size(); ++i) {
    if (order[i - 1]->data.data() + order[i - 1]->data.size() > order[i]->data.data()) {
      return Corrupt("{}: tensors {} and {} overlap; download it again", path, order[i - 1]->name, order[i]->name);
    }
  }
  return Status::Ok();
}

Result<uint64_t> Alignment(const GgufFile& file) {
  const GgufValue* value = file.Find("general.alignment");
  if (value == nullptr) return kGgufAlignment;
  uint32_t alignment = 0;
  if (value->type == GgufType::kU32) std::memcpy(&alignment, value->bytes.data(), sizeof(alignment));
  if (!std::has_single_bit(alignment)) {
    return Corrupt("{}: general.alignment is {}, not a power of two; download it again", file.path(), alignment);
  }
  return alignment;
}

Result<uint32_t> ReadVersion(const std::string& path, Cursor& cursor) {
  const uint32_t magic = cursor.Number<uint32_t>();
  const uint32_t version = cursor.Number<uint32_t>();
  if (cursor.at() >= sizeof(magic) && magic != kGgufMagic) {
    return Unsupported("{}: is not a GGUF file; give a .gguf file or a Hugging Face model folder", path);
  }
  if (!cursor.ok()) return version;  // the caller reports the end of the file
  if ((version & 0xffffu) == 0) {
    return Unsupported("{}: is a big-endian GGUF file; get the little-endian one, or convert it again", path);
  }
  if (version < 2 || version > 3) {
    return Unsupported("{}: is GGUF version {}, versions 2 and 3 can be read; convert it again", path, version);
  }
  return version;
}

}  // namespace

Result<GgufFile> GgufFile::Parse(const std::string& path, std::span<const std::byte> bytes) {
  GgufFile file;
  file.path_ = path;
  Cursor cursor(bytes);
  auto version = ReadVersion(path, cursor);
  if (!version.ok()) return version.status();
  file.version_ = *version;
  const uint64_t tensor_count = cursor.Number<uint64_t>();
  const uint64_t value_count = cursor.Number<uint64_t>();

  // Both loops end with the file: each turn reads something, whatever the counts say.
  for (uint64_t i = 0; i < value_count && cursor.ok(); ++i) {
    const std::string_view key = cursor.Text();
    GgufValue value;
    THERMOE_RETURN_IF_ERROR(ReadValue(path, key, cursor, &value));
    if (cursor.ok() && !file.metadata_.emplace(key, value).second) {
      return Corrupt("{}: metadata {} is there twice; download it again", path, key);
    }
  }
  std::vector<Extent> extents;
  for (uint64_t i = 0; i < tensor_count && cursor.ok(); ++i) {
    THERMOE_RETURN_IF_ERROR(ReadTensorEntry(path, cursor, &file.tensors_.emplace_back(), &extents.emplace_back()));
  }
  if (!cursor.ok()) return HeaderTooShort(path, cursor.at(), bytes.size());
  file.header_ = cursor.Since(0);

  auto alignment = Alignment(file);
  if (!alignment.ok()) return alignment.status();
  const uint64_t data_begin = (cursor.at() + *alignment - 1) / *alignment * *alignment;
  for (size_t i = 0; i < extents.size(); ++i) {
    FileTensor& tensor = file.tensors_[i];
    const Extent& extent = extents[i];
    if (extent.offset % *alignment != 0) {
      return Corrupt("{}: tensor {} lies at offset {}, not a multiple of {}; download it again", path, tensor.name,
                     Grouped(extent.offset), *alignment);
    }
    uint64_t begin = 0, end = 0;
    if (__builtin_add_overflow(data_begin, extent.offset, &begin) ||
        __builtin_add_overflow(begin, extent.bytes, &end)) {
      end = UINT64_MAX;
    }
    if (end > bytes.size()) return TensorPastEnd(path, tensor.name, end, bytes.size());
    tensor.data = bytes.subspan(begin, extent.bytes);
  }
  THERMOE_RETURN_IF_ERROR(CheckNoOverlap(path, file.tensors_));
  return file;
}

const GgufValue* GgufFile::Find(std::string_view key) const {
  const auto found = metadata_.find(key);
  return found == metadata_.end() ? nullptr : &found->second;
}

}  // namespace thermoe
