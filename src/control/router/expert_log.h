// SPDX-License-Identifier: Apache-2.0
// What biases on experts were learnt from, in a line of the decision log, and back.
#pragma once

#include <fmt/format.h>

#include <nlohmann/json_fwd.hpp>

#include "control/router/expert_steering.h"

namespace thermoe {

// Appends ,"experts":{"decode_tokens", "rows_tokens", "expert_bytes", "distinct": [layers], "device": [9, null:
// unknown], "slots": base64 of int32 [L, E], "logits": [layers] base64 of float32 [rows, E]} and, with the adapter,
// ,"ttha":{each term: [weight, value], "gain", "uncertainty_nll", "mean_shrink", "bias_sum"}. Bytes are little-endian.
void AppendExperts(const ExpertSteering& experts, fmt::memory_buffer* line);

// The "experts" object back into *input, whose shape is set. False when it is not one.
bool ParseExperts(const nlohmann::ordered_json& json, const SteeringShape& shape, ExpertInput* input);

// What of the logged "ttha" object is other than `experts` has it now; "" for nothing.
std::string CompareTtha(const nlohmann::ordered_json& json, const ExpertSteering& experts);

}  // namespace thermoe
