// SPDX-License-Identifier: Apache-2.0
#define PCRE2_CODE_UNIT_WIDTH 8
#include "model/regex.h"

#include <pcre2.h>

#include <algorithm>
#include <cstdint>
#include <new>

#include "base/errors.h"

namespace thermoe {
namespace {

// A hostile tokenizer file may bring its own pattern. Real ones stay below 1.5 KiB.
constexpr size_t kMaxPatternBytes = 16 << 10;
// JIT code keeps its backtracking here instead of on the caller's stack. Patterns that need more go to the
// interpreter, which uses the heap up to kMatchHeapKib.
constexpr size_t kJitStackStartBytes = 32 << 10;
constexpr size_t kJitStackMaxBytes = 1 << 20;
constexpr uint32_t kMatchHeapKib = 256 << 10;
// Steps one attempt may take: every known pattern needs at most a few a byte of the subject.
constexpr uint64_t kMatchStepsBase = 1 << 20;
constexpr uint64_t kMatchStepsPerByte = 64;

// White_Space. PCRE2's own \s also has U+180E, which Unicode took out in version 6.3; besides, a class of
// literal characters is tested faster than a property.
constexpr std::string_view kSpaces =
    R"(\x09-\x0d\x20\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";

// Rewrites what PCRE2 reads differently; refuses what it cannot read at all.
Result<std::string> ToPcre2(std::string_view pattern) {
  // As it stands this is quadratic in a run of spaces that is not the last; a match can only begin where its run
  // begins and end where the subject ends, so this says the same.
  if (pattern == R"(\s+$)") pattern = R"((?<!\s)\s++\z)";
  std::string out;
  bool in_class = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\' && i + 1 < pattern.size()) {
      const char next = pattern[++i];
      if (next == 's') {
        out += in_class ? std::string(kSpaces) : fmt::format("[{}]", kSpaces);
      } else if (next == 'S' && !in_class) {
        out += fmt::format("[^{}]", kSpaces);
      } else if (next == 'S') {
        out += R"(\P{White_Space})";
      } else {
        out += c;
        out += next;
      }
      continue;
    }
    if (in_class && (c == '[' || pattern.substr(i, 2) == "&&")) {
      return Unsupported("a class inside a class ('{}' at byte {})", c == '[' ? "[" : "&&", i);
    }
    if (c == '[') {
      in_class = true;
      out += c;
      // A bracket that closes at once is a literal.
      if (i + 1 < pattern.size() && pattern[i + 1] == '^') out += pattern[++i];
      if (i + 1 < pattern.size() && pattern[i + 1] == ']') out += pattern[++i];
      continue;
    }
    if (c == ']') in_class = false;
    out += c;
  }
  return out;
}

std::string Pcre2Message(int code) {
  PCRE2_UCHAR buffer[256];
  if (pcre2_get_error_message(code, buffer, sizeof(buffer)) < 0) return fmt::format("error {}", code);
  return reinterpret_cast<const char*>(buffer);
}

}  // namespace

struct RegexScratch::Impl {
  pcre2_match_data* data = nullptr;
  pcre2_match_context* context = nullptr;
  pcre2_jit_stack* stack = nullptr;

  Impl() {
    data = pcre2_match_data_create(1, nullptr);
    context = pcre2_match_context_create(nullptr);
    if (data == nullptr || context == nullptr) throw std::bad_alloc();
    stack = pcre2_jit_stack_create(kJitStackStartBytes, kJitStackMaxBytes, nullptr);
    if (stack != nullptr) pcre2_jit_stack_assign(context, nullptr, stack);
    pcre2_set_heap_limit(context, kMatchHeapKib);
  }
  ~Impl() {
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
    if (stack != nullptr) pcre2_jit_stack_free(stack);
  }
};

RegexScratch::RegexScratch() = default;
RegexScratch::~RegexScratch() = default;

struct Regex::Code {
  pcre2_code* code = nullptr;
  bool jit = false;
  ~Code() { pcre2_code_free(code); }
};

Result<Regex> Regex::Compile(std::string_view pattern) {
  if (pattern.size() > kMaxPatternBytes) {
    return Unsupported("regular expression of {} bytes; at most {} are taken", pattern.size(), kMaxPatternBytes);
  }
  const auto refuse = [&](std::string_view why) {
    return Unsupported("regular expression '{:.200}': {}", pattern, why);
  };
  Result<std::string> translated = ToPcre2(pattern);
  if (!translated.ok()) return refuse(translated.status().message());
  int error = 0;
  PCRE2_SIZE at = 0;
  auto code = std::make_shared<Code>();
  code->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated->data()), translated->size(),
                             PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &at, nullptr);
  if (code->code == nullptr) return refuse(Pcre2Message(error));
  code->jit = pcre2_jit_compile(code->code, PCRE2_JIT_COMPLETE) == 0;
  Regex regex;
  regex.pattern_ = std::string(pattern);
  regex.code_ = std::move(code);
  return regex;
}

Status Regex::Find(std::string_view subject, size_t from, RegexScratch* scratch, RegexMatch* match) const {
  if (scratch->impl_ == nullptr) scratch->impl_ = std::make_unique<RegexScratch::Impl>();
  RegexScratch::Impl& s = *scratch->impl_;
  pcre2_set_match_limit(s.context, static_cast<uint32_t>(std::min<uint64_t>(
                                       kMatchStepsBase + kMatchStepsPerByte * subject.size(), UINT32_MAX)));
  const auto* text = reinterpret_cast<PCRE2_SPTR>(subject.data());
  // The caller has checked the text once; checking here would read all of it for every match.
  int rc = PCRE2_ERROR_JIT_STACKLIMIT;
  if (code_->jit) {
    rc = pcre2_jit_match(code_->code, text, subject.size(), from, 0, s.data, s.context);
  }
  if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {
    rc = pcre2_match(code_->code, text, subject.size(), from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, s.data, s.context);
  }
  match->found = rc >= 0;
  if (match->found) {
    const PCRE2_SIZE* offsets = pcre2_get_ovector_pointer(s.data);
    // \K can put the start behind the end; such a pattern splits nothing.
    match->begin = std::max(offsets[0], from);
    match->end = std::max(offsets[1], match->begin);
    return Status::Ok();
  }
  if (rc == PCRE2_ERROR_NOMATCH) return Status::Ok();
  return ResourceExhausted("regular expression '{:.80}' gave up after byte {} of the text: {}", pattern_, from,
                           Pcre2Message(rc));
}

}  // namespace thermoe
