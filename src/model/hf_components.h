// SPDX-License-Identifier: Apache-2.0
// The components that a Hugging Face tokenizer.json is built of, read into this library's own stages. Messages name
// the component; the caller adds the file.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "model/normalizer.h"
#include "model/pretokenizer.h"
#include "thermoe/status.h"

namespace thermoe {

// Typed access to the members of one JSON object; remembers the first thing that was wrong.
class JsonObject {
 public:
  // `path` is where the object stands: "pre_tokenizer.pretokenizers[0]", "" for the whole text.
  JsonObject(const nlohmann::json& node, std::string path);

  const Status& status() const { return status_; }
  const std::string& path() const { return path_; }
  std::string type() { return Text("type", ""); }

  // A member that is missing or null gives `fallback`; one of another JSON type is an error.
  bool Flag(const char* key, bool fallback);
  std::string Text(const char* key, const std::string& fallback);
  int64_t Integer(const char* key, int64_t fallback);  // negative numbers are errors, too
  // The member, or null.
  const nlohmann::json& At(const char* key) const;
  void Refuse(Status status) {
    if (status_.ok()) status_ = std::move(status);
  }

 private:
  std::string PathOf(const char* key) const;

  const nlohmann::json* node_;
  std::string path_;
  Status status_;
};

Status ReadHfNormalizer(const nlohmann::json& node, Normalizer* normalizer);

struct HfPreTokenizer {
  PreTokenizer stages;
  bool byte_level = false;  // words are written in the byte-level alphabet
  std::string name;         // GGUF's name for it, where it is a known one
};
Status ReadHfPreTokenizer(const nlohmann::json& node, HfPreTokenizer* pretokenizer);

struct HfDecoder {
  bool byte_level = false;
  bool byte_fallback = false;
  bool strips_leading_space = false;
  std::vector<std::pair<std::string, std::string>> replacements;  // applied to every token, in order
};
Status ReadHfDecoder(const nlohmann::json& node, HfDecoder* decoder);

// The written form of the token that the post-processor puts before a text; "" if none.
Status ReadHfPostProcessor(const nlohmann::json& node, std::string* first_token);

}  // namespace thermoe
