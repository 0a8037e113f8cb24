// SPDX-License-Identifier: Apache-2.0
// The safetensors reader against hostile bytes.
#include "base/random.h"
#include "loader_test_files.h"
#include "model/safetensors_reader.h"

namespace thermoe {
namespace {

Result<SafetensorsFile> Parse(std::string_view bytes) { return ParseSafetensors("m.safetensors", AsBytes(bytes)); }

RawTensors SmallTensors() {
  return {{"a", {"F32", {2, 3}, std::string(24, 'a')}},
          {"b", {"BF16", {4}, std::string(8, 'b')}},
          {"c", {"F8_E4M3", {5}, std::string(5, 'c')}},
          {"scalar", {"F16", {}, std::string(2, 's')}}};
}

std::string WithHeader(const std::string& json, size_t data_bytes) {
  std::string file(8, '\0');
  const uint64_t length = json.size();
  std::memcpy(file.data(), &length, 8);
  return file + json + std::string(data_bytes, '\1');
}

TEST(Safetensors, ReadsShapesTypesAndData) {
  const std::string bytes = PutTogether(SmallTensors());
  auto file = Parse(bytes);
  ASSERT_TRUE(file.ok()) << file.status().message();
  ASSERT_EQ(file->tensors.size(), 4u);
  EXPECT_EQ(file->tensors[0].name, "a");
  EXPECT_EQ(file->tensors[0].type, DType::kF32);
  EXPECT_EQ(file->tensors[0].shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(static_cast<char>(file->tensors[1].data[7]), 'b');
  EXPECT_FALSE(file->tensors[2].type.has_value());
  EXPECT_EQ(file->tensors[2].type_name, "f8_e4m3");
  EXPECT_EQ(file->tensors[3].data.size(), 2u);
}

TEST(Safetensors, EveryTruncationIsRefused) {
  const std::string bytes = PutTogether(SmallTensors());
  for (size_t length = 0; length < bytes.size(); ++length) {
    auto file = Parse(bytes.substr(0, length));
    ASSERT_FALSE(file.ok()) << length;
    ExpectSentence(file.status(), StatusCode::kCorrupt, "m.safetensors", {"download it again"});
  }
}

TEST(Safetensors, ContradictionsAreRefused) {
  const auto refuse = [](const std::string& json, const std::string& part) {
    ExpectSentence(Parse(WithHeader(json, 64)).status(), StatusCode::kCorrupt, "m.safetensors", {part});
  };
  refuse("[]", "not a JSON object");
  refuse("{", "not a JSON object");
  refuse(R"({"t":1})", "tensor t lacks");
  refuse(R"({"t":{"dtype":"F32","shape":[2]}})", "tensor t lacks");
  refuse(R"({"t":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", "tensor t lacks");
  refuse(R"({"t":{"dtype":"F32","shape":[2.5],"data_offsets":[0,8]}})", "tensor t lacks");
  refuse(R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,12]}})", "12 bytes of data");
  refuse(R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[16,8]}})", "ends before it begins");
  refuse(R"({"t":{"dtype":"F32","shape":[20],"data_offsets":[0,80]}})", "tensor t ends at byte");
  refuse(R"({"t":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}})", "tensor t of shape");
  refuse(R"({"t":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]}})", "tensor t of shape");
  refuse(R"({"t":{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,8]}})", "tensor t lacks");
  refuse(
      R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"u":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
      "overlap");
  std::string long_header = WithHeader("{}", 64);
  long_header[6] = 1;
  ExpectSentence(Parse(long_header).status(), StatusCode::kCorrupt, "m.safetensors", {"header of", "more than"});
}

TEST(Safetensors, FlippedBytesNeverCrash) {
  const std::string good = PutTogether(SmallTensors());
  Random random(20240818);
  int refused = 0;
  for (int round = 0; round < 10000; ++round) {
    std::string bytes = good;
    for (uint64_t i = 0, flips = 1 + random.Below(3); i < flips; ++i) {
      bytes[random.Below(bytes.size() - 39)] = static_cast<char>(random.Next());
    }
    auto file = Parse(bytes);
    refused += !file.ok();
    if (!file.ok()) continue;
    uint8_t sum = 0;
    for (const FileTensor& tensor : file->tensors) {
      for (std::byte b : tensor.data) sum = static_cast<uint8_t>(sum + static_cast<uint8_t>(b));
    }
    static_cast<void>(sum);
  }
  EXPECT_GT(refused, 1000);
}

}  // namespace
}  // namespace thermoe
