// SPDX-License-Identifier: Apache-2.0
// JSON that we write (docs/json.md) and read (docs/steering-files.md). Keys keep the order in which they were added.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "thermoe/model.h"
#include "thermoe/status.h"

namespace thermoe {

using Json = nlohmann::ordered_json;

inline constexpr int kJsonSchemaVersion = 1;

// One line on stdout, flushed. Malformed UTF-8 in strings becomes U+FFFD. Errors: as FlushOutput (output.h).
Status PrintJsonLine(const Json& json);
std::string JsonText(const Json& json);

// {"schema_version": 1, ...}, the start of every document.
Json NewDocument();
// {"path", "architecture", "format", "identity", "experts"}.
Json ModelJson(const ModelInfo& info);

// Parses `text`; an error names `source`, line and column.
Result<Json> ParseJson(const std::string& text, const std::string& source);

}  // namespace thermoe
