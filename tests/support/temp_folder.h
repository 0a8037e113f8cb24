// SPDX-License-Identifier: Apache-2.0
// A folder of a test's own.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <system_error>

namespace thermoe {

// Removed with all that is in it at the end.
class TempFolder {
 public:
  TempFolder() {
    EXPECT_NE(::mkdtemp(path_.data()), nullptr) << path_;
    std::filesystem::permissions(path_, std::filesystem::perms(0755));  // as a folder that a user makes
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  const std::string& path() const { return path_; }
  std::string operator/(std::string_view name) const { return path_ + "/" + std::string(name); }

  // Creates folders on the way.
  std::string Write(const std::string& file, const std::string& text) const {
    const std::filesystem::path path = std::filesystem::path(path_) / file;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << text;
    return path.string();
  }
  void Remove(const std::string& file) const { std::filesystem::remove_all(std::filesystem::path(path_) / file); }

 private:
  std::string path_ = (std::filesystem::temp_directory_path() / "thermoe-test-").string() + std::string(6, 'X');  // as mkdtemp wants it
};

}  // namespace thermoe
