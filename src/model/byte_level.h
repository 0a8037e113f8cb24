// SPDX-License-Identifier: Apache-2.0
// The byte <-> character map of byte-level BPE (Radford et al. 2019, GPT-2's bytes_to_unicode): every byte
// has a printable character, so that vocabularies can be written as text.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace thermoe {

// `bytes` as a vocabulary writes them: " the" gives "Ġthe".
std::string ToByteLevel(std::string_view bytes);

// The inverse; nullopt if `written` holds a character that stands for no byte.
std::optional<std::string> FromByteLevel(std::string_view written);

}  // namespace thermoe
