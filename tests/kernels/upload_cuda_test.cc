// SPDX-License-Identifier: Apache-2.0
// Weights uploaded and packed on the device, against Pack on the host: the same bytes.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "kernels/case_share.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/upload.h"
#include "kernels/cuda/weight_layout.h"
#include "kernels/op_cases.h"

namespace thermoe::cuda {
namespace {

using Bytes = std::vector<std::byte>;

int64_t AlignedBytes(int64_t bytes) { return (bytes + 255) / 256 * 256; }

class CudaUpload : public testing::Test {
 protected:
  void SetUp() override {
    if (Devices().empty()) GTEST_SKIP() << "no CUDA device";
  }

  // What lies on the device afterwards, in memory that was filled with `fill`.
  std::vector<Bytes> UploadAll(std::span<const WeightMatrix> matrices, bool packed, int fill, std::span<const MappedFile> files) {
    std::vector<UploadItem> items;
    std::vector<int64_t> sizes;
    int64_t total = 0, source = 0;
    for (const WeightMatrix& m : matrices) {
      sizes.push_back(packed ? PackedBytes(m.type, m.rows, m.cols) : m.bytes());
      total += AlignedBytes(sizes.back()), source += m.bytes();
    }
    Result<DeviceMemory> memory = DeviceMemory::Allocate(total, "a test");
    EXPECT_TRUE(memory.ok());
    EXPECT_EQ(cudaMemset(memory->data(), fill, static_cast<size_t>(total)), cudaSuccess);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    std::byte* at = memory->data();
    for (size_t i = 0; i < sizes.size(); at += AlignedBytes(sizes[i++])) items.push_back({&matrices[i], at, packed});
    const Result<kernels::LoadFacts> facts = Upload(items, files, &threads_);
    EXPECT_TRUE(facts.ok()) << facts.status().message();
    if (!facts.ok()) return {};
    EXPECT_EQ(facts->bytes, source);
    EXPECT_GE(facts->link_bytes_per_s, static_cast<double>(source) / facts->seconds);
    std::vector<Bytes> out;
    for (size_t i = 0; i < items.size(); ++i) {
      out.emplace_back(static_cast<size_t>(sizes[i]));
      EXPECT_EQ(cudaMemcpy(out[i].data(), items[i].to, out[i].size(), cudaMemcpyDeviceToHost), cudaSuccess);
    }
    return out;
  }

  // Bytes that two uploads leave different were not written: those between the parts, which align them.
  void ExpectPacked(std::span<const WeightMatrix> matrices, std::span<const MappedFile> files = {}) {
    const std::vector<Bytes> once = UploadAll(matrices, true, 0x00, files), again = UploadAll(matrices, true, 0xff, files);
    ASSERT_EQ(once.size(), matrices.size());
    ASSERT_EQ(again.size(), matrices.size());
    for (size_t i = 0; i < matrices.size(); ++i) {
      const WeightMatrix& m = matrices[i];
      Bytes want(once[i].size());
      Pack(m, want.data());
      size_t unwritten = 0, wrong = 0;
      for (size_t at = 0; at < want.size(); ++at) {
        if (once[i][at] != again[i][at]) ++unwritten;
        if (once[i][at] != want[at]) ++wrong;
      }
      EXPECT_LT(unwritten, 3u * 256) << TraitsOf(m.type).name << " " << m.rows << " x " << m.cols;
      EXPECT_EQ(wrong, 0u) << TraitsOf(m.type).name << " " << m.rows << " x " << m.cols;
    }
  }

  ThreadPool threads_{3};
  CaseShare share_;
};

TEST_F(CudaUpload, EveryTypeIsPackedAsTheHostDoes) {
  if (!share_.Takes()) return;
  Random random(1);
  std::vector<std::shared_ptr<kernels::Matrix>> owned;
  std::vector<WeightMatrix> matrices;
  for (const DType type : kernels::kAllTypes) {
    const int64_t odd = TraitsOf(type).block_elements > 1 ? 0 : 5;
    for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{1, 32}, {16, 96}, {130, 160}, {128, 256}, {421, 512}, {257, 800}}) {
      owned.push_back(kernels::RandomMatrix(random, type, rows, kernels::WholeBlocks(type, cols) + odd));
      matrices.push_back(owned.back()->view);
    }
  }
  ExpectPacked(matrices);
}

// Numbers at the edges of bfloat16 and binary16, and rows that are all zero.
TEST_F(CudaUpload, FloatsOfAnySizeAreScaledAsTheHostDoes) {
  constexpr int64_t kRows = 140, kCols = 70;
  for (const DType type : {DType::kBF16, DType::kF16}) {
    if (!share_.Takes()) continue;
    std::vector<uint16_t> bits(kRows * kCols);
    std::mt19937 random(7);
    for (int64_t r = 0; r < kRows; ++r) {
      // Sign and mantissa at random, exponents of a row near each other or anywhere; the largest exponent is infinity, with a mantissa of 0.
      const int mantissa = type == DType::kBF16 ? 7 : 10, exponents = type == DType::kBF16 ? 256 : 32;
      for (int64_t c = 0; c < kCols && r % 7 != 0; ++c) {
        const auto exponent = r % 2 == 0 ? static_cast<uint32_t>(r) % static_cast<uint32_t>(exponents) : random() % static_cast<uint32_t>(exponents);
        const bool infinite = exponent + 1 == static_cast<uint32_t>(exponents);
        const uint32_t fraction = infinite ? 0 : random() % (1u << mantissa);
        bits[static_cast<size_t>(r * kCols + c)] = static_cast<uint16_t>((random() % 2) << 15 | exponent << mantissa | fraction);
      }
    }
    const WeightMatrix matrix{type, kRows, kCols, reinterpret_cast<const std::byte*>(bits.data()), nullptr, Layout::kRows};
    ExpectPacked({&matrix, 1});
  }
}

// More than a buffer: by groups of rows, the last one short; and a group that is larger than a buffer.
TEST_F(CudaUpload, LargeMatricesGoInPieces) {
  if (!share_.Takes()) return;
  std::mt19937 random(3);
  const auto some = [&](int64_t bytes, uint32_t mask) {
    Bytes data(static_cast<size_t>(bytes));
    for (size_t i = 0; i + 4 <= data.size(); i += 4) {
      const auto word = static_cast<uint32_t>(random()) & mask;
      std::memcpy(&data[i], &word, 4);
    }
    return data;
  };
  const Bytes q8 = some(2100 * RowBytes(DType::kQ8_0, 8192), 0xffffffffu);
  const Bytes bf16 = some(5 * RowBytes(DType::kBF16, 1'100'003), 0xbfffbfffu);  // no infinities
  const WeightMatrix matrices[] = {{DType::kQ8_0, 2100, 8192, q8.data(), nullptr, Layout::kRows},
                                   {DType::kBF16, 5, 1'100'003, bf16.data(), nullptr, Layout::kRows},
                                   {DType::kQ8_0, 100, 4096, q8.data() + 34, nullptr, Layout::kRows}};
  ExpectPacked(matrices);
  const std::vector<Bytes> plain = UploadAll({matrices, 1}, /*packed=*/false, 0, {});
  ASSERT_EQ(plain.size(), 1u);
  EXPECT_TRUE(plain[0] == q8);
}

TEST_F(CudaUpload, WhatLiesInAFileIsReadFromIt) {
  if (!share_.Takes()) return;
  Random random(5);
  const auto first = kernels::RandomMatrix(random, DType::kQ4K, 300, 512), second = kernels::RandomMatrix(random, DType::kF32, 20, 33);
  const std::filesystem::path path = std::filesystem::temp_directory_path() / ("thermoe_upload_" + std::to_string(::getpid()));
  {
    std::ofstream file(path, std::ios::binary);
    file.write("GGUF\0", 5);
    for (const auto& m : {first, second}) file.write(reinterpret_cast<const char*>(m->view.data), static_cast<std::streamsize>(m->view.bytes()));
  }
  Result<MappedFile> mapped = MappedFile::Open(path);
  ASSERT_TRUE(mapped.ok());
  WeightMatrix matrices[] = {first->view, second->view};
  matrices[0].data = mapped->bytes().data() + 5;
  matrices[1].data = matrices[0].data + matrices[0].bytes();
  ExpectPacked(matrices, {&*mapped, 1});
  // Shorter than it was: an error, and no touch of what is mapped.
  std::filesystem::resize_file(path, 4096);
  const Result<DeviceMemory> memory = DeviceMemory::Allocate(PackedBytes(DType::kQ4K, 300, 512), "a test");
  const UploadItem item{&matrices[0], memory->data()};
  const Result<kernels::LoadFacts> facts = Upload({&item, 1}, {&*mapped, 1}, &threads_);
  ASSERT_FALSE(facts.ok());
  EXPECT_EQ(facts.status().code(), StatusCode::kCorrupt);
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace thermoe::cuda
