// SPDX-License-Identifier: Apache-2.0
// What the control loop learnt, as JSON: {"schema_version": 1, "lambda": ..., "energy": ..., "thermal": ...,
// "reference_j": ..., "ttha": the hardware adapter's weights, where it was on}.
#pragma once

#include <string>
#include <string_view>

#include "control/router/control_core.h"
#include "thermoe/status.h"

namespace thermoe {

std::string ControlStateJson(const ControlState& state);
// kCorrupt names `source`, the field and what it must be, whatever the bytes are. Ranges are ControlCore::Restore's.
Result<ControlState> ParseControlState(std::string_view text, const std::string& source);

// kNotFound, kCorrupt, or kInvalidArgument for what cannot be read.
Result<ControlState> ReadControlState(const std::string& path);
// Replaces `path` at once: a reader sees the old file or the new one. Its folder must exist.
Status WriteControlState(const std::string& path, const ControlState& state);

}  // namespace thermoe
