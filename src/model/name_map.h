// SPDX-License-Identifier: Apache-2.0
// What a format calls the tensors of an architecture. Pages in model/architectures/ join the pieces below with
// names of their own.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "model/roles.h"

namespace thermoe {

// Which part of each expert's rows a tensor holds for a role.
enum class Part : uint8_t {
  kAll,
  kFirstHalf,  // the tensor has twice the role's rows, which come first
  kSecondHalf,
};

// `pattern` may hold {layer} and {expert}; for an expert role without {expert} the tensor holds all experts,
// [experts, rows, cols]. Several names for a role are alternatives, tried in order.
struct TensorName {
  Role role;
  std::string_view pattern;
  Part part = Part::kAll;
};
using NameMap = std::vector<TensorName>;

bool NamesEachExpert(const TensorName& name);
std::string TensorNameOf(const TensorName& name, int32_t layer, int32_t expert);

NameMap Join(std::initializer_list<NameMap> maps);

NameMap GgufDecoderNames();  // what every decoder has, experts in one tensor a layer included
NameMap GgufBiasNames();
NameMap GgufQkNormNames();

NameMap HfDecoderNames();    // what every decoder has, feed-forward part excluded
NameMap HfMlpExpertNames();  // the feed-forward part as OLMoE and Qwen have it
NameMap HfBiasNames();
NameMap HfQkNormNames();

}  // namespace thermoe
