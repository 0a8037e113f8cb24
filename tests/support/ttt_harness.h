// SPDX-License-Identifier: Apache-2.0
// What tests of test-time training in the engine share: ember-22m, a text for it, small tiers.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <iterator>
#include <numeric>
#include <sstream>

#include "engine/engine_impl.h"
#include "support/fixtures.h"
#include "support/temp_folder.h"

namespace thermoe::testing {

inline constexpr size_t kVocab = 8192;

inline std::shared_ptr<const Model> Ember() { return OpenModel(EmberPath()); }

inline std::unique_ptr<Engine> Make(int chunk = 64, int sequences = 5, int threads = 2,
                                    const std::string& telemetry = "none") {
  EngineOptions options;
  options.context = 256;
  options.prefill_chunk = chunk;
  options.max_sequences = sequences;
  options.threads = threads;
  options.telemetry = telemetry;
  return MakeEngine(Ember(), options);
}

inline std::vector<TokenId> Text(size_t length, size_t from = 0) {
  static const std::vector<TokenId> ids = [] {
    std::ifstream file(FixturePath("texts/documents.txt"));
    std::stringstream text;
    text << file.rdbuf();
    return Ember()->tokenizer().Encode(text.str()).value();
  }();
  EXPECT_LE(from + length, ids.size());
  return {ids.begin() + static_cast<long>(from), ids.begin() + static_cast<long>(from + length)};
}

// Every group, or a choice.
inline TttOptions Tier(std::vector<DeltaGroup> groups = {}, float learning_rate = 0.01f, int segment = 16) {
  TttOptions options;
  if (groups.empty()) {
    for (int group = 0; group < kDeltaGroups; ++group) groups.push_back(static_cast<DeltaGroup>(group));
  }
  for (const DeltaGroup group : groups) options.groups.push_back({group, learning_rate, 0});
  options.rank = 2;
  options.segment = segment;
  options.keep = 64;
  return options;
}

// Reads in segments, learns nothing.
inline TttOptions Off(int segment = 16, int window = 0, int keep = 64) {
  TttOptions options;
  options.segment = segment;
  options.window = window;
  options.keep = keep;
  return options;
}

inline Request Keep(std::vector<TokenId> prompt, SessionId session = kNoSession, int new_tokens = 0) {
  Request request;
  request.prompt = std::move(prompt);
  request.session = session;
  request.max_new_tokens = new_tokens;
  request.keep_logits = KeepLogits::kAll;
  request.score_prompt = true;
  request.ignore_end = true;
  return request;
}

inline SessionId Open(Engine* engine, const TttOptions& options) {
  const SessionId session = engine->OpenSession().value();
  const Status set = engine->SetTtt(session, options);
  EXPECT_TRUE(set.ok()) << set.message();
  return session;
}

// What SaveDeltas writes: deltas and optimiser, to the bit.
inline std::string DeltasOf(Engine* engine, SessionId session) {
  const TempFolder folder;
  const Status saved = engine->SaveDeltas(session, folder / "deltas");
  EXPECT_TRUE(saved.ok()) << saved.message();
  std::ifstream file(folder / "deltas", std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline double MeanNll(const RequestResult& result, size_t from = 1) {
  const double sum =
      std::accumulate(result.prompt_logprobs.begin() + static_cast<long>(from), result.prompt_logprobs.end(), 0.0);
  return -sum / static_cast<double>(result.prompt_logprobs.size() - from);
}

}  // namespace thermoe::testing
