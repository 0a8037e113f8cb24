// SPDX-License-Identifier: Apache-2.0
// Rounds: a device does as many blocks at once as it has room for, so that an operation of many rows takes whole rounds of
// them. Its latency then stands still while a round fills and rises by a round where the next begins. Rows
// count here, not the tiles of them that blocks are made for: near the end of a round one more or less may be predicted.
#pragma once

#include "control/cost/cost_table.h"

namespace thermoe {

// Rows of a round, where the points of a table of one line leave no doubt of it; else 0. `line`: y is the logarithm of rows.
double RowsOfRound(const CostLine& line);

// Rounds that so many rows take; 1 where none are known.
double RoundsOf(double log_rows, double rows_of_round);

}  // namespace thermoe
