// SPDX-License-Identifier: Apache-2.0
// A context that requests extend: its ids, and the keys and values computed for them so far.
#pragma once

#include <vector>

#include "base/random.h"
#include "control/energy/energy_accountant.h"
#include "engine/adaptation.h"
#include "runtime/kv_cache.h"
#include "thermoe/engine.h"

namespace thermoe {

struct Session {
  SessionId id = kNoSession;
  std::vector<TokenId> tokens;  // every id of the context; the newest may not be in `kv` yet
  KvSequence kv;                // keys and values of tokens[first(), first() + kv.length)
  std::unique_ptr<Adaptation> ttt;  // null: read as it comes
  bool temporary = false;       // made for one request, closed with it
  bool busy = false;            // a request is queued or running on it

  // Token at position 0 of the context; above 0 after a restart.
  size_t first() const { return ttt == nullptr ? 0 : ttt->first; }
  // Tokens whose keys and values are there, and those before them.
  size_t computed() const { return first() + static_cast<size_t>(kv.length); }
};

// A request on its way: queued -> prefill -> decode -> finished.
struct ActiveRequest {
  RequestId id = 0;
  Request request;
  Session* session = nullptr;   // null while queued without one
  size_t prompt_begin = 0, prompt_end = 0;  // the prompt's place in session->tokens, set when admitted
  Random random{0};
  std::shared_ptr<const FeatureStatistics> features;  // that request.ttt names
  RequestResult result;         // result.finish is set once the request is over

  bool prefilled() const { return session->computed() >= prompt_end; }
  // Tokens to generate, unless something ends it before.
  size_t target() const { return request.forced.empty() ? static_cast<size_t>(request.max_new_tokens) : request.forced.size(); }
  bool generates() const { return target() > 0; }
  // Of its tokens that are sampled: the largest logit as it is.
  bool takes_largest() const { return request.sampling.temperature == 0 && request.sampling.repetition_penalty == 1; }
  double submitted_s = 0, scheduled_s = 0, first_token_s = 0;  // of the engine's clock
  bool timed_first_token = false;
  EnergyAccountant::Account account = -1;  // -1: nothing is accounted
  double work_j = 0, learn_j = 0;  // predicted, of all its work and of what it learnt: shares its joules between them
};

}  // namespace thermoe
