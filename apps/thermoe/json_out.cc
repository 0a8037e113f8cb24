// SPDX-License-Identifier: Apache-2.0
#include "json_out.h"

#include "base/errors.h"
#include "output.h"

namespace thermoe {

std::string JsonText(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

Status PrintJsonLine(const Json& json) {
  Print(JsonText(json) + "\n");
  return FlushOutput();
}

Json NewDocument() {
  Json json;
  json["schema_version"] = kJsonSchemaVersion;
  return json;
}

Json ModelJson(const ModelInfo& info) {
  Json json;
  json["path"] = info.path;
  json["architecture"] = info.architecture;
  json["format"] = info.format;
  json["identity"] = info.identity;
  json["experts"] = info.expert_type;
  return json;
}

Result<Json> ParseJson(const std::string& text, const std::string& source) {
  try {
    return Json::parse(text);
  } catch (const Json::parse_error& error) {
    size_t line = 1, column = 1;
    for (size_t i = 0; i + 1 < error.byte && i < text.size(); ++i) {
      column = text[i] == '\n' ? 1 : column + 1;
      if (text[i] == '\n') ++line;
    }
    return InvalidArgument("{}: not valid JSON at line {}, column {}", source, line, column);
  }
}

}  // namespace thermoe
