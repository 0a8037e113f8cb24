// SPDX-License-Identifier: Apache-2.0
// Arrows point down: apps -> engine -> {forward, control} -> kernels -> runtime -> model -> base, and everything may
// use include/thermoe, which uses only itself and the standard library.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;

// Folder -> what it may include: whole folders ("model/") or single headers.
const std::map<std::string, std::vector<std::string>> kAllowed = {
    {"base", {"base/"}},
    {"model", {"base/", "model/"}},
    {"runtime", {"base/", "model/", "runtime/"}},
    {"kernels", {"base/", "model/config.h", "model/formats.h", "model/interleave.h", "model/quant_blocks.h", "model/weights.h", "runtime/kv_layout.h", "runtime/threads.h", "kernels/"}},
    {"forward", {"base/", "model/", "runtime/", "kernels/", "forward/"}},
    {"control", {"base/", "model/", "runtime/", "kernels/", "control/", "forward/steering.h"}},
    {"engine", {"base/", "model/", "runtime/", "kernels/", "forward/", "control/", "engine/"}},
};
const std::vector<std::string> kAppsAllowed = {"base/", "model/", "control/", "engine/"};

// The complaint about one quoted include, or "".
std::string Wrong(const std::string& folder, const std::vector<std::string>& allowed, const std::string& include) {
  if (include.rfind("thermoe/", 0) == 0) return "";
  for (const std::string& prefix : allowed) {
    if (prefix.back() == '/' ? include.rfind(prefix, 0) == 0 : include == prefix) return "";
  }
  return folder + " may not include " + include;
}

std::vector<std::string> QuotedIncludes(const fs::path& file) {
  static const std::regex kInclude(R"re(^\s*#\s*include\s*"([^"]+)")re");
  std::vector<std::string> found;
  std::ifstream stream(file);
  for (std::string line; std::getline(stream, line);) {
    std::smatch match;
    if (std::regex_search(line, match, kInclude)) found.push_back(match[1]);
  }
  return found;
}

bool IsSource(const fs::path& path) {
  static const std::set<std::string> kEndings = {".h", ".cc", ".cu", ".cuh", ".inc"};
  return kEndings.count(path.extension().string()) > 0;
}

const fs::path kRoot = THERMOE_SOURCE_DIR;

TEST(IncludeArrows, PointDown) {
  int files = 0;
  for (const auto& entry : fs::recursive_directory_iterator(kRoot / "src")) {
    if (!entry.is_regular_file() || !IsSource(entry.path())) continue;
    const std::string folder = fs::relative(entry.path(), kRoot / "src").begin()->string();
    ASSERT_TRUE(kAllowed.count(folder)) << entry.path() << ": give the new folder its place in this test";
    for (const std::string& include : QuotedIncludes(entry.path())) {
      EXPECT_EQ(Wrong(folder, kAllowed.at(folder), include), "") << entry.path();
    }
    ++files;
  }
  EXPECT_GT(files, 50);
}

TEST(IncludeArrows, AppsUseThePublicApiAndTheEngine) {
  for (const auto& entry : fs::recursive_directory_iterator(kRoot / "apps")) {
    if (!entry.is_regular_file() || !IsSource(entry.path())) continue;
    for (const std::string& include : QuotedIncludes(entry.path())) {
      if (fs::exists(entry.path().parent_path() / include)) continue;  // the app's own
      EXPECT_EQ(Wrong("apps", kAppsAllowed, include), "") << entry.path();
    }
  }
}

TEST(IncludeArrows, PublicHeadersUseOnlyThemselvesAndTheStandardLibrary) {
  static const std::regex kSystem(R"re(^\s*#\s*include\s*<([^>]+)>)re");
  for (const auto& entry : fs::directory_iterator(kRoot / "include" / "thermoe")) {
    for (const std::string& include : QuotedIncludes(entry.path())) EXPECT_EQ(include.rfind("thermoe/", 0), 0u) << entry.path();
    std::ifstream stream(entry.path());
    for (std::string line; std::getline(stream, line);) {
      std::smatch match;
      if (std::regex_search(line, match, kSystem)) {
        EXPECT_EQ(match[1].str().find_first_of("./"), std::string::npos) << entry.path() << ": " << match[1];
      }
    }
  }
}

// The first of `file` and what it includes, however far on, that wants a header of the CUDA toolkit; or "". Not what was seen before.
std::string NeedsCuda(const fs::path& file, std::set<fs::path>* seen) {
  static const std::regex kToolkit(R"re(^\s*#\s*include\s*<(cuda|cooperative_groups|mma\.h))re");
  if (!seen->insert(file).second) return "";
  std::ifstream stream(file);
  for (std::string line; std::getline(stream, line);) {
    if (std::regex_search(line, kToolkit)) return file.string();
  }
  for (const std::string& include : QuotedIncludes(file)) {
    for (const char* from : {"src", "tests", "include"}) {
      const fs::path next = kRoot / from / include;
      if (const std::string found = fs::exists(next) ? NeedsCuda(next, seen) : ""; !found.empty()) return found;
    }
  }
  return "";
}

// What builds where there is no toolkit: as src/CMakeLists.txt and tests/CMakeLists.txt choose it.
TEST(IncludeArrows, NothingElseNeedsTheCudaToolkit) {
  static const std::set<std::string> kPlain = {"choose_device.cc", "weight_layout.cc"};
  std::set<fs::path> seen;
  for (const char* folder : {"src", "tests", "apps"}) {
    for (const auto& entry : fs::recursive_directory_iterator(kRoot / folder)) {
      const fs::path& path = entry.path();
      if (path.extension() != ".cc" || path.filename() == "dispatch.cc") continue;  // that one asks the preprocessor first
      if (path.parent_path().filename() == "cuda" && !kPlain.contains(path.filename().string())) continue;
      if (path.filename().string().ends_with("_cuda_test.cc")) continue;
      EXPECT_EQ(NeedsCuda(path, &seen), "") << path;
    }
  }
  seen.clear();
  EXPECT_NE(NeedsCuda(kRoot / "src/kernels/cuda/launch.cc", &seen), "");
}

TEST(IncludeArrows, TheRuleSeesAWrongArrow) {
  EXPECT_NE(Wrong("forward", kAllowed.at("forward"), "control/loop.h"), "");
  EXPECT_NE(Wrong("control", kAllowed.at("control"), "forward/step.h"), "");
  EXPECT_EQ(Wrong("control", kAllowed.at("control"), "forward/steering.h"), "");
  EXPECT_NE(Wrong("base", kAllowed.at("base"), "model/formats.h"), "");
  EXPECT_NE(Wrong("kernels", kAllowed.at("kernels"), "model/loaded_model.h"), "");
  EXPECT_NE(Wrong("apps", kAppsAllowed, "kernels/ops.h"), "");
  EXPECT_EQ(Wrong("apps", kAppsAllowed, "thermoe/engine.h"), "");
}

}  // namespace
