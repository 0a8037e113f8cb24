// SPDX-License-Identifier: Apache-2.0
// GGUF reader and writer: a round trip, and hostile bytes.
#include <sys/resource.h>

#include <csignal>
#include <cstring>

#include "base/random.h"
#include "loader_test_files.h"
#include "model/fields.h"
#include "model/gguf_reader.h"
#include "model/gguf_writer.h"

namespace thermoe {
namespace {

Result<GgufFile> Parse(std::string_view bytes) { return GgufFile::Parse("m.gguf", AsBytes(bytes)); }

template <typename T>
void Put(std::string& bytes, size_t at, T value) {
  std::memcpy(bytes.data() + at, &value, sizeof(value));
}

// Where the entry of tensor `name` goes on after its name: dimension count, dimensions, type, offset.
size_t AfterName(const std::string& file, const std::string& name) {
  uint64_t length = name.size();
  std::string marked(8, '\0');
  std::memcpy(marked.data(), &length, 8);
  const size_t at = file.find(marked + name);
  EXPECT_NE(at, std::string::npos);
  return at + marked.size() + name.size();
}

GgufWriter SmallWriter() {
  GgufWriter writer;
  writer.SetText("general.architecture", "small");
  writer.SetInt("small.count", 7);
  writer.SetFloat("small.base", 2.5f);
  writer.SetBool("small.flag", true);
  writer.SetTexts("small.names", {"a", "", "ccc"});
  writer.SetInts("small.numbers", {1, -2, 3});
  const auto counting = [](int64_t first, int64_t rows, std::byte* out) {
    for (int64_t i = 0; i < rows * 3; ++i) {
      const auto value = static_cast<float>(first * 3 + i);
      std::memcpy(out + 4 * i, &value, 4);
    }
  };
  EXPECT_TRUE(writer.AddTensor("first", DType::kF32, {2, 5, 3}, counting).ok());
  EXPECT_TRUE(writer.AddTensor("second", DType::kF32, {3}, counting).ok());
  return writer;
}

std::string SmallFile() {
  const TempFolder folder;
  EXPECT_TRUE(SmallWriter().Write(folder / "small.gguf").ok());
  return ReadBytes(folder / "small.gguf");
}

TEST(Gguf, RoundTrip) {
  const std::string bytes = SmallFile();
  auto file = Parse(bytes);
  ASSERT_TRUE(file.ok()) << file.status().message();
  EXPECT_EQ(file->version(), 3u);
  GgufFields fields(*file, "small");
  EXPECT_EQ(fields.Int("count"), 7);
  EXPECT_EQ(fields.FloatOr("base", 0), 2.5f);
  EXPECT_TRUE(fields.BoolOr("flag", false));
  EXPECT_EQ(fields.Texts("names"), (std::vector<std::string>{"a", "", "ccc"}));
  EXPECT_EQ(fields.Ints("numbers"), (std::vector<int32_t>{1, -2, 3}));
  EXPECT_EQ(fields.IntOr("absent", 11), 11);
  EXPECT_TRUE(fields.status().ok());
  ASSERT_EQ(file->tensors().size(), 2u);
  const FileTensor& first = file->tensors()[0];
  EXPECT_EQ(first.shape, (std::vector<int64_t>{2, 5, 3}));
  EXPECT_EQ(first.type, DType::kF32);
  ASSERT_EQ(first.data.size(), 120u);
  float last = 0;
  std::memcpy(&last, first.data.data() + 116, 4);
  EXPECT_EQ(last, 29.0f);
  EXPECT_EQ(file->tensors()[1].data.data() - first.data.data(), 128);  // padded to 32
}

TEST(Gguf, FieldsOfTheWrongTypeAreRefusedByName) {
  const std::string bytes = SmallFile();
  auto file = Parse(bytes);
  ASSERT_TRUE(file.ok());
  GgufFields fields(*file, "small");
  fields.Int("names");
  fields.Int("absent");
  ExpectSentence(fields.status(), StatusCode::kCorrupt, "m.gguf", {"small.names", "integer"});
  GgufFields others(*file, "small");
  others.Int("absent");
  ExpectSentence(others.status(), StatusCode::kCorrupt, "m.gguf", {"lacks", "small.absent"});
}

TEST(Gguf, EveryTruncationIsRefused) {
  const std::string bytes = SmallFile();
  // The last tensor's padding may be missing.
  const size_t needed = bytes.size() - (32 - 12);
  for (size_t length = 0; length < needed; ++length) {
    const std::string part = bytes.substr(0, length);
    auto file = Parse(part);
    ASSERT_FALSE(file.ok()) << length;
    ExpectSentence(file.status(), StatusCode::kCorrupt, "m.gguf", {"download it again"});
  }
  EXPECT_TRUE(Parse(bytes.substr(0, needed)).ok());
}

TEST(Gguf, TruncatedDataNamesTensorAndBytes) {
  const std::string bytes = SmallFile();
  auto file = Parse(bytes.substr(0, bytes.size() - 40));
  ASSERT_FALSE(file.ok());
  EXPECT_THAT(file.status().message(), testing::HasSubstr("tensor second ends at byte"));
}

TEST(Gguf, VersionsAndByteOrder) {
  std::string bytes = SmallFile();
  Put<uint32_t>(bytes, 4, 2);
  EXPECT_TRUE(Parse(bytes).ok());
  Put<uint32_t>(bytes, 4, 1);
  ExpectSentence(Parse(bytes).status(), StatusCode::kUnsupported, "m.gguf", {"version 1"});
  Put<uint32_t>(bytes, 4, 0x03000000);
  ExpectSentence(Parse(bytes).status(), StatusCode::kUnsupported, "m.gguf", {"big-endian"});
  bytes[0] = 'X';
  ExpectSentence(Parse(bytes).status(), StatusCode::kUnsupported, "m.gguf", {"not a GGUF file"});
}

TEST(Gguf, HostileNumbersAreRefused) {
  const std::string good = SmallFile();
  const size_t entry = AfterName(good, "first");
  const auto with = [&](size_t at, auto value) {
    std::string bytes = good;
    Put(bytes, at, value);
    return Parse(bytes).status();
  };
  constexpr uint64_t kHuge[] = {UINT64_MAX, UINT64_MAX / 2, uint64_t{1} << 62, uint64_t{1} << 40};
  for (uint64_t huge : kHuge) {
    EXPECT_FALSE(with(8, huge).ok());                   // tensor count
    EXPECT_FALSE(with(16, huge).ok());                  // metadata count
    EXPECT_FALSE(with(24, huge).ok());                  // length of the first key
    EXPECT_FALSE(with(entry + 4, huge).ok());           // a dimension
    EXPECT_FALSE(with(entry + 4 + 24 + 4, huge).ok());  // an offset
  }
  ExpectSentence(with(entry, uint32_t{0}), StatusCode::kCorrupt, "m.gguf", {"first", "0 dimensions"});
  ExpectSentence(with(entry, uint32_t{5}), StatusCode::kCorrupt, "m.gguf", {"first", "5 dimensions"});
  ExpectSentence(with(entry + 4 + 24 + 4, uint64_t{1}), StatusCode::kCorrupt, "m.gguf", {"first", "multiple of 32"});
  ExpectSentence(with(entry + 4 + 24, uint32_t{8}), StatusCode::kCorrupt, "m.gguf", {"first", "q8_0", "blocks of 32"});
  const size_t second = AfterName(good, "second");
  ExpectSentence(with(second + 4 + 8 + 4, uint64_t{0}), StatusCode::kCorrupt, "m.gguf", {"overlap"});
}

TEST(Gguf, TypesItCannotReadAreNamed) {
  std::string bytes = SmallFile();
  const size_t entry = AfterName(bytes, "first");
  for (const auto& [id, name] : {std::pair{10u, "q2_k"}, {16u, "iq2_xxs"}, {40u, "nvfp4"}, {77u, "type 77"}}) {
    Put<uint32_t>(bytes, entry + 4 + 24, id);
    auto file = Parse(bytes);
    ASSERT_TRUE(file.ok()) << file.status().message();
    EXPECT_EQ(file->tensors()[0].type_name, name);
    EXPECT_FALSE(file->tensors()[0].type.has_value());
  }
}

TEST(Gguf, FlippedBytesNeverCrash) {
  const std::string good = SmallFile();
  Random random(20240817);
  int refused = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string bytes = good;
    for (uint64_t i = 0, flips = 1 + random.Below(4); i < flips; ++i) {
      bytes[random.Below(bytes.size() - 150)] = static_cast<char>(random.Next());
    }
    auto file = Parse(bytes);
    refused += !file.ok();
    if (!file.ok()) continue;
    GgufFields fields(*file, "small");
    fields.Texts("names");
    fields.Ints("numbers");
    fields.FloatOr("base", 0);
    uint8_t sum = 0;
    for (const FileTensor& tensor : file->tensors()) {
      for (std::byte b : tensor.data) sum = static_cast<uint8_t>(sum + static_cast<uint8_t>(b));
    }
    static_cast<void>(sum);
  }
  EXPECT_GT(refused, 1000);
}

TEST(GgufWriter, RefusesRowsThatDoNotFillBlocks) {
  GgufWriter writer;
  const auto none = [](int64_t, int64_t, std::byte*) {};
  ExpectSentence(writer.AddTensor("odd", DType::kQ8_0, {4, 48}, none), StatusCode::kInvalidArgument, "tensor odd",
                 {"48", "q8_0", "blocks of 32"});
  EXPECT_FALSE(writer.AddTensor("none", DType::kF32, {}, none).ok());
  EXPECT_FALSE(writer.AddTensor("empty", DType::kF32, {0, 4}, none).ok());
}

TEST(GgufWriter, FailuresLeaveNothing) {
  const TempFolder folder;
  ExpectSentence(SmallWriter().Write(folder / "absent/small.gguf"), StatusCode::kNotFound, folder / "absent/small.gguf",
                 {"folder does not exist"});
  EXPECT_EQ(SmallWriter().Write(folder / "small.gguf", [](double) { return false; }).code(), StatusCode::kCancelled);
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(GgufWriter, AFullDiskIsResourceExhausted) {
  // The limit on file sizes fails the way a full disk does.
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  rlimit small = before;
  small.rlim_cur = 100;
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const TempFolder folder;
  const Status status = SmallWriter().Write(folder / "small.gguf");
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, handler);
  ExpectSentence(status, StatusCode::kResourceExhausted, folder / "small.gguf", {"no room"});
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

}  // namespace
}  // namespace thermoe
