// SPDX-License-Identifier: Apache-2.0
// Tokenizers from Hugging Face's tokenizer.json (https://github.com/huggingface/tokenizers).
#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>

#include "base/errors.h"
#include "model/bpe.h"
#include "model/byte_level.h"
#include "model/hf_components.h"
#include "model/text_tokenizer.h"
#include "model/tokenizer_factory.h"

namespace thermoe {
namespace {

using nlohmann::json;

constexpr std::string_view kRemedy = "the file is damaged; download it again";

// `status` of what stands in `file`, with the remedy for files that contradict themselves.
Status InFile(const std::string& file, const Status& status) {
  if (status.code() != StatusCode::kCorrupt) return {status.code(), fmt::format("{}: {}", file, status.message())};
  return Corrupt("{}: {}; {}", file, status.message(), kRemedy);
}

// Counts the members of model.vocab while the text is parsed: in the parsed object a repeated key leaves no trace.
class VocabularyKeyCounter {
 public:
  bool operator()(int depth, json::parse_event_t event, const json& value) {
    if (event != json::parse_event_t::key) return true;
    if (depth == 1) in_model_ = value == "model";
    if (depth == 2) in_vocabulary_ = in_model_ && value == "vocab";
    if (depth == 3 && in_model_ && in_vocabulary_) ++*count_;
    return true;
  }
  explicit VocabularyKeyCounter(size_t* count) : count_(count) {}

 private:
  size_t* count_;
  bool in_model_ = false, in_vocabulary_ = false;
};

Result<json> ParseJson(std::string_view text, size_t* vocabulary_keys) {
  try {
    if (vocabulary_keys == nullptr) return json::parse(text);
    return json::parse(text, VocabularyKeyCounter(vocabulary_keys));
  } catch (const json::parse_error& error) {
    return Corrupt("not valid JSON at byte {}", error.byte);
  } catch (const json::exception& error) {
    return Corrupt("not valid JSON: {}", error.what());
  }
}

Result<int64_t> ReadId(const json& value, const std::string& path) {
  if (value.is_number_unsigned() && value.get<uint64_t>() < uint64_t{Vocabulary::kMaxTokens})
    return value.get<int64_t>();
  return Corrupt("{} is {}, not a token id from 0 to {}", path, value.is_number() ? value.dump() : value.type_name(),
                 Vocabulary::kMaxTokens - 1);
}

struct AddedTokenEntry {
  int64_t id = 0;
  AddedToken token;  // token.id is not set
  bool normalised = false;
};

Status ReadAddedTokens(const json& list, std::vector<AddedTokenEntry>* entries) {
  if (list.is_null()) return Status::Ok();
  if (!list.is_array()) return Corrupt("added_tokens is not an array");
  for (size_t i = 0; i < list.size(); ++i) {
    JsonObject node(list[i], fmt::format("added_tokens[{}]", i));
    AddedTokenEntry entry;
    entry.token.text = node.Text("content", "");
    entry.token.special = node.Flag("special", false);
    entry.token.single_word = node.Flag("single_word", false);
    entry.token.lstrip = node.Flag("lstrip", false);
    entry.token.rstrip = node.Flag("rstrip", false);
    entry.normalised = node.Flag("normalized", !entry.token.special);
    entry.token.special = entry.token.special || IsTurnMarker(entry.token.text);
    THERMOE_RETURN_IF_ERROR(node.status());
    Result<int64_t> id = ReadId(node.At("id"), node.path() + ".id");
    if (!id.ok()) return id.status();
    entry.id = *id;
    if (entry.token.text.empty()) return Corrupt("{}.content is missing or empty", node.path());
    entries->push_back(std::move(entry));
  }
  return Status::Ok();
}

// Room for the ids that model.vocab and added_tokens use.
Status SizeVocabulary(const json& vocab, const std::vector<AddedTokenEntry>& added, Vocabulary* vocabulary) {
  if (!vocab.is_object()) return Corrupt("model.vocab is not an object");
  int64_t highest = -1;
  for (const auto& [text, value] : vocab.items()) {
    Result<int64_t> id = ReadId(value, "model.vocab[" + Quote(text) + "]");
    if (!id.ok()) return id.status();
    highest = std::max(highest, *id);
  }
  for (const AddedTokenEntry& entry : added) highest = std::max(highest, entry.id);
  if (highest < 0) return Corrupt("model.vocab is empty");
  // Vocabularies have small holes; one that is mostly holes would only cost memory.
  const auto tokens = static_cast<int64_t>(vocab.size() + added.size());
  if (highest >= 2 * tokens + 4096) {
    return Corrupt("token id {} is far beyond the {} tokens there are", highest, tokens);
  }
  vocabulary->Resize(highest + 1);
  return Status::Ok();
}

Status FillVocabulary(const json& vocab, size_t keys, std::vector<AddedTokenEntry>* added, Vocabulary* vocabulary) {
  THERMOE_RETURN_IF_ERROR(SizeVocabulary(vocab, *added, vocabulary));
  if (keys != vocab.size()) {
    return Corrupt("model.vocab has {} entries but only {} different tokens", keys, vocab.size());
  }
  for (const auto& [text, value] : vocab.items()) {
    THERMOE_RETURN_IF_ERROR(vocabulary->Set(value.get<int64_t>(), text, TokenKind::kNormal));
  }
  for (AddedTokenEntry& entry : *added) {
    const TokenKind kind = entry.token.special ? TokenKind::kControl : TokenKind::kUserDefined;
    TokenId id = vocabulary->Find(entry.token.text);
    if (id == kNoToken) {
      THERMOE_RETURN_IF_ERROR(vocabulary->Set(entry.id, entry.token.text, kind));
      id = static_cast<TokenId>(entry.id);
    } else if (id != entry.id) {
      return Corrupt("added token {} has id {} in added_tokens and {} before", Quote(entry.token.text), entry.id, id);
    } else if (vocabulary->Kind(id) != TokenKind::kNormal) {
      return Corrupt("added token {} stands there twice", Quote(entry.token.text));
    }
    vocabulary->SetKind(id, kind);
    entry.token.id = id;
  }
  return Status::Ok();
}

Status ReadMerges(const json& list, std::vector<Merge>* merges) {
  if (!list.is_array()) return Corrupt("model.merges is not an array");
  merges->resize(list.size());
  for (size_t i = 0; i < list.size(); ++i) {
    const json& entry = list[i];
    Merge& merge = (*merges)[i];
    if (entry.is_string() && ParseMerge(entry.get_ref<const std::string&>(), &merge)) continue;
    if (!entry.is_array() || entry.size() != 2 || !entry[0].is_string() || !entry[1].is_string()) {
      return Corrupt("model.merges[{}] is neither \"a b\" nor [\"a\", \"b\"]", i);
    }
    merge.left = entry[0].get<std::string>();
    merge.right = entry[1].get<std::string>();
  }
  return Status::Ok();
}

Status CheckModelOptions(JsonObject& model) {
  const std::string type = model.Text("type", "BPE");
  THERMOE_RETURN_IF_ERROR(model.status());
  if (type != "BPE") return Unsupported("model is of type {}, which is not supported; known is BPE", Quote(type));
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!model.Text(key, "").empty()) return Unsupported("model.{} is set, which is not supported", key);
  }
  const json& dropout = model.At("dropout");
  if (!dropout.is_null() && dropout != 0.0) {
    return Unsupported("model.dropout is set: encoding would be random; set it to null");
  }
  return model.status();
}

// Reads model into parts: vocabulary and encoder.
Status ReadModel(const json& node, size_t keys, bool byte_level, std::vector<AddedTokenEntry>* added,
                 std::unique_ptr<Vocabulary>* vocabulary, std::shared_ptr<const WordEncoder>* encoder) {
  JsonObject model(node, "model");
  THERMOE_RETURN_IF_ERROR(CheckModelOptions(model));
  *vocabulary = std::make_unique<Vocabulary>();
  THERMOE_RETURN_IF_ERROR(FillVocabulary(model.At("vocab"), keys, added, vocabulary->get()));
  std::vector<Merge> merges;
  THERMOE_RETURN_IF_ERROR(ReadMerges(model.At("merges"), &merges));

  BpeOptions options;
  options.last_duplicate_wins = true;
  options.ignore_merges = model.Flag("ignore_merges", false);
  options.byte_fallback = model.Flag("byte_fallback", false);
  options.fuse_unknown = model.Flag("fuse_unk", false);
  const std::string unknown = model.Text("unk_token", "");
  THERMOE_RETURN_IF_ERROR(model.status());
  if (!unknown.empty()) {
    options.unknown = (*vocabulary)->Find(unknown);
    if (options.unknown == kNoToken) return Corrupt("model.unk_token {} is not in the vocabulary", Quote(unknown));
  }
  auto made =
      byte_level ? MakeByteLevelBpe(**vocabulary, merges, options) : MakeCharacterBpe(**vocabulary, merges, options);
  if (!made.ok()) return made.status();
  *encoder = std::move(*made);
  return Status::Ok();
}

void SetTokenBytes(const HfDecoder& decoder, bool byte_level, Vocabulary* vocabulary) {
  for (TokenId id = 0; id < vocabulary->size(); ++id) {
    const std::string& written = vocabulary->Written(id);
    const TokenKind kind = vocabulary->Kind(id);
    if (kind == TokenKind::kHole || kind == TokenKind::kControl) continue;
    if (byte_level) {
      std::optional<std::string> bytes;
      if (kind != TokenKind::kUserDefined) bytes = FromByteLevel(written);
      if (bytes) vocabulary->SetBytes(id, std::move(*bytes));
      continue;
    }
    if (const int byte = ByteTokenValue(written); decoder.byte_fallback && byte >= 0) {
      vocabulary->SetBytes(id, std::string(1, static_cast<char>(byte)));
      continue;
    }
    std::string bytes = written;
    for (const auto& [from, to] : decoder.replacements) {
      bytes = ReplaceAll(bytes, from, to);
      if (bytes.size() > 16 * written.size() + 4096) break;  // replacements that feed one another
    }
    vocabulary->SetBytes(id, std::move(bytes));
  }
}

// A token named in tokenizer_config.json: "<s>" or {"content": "<s>", ...}; kNoToken if it is not in the vocabulary.
Result<TokenId> NamedToken(const JsonObject& config, const char* key, const Vocabulary& vocabulary) {
  const json& value = config.At(key);
  if (value.is_null()) return kNoToken;
  if (value.is_string()) return vocabulary.Find(value.get_ref<const std::string&>());
  JsonObject node(value, key);
  const std::string text = node.Text("content", "");
  THERMOE_RETURN_IF_ERROR(node.status());
  return vocabulary.Find(text);
}

// bos_token_id or eos_token_id of generation_config.json: a number, a list of numbers or null.
Status ReadIdList(const JsonObject& config, const char* key, const Vocabulary& vocabulary, std::vector<TokenId>* ids) {
  const json& value = config.At(key);
  if (value.is_null()) return Status::Ok();
  const json list = value.is_array() ? value : json::array({value});
  for (const json& entry : list) {
    Result<int64_t> id = ReadId(entry, key);
    if (!id.ok()) return id.status();
    if (!vocabulary.Contains(*id)) {
      return Corrupt("{} is {}, outside the vocabulary of {}", key, *id, vocabulary.size());
    }
    ids->push_back(static_cast<TokenId>(*id));
  }
  return Status::Ok();
}

struct SpecialIds {
  TokenId bos = kNoToken;
  int add_bos = -1;  // -1: not stated
  std::vector<TokenId> ends;
};

Status ReadTokenizerConfig(std::string_view text, const Vocabulary& vocabulary, SpecialIds* ids) {
  Result<json> root = ParseJson(text, nullptr);
  if (!root.ok()) return root.status();
  JsonObject config(*root, "");
  if (!config.At("add_bos_token").is_null()) ids->add_bos = config.Flag("add_bos_token", false) ? 1 : 0;
  THERMOE_RETURN_IF_ERROR(config.status());
  Result<TokenId> bos = NamedToken(config, "bos_token", vocabulary);
  if (!bos.ok()) return bos.status();
  Result<TokenId> eos = NamedToken(config, "eos_token", vocabulary);
  if (!eos.ok()) return eos.status();
  ids->bos = *bos;
  if (*eos != kNoToken) ids->ends.push_back(*eos);
  return Status::Ok();
}

Status ReadGenerationConfig(std::string_view text, const Vocabulary& vocabulary, SpecialIds* ids) {
  Result<json> root = ParseJson(text, nullptr);
  if (!root.ok()) return root.status();
  JsonObject config(*root, "");
  THERMOE_RETURN_IF_ERROR(config.status());
  std::vector<TokenId> bos;
  THERMOE_RETURN_IF_ERROR(ReadIdList(config, "bos_token_id", vocabulary, &bos));
  THERMOE_RETURN_IF_ERROR(ReadIdList(config, "eos_token_id", vocabulary, &ids->ends));
  if (ids->bos == kNoToken && !bos.empty()) ids->bos = bos[0];
  return Status::Ok();
}

// Added tokens are matched before or after normalisation, as each says.
Status PlaceAddedTokens(std::vector<AddedTokenEntry> entries, TokenizerParts* parts) {
  RegexScratch scratch;
  for (AddedTokenEntry& entry : entries) {
    if (!entry.normalised || parts->normalizer.empty()) {
      parts->added.push_back(std::move(entry.token));
      continue;
    }
    Result<std::string> text = parts->normalizer.Apply(entry.token.text, &scratch);
    if (!text.ok()) return text.status();
    if (text->empty()) continue;  // matches nowhere
    entry.token.text = std::move(*text);
    parts->added_normalised.push_back(std::move(entry.token));
  }
  return Status::Ok();
}

// tokenizer.json alone; `first_token` gets the id that its post-processor puts first.
Status ReadTokenizerJson(std::string_view text, std::unique_ptr<Vocabulary>* vocabulary, TokenizerParts* parts,
                         TokenId* first_token) {
  size_t keys = 0;
  Result<json> parsed = ParseJson(text, &keys);
  if (!parsed.ok()) return parsed.status();
  JsonObject root(*parsed, "");
  THERMOE_RETURN_IF_ERROR(root.status());
  HfPreTokenizer pretokenizer;
  HfDecoder decoder;
  std::string first;
  std::vector<AddedTokenEntry> added;
  THERMOE_RETURN_IF_ERROR(ReadHfNormalizer(root.At("normalizer"), &parts->normalizer));
  THERMOE_RETURN_IF_ERROR(ReadHfPreTokenizer(root.At("pre_tokenizer"), &pretokenizer));
  THERMOE_RETURN_IF_ERROR(ReadHfDecoder(root.At("decoder"), &decoder));
  THERMOE_RETURN_IF_ERROR(ReadHfPostProcessor(root.At("post_processor"), &first));
  THERMOE_RETURN_IF_ERROR(ReadAddedTokens(root.At("added_tokens"), &added));
  if (decoder.byte_level && !pretokenizer.byte_level) {
    return Unsupported("decoder is ByteLevel but pre_tokenizer has no ByteLevel");
  }
  THERMOE_RETURN_IF_ERROR(
      ReadModel(root.At("model"), keys, pretokenizer.byte_level, &added, vocabulary, &parts->encoder));
  SetTokenBytes(decoder, pretokenizer.byte_level, vocabulary->get());
  THERMOE_RETURN_IF_ERROR(PlaceAddedTokens(std::move(added), parts));
  parts->pretokenizer = std::move(pretokenizer.stages);
  parts->pretokenizer_name = std::move(pretokenizer.name);
  parts->strips_leading_space = decoder.strips_leading_space && !pretokenizer.byte_level;
  if (!first.empty()) {
    *first_token = (*vocabulary)->Find(first);
    if (*first_token == kNoToken) return Corrupt("post_processor: {} is not in the vocabulary", Quote(first));
  }
  return Status::Ok();
}

}  // namespace

Result<std::shared_ptr<const Tokenizer>> MakeHuggingFaceTokenizer(const std::string& folder,
                                                                  std::string_view tokenizer_json,
                                                                  std::string_view tokenizer_config_json,
                                                                  std::string_view generation_config_json) {
  TokenizerParts parts;
  std::unique_ptr<Vocabulary> vocabulary;
  TokenId first_token = kNoToken;
  Status status = ReadTokenizerJson(tokenizer_json, &vocabulary, &parts, &first_token);
  if (!status.ok()) return InFile(folder + "/tokenizer.json", status);
  SpecialIds ids;
  if (!tokenizer_config_json.empty()) {
    status = ReadTokenizerConfig(tokenizer_config_json, *vocabulary, &ids);
    if (!status.ok()) return InFile(folder + "/tokenizer_config.json", status);
  }
  if (!generation_config_json.empty()) {
    status = ReadGenerationConfig(generation_config_json, *vocabulary, &ids);
    if (!status.ok()) return InFile(folder + "/generation_config.json", status);
  }
  parts.bos = first_token != kNoToken ? first_token : ids.bos;
  parts.adds_bos = parts.bos != kNoToken && (ids.add_bos >= 0 ? ids.add_bos == 1 : first_token != kNoToken);
  parts.end_ids = FindEndTokens(*vocabulary, ids.ends);
  parts.vocabulary = std::move(vocabulary);
  return AssembleTokenizer(std::move(parts));
}

}  // namespace thermoe
