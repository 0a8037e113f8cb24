// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "report_log.h"
#include "report_measure.h"

namespace thermoe {

// An SVG over time: power against the cap, temperature against the limit, decoded tokens a second, operating points,
// their loss, pauses, multipliers, and latency where there is a target. Unknown spans are gaps.
std::string ReportSvg(const RunLog& log);
// The same in a page with the summary's table. No script, nothing from elsewhere.
std::string ReportHtml(const RunLog& log, const RunSummary& summary);

}  // namespace thermoe
