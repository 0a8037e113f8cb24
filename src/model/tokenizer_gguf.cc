// SPDX-License-Identifier: Apache-2.0
// Tokenizers from the tokenizer.ggml.* fields of GGUF (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
#include <cmath>
#include <memory>
#include <utility>

#include "base/errors.h"
#include "model/bpe.h"
#include "model/byte_level.h"
#include "model/normalizer.h"
#include "model/pretokenizer.h"
#include "model/spaces.h"
#include "model/spm.h"
#include "model/text_tokenizer.h"
#include "model/tokenizer_factory.h"

namespace thermoe {
namespace {

constexpr std::string_view kRemedy = "the file is damaged or was converted wrongly; download or convert it again";

// "file: text", with the remedy for files that contradict themselves.
Status InFile(const std::string& source, const Status& status) {
  if (status.code() != StatusCode::kCorrupt) return {status.code(), fmt::format("{}: {}", source, status.message())};
  return Corrupt("{}: tokenizer: {}; {}", source, status.message(), kRemedy);
}

// tokenizer.ggml.token_type: 0 undefined, 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
Result<TokenKind> KindOfType(int32_t type, size_t index) {
  switch (type) {
    case 0:
    case 1: return TokenKind::kNormal;
    case 2: return TokenKind::kUnknown;
    case 3: return TokenKind::kControl;
    case 4: return TokenKind::kUserDefined;
    case 5: return TokenKind::kUnused;
    case 6: return TokenKind::kByte;
    default: return Corrupt("tokenizer.ggml.token_type[{}] is {}; types run from 0 to 6", index, type);
  }
}

Status CheckShapes(const GgufTokenizerSpec& spec) {
  const size_t count = spec.tokens.size();
  if (count == 0) return Corrupt("tokenizer.ggml.tokens is missing or empty");
  if (count > static_cast<size_t>(Vocabulary::kMaxTokens)) {
    return Corrupt("tokenizer.ggml.tokens has {} entries; at most {} are taken", count, Vocabulary::kMaxTokens);
  }
  if (!spec.scores.empty() && spec.scores.size() != count) {
    return Corrupt("tokenizer.ggml.scores has {} entries for {} tokens", spec.scores.size(), count);
  }
  if (!spec.types.empty() && spec.types.size() != count) {
    return Corrupt("tokenizer.ggml.token_type has {} entries for {} tokens", spec.types.size(), count);
  }
  return Status::Ok();
}

// An id field as the file states it; `fallback` where it does not. Writers put 2^32 - 1 for "none", too.
Result<TokenId> StatedId(const char* field, int64_t id, TokenId fallback, const Vocabulary& vocabulary) {
  if (id == -1) return vocabulary.Contains(fallback) ? fallback : kNoToken;
  if (id == int64_t{UINT32_MAX}) return kNoToken;
  if (!vocabulary.Contains(id)) {
    return Corrupt("tokenizer.ggml.{} is {}, outside the vocabulary of {}", field, id, vocabulary.size());
  }
  return static_cast<TokenId>(id);
}

Status FillVocabulary(GgufTokenizerSpec* spec, Vocabulary* vocabulary) {
  vocabulary->Resize(static_cast<int64_t>(spec->tokens.size()));
  for (size_t i = 0; i < spec->tokens.size(); ++i) {
    if (spec->tokens[i].empty()) continue;  // a hole: padding of the vocabulary
    Result<TokenKind> kind = TokenKind::kNormal;
    if (!spec->types.empty()) kind = KindOfType(spec->types[i], i);
    if (!kind.ok()) return kind.status();
    // Converters have written <|im_end|> and the like as user-defined, and old ones no types at all.
    if (IsTurnMarker(spec->tokens[i]) && (*kind == TokenKind::kUserDefined || spec->types.empty()))
      kind = TokenKind::kControl;
    THERMOE_RETURN_IF_ERROR(vocabulary->Set(static_cast<int64_t>(i), std::move(spec->tokens[i]), *kind));
  }
  return Status::Ok();
}

// What both kinds of model share once the vocabulary and the special ids are known.
void AddMatchedTokens(const Vocabulary& vocabulary, TokenizerParts* parts) {
  for (TokenId id = 0; id < vocabulary.size(); ++id) {
    const bool special = vocabulary.IsSpecial(id);
    if (!special && vocabulary.Kind(id) != TokenKind::kUserDefined) continue;
    AddedToken token;
    token.text = vocabulary.Written(id);
    token.id = id;
    token.special = special;
    parts->added.push_back(std::move(token));
  }
}

struct SpecialIds {
  TokenId bos = kNoToken, eos = kNoToken, eot = kNoToken, unknown = kNoToken;
};

Result<SpecialIds> ReadSpecialIds(const GgufTokenizerSpec& spec, const SpecialIds& fallback, Vocabulary* vocabulary) {
  SpecialIds ids;
  const struct {
    const char* field;
    int64_t stated;
    TokenId fallback;
    TokenId* id;
  } rows[] = {{"bos_token_id", spec.bos, fallback.bos, &ids.bos},
              {"eos_token_id", spec.eos, fallback.eos, &ids.eos},
              {"eot_token_id", spec.eot, fallback.eot, &ids.eot},
              {"unknown_token_id", spec.unknown, fallback.unknown, &ids.unknown}};
  for (const auto& row : rows) {
    Result<TokenId> id = StatedId(row.field, row.stated, row.fallback, *vocabulary);
    if (!id.ok()) return id.status();
    *row.id = *id;
    // Without types, these ids are all that tells control tokens from text.
    if (spec.types.empty() && *id != kNoToken && vocabulary->Kind(*id) == TokenKind::kNormal) {
      vocabulary->SetKind(*id, row.id == &ids.unknown ? TokenKind::kUnknown : TokenKind::kControl);
    }
  }
  return ids;
}

Status FinishParts(const GgufTokenizerSpec& spec, const SpecialIds& ids, bool adds_bos_by_default,
                   TokenizerParts* parts) {
  const Vocabulary& vocabulary = *parts->vocabulary;
  parts->bos = ids.bos;
  if (spec.add_bos == 1 && ids.bos == kNoToken) {
    return Corrupt("tokenizer.ggml.add_bos_token is true but there is no bos_token_id");
  }
  parts->adds_bos = ids.bos != kNoToken && (spec.add_bos >= 0 ? spec.add_bos != 0 : adds_bos_by_default);
  std::vector<TokenId> stated;
  for (const TokenId id : {ids.eos, ids.eot}) {
    if (id != kNoToken) stated.push_back(id);
  }
  parts->end_ids = FindEndTokens(vocabulary, stated);
  AddMatchedTokens(vocabulary, parts);
  return Status::Ok();
}

// tokenizer.ggml.model = "gpt2".
Result<std::shared_ptr<const Tokenizer>> MakeByteLevel(GgufTokenizerSpec spec) {
  const std::string pre_name = spec.pre.empty() ? "default" : spec.pre;
  const NamedPreTokenizer* pre = FindNamedPreTokenizer(pre_name);
  if (pre == nullptr) {
    return Unsupported("pre-tokeniser {} (tokenizer.ggml.pre) is not known; known are {}", Quote(pre_name),
                       NamedPreTokenizerNames());
  }
  auto vocabulary = std::make_unique<Vocabulary>();
  THERMOE_RETURN_IF_ERROR(FillVocabulary(&spec, vocabulary.get()));
  Result<SpecialIds> ids = ReadSpecialIds(spec, SpecialIds{}, vocabulary.get());
  if (!ids.ok()) return ids.status();
  for (TokenId id = 0; id < vocabulary->size(); ++id) {
    const TokenKind kind = vocabulary->Kind(id);
    // Added tokens are written as they are; a token outside the byte alphabet is taken as it is, too.
    if (kind == TokenKind::kControl || kind == TokenKind::kUserDefined) continue;
    if (std::optional<std::string> bytes = FromByteLevel(vocabulary->Written(id))) vocabulary->SetBytes(id, *bytes);
  }
  std::vector<Merge> merges(spec.merges.size());
  for (size_t i = 0; i < merges.size(); ++i) {
    if (!ParseMerge(spec.merges[i], &merges[i])) {
      return Corrupt("tokenizer.ggml.merges[{}] is {}, not two tokens with a space between", i, Quote(spec.merges[i]));
    }
  }
  BpeOptions options;
  options.ignore_merges = pre->ignore_merges;
  Result<std::shared_ptr<const WordEncoder>> encoder = MakeByteLevelBpe(*vocabulary, merges, options);
  if (!encoder.ok()) return encoder.status();

  TokenizerParts parts;
  parts.vocabulary = std::move(vocabulary);
  parts.encoder = std::move(*encoder);
  parts.pretokenizer_name = pre_name;
  for (const std::string_view pattern : pre->patterns) {
    Result<Regex> regex = Regex::Compile(pattern);
    if (!regex.ok()) return regex.status();
    parts.pretokenizer.Add(SplitStage{std::move(*regex)});
  }
  THERMOE_RETURN_IF_ERROR(FinishParts(spec, *ids, pre->adds_bos, &parts));
  return AssembleTokenizer(std::move(parts));
}

// tokenizer.ggml.model = "llama".
Result<std::shared_ptr<const Tokenizer>> MakeSentencePiece(GgufTokenizerSpec spec) {
  if (spec.scores.empty()) return Corrupt("tokenizer.ggml.scores is missing; a \"llama\" vocabulary needs it");
  for (size_t i = 0; i < spec.scores.size(); ++i) {
    if (std::isnan(spec.scores[i])) return Corrupt("tokenizer.ggml.scores[{}] is not a number", i);
  }
  auto vocabulary = std::make_unique<Vocabulary>();
  THERMOE_RETURN_IF_ERROR(FillVocabulary(&spec, vocabulary.get()));
  // The ids every SentencePiece model has unless it says otherwise.
  Result<SpecialIds> ids = ReadSpecialIds(spec, {.bos = 1, .eos = 2, .eot = kNoToken, .unknown = 0}, vocabulary.get());
  if (!ids.ok()) return ids.status();
  for (TokenId id = 0; id < vocabulary->size(); ++id) {
    const std::string& written = vocabulary->Written(id);
    const int byte = ByteTokenValue(written);
    if (byte >= 0 && (vocabulary->Kind(id) == TokenKind::kByte || spec.types.empty())) {
      vocabulary->SetKind(id, TokenKind::kByte);
      vocabulary->SetBytes(id, std::string(1, static_cast<char>(byte)));
    } else if (vocabulary->Kind(id) == TokenKind::kByte) {
      return Corrupt("token {} is {}, but its type says it is a byte", id, Quote(written));
    } else if (vocabulary->Kind(id) != TokenKind::kUserDefined) {
      vocabulary->SetBytes(id, ReplaceAll(written, kSpaceMarker, " "));
    }
  }
  TokenizerParts parts;
  parts.encoder = MakeSentencePieceBpe(*vocabulary, spec.scores, ids->unknown);
  parts.vocabulary = std::move(vocabulary);
  if (spec.add_space_prefix != 0) {
    parts.normalizer.Add(PrependStep{std::string(kSpaceMarker)});
    parts.strips_leading_space = true;
  }
  parts.normalizer.Add(ReplaceStep{" ", std::nullopt, std::string(kSpaceMarker)});
  THERMOE_RETURN_IF_ERROR(FinishParts(spec, *ids, /*adds_bos_by_default=*/true, &parts));
  return AssembleTokenizer(std::move(parts));
}

}  // namespace

Result<std::shared_ptr<const Tokenizer>> MakeGgufTokenizer(GgufTokenizerSpec spec) {
  const std::string source = spec.source;
  const auto make = [&]() -> Result<std::shared_ptr<const Tokenizer>> {
    THERMOE_RETURN_IF_ERROR(CheckShapes(spec));
    if (spec.model == "gpt2") return MakeByteLevel(std::move(spec));
    if (spec.model == "llama") return MakeSentencePiece(std::move(spec));
    return Unsupported(
        "tokenizer {} (tokenizer.ggml.model) is not known; known are gpt2 (byte-level BPE) and llama "
        "(SentencePiece BPE)",
        Quote(spec.model));
  };
  Result<std::shared_ptr<const Tokenizer>> tokenizer = make();
  if (tokenizer.ok()) return tokenizer;
  return InFile(source, tokenizer.status());
}

}  // namespace thermoe
