// SPDX-License-Identifier: Apache-2.0
// The bundled model, quantised, against transformers in float32 on the unquantised weights.
#include <gtest/gtest.h>

#include <numeric>
#include <string>

#include "kernels/dispatch.h"
#include "support/fixtures.h"

namespace thermoe::testing {
namespace {

// windows.json keeps the first 4,097 ids of four texts (its README says which); 8 windows of 512 inputs, each its own
// context, position i predicting id i + 1.
TEST(Ember, MeanNllOfWindowsIsThatOfTheUnquantisedModel) {
  const auto model = OpenModel(EmberPath());
  const auto engine = MakeEngine(model);
  const nlohmann::json windows = ReadJson(FixturePath("ember-22m/windows.json"));
  for (const auto& [name, text] : windows.items()) {
    const auto ids = text["ids"].get<std::vector<TokenId>>();
    ASSERT_EQ(ids.size(), 4097u);
    double sum = 0;
    for (size_t begin = 0; begin + 512 < ids.size(); begin += 512) {
      Request request;
      request.prompt.assign(ids.begin() + static_cast<long>(begin), ids.begin() + static_cast<long>(begin) + 513);
      request.score_prompt = true;
      request.max_new_tokens = 0;
      const RequestResult result = RunRequest(engine.get(), request);
      sum += std::accumulate(result.prompt_logprobs.begin() + 1, result.prompt_logprobs.end(), 0.0);
    }
    EXPECT_NEAR(-sum / 4096, text["mean_nll"].get<double>(), 5e-3) << name;
  }
}

// Every instruction set that runs here, on one window. In float they differ by roundings alone; 8-bit activations turn
// a rounding into a step, which is noise of a few thousandths over so few tokens.
TEST(Ember, EveryInstructionSetAgrees) {
  const nlohmann::json windows = ReadJson(FixturePath("ember-22m/windows.json"));
  auto ids = windows.begin().value()["ids"].get<std::vector<TokenId>>();
  ids.resize(513);
  const auto mean_nll = [&](const std::shared_ptr<const Model>& model, const std::string& isa) {
    EngineOptions options;
    options.isa = isa;
    const auto engine = MakeEngine(model, options);
    Request request;
    request.prompt = ids;
    request.score_prompt = true;
    request.max_new_tokens = 0;
    const RequestResult result = RunRequest(engine.get(), request);
    return -std::accumulate(result.prompt_logprobs.begin() + 1, result.prompt_logprobs.end(), 0.0) / 512;
  };
  LoadOptions in_float;
  in_float.interleave = false;
  const auto loaded = Model::Load(EmberPath(), in_float);
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  const double want = mean_nll(*loaded, "portable");
  for (const std::string& isa : kernels::SupportedIsas()) {
    EXPECT_NEAR(mean_nll(*loaded, isa), want, 5e-4) << isa << " in float";
    EXPECT_NEAR(mean_nll(OpenModel(EmberPath()), isa), want, 1e-2) << isa << " with 8-bit activations";
  }
}

}  // namespace
}  // namespace thermoe::testing
