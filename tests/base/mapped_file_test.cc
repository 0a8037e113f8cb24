// SPDX-License-Identifier: Apache-2.0
#include "base/mapped_file.h"

#include <gtest/gtest.h>

#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

namespace thermoe {
namespace {

namespace fs = std::filesystem;

constexpr size_t kBytes = 300'000;  // not whole pages

class MappedFileTest : public testing::Test {
 protected:
  void SetUp() override {
    std::ofstream file(path_, std::ios::binary);
    for (size_t i = 0; i < kBytes; ++i) file.put(static_cast<char>(i * 2654435761u >> 13));
  }
  void TearDown() override { fs::remove(path_); }
  static size_t OpenFiles() {
    const fs::directory_iterator files("/proc/self/fd");
    return static_cast<size_t>(std::distance(begin(files), end(files)));
  }

  const fs::path path_ = fs::temp_directory_path() / ("thermoe_mapped_file_" + std::to_string(::getpid()));
};

TEST_F(MappedFileTest, ReadsWhatIsMapped) {
  const size_t open_before = OpenFiles();
  {
    Result<MappedFile> opened = MappedFile::Open(path_);
    ASSERT_TRUE(opened.ok());
    const MappedFile file = std::move(opened).value();
    ASSERT_EQ(file.bytes().size(), kBytes);
    for (const auto& [offset, bytes] : {std::pair<size_t, size_t>{0, kBytes}, {1, 70'001}, {kBytes - 1, 1}, {kBytes, 0}}) {
      std::vector<std::byte> read(bytes);
      ASSERT_TRUE(file.Read(offset, read).ok());
      EXPECT_TRUE(bytes == 0 || std::memcmp(read.data(), file.bytes().data() + offset, bytes) == 0) << offset;
    }
  }
  EXPECT_EQ(OpenFiles(), open_before);
}

TEST_F(MappedFileTest, SaysThatTheFileBecameShorter) {
  const Result<MappedFile> file = MappedFile::Open(path_);
  ASSERT_TRUE(file.ok());
  fs::resize_file(path_, 1000);
  std::vector<std::byte> read(2000);
  const Status status = file->Read(0, read);
  EXPECT_EQ(status.code(), StatusCode::kCorrupt);
  EXPECT_NE(status.message().find("ends at byte 1000"), std::string::npos) << status.message();
  const Status beyond = file->Read(2000, std::span(read).first(16));  // which says where it ends, not where it was asked for
  EXPECT_NE(beyond.message().find("ends at byte 1000"), std::string::npos) << beyond.message();
}

}  // namespace
}  // namespace thermoe
