// SPDX-License-Identifier: Apache-2.0
#include "control/adapt/adapt_log.h"

#include <fmt/format.h>

#include <cmath>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "base/errors.h"
#include "base/replace_file.h"

namespace thermoe {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kSchemaVersion = 1;

Json CostJson(const AdaptCost& cost) { return {cost.seconds, cost.joules, cost.bytes, cost.plain_seconds}; }

Json InputJson(const AdaptInput& input) {
  Json json;
  json["tokens"] = input.tokens;
  json["tokens_ahead"] = input.tokens_ahead;
  json["cost"] = Json::array();
  for (const AdaptCost& cost : input.cost) json["cost"].push_back(CostJson(cost));
  json["read"] = CostJson(input.read);
  json["guard"] = CostJson(input.guard);
  json["step"] = CostJson(input.step);
  json["decode_rows"] = input.decode_rows;
  const AdaptLoop& loop = input.loop;
  json["loop"] = {loop.lambda,           loop.cap_w,         loop.idle_w, loop.temp_limit_c, loop.forecast_temp_c,
                  loop.latency_target_s, loop.safest ? 1 : 0};
  json["joules_left"] = std::isinf(input.joules_left) ? Json() : Json(input.joules_left);
  json["deferred"] = input.deferred;
  return json;
}

Json DecisionJson(const AdaptDecision& decision) {
  return {{"tier", AdaptTierName(decision.tier)},
          {"reason", AdaptReasonName(decision.reason)},
          {"defer", decision.defer},
          {"guard", decision.guard},
          {"gain_nats", decision.benefit.nats},
          {"deviation_nats", decision.benefit.deviation_nats},
          {"value_nats", decision.value_nats}};
}

Json OutcomeJson(const AdaptOutcome& outcome) {
  return {{"read_tokens", outcome.read_tokens},  {"mean_nats", outcome.mean_nats},
          {"tier", AdaptTierName(outcome.tier)}, {"learnt_tokens", outcome.learnt_tokens},
          {"worse_nats", outcome.worse_nats},    {"joules", outcome.joules},
          {"seconds", outcome.seconds},          {"guard_seconds", outcome.guard_seconds}};
}

// Takes values out of an object; the first that is missing or of another kind makes `ok` false.
struct Reader {
  bool ok = true;

  const Json* Find(const Json& json, const char* key) {
    const auto found = json.is_object() ? json.find(key) : json.end();
    if (!json.is_object() || found == json.end()) {
      ok = false;
      return nullptr;
    }
    return &*found;
  }
  template <typename Number>
  void Take(const Json* json, Number* out) {
    if (json == nullptr || !(json->is_number() || json->is_boolean()) || std::abs(Value(*json)) > 1e18) {
      ok = false;
    } else {
      *out = static_cast<Number>(Value(*json));
    }
  }
  template <typename Number>
  void Take(const Json& json, const char* key, Number* out) {
    Take(Find(json, key), out);
  }
  // `fields` from an array of as many numbers.
  template <typename... Numbers>
  void List(const Json* json, Numbers*... fields) {
    if (json == nullptr || !json->is_array() || json->size() != sizeof...(fields)) {
      ok = false;
      return;
    }
    size_t at = 0;
    (Take(&(*json)[at++], fields), ...);
  }
  void Cost(const Json* json, AdaptCost* cost) {
    List(json, &cost->seconds, &cost->joules, &cost->bytes, &cost->plain_seconds);
  }
  void Tier(const Json* json, AdaptTier* out) {
    const auto tier = json != nullptr && json->is_string() ? AdaptTierNamed(json->get<std::string>()) : std::nullopt;
    ok = ok && tier.has_value();
    *out = tier.value_or(*out);
  }

 private:
  static double Value(const Json& json) {
    return json.is_boolean() ? (json.get<bool>() ? 1.0 : 0.0) : json.get<double>();
  }
};

AdaptInput InputFrom(const Json& json, Reader* read) {
  AdaptInput input;
  read->Take(json, "tokens", &input.tokens);
  read->Take(json, "tokens_ahead", &input.tokens_ahead);
  const Json* cost = read->Find(json, "cost");
  if (cost == nullptr || !cost->is_array() || cost->size() != kAdaptTiers) read->ok = false;
  for (size_t tier = 0; read->ok && tier < kAdaptTiers; ++tier) read->Cost(&(*cost)[tier], &input.cost[tier]);
  read->Cost(read->Find(json, "read"), &input.read);
  read->Cost(read->Find(json, "guard"), &input.guard);
  read->Cost(read->Find(json, "step"), &input.step);
  read->Take(json, "decode_rows", &input.decode_rows);
  AdaptLoop& loop = input.loop;
  read->List(read->Find(json, "loop"), &loop.lambda, &loop.cap_w, &loop.idle_w, &loop.temp_limit_c,
             &loop.forecast_temp_c, &loop.latency_target_s, &loop.safest);
  if (const Json* left = read->Find(json, "joules_left"); left != nullptr && !left->is_null())
    read->Take(left, &input.joules_left);
  read->Take(json, "deferred", &input.deferred);
  return input;
}

AdaptOutcome OutcomeFrom(const Json& json, Reader* read) {
  AdaptOutcome outcome;
  read->Take(json, "read_tokens", &outcome.read_tokens);
  read->Take(json, "mean_nats", &outcome.mean_nats);
  read->Tier(read->Find(json, "tier"), &outcome.tier);
  read->Take(json, "learnt_tokens", &outcome.learnt_tokens);
  read->Take(json, "joules", &outcome.joules);
  const Json* worse = read->Find(json, "worse_nats");
  if (worse == nullptr || !worse->is_array()) {
    read->ok = false;
    return outcome;
  }
  outcome.worse_nats.resize(worse->size());
  for (size_t i = 0; i < worse->size(); ++i) read->Take(&(*worse)[i], &outcome.worse_nats[i]);
  return outcome;
}

// Of a start: its covariance is that between texts, scaled with the ceilings.
Json StateJson(const BenefitState& state) {
  return {{"schema_version", kSchemaVersion}, {"ceiling_nats", state.ceiling_nats}, {"sessions", state.sessions}};
}

Result<BenefitState> StateFrom(const Json& json, const std::string& source) {
  PerPart ceiling_nats = {};
  int64_t sessions = 0;
  int version = 0;
  Reader read;
  read.Take(json, "schema_version", &version);
  read.Take(json, "sessions", &sessions);
  read.List(read.Find(json, "ceiling_nats"), ceiling_nats.data(), ceiling_nats.data() + 1, ceiling_nats.data() + 2);
  const BenefitState state = BenefitFrom(ceiling_nats, sessions);
  if (!read.ok || version != kSchemaVersion || sessions < 0 || state.ceiling_nats != ceiling_nats) {
    return Corrupt("{}: is no state of test-time training of version {}; delete it to learn anew", source,
                   kSchemaVersion);
  }
  return state;
}

}  // namespace

std::string AdaptSessionLine(uint64_t session, const AdaptConfig& config, const BenefitState& start) {
  Json json;
  json["adapt_session"] = session;
  json["config"] = {config.price_nats, config.strain, config.temp_margin_c, config.guard_share, config.rest_segments};
  json["state"] = StateJson(start);
  return json.dump();
}

std::string AdaptLine(uint64_t session, const AdaptInput& input, const AdaptDecision& decision,
                      const AdaptOutcome& outcome) {
  Json json;
  json["adapt"] = {{"session", session},
                   {"input", InputJson(input)},
                   {"decision", DecisionJson(decision)},
                   {"outcome", OutcomeJson(outcome)}};
  return json.dump();
}

std::string BenefitStateJson(const BenefitState& state) { return StateJson(state).dump(1) + "\n"; }

Result<BenefitState> ParseBenefitState(const std::string& text, const std::string& source) {
  return StateFrom(Json::parse(text, nullptr, /*allow_exceptions=*/false), source);
}

Result<BenefitState> ReadBenefitState(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) return NotFound("{}: no state of test-time training there", path);
  return ParseBenefitState(std::string(std::istreambuf_iterator<char>(stream), {}), path);
}

Status WriteBenefitState(const std::string& path, const BenefitState& state) {
  return ReplaceFile(path, BenefitStateJson(state));
}

Status AdaptReplay::Line(const nlohmann::ordered_json& json, const std::string& where, std::string* difference) {
  Reader read;
  uint64_t session = 0;
  if (json.contains("adapt_session")) {
    AdaptConfig config;
    read.Take(json, "adapt_session", &session);
    read.List(read.Find(json, "config"), &config.price_nats, &config.strain, &config.temp_margin_c, &config.guard_share,
              &config.rest_segments);
    const Json* state = read.Find(json, "state");
    if (!read.ok) return Corrupt("{}: adapt_session must be complete; it is no decision log of this version", where);
    const Result<BenefitState> start = StateFrom(*state, where);
    if (!start.ok()) return start.status();
    sessions_.insert_or_assign(session, AdaptationController(config, *start));
    return Status::Ok();
  }
  const Json& line = json["adapt"];
  read.Take(line, "session", &session);
  const Json *logged_input = read.Find(line, "input"), *logged_outcome = read.Find(line, "outcome"),
             *logged = read.Find(line, "decision");
  const auto found = sessions_.find(session);
  if (!read.ok || found == sessions_.end())
    return Corrupt("{}: adapt must be of a session that began; it is no decision log of this version", where);
  const AdaptInput input = InputFrom(*logged_input, &read);
  const AdaptOutcome outcome = OutcomeFrom(*logged_outcome, &read);
  if (!read.ok)
    return Corrupt("{}: adapt must be complete, of numbers in their ranges; it is no decision log of this version",
                   where);
  // Short rests of a prompt are read without a decision.
  const AdaptDecision made = input.tokens > 0 ? found->second.Decide(input) : AdaptDecision{};
  ++decisions_;
  if (const Json again = DecisionJson(made); again != *logged) {
    *difference = fmt::format("{}: logged {}, made again {}", where, logged->dump(), again.dump());
  }
  found->second.Observe(outcome);
  return Status::Ok();
}

}  // namespace thermoe
