// SPDX-License-Identifier: Apache-2.0
// What the three ways of `thermoe run` share: one prompt (run_once.cc), a conversation (run_interactive.cc) and a
// file of prompts (run_prompts.cc). cmd_run.cc reads the flags and chooses.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "control_options.h"
#include "json_out.h"
#include "live.h"
#include "model_options.h"
#include "sampling_options.h"
#include "steering_options.h"
#include "telemetry_options.h"
#include "thermoe/engine.h"
#include "ttt_options.h"

namespace thermoe {

inline constexpr int kDefaultParallel = 4;

struct RunFlags {
  ModelFlags model;
  SteeringFlags steering;
  SamplingFlags sampling;
  ControlFlags control;
  TttFlags ttt;
  std::optional<std::string> prompt;
  std::string file;
  int context = 0;  // 0: the model's own
  bool chat = false;
  std::string chat_template;  // empty: the model's own
  std::optional<std::string> system;
  std::string prompts;
  std::optional<int> parallel;
  std::string telemetry = "auto";
  bool json = false;
  bool quiet = false;
  std::string live;  // AddLiveFlag

  bool chats() const { return chat || !chat_template.empty(); }
};

// A model ready to generate.
struct RunContext {
  RunFlags flags;
  std::shared_ptr<const Model> model;
  std::unique_ptr<Engine> engine;
  std::unique_ptr<Live> live;  // null: not asked for
  std::shared_ptr<const ChatTemplate> chat;  // nullptr: text goes in raw
  std::shared_ptr<const TttOptions> ttt;     // nullptr: nothing is learnt
  double load_ms = 0;
  uint64_t seed = 0;  // the user's or a random one
};

// A session that learns as the flags say, from the deltas of --ttt-load where given; a plain one without --ttt.
Result<SessionId> OpenSession(RunContext* context);
// Writes --ttt-save; nothing without it.
Status SaveDeltas(const RunContext& context, SessionId session);

Status RunOnce(RunContext* context, const std::string& prompt, const std::string& source);
Status RunInteractive(RunContext* context);
// `lines`: the JSON Lines text of flags.prompts.
Status RunPrompts(RunContext* context, const std::string& lines);

// Ids of a first prompt. Errors, with `source` in front: empty, invalid UTF-8, longer than the context.
Result<std::vector<TokenId>> EncodePrompt(const RunContext& context, const std::string& text, const std::string& source,
                                          const std::optional<std::string>& system);
// kInvalidArgument unless `held` + `added` ids fit the context.
Status CheckFits(const RunContext& context, int64_t held, int64_t added, const std::string& source);
// A request for `prompt` with the sampling of `flags` and the stop ids of the chat template.
Request MakeRequest(const RunContext& context, const SamplingFlags& flags, uint64_t seed, std::vector<TokenId> prompt);

// Text of generated ids. A raw continuation is read after its prompt, so that a vocabulary which drops the space at
// the start of a text keeps it here.
TextStream StreamAfter(const RunContext& context, const std::vector<TokenId>& prompt);
std::string TextAfter(const RunContext& context, const std::vector<TokenId>& prompt,
                      const std::vector<TokenId>& generated);

// Runs `request` to its end, or until Ctrl-C or a failing `on_token` cancels it, and hands over each token as it comes. Then waits for
// the energy counter to move, kSettle_s at most.
// Errors: the engine's and those of `on_token`.
Result<RequestResult> Generate(Engine* engine, Request request, const std::function<Status(TokenId)>& on_token, Live* live = nullptr);

double TokensPerSecond(double tokens, double ms);
// {"load_ms", "queue_ms", "prefill_ms", "decode_ms", tokens and rates}.
Json TimingsJson(const RequestTimings& timings);
// The keys of one result: prompt_ids, generated_ids, text, finish, seed, timings, energy.
void AddResult(const RunContext& context, const std::vector<TokenId>& prompt, const RequestResult& result,
               uint64_t seed, Json* json);
// One dim line on stderr.
void PrintTimings(const RunContext& context, const RequestResult& result, uint64_t seed);

}  // namespace thermoe
