// SPDX-License-Identifier: Apache-2.0
// Which settings `thermoe calibrate` tries.
#pragma once

#include <vector>

#include "control/router/operating_point.h"
#include "thermoe/model.h"

namespace thermoe {

// The plain model first, then settings by how much is known to speak for them (docs/operating-points.md). `least_sensitive`:
// MoE layers by rising loss when all experts of the layer read their hi plane only; may be empty.
std::vector<OperatingPoint> CandidatePoints(const ModelInfo& info, const std::vector<int>& least_sensitive);

// A point that caps all experts of `layers` to the hi plane.
OperatingPoint CapLayers(const ModelInfo& info, const std::vector<int>& layers);

// The points worth measuring on more windows: those that at some batch size lose at most `slack_nats` more than
// another that reads no more bytes.
std::vector<OperatingPoint> WorthMore(const std::vector<OperatingPoint>& screened, double slack_nats);

}  // namespace thermoe
