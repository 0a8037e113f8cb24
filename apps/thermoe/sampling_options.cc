// SPDX-License-Identifier: Apache-2.0
#include "sampling_options.h"

#include "base/errors.h"
#include "flags.h"

namespace thermoe {
namespace {

struct Field {
  const char* flag;
  const char* key;
  Range range;
  int SamplingFlags::*whole;    // either this
  double SamplingFlags::*real;  // or this is set
  const char* help;
};

const Field kFields[] = {
    {"-n,--tokens",
     "n",
     {0, kMostInt},
     &SamplingFlags::tokens,
     nullptr,
     "Generate at most N tokens; default 128. 0 only reads the prompt."},
    {"--temp",
     "temp",
     {0, 100, false, false},
     nullptr,
     &SamplingFlags::temperature,
     "Temperature; default 0.8. 0 takes the most likely token, as --greedy."},
    {"--top-k",
     "top_k",
     {0, kMostInt},
     &SamplingFlags::top_k,
     nullptr,
     "Draw from the N most likely tokens; default 40. 0: from all."},
    {"--top-p",
     "top_p",
     {0, 1, true, false},
     nullptr,
     &SamplingFlags::top_p,
     "Draw from the most likely tokens that hold X of the probability; default 0.95. 1: from all."},
    {"--min-p",
     "min_p",
     {0, 1, false, false},
     nullptr,
     &SamplingFlags::min_p,
     "Draw from tokens at least X times as likely as the best; default 0.05. 0: from all."},
    {"--repeat-penalty",
     "repeat_penalty",
     {0, 10, true, false},
     nullptr,
     &SamplingFlags::repeat_penalty,
     "Make recent tokens less likely; default 1, which does nothing. 1.1 is a usual value."},
    {"--repeat-last",
     "repeat_last",
     {0, kMostInt},
     &SamplingFlags::repeat_last,
     nullptr,
     "Recent tokens that --repeat-penalty looks at; default 64."},
};
constexpr Range kSeedRange{0, kMostSeed};
constexpr const char* kGroup = "Sampling options";

}  // namespace

void AddSamplingFlags(CLI::App* app, SamplingFlags* flags) {
  for (const Field& field : kFields) {
    CLI::Option* option = field.whole != nullptr
                              ? AddNumber(app, field.flag, &(flags->*field.whole), field.range, field.help)
                              : AddNumber(app, field.flag, &(flags->*field.real), field.range, field.help);
    option->group(kGroup);
  }
  AddNumber(app, "--seed", &flags->seed, kSeedRange,
            "The same seed gives the same text; default: a random one, which the last line names.")
      ->group(kGroup);
  app->add_flag("--greedy", flags->greedy, "Always take the most likely token.")->group(kGroup);
  app->add_flag("--ignore-end", flags->ignore_end, "Go on past the token that ends a text.")->group(kGroup);
}

Status SetSamplingField(const std::string& key, const Json& value, SamplingFlags* flags) {
  if (key == "greedy") {
    if (!value.is_boolean()) return InvalidArgument("\"greedy\" must be true or false but is {}", JsonText(value));
    flags->greedy = value.get<bool>();
    return Status::Ok();
  }
  const bool is_seed = key == "seed";
  const Field* field = nullptr;
  for (const Field& candidate : kFields) {
    if (key == candidate.key) field = &candidate;
  }
  if (field == nullptr && !is_seed) {
    std::string known = "prompt, id, system, greedy, seed";
    for (const Field& candidate : kFields) known += std::string(", ") + candidate.key;
    return InvalidArgument("unknown key \"{}\"; known are {}", key, known);
  }
  const std::string text = JsonText(value);
  const std::string wrong = CheckRange(is_seed ? kSeedRange : field->range, value.is_number() ? text : "not a number");
  if (!wrong.empty()) return InvalidArgument("\"{}\" {}", key, wrong);
  if (is_seed) {
    flags->seed = static_cast<uint64_t>(value.get<double>());
  } else if (field->whole != nullptr) {
    flags->*field->whole = static_cast<int>(value.get<double>());
  } else {
    flags->*field->real = value.get<double>();
  }
  return Status::Ok();
}

void ApplySampling(const SamplingFlags& flags, uint64_t seed, Request* request) {
  request->max_new_tokens = flags.tokens;
  request->ignore_end = flags.ignore_end;
  SamplingOptions& sampling = request->sampling;
  sampling.temperature = flags.greedy ? 0.0f : static_cast<float>(flags.temperature);
  sampling.top_k = flags.top_k;
  sampling.top_p = static_cast<float>(flags.top_p);
  sampling.min_p = static_cast<float>(flags.min_p);
  sampling.repetition_penalty = static_cast<float>(flags.repeat_penalty);
  sampling.repetition_window = flags.repeat_last;
  sampling.seed = flags.seed.value_or(seed);
}

}  // namespace thermoe
