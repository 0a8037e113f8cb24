// SPDX-License-Identifier: Apache-2.0
// The pre-tokenisers that GGUF files name. The patterns are facts of the models they belong to (each stands in the
// original's tokenizer.json); names and settings are those of llama.cpp's vocabulary loader.
#include <array>
#include <iterator>

#include "model/pretokenizer.h"

namespace thermoe {
namespace {

using Pattern = std::string_view;

// clang-format off
constexpr Pattern kGpt2 =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

constexpr Pattern kGpt2Stages[] = {kGpt2};
constexpr Pattern kDigitsThenGpt2[] = {R"(\p{N})", kGpt2};
constexpr Pattern kLlama3[] = {
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"};
constexpr Pattern kQwen2[] = {
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"};
constexpr Pattern kQwen35[] = {
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"};
constexpr Pattern kSeedCoder[] = {
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+)"};
constexpr Pattern kBailingMoe[] = {
    R"('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+)"};
constexpr Pattern kJais2[] = {
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1})"};
constexpr Pattern kGpt4o[] = {
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)"};
constexpr Pattern kTekken[] = {
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)"};
constexpr Pattern kDeepSeekLlm[] = {
    R"([\r\n])",
    R"(\s?[A-Za-z\x{b5}\x{c0}-\x{d6}\x{d8}-\x{f6}\x{f8}-\x{1ba}\x{1bc}-\x{1bf}\x{1c4}-\x{293}\x{295}-\x{2af})"
    R"(\x{370}-\x{373}\x{376}\x{377}\x{37b}-\x{37d}\x{37f}\x{386}\x{388}-\x{38a}\x{38c}\x{38e}-\x{3a1})"
    R"(\x{3a3}-\x{3f5}\x{3f7}-\x{481}\x{48a}-\x{52f}\x{531}-\x{556}\x{10a0}-\x{10c5}\x{13a0}-\x{13f5})"
    R"(\x{13f8}-\x{13fd}\x{1c90}-\x{1cba}\x{1cbd}-\x{1cbf}\x{1d00}-\x{1d2b}\x{1d6b}-\x{1d77}\x{1d79}-\x{1d9a})"
    R"(\x{1e00}-\x{1f15}\x{1f18}-\x{1f1d}\x{1f20}-\x{1f45}\x{1f48}-\x{1f4d}\x{1f50}-\x{1f57}\x{1f59}\x{1f5b})"
    R"(\x{1f5d}\x{1f5f}-\x{1f7d}\x{1f80}-\x{1fb4}\x{1fb6}-\x{1fbc}\x{1fbe}\x{1fc2}-\x{1fc4}\x{1fc6}-\x{1fcc})"
    R"(\x{1fd0}-\x{1fd3}\x{1fd6}-\x{1fdb}\x{1fe0}-\x{1fec}\x{1ff2}-\x{1ff4}\x{1ff6}-\x{1ffc}\x{2102}\x{2107})"
    R"(\x{210a}-\x{2113}\x{2115}\x{2119}-\x{211d}\x{2124}\x{2126}\x{2128}\x{212a}-\x{212d}\x{212f}-\x{2134})"
    R"(\x{2139}\x{213c}-\x{213f}\x{2145}-\x{2149}\x{214e}\x{2183}\x{2184}\x{2c00}-\x{2c7b}\x{2c7e}-\x{2ce4})"
    R"(\x{2ceb}-\x{2cee}\x{2cf2}\x{2cf3}\x{a640}-\x{a66d}\x{a680}-\x{a69b}\x{a722}-\x{a76f}\x{a771}-\x{a787})"
    R"(\x{a78b}-\x{a78e}\x{ab70}-\x{abbf}\x{fb00}-\x{fb06}\x{fb13}-\x{fb17}\x{ff21}-\x{ff3a}\x{ff41}-\x{ff5a})"
    R"(\x{10400}-\x{1044f}\x{104b0}-\x{104d3}\x{104d8}-\x{104fb}\x{10c80}-\x{10cb2}\x{10cc0}-\x{10cf2})"
    R"(\x{118a0}-\x{118df}\x{1e900}-\x{1e943}]+)",
    R"(\s?[!-/:-~\x{ff01}-\x{ff0f}\x{ff1a}-\x{ff5e}\x{2018}-\x{201f}\x{3000}-\x{3002}]+)",
    R"(\s+$)",
    R"([\x{4e00}-\x{9fa5}\x{800}-\x{4e00}\x{ac00}-\x{d7ff}]+)",
    R"(\p{N}+)"};
constexpr Pattern kDeepSeekCoder[] = {R"([\r\n])", R"(\s?\p{L}+)", R"(\s?\p{P}+)", R"([\x{4e00}-\x{9fa5}\x{800}-\x{4e00}\x{ac00}-\x{d7ff}]+)", R"(\p{N})"};
constexpr Pattern kDeepSeekV3[] = {
    R"(\p{N}{1,3})",
    R"([\x{4e00}-\x{9fa5}\x{3040}-\x{309f}\x{30a0}-\x{30ff}]+)",
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"};
constexpr Pattern kFalcon[] = {R"([\p{P}\$\+<=>\^~\|`]+)", kGpt2, R"([0-9][0-9][0-9])"};
constexpr Pattern kDefault[] = {R"([\p{P}\$\+<=>\^~\|]+)", kGpt2, R"(\p{N}+)", R"([0-9][0-9][0-9])"};
constexpr Pattern kBloom[] = {R"( ?[^(\s|.,!?\x{2026}\x{3002}\x{ff0c}\x{3001}\x{964}\x{6d4}\x{60c})]+)"};
constexpr Pattern kViking[] = {R"( ?[^(\s|.,!?\x{2026}\x{3002}\x{ff0c}\x{3001}\x{964}\x{6d4}\x{60c})]+)", R"(\p{N})"};

// The first name of each group of patterns is the one that NameOfPattern gives.
constexpr NamedPreTokenizer kTable[] = {
    {"default", kDefault},
    {"gpt-2", kGpt2Stages}, {"olmo", kGpt2Stages}, {"phi-2", kGpt2Stages}, {"mpt", kGpt2Stages},
    {"gigachat", kGpt2Stages}, {"jais", kGpt2Stages}, {"trillion", kGpt2Stages}, {"exaone4", kGpt2Stages},
    {"a.x-4.0", kGpt2Stages}, {"mellum", kGpt2Stages}, {"modern-bert", kGpt2Stages},
    {"granite-docling", kGpt2Stages},
    {"llama-bpe", kLlama3, true, true}, {"llama3", kLlama3, true, true}, {"llama-v3", kLlama3, true, true},
    {"falcon3", kLlama3, true, true}, {"falcon-h1", kLlama3, true, true}, {"pixtral", kLlama3, true, true},
    {"midm-2.0", kLlama3, true, true}, {"lfm2", kLlama3, true, true},
    {"dbrx", kLlama3}, {"smaug-bpe", kLlama3}, {"glm4", kLlama3}, {"chatglm-bpe", kLlama3},
    {"qwen2", kQwen2}, {"stablelm2", kQwen2}, {"deepseek-r1-qwen", kQwen2}, {"megrez", kQwen2},
    {"hunyuan", kQwen2}, {"kormo", kQwen2}, {"solar-open", kQwen2}, {"grok-2", kQwen2},
    {"qwen35", kQwen35},
    {"seed-coder", kSeedCoder},
    {"bailingmoe", kBailingMoe}, {"bailingmoe2", kBailingMoe}, {"llada-moe", kBailingMoe},
    {"jais-2", kJais2},
    {"gpt-4o", kGpt4o}, {"llama4", kGpt4o}, {"kanana2", kGpt4o}, {"minimax-m2", kGpt4o},
    {"tekken", kTekken, true, true},
    {"deepseek-llm", kDeepSeekLlm},
    {"deepseek-coder", kDeepSeekCoder},
    {"deepseek-v3", kDeepSeekV3}, {"hunyuan-dense", kDeepSeekV3}, {"joyai-llm", kDeepSeekV3},
    {"starcoder", kDigitsThenGpt2}, {"refact", kDigitsThenGpt2}, {"command-r", kDigitsThenGpt2},
    {"smollm", kDigitsThenGpt2}, {"codeshell", kDigitsThenGpt2}, {"exaone", kDigitsThenGpt2},
    {"minerva-7b", kDigitsThenGpt2}, {"mellum2", kDigitsThenGpt2},
    {"falcon", kFalcon},
    {"bloom", kBloom}, {"gpt3-finnish", kBloom}, {"poro-chat", kBloom},
    {"viking", kViking},
};
// clang-format on

}  // namespace

const NamedPreTokenizer* FindNamedPreTokenizer(std::string_view name) {
  for (const NamedPreTokenizer& row : kTable) {
    if (row.name == name) return &row;
  }
  return nullptr;
}

std::string NamedPreTokenizerNames() {
  std::string names;
  for (const NamedPreTokenizer& row : kTable) {
    if (!names.empty()) names += ", ";
    names += row.name;
  }
  return names;
}

std::string_view NameOfPattern(std::string_view pattern) {
  for (const NamedPreTokenizer& row : kTable) {
    if (row.patterns.size() == 1 && row.patterns[0] == pattern) return row.name;
  }
  return "";
}

std::string_view Gpt2Pattern() { return kGpt2; }

}  // namespace thermoe
