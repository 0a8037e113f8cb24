// SPDX-License-Identifier: Apache-2.0
// Measured points as a text file, to be shipped: what `thermoe profile --export` writes and `thermoe simulate` reads.
#pragma once

#include <string>
#include <vector>

#include "control/cost/cost_model.h"
#include "control/cost/profile_store.h"
#include "thermoe/status.h"

namespace thermoe {

struct CostFile {
  ProfileKey key;  // what they are of
  std::vector<CostPoint> points;
};

std::string CostFileText(const CostFile& file);
// Errors: kNotFound, kCorrupt (with the line).
Result<CostFile> ReadCostFile(const std::string& path);

}  // namespace thermoe
