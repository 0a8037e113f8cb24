// SPDX-License-Identifier: Apache-2.0
// Text to token ids and back.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "thermoe/status.h"

namespace thermoe {

using TokenId = int32_t;
inline constexpr TokenId kNoToken = -1;

struct EncodeOptions {
  // Put the beginning-of-sequence token first when the model's tokenizer asks for it.
  bool add_special = true;
  // Recognise the written form of special tokens ("<|im_end|>") in the text. Off for text from
  // users inside a chat, so that they cannot forge turns.
  bool parse_special = true;
};

// A vocabulary with its pre-tokeniser and merge rules; immutable and safe to share between threads.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // `text` must be valid UTF-8; kInvalidArgument names the first offending byte otherwise.
  virtual Result<std::vector<TokenId>> Encode(std::string_view text,
                                              const EncodeOptions& options = {}) const = 0;

  // The bytes a token stands for in running text; not necessarily whole UTF-8 characters.
  // Special (control) tokens give "" unless `special`, then their written form. An id outside the
  // vocabulary gives "".
  virtual std::string_view TokenBytes(TokenId id, bool special = false) const = 0;

  // Concatenated bytes of `ids`, invalid UTF-8 replaced by U+FFFD. The leading-space convention of
  // SentencePiece vocabularies is undone at the start.
  virtual std::string Decode(const std::vector<TokenId>& ids, bool special = false) const = 0;

  // The id whose written form is exactly `text` (special or not), or kNoToken.
  virtual TokenId Find(std::string_view text) const = 0;

  virtual int32_t vocab_size() const = 0;
  virtual TokenId bos() const = 0;                          // kNoToken if there is none
  virtual bool adds_bos() const = 0;                        // Encode(add_special) puts bos first
  virtual const std::vector<TokenId>& end_ids() const = 0;  // tokens that end a generation
  virtual bool IsSpecial(TokenId id) const = 0;
  // A line for people: "byte-level BPE, qwen2 pre-tokeniser, 8192 tokens".
  virtual std::string Describe() const = 0;
};

// Turns a stream of ids into text that can be printed at once: never half a UTF-8 character.
class TextStream {
 public:
  explicit TextStream(const Tokenizer& tokenizer, bool special = false);

  // The text that `id` completes; may be empty while a character is incomplete.
  std::string Push(TokenId id);
  // What is left at the end; an incomplete character becomes U+FFFD.
  std::string Finish();

 private:
  const Tokenizer* tokenizer_;
  bool special_;
  bool at_start_ = true;
  std::string pending_;  // bytes of an incomplete UTF-8 character
};

struct ChatMessage {
  std::string role;  // "system", "user" or "assistant"
  std::string content;
};

// A named way of writing a conversation down. ChatTemplateNames() lists what `--chat-template` accepts.
class ChatTemplate {
 public:
  virtual ~ChatTemplate() = default;
  virtual std::string_view name() const = 0;

  // Token ids of `messages`, ready for the assistant's turn when `open_assistant`. Message contents are
  // encoded with parse_special off. `first` is true for the opening of a conversation (puts bos); else the ids
  // follow the token that ended the assistant's turn, which must have been fed. kInvalidArgument for a role
  // the template does not have, kUnsupported if the vocabulary lacks a token that it needs.
  virtual Result<std::vector<TokenId>> Encode(const Tokenizer& tokenizer,
                                              const std::vector<ChatMessage>& messages, bool first,
                                              bool open_assistant = true) const = 0;

  // Ids that end the assistant's turn, besides the tokenizer's own end_ids().
  virtual std::vector<TokenId> StopIds(const Tokenizer& tokenizer) const = 0;
};

// The template called `name`; kNotFound lists the known names.
Result<std::shared_ptr<const ChatTemplate>> FindChatTemplate(std::string_view name);
// Recognises a template from a model file's own template text (Jinja source); kUnsupported says
// what was found and lists the known names.
Result<std::shared_ptr<const ChatTemplate>> RecogniseChatTemplate(std::string_view jinja);
// "chatml, llama-2, llama-3, mistral, olmo": for help and messages.
std::string ChatTemplateNames();

}  // namespace thermoe
