// SPDX-License-Identifier: Apache-2.0
#include "model/hf_components.h"

#include <cstdint>
#include <optional>
#include <utility>

#include "base/errors.h"
#include "model/unicode.h"
#include "model/vocabulary.h"

namespace thermoe {
namespace {

using nlohmann::json;

// Sequences may nest, in files that mean harm without end.
constexpr int kMaxDepth = 8;
constexpr size_t kMaxSteps = 64;
// Texts that components put in or replace; real ones are single characters.
constexpr size_t kMaxInsertBytes = 256;

const json kNull;

// Calls visit(component, path) for a component or, in order, for the members of a Sequence.
template <typename Visit>
Status ForEachComponent(const json& node, const std::string& path, const char* members, int depth, const Visit& visit) {
  if (node.is_null()) return Status::Ok();
  JsonObject component(node, path);
  if (component.type() != "Sequence") {
    THERMOE_RETURN_IF_ERROR(component.status());
    return visit(component);
  }
  const json& list = component.At(members);
  if (depth == 0) return Corrupt("{} nests Sequences more than {} deep", path, kMaxDepth);
  if (!list.is_array()) return Corrupt("{}.{} is not an array", path, members);
  if (list.size() > kMaxSteps) return Corrupt("{}.{} has {} components", path, members, list.size());
  for (size_t i = 0; i < list.size(); ++i) {
    THERMOE_RETURN_IF_ERROR(
        ForEachComponent(list[i], fmt::format("{}.{}[{}]", path, members, i), members, depth - 1, visit));
  }
  return Status::Ok();
}

Status UnknownComponent(JsonObject& component, const char* known) {
  return Unsupported("{} is of type {}, which is not supported; known are {}", component.path(),
                     Quote(component.type()), known);
}

// A text that a component inserts.
std::string InsertedText(JsonObject& component, const char* key) {
  std::string text = component.Text(key, "");
  if (text.size() > kMaxInsertBytes) {
    component.Refuse(
        Corrupt("{}.{} has {} bytes; at most {} are taken", component.path(), key, text.size(), kMaxInsertBytes));
  }
  return text;
}

// {"String": "..."} or {"Regex": "..."}: exactly one of the two is set when this succeeds.
struct JsonPattern {
  std::string literal;
  std::optional<Regex> regex;
};

Status ReadPattern(const JsonObject& component, JsonPattern* pattern) {
  const std::string path = component.path() + ".pattern";
  JsonObject node(component.At("pattern"), path);
  pattern->literal = node.Text("String", "");
  const std::string regex = node.Text("Regex", "");
  THERMOE_RETURN_IF_ERROR(node.status());
  if (pattern->literal.empty() == regex.empty()) {
    return Corrupt("{} must hold one of \"String\" and \"Regex\", not empty", path);
  }
  if (regex.empty()) return Status::Ok();
  Result<Regex> compiled = Regex::Compile(regex);
  if (!compiled.ok()) return {compiled.status().code(), fmt::format("{}: {}", path, compiled.status().message())};
  pattern->regex = std::move(*compiled);
  return Status::Ok();
}

std::string EscapeRegex(std::string_view literal) {
  std::string out;
  for (const char c : literal) {
    if (static_cast<uint8_t>(c) < 0x80) {
      out += fmt::format("\\x{:02x}", c);
    } else {
      out += c;
    }
  }
  return out;
}

}  // namespace

JsonObject::JsonObject(const json& node, std::string path) : node_(&node), path_(std::move(path)) {
  if (!node.is_object()) {
    Refuse(Corrupt("{} is {}, not an object", path_.empty() ? "the JSON text" : path_,
                   node.is_null() ? "missing" : node.type_name()));
    node_ = nullptr;
  }
}

const json& JsonObject::At(const char* key) const {
  if (node_ == nullptr) return kNull;
  const auto found = node_->find(key);
  return found == node_->end() ? kNull : *found;
}

std::string JsonObject::PathOf(const char* key) const { return path_.empty() ? key : path_ + "." + key; }

bool JsonObject::Flag(const char* key, bool fallback) {
  const json& value = At(key);
  if (value.is_null()) return fallback;
  if (value.is_boolean()) return value.get<bool>();
  Refuse(Corrupt("{} is of JSON type {}, not true or false", PathOf(key), value.type_name()));
  return fallback;
}

std::string JsonObject::Text(const char* key, const std::string& fallback) {
  const json& value = At(key);
  if (value.is_null()) return fallback;
  if (value.is_string()) return value.get<std::string>();
  Refuse(Corrupt("{} is of JSON type {}, not a string", PathOf(key), value.type_name()));
  return fallback;
}

int64_t JsonObject::Integer(const char* key, int64_t fallback) {
  const json& value = At(key);
  if (value.is_null()) return fallback;
  if (value.is_number_unsigned() && value.get<uint64_t>() <= uint64_t{INT64_MAX}) return value.get<int64_t>();
  Refuse(Corrupt("{} is not a whole number from 0", PathOf(key)));
  return fallback;
}

Status ReadHfNormalizer(const json& node, Normalizer* normalizer) {
  return ForEachComponent(node, "normalizer", "normalizers", kMaxDepth, [&](JsonObject& component) -> Status {
    const std::string type = component.type();
    constexpr std::pair<std::string_view, NormalForm> kForms[] = {
        {"NFC", NormalForm::kNfc}, {"NFD", NormalForm::kNfd}, {"NFKC", NormalForm::kNfkc}, {"NFKD", NormalForm::kNfkd}};
    for (const auto& [name, form] : kForms) {
      if (type == name) {
        normalizer->Add(form);
        return component.status();
      }
    }
    if (type == "Prepend") {
      normalizer->Add(PrependStep{InsertedText(component, "prepend")});
    } else if (type == "Replace") {
      JsonPattern pattern;
      THERMOE_RETURN_IF_ERROR(ReadPattern(component, &pattern));
      normalizer->Add(ReplaceStep{pattern.literal, pattern.regex, InsertedText(component, "content")});
    } else {
      return UnknownComponent(component, "NFC, NFD, NFKC, NFKD, Prepend, Replace and Sequence");
    }
    return component.status();
  });
}

namespace {

Status ReadBehavior(JsonObject& component, SplitBehavior* behavior) {
  const std::string name = component.Text("behavior", "Isolated");
  THERMOE_RETURN_IF_ERROR(component.status());
  constexpr std::pair<std::string_view, SplitBehavior> kBehaviors[] = {
      {"Isolated", SplitBehavior::kIsolated},
      {"Removed", SplitBehavior::kRemoved},
      {"MergedWithPrevious", SplitBehavior::kMergedWithPrevious},
      {"MergedWithNext", SplitBehavior::kMergedWithNext},
      {"Contiguous", SplitBehavior::kContiguous}};
  for (const auto& [known, value] : kBehaviors) {
    if (name != known) continue;
    *behavior = value;
    return Status::Ok();
  }
  return Unsupported("{}.behavior {} is not known", component.path(), Quote(name));
}

Status AddSplit(std::string_view pattern, SplitBehavior behavior, HfPreTokenizer* out) {
  Result<Regex> regex = Regex::Compile(pattern);
  if (!regex.ok()) return regex.status();
  out->stages.Add(SplitStage{std::move(*regex), behavior, false});
  return Status::Ok();
}

Status AddSplitComponent(JsonObject& component, HfPreTokenizer* out) {
  SplitStage stage;
  THERMOE_RETURN_IF_ERROR(ReadBehavior(component, &stage.behavior));
  stage.invert = component.Flag("invert", false);
  JsonPattern pattern;
  THERMOE_RETURN_IF_ERROR(ReadPattern(component, &pattern));
  if (pattern.regex) {
    out->name = out->stages.empty() ? NameOfPattern(pattern.regex->pattern()) : "";
    stage.regex = std::move(*pattern.regex);
  } else {
    Result<Regex> regex = Regex::Compile(EscapeRegex(pattern.literal));
    if (!regex.ok()) return regex.status();
    stage.regex = std::move(*regex);
  }
  out->stages.Add(std::move(stage));
  return Status::Ok();
}

Status AddByteLevel(JsonObject& component, HfPreTokenizer* out) {
  out->byte_level = true;
  if (component.Flag("add_prefix_space", true)) out->stages.Add(PrefixSpaceStage{});
  if (!component.Flag("use_regex", true)) return Status::Ok();
  if (out->stages.empty()) out->name = NameOfPattern(Gpt2Pattern());
  return AddSplit(Gpt2Pattern(), SplitBehavior::kIsolated, out);
}

Status AddMetaspace(JsonObject& component, HfPreTokenizer* out) {
  MetaspaceStage stage;
  stage.marker = InsertedText(component, "replacement");
  if (stage.marker.empty() || Utf8Length(stage.marker[0]) != stage.marker.size()) {
    return Corrupt("{}.replacement must be one character", component.path());
  }
  // Before prepend_scheme there was add_prefix_space.
  const std::string old_scheme = component.Flag("add_prefix_space", true) ? "always" : "never";
  const std::string scheme = component.Text("prepend_scheme", old_scheme);
  if (scheme == "always") {
    stage.scheme = PrependScheme::kAlways;
  } else if (scheme == "first") {
    stage.scheme = PrependScheme::kFirst;
  } else if (scheme == "never") {
    stage.scheme = PrependScheme::kNever;
  } else {
    return Unsupported("{}.prepend_scheme {} is not known", component.path(), Quote(scheme));
  }
  stage.split = component.Flag("split", true);
  out->stages.Add(std::move(stage));
  return Status::Ok();
}

}  // namespace

Status ReadHfPreTokenizer(const json& node, HfPreTokenizer* out) {
  return ForEachComponent(node, "pre_tokenizer", "pretokenizers", kMaxDepth, [&](JsonObject& component) -> Status {
    const std::string type = component.type();
    if (out->byte_level) {
      return Unsupported("{} ({}) comes after ByteLevel, which must be last", component.path(), type);
    }
    Status status;
    if (type == "Split") {
      status = AddSplitComponent(component, out);
    } else if (type == "ByteLevel") {
      status = AddByteLevel(component, out);
    } else if (type == "Metaspace") {
      status = AddMetaspace(component, out);
    } else if (type == "Digits") {
      const bool individual = component.Flag("individual_digits", false);
      status = AddSplit(individual ? R"(\p{N})" : R"(\p{N}+)", SplitBehavior::kIsolated, out);
    } else if (type == "Punctuation") {
      SplitBehavior behavior = SplitBehavior::kIsolated;
      status = ReadBehavior(component, &behavior);
      if (status.ok()) status = AddSplit(R"([\p{P}!-/:-@\[-`{-~])", behavior, out);
    } else {
      return UnknownComponent(component, "Split, ByteLevel, Metaspace, Digits, Punctuation and Sequence");
    }
    THERMOE_RETURN_IF_ERROR(component.status());
    return status;
  });
}

Status ReadHfDecoder(const json& node, HfDecoder* decoder) {
  constexpr const char* kKnown =
      "ByteLevel, Metaspace, Replace (of a String), ByteFallback, Fuse, Strip (of one leading space) and Sequence";
  return ForEachComponent(node, "decoder", "decoders", kMaxDepth, [&](JsonObject& component) -> Status {
    const std::string type = component.type();
    if (type == "ByteLevel") {
      decoder->byte_level = true;
    } else if (type == "ByteFallback") {
      decoder->byte_fallback = true;
    } else if (type == "Metaspace") {
      const bool prefix = component.Flag("add_prefix_space", true) && component.Text("prepend_scheme", "") != "never";
      const std::string marker = InsertedText(component, "replacement");
      if (marker.empty()) return Corrupt("{}.replacement is missing", component.path());
      decoder->replacements.emplace_back(marker, " ");
      decoder->strips_leading_space = prefix;
    } else if (type == "Replace") {
      JsonPattern pattern;
      THERMOE_RETURN_IF_ERROR(ReadPattern(component, &pattern));
      if (pattern.regex) return UnknownComponent(component, kKnown);
      decoder->replacements.emplace_back(pattern.literal, InsertedText(component, "content"));
    } else if (type == "Strip") {
      const int64_t start = component.Integer("start", 0);
      if (component.Text("content", " ") != " " || start > 1 || component.Integer("stop", 0) != 0) {
        return UnknownComponent(component, kKnown);
      }
      decoder->strips_leading_space = start == 1;
    } else if (type != "Fuse") {
      return UnknownComponent(component, kKnown);
    }
    return component.status();
  });
}

namespace {

Status ReadTemplate(JsonObject& component, std::string* first_token) {
  const json& single = component.At("single");
  if (!single.is_array()) return Corrupt("{}.single is not an array", component.path());
  bool after_text = false;
  for (size_t i = 0; i < single.size(); ++i) {
    JsonObject piece(single[i], fmt::format("{}.single[{}]", component.path(), i));
    THERMOE_RETURN_IF_ERROR(piece.status());
    if (!piece.At("Sequence").is_null()) {
      after_text = true;
      continue;
    }
    JsonObject token(piece.At("SpecialToken"), piece.path() + ".SpecialToken");
    const std::string text = token.Text("id", "");
    THERMOE_RETURN_IF_ERROR(token.status());
    if (after_text || !first_token->empty()) {
      return Unsupported(
          "{} puts more than one token before the text, or one after it; a generation cannot go on there",
          component.path());
    }
    *first_token = text;
  }
  return Status::Ok();
}

}  // namespace

Status ReadHfPostProcessor(const json& node, std::string* first_token) {
  return ForEachComponent(node, "post_processor", "processors", kMaxDepth, [&](JsonObject& component) -> Status {
    const std::string type = component.type();
    if (type == "TemplateProcessing") return ReadTemplate(component, first_token);
    if (type == "ByteLevel") return Status::Ok();  // trims offsets, which nobody asks for here
    return UnknownComponent(component, "TemplateProcessing, ByteLevel and Sequence");
  });
}

}  // namespace thermoe
