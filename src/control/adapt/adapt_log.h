// SPDX-License-Identifier: Apache-2.0
// Decisions on test-time training in the decision log, and their replay.
//
// {"adapt_session": id, "config": [...], "state": {...}} before the first decision of a session, then a line a
// decision:
// {"adapt": {"session", "input", "decision", "outcome"}}. Numbers are written so that they read back the same.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "control/adapt/adaptation_controller.h"
#include "thermoe/status.h"

namespace thermoe {

std::string AdaptSessionLine(uint64_t session, const AdaptConfig& config, const BenefitState& start);
std::string AdaptLine(uint64_t session, const AdaptInput& input, const AdaptDecision& decision,
                      const AdaptOutcome& outcome);

// As a JSON object: {"schema_version", "ceiling_nats", "covariance", "surprise_factor", "sessions"}.
std::string BenefitStateJson(const BenefitState& state);
// kCorrupt names `source` and what is wrong: values that no learning comes to are refused.
Result<BenefitState> ParseBenefitState(const std::string& text, const std::string& source);
// kNotFound where there is no file; writing replaces it at once.
Result<BenefitState> ReadBenefitState(const std::string& path);
Status WriteBenefitState(const std::string& path, const BenefitState& state);

class AdaptReplay {
 public:
  // Makes the line's decision again; *difference is set to what came out otherwise. kCorrupt: not such a line.
  Status Line(const nlohmann::ordered_json& json, const std::string& where, std::string* difference);
  int64_t decisions() const { return decisions_; }

 private:
  std::map<uint64_t, AdaptationController> sessions_;
  int64_t decisions_ = 0;
};

}  // namespace thermoe
