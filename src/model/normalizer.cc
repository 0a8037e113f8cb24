// SPDX-License-Identifier: Apache-2.0
#include "model/normalizer.h"

#include <utility>

#include "base/errors.h"

namespace thermoe {
namespace {

Status TooLong(size_t bytes) {
  return ResourceExhausted("the tokenizer's normaliser makes more than {} bytes of this text; its file is damaged",
                           bytes);
}

Status Apply(NormalForm form, size_t /*limit*/, RegexScratch*, std::string* text) {
  Result<std::string> out = NormaliseUnicode(*text, form);
  if (!out.ok()) return out.status();
  *text = std::move(*out);
  return Status::Ok();
}

Status Apply(const PrependStep& step, size_t /*limit*/, RegexScratch*, std::string* text) {
  if (!text->empty()) text->insert(0, step.text);
  return Status::Ok();
}

Status Apply(const ReplaceStep& step, size_t limit, RegexScratch* scratch, std::string* text) {
  std::string out;
  size_t done = 0;
  size_t from = 0;
  RegexMatch match;
  while (from < text->size()) {
    if (step.regex) {
      THERMOE_RETURN_IF_ERROR(step.regex->Find(*text, from, scratch, &match));
    } else {
      match.begin = text->find(step.from, from);
      match.found = match.begin != std::string::npos;
      match.end = match.begin + step.from.size();
    }
    if (!match.found) break;
    out.append(*text, done, match.begin - done);
    if (match.end > match.begin) out += step.to;
    if (out.size() > limit) return TooLong(limit);
    done = from = match.end;
    if (match.end == match.begin && from < text->size()) from += Utf8Length((*text)[from]);
  }
  out.append(*text, done, std::string::npos);
  *text = std::move(out);
  return Status::Ok();
}

}  // namespace

Result<std::string> Normalizer::Apply(std::string_view text, RegexScratch* scratch) const {
  const size_t limit = kMaxGrowthBase + kMaxGrowth * text.size();
  std::string out(text);
  for (const NormalizerStep& step : steps_) {
    Status status = std::visit([&](const auto& s) { return thermoe::Apply(s, limit, scratch, &out); }, step);
    if (!status.ok()) return status;
    if (out.size() > limit) return TooLong(limit);
  }
  return out;
}

std::string ReplaceAll(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  size_t done = 0;
  for (size_t at; (at = text.find(from, done)) != std::string_view::npos; done = at + from.size()) {
    out.append(text.substr(done, at - done));
    out.append(to);
  }
  return out.append(text.substr(done));
}

}  // namespace thermoe
