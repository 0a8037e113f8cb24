// SPDX-License-Identifier: Apache-2.0
// `thermoe calibrate --features`: statistics of activations for test-time training by feature alignment.
#pragma once

#include <string>
#include <vector>

#include "eval_windows.h"
#include "thermoe/model.h"
#include "thermoe/status.h"

namespace thermoe {

// Over the windows of all texts, with a progress bar; into `path`. Errors: as MeasureFeatures and WriteFeatures; Ctrl-C.
Status CalibrateFeatures(const Model& model, const std::vector<std::vector<EvalWindow>>& texts, int threads, const std::string& path, bool json);

}  // namespace thermoe
