// SPDX-License-Identifier: Apache-2.0
// Chat templates by name. Model files carry theirs as Jinja programs; instead of running those, the formats that
// matter are written out here and recognised by what their programs contain.
#include <algorithm>
#include <array>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/errors.h"
#include "thermoe/tokenizer.h"

namespace thermoe {
namespace {

// Collects a prompt. Text between two markers is encoded in one piece, as it would be if the whole prompt were one
// text, but never parsed for special tokens: only Marker() makes those.
class PromptWriter {
 public:
  explicit PromptWriter(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  void Text(std::string_view text) { text_ += text; }

  // A part of the format: one id where the vocabulary has a token of this form, else text.
  void Marker(std::string_view marker) {
    const TokenId id = tokenizer_.Find(marker);
    if (id == kNoToken) {
      Text(marker);
    } else {
      Token(id);
    }
  }

  void Token(TokenId id) {
    Flush();
    ids_.push_back(id);
  }

  Result<std::vector<TokenId>> Finish() {
    Flush();
    if (!status_.ok()) return status_;
    return std::move(ids_);
  }

 private:
  void Flush() {
    if (text_.empty() || !status_.ok()) return;
    Result<std::vector<TokenId>> ids = tokenizer_.Encode(text_, {.add_special = false, .parse_special = false});
    text_.clear();
    if (!ids.ok()) {
      status_ = ids.status();
      return;
    }
    ids_.insert(ids_.end(), ids->begin(), ids->end());
  }

  const Tokenizer& tokenizer_;
  std::vector<TokenId> ids_;
  std::string text_;
  Status status_;
};

// What the formats do to contents that Jinja's trim does.
std::string_view Trim(std::string_view text) {
  constexpr std::string_view kSpaces = " \t\n\v\f\r";
  const size_t begin = text.find_first_not_of(kSpaces);
  if (begin == std::string_view::npos) return "";
  return text.substr(begin, text.find_last_not_of(kSpaces) - begin + 1);
}

// The token that closes the assistant's turn where the format calls it eos_token: the model's own end.
TokenId EndOfSequence(const Tokenizer& tokenizer) {
  for (const std::string_view written : {"</s>", "<|endoftext|>"}) {
    const TokenId id = tokenizer.Find(written);
    const auto& ends = tokenizer.end_ids();
    if (id != kNoToken && std::find(ends.begin(), ends.end(), id) != ends.end()) return id;
  }
  return tokenizer.end_ids().empty() ? kNoToken : tokenizer.end_ids().front();
}

using Messages = std::vector<ChatMessage>;

// "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
void WriteChatMl(const Messages& messages, bool first, bool open_assistant, const Tokenizer&, PromptWriter* out) {
  if (!first) out->Text("\n");
  for (const ChatMessage& message : messages) {
    out->Marker("<|im_start|>");
    out->Text(message.role + "\n" + message.content);
    out->Marker("<|im_end|>");
    out->Text("\n");
  }
  if (!open_assistant) return;
  out->Marker("<|im_start|>");
  out->Text("assistant\n");
}

// "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
void WriteLlama3(const Messages& messages, bool /*first*/, bool open_assistant, const Tokenizer&, PromptWriter* out) {
  const auto header = [&](std::string_view role) {
    out->Marker("<|start_header_id|>");
    out->Text(role);
    out->Marker("<|end_header_id|>");
    out->Text("\n\n");
  };
  for (const ChatMessage& message : messages) {
    header(message.role);
    out->Text(Trim(message.content));
    out->Marker("<|eot_id|>");
  }
  if (open_assistant) header("assistant");
}

// "<|endoftext|><|user|>\nHello\n<|assistant|>\nHi<|endoftext|>\n<|user|>\n...": OLMo and OLMoE Instruct.
void WriteOlmo(const Messages& messages, bool first, bool open_assistant, const Tokenizer&, PromptWriter* out) {
  if (first) {
    out->Marker("<|endoftext|>");
  } else {
    out->Text("\n");
  }
  for (const ChatMessage& message : messages) {
    out->Marker("<|" + message.role + "|>");
    out->Text("\n" + message.content);
    if (message.role == "assistant") out->Marker("<|endoftext|>");
    out->Text("\n");
  }
  if (!open_assistant) return;
  out->Marker("<|assistant|>");
  out->Text("\n");
}

// "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHello [/INST] Hi </s><s>[INST] ..."
void WriteLlama2(const Messages& messages, bool first, bool /*open_assistant*/, const Tokenizer& tokenizer,
                 PromptWriter* out) {
  std::string system;
  bool bos = !first;  // Encode has put the first one
  for (const ChatMessage& message : messages) {
    if (message.role == "system") {
      system = fmt::format("<<SYS>>\n{}\n<</SYS>>\n\n", message.content);
    } else if (message.role == "user") {
      if (bos && tokenizer.bos() != kNoToken) out->Token(tokenizer.bos());
      bos = true;
      out->Text(fmt::format("[INST] {} [/INST]", Trim(system + message.content)));
      system.clear();
    } else {
      out->Text(fmt::format(" {} ", Trim(message.content)));
      if (const TokenId end = EndOfSequence(tokenizer); end != kNoToken) out->Token(end);
    }
  }
}

// "<s>[INST] Hello [/INST] Hi</s>[INST] ..." where the markers are text, "<s>[INST]Hello[/INST]Hi</s>" where they are
// tokens: there a SentencePiece vocabulary puts the space itself, and others want none. A system message opens the
// user's.
void WriteMistral(const Messages& messages, bool /*first*/, bool /*open_assistant*/, const Tokenizer& tokenizer,
                  PromptWriter* out) {
  const bool tokens = tokenizer.Find("[INST]") != kNoToken && tokenizer.Find("[/INST]") != kNoToken;
  const std::string_view space = tokens ? "" : " ";
  std::string system;
  for (const ChatMessage& message : messages) {
    if (message.role == "system") {
      system = message.content + "\n\n";
    } else if (message.role == "user") {
      out->Marker("[INST]");
      out->Text(fmt::format("{}{}{}{}", space, system, message.content, space));
      out->Marker("[/INST]");
      system.clear();
    } else {
      out->Text(fmt::format("{}{}", space, message.content));
      if (const TokenId end = EndOfSequence(tokenizer); end != kNoToken) out->Token(end);
    }
  }
}

enum class Bos {
  kAlways,       // the format itself begins with bos
  kIfTokenizer,  // only where the tokenizer puts one before any text
  kNever,        // written by the format under its own name
};

struct Format {
  std::string_view name;
  Bos bos;
  bool system_needs_user;  // a system message is written inside the user message that follows
  void (*write)(const Messages&, bool first, bool open_assistant, const Tokenizer&, PromptWriter*);
  std::array<std::string_view, 3> needed;  // tokens without which the format cannot be written
  std::string_view stop;                   // ends the assistant's turn, besides the tokenizer's ends
};

constexpr Format kFormats[] = {
    {"chatml", Bos::kIfTokenizer, false, WriteChatMl, {"<|im_start|>", "<|im_end|>"}, "<|im_end|>"},
    {"llama-2", Bos::kAlways, true, WriteLlama2, {}, "</s>"},
    {"llama-3",
     Bos::kAlways,
     false,
     WriteLlama3,
     {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"},
     "<|eot_id|>"},
    {"mistral", Bos::kAlways, true, WriteMistral, {}, "</s>"},
    {"olmo", Bos::kNever, false, WriteOlmo, {"<|endoftext|>"}, "<|endoftext|>"},
};

class NamedTemplate final : public ChatTemplate {
 public:
  explicit NamedTemplate(const Format& format) : format_(format) {}

  std::string_view name() const override { return format_.name; }

  Result<std::vector<TokenId>> Encode(const Tokenizer& tokenizer, const std::vector<ChatMessage>& messages, bool first,
                                      bool open_assistant) const override {
    THERMOE_RETURN_IF_ERROR(CheckRoles(messages));
    THERMOE_RETURN_IF_ERROR(CheckVocabulary(tokenizer));
    PromptWriter out(tokenizer);
    const bool bos = format_.bos == Bos::kAlways || (format_.bos == Bos::kIfTokenizer && tokenizer.adds_bos());
    if (first && bos && tokenizer.bos() != kNoToken) out.Token(tokenizer.bos());
    format_.write(messages, first, open_assistant, tokenizer, &out);
    return out.Finish();
  }

  std::vector<TokenId> StopIds(const Tokenizer& tokenizer) const override {
    const TokenId id = tokenizer.Find(format_.stop);
    // Where the format needs no tokens, "</s>" may be a piece of ordinary text.
    if (id == kNoToken || (format_.needed[0].empty() && !tokenizer.IsSpecial(id))) return {};
    return {id};
  }

 private:
  Status CheckRoles(const std::vector<ChatMessage>& messages) const {
    bool system_waits = false;
    for (const ChatMessage& message : messages) {
      const bool system = message.role == "system";
      if (!system && message.role != "user" && message.role != "assistant") {
        return InvalidArgument("chat template {} has no role '{:.40}'; use system, user or assistant", format_.name,
                               message.role);
      }
      if (!format_.system_needs_user) continue;
      if (system_waits && message.role != "user") {
        return InvalidArgument("chat template {} needs a user message after a system message", format_.name);
      }
      system_waits = system;
    }
    if (system_waits) {
      return InvalidArgument("chat template {} needs a user message after a system message", format_.name);
    }
    return Status::Ok();
  }

  Status CheckVocabulary(const Tokenizer& tokenizer) const {
    for (const std::string_view token : format_.needed) {
      if (!token.empty() && tokenizer.Find(token) == kNoToken) {
        return Unsupported(
            "chat template {} needs the token {}, which this model's vocabulary lacks; name another with "
            "--chat-template ({})",
            format_.name, token, ChatTemplateNames());
      }
    }
    return Status::Ok();
  }

  const Format& format_;
};

std::shared_ptr<const ChatTemplate> Make(const Format& format) { return std::make_shared<NamedTemplate>(format); }

// OLMo's program and not one of the other formats with <|user|>: Zephyr closes the user's turn with eos, Phi with
// <|end|>, GLM opens with [gMASK].
bool LooksLikeOlmo(std::string_view jinja) {
  const auto has = [&](std::string_view part) { return jinja.find(part) != std::string_view::npos; };
  if (!has("<|assistant|>") || has("<|end|>") || has("[gMASK]")) return false;
  if (!has("bos_token") && !has("<|endoftext|>")) return false;
  const size_t user = jinja.find("<|user|>");
  if (user == std::string_view::npos) return false;
  const std::string_view turn = jinja.substr(user, jinja.find('}', user) - user);
  return turn.find("eos_token") == std::string_view::npos;
}

std::string_view NameOfProgram(std::string_view jinja) {
  const auto has = [&](std::string_view part) { return jinja.find(part) != std::string_view::npos; };
  // <|im_sep|> is Phi-4's, <end_of_utterance> SmolVLM's: alike, not the same.
  if (has("<|im_start|>")) return has("<|im_sep|>") || has("<end_of_utterance>") ? "" : "chatml";
  if (has("<|start_header_id|>") && has("<|eot_id|>")) return "llama-3";
  if (has("[INST]")) return has("[SYSTEM_PROMPT]") ? "" : has("<<SYS>>") ? "llama-2" : "mistral";
  return LooksLikeOlmo(jinja) ? "olmo" : "";
}

// The beginning of a program on one line, for messages.
std::string Excerpt(std::string_view text) {
  constexpr size_t kShownBytes = 80;
  std::string out;
  for (const char c : text.substr(0, kShownBytes)) out += c >= 0x20 && c < 0x7f ? c : c == '\n' ? ' ' : '?';
  if (text.size() > kShownBytes) out += "...";
  return out;
}

}  // namespace

Result<std::shared_ptr<const ChatTemplate>> FindChatTemplate(std::string_view name) {
  for (const Format& format : kFormats) {
    if (format.name == name) return Make(format);
  }
  return NotFound("there is no chat template '{:.60}'; known are {}", name, ChatTemplateNames());
}

Result<std::shared_ptr<const ChatTemplate>> RecogniseChatTemplate(std::string_view jinja) {
  if (Trim(jinja).empty()) {
    return Unsupported("the model carries no chat template; name one with --chat-template ({})", ChatTemplateNames());
  }
  if (const std::string_view name = NameOfProgram(jinja); !name.empty()) return FindChatTemplate(name);
  return Unsupported(
      "the model's chat template is of no known kind (it begins \"{}\"); name the nearest with "
      "--chat-template ({})",
      Excerpt(jinja), ChatTemplateNames());
}

std::string ChatTemplateNames() {
  std::string names;
  for (const Format& format : kFormats) {
    if (!names.empty()) names += ", ";
    names += format.name;
  }
  return names;
}

}  // namespace thermoe
