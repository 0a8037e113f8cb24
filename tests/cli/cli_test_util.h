// SPDX-License-Identifier: Apache-2.0
// Runs the thermoe program as a user would: its own process, its own standard streams.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "support/temp_folder.h"

namespace thermoe {

using Json = nlohmann::json;

struct ProcessResult {
  int exit_code = -1;  // 128 + signal when one ended it
  std::string out, err;
  int64_t peak_bytes = 0;  // of resident memory (VmHWM)
};

inline std::string ReadAll(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

inline void WriteAll(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  ASSERT_TRUE(file.good()) << path;
}

inline std::string Fixture(const std::string& name) { return std::string(THERMOE_FIXTURES) + "/" + name; }
inline std::string Bundled() { return std::string(THERMOE_MODELS_DIR) + "/ember-22m-q8_0.gguf"; }
inline std::string TinyModel() { return Fixture("qwen3moe/model-bf16.gguf"); }

// With a folder for one test.
class CliTest : public ::testing::Test {
 protected:
  std::string Path(const std::string& name) const { return folder_ / name; }

  // Runs thermoe with `arguments`, `input` on standard input and `environment` added to this process's.
  ProcessResult Thermoe(const std::vector<std::string>& arguments, const std::string& input = "",
                        const std::map<std::string, std::string>& environment = {}) {
    WriteAll(Path("in"), input);
    std::vector<std::string> words = {THERMOE_APP};
    words.insert(words.end(), arguments.begin(), arguments.end());
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    // What the tests' own environment says must not choose models, backends or colours.
    std::vector<std::string> variables;
    for (char** variable = environ; *variable != nullptr; ++variable) {
      const std::string text = *variable;
      if (!text.starts_with("THERMOE_") && !text.starts_with("NO_COLOR=")) variables.push_back(text);
    }
    for (const auto& [name, value] : environment) variables.push_back(name + "=" + value);
    std::vector<char*> envp;
    for (std::string& variable : variables) envp.push_back(variable.data());
    envp.push_back(nullptr);

    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, Path("in").c_str(), O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 1, Path("out").c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_addopen(&actions, 2, Path("err").c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    pid_t child = 0;
    ProcessResult result;
    EXPECT_EQ(posix_spawn(&child, THERMOE_APP, &actions, nullptr, argv.data(), envp.data()), 0);
    posix_spawn_file_actions_destroy(&actions);
    int status = 0;
    rusage usage{};
    EXPECT_EQ(wait4(child, &status, 0, &usage), child);
    result.peak_bytes = int64_t{usage.ru_maxrss} * 1024;
    result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    result.out = ReadAll(Path("out"));
    result.err = ReadAll(Path("err"));
    return result;
  }

  // Runs with --json, expects success and hands over the document.
  Json ThermoeJson(std::vector<std::string> arguments, const std::string& input = "") {
    arguments.push_back("--json");
    const ProcessResult result = Thermoe(arguments, input);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    Json json = Json::parse(result.out, nullptr, /*allow_exceptions=*/false);
    EXPECT_TRUE(json.is_object()) << result.out;
    EXPECT_EQ(json.value("schema_version", 0), 1);
    return json;
  }

  // Bad input: exit code 2, nothing on stdout, one line on stderr that holds every part of `parts`.
  void ExpectRefused(const std::vector<std::string>& arguments, const std::vector<std::string>& parts,
                     const std::string& input = "") {
    const ProcessResult result = Thermoe(arguments, input);
    EXPECT_EQ(result.exit_code, 2) << result.err;
    EXPECT_EQ(result.out, "");
    EXPECT_TRUE(result.err.starts_with("thermoe: ")) << result.err;
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
    for (const std::string& part : parts)
      EXPECT_NE(result.err.find(part), std::string::npos) << part << " in " << result.err;
  }

  static std::vector<std::string> Keys(const Json& json) {
    std::vector<std::string> keys;
    for (const auto& [key, value] : json.items()) keys.push_back(key);
    return keys;
  }

 private:
  const TempFolder folder_;
};

}  // namespace thermoe
