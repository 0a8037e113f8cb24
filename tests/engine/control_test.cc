// SPDX-License-Identifier: Apache-2.0
// The control loop inside the engine, on a simulated device: caps in virtual time, nothing changed where nothing
// presses.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "engine/engine_impl.h"
#include "support/fixtures.h"

namespace thermoe::testing {
namespace {

using ::testing::HasSubstr;

std::string Profile(const std::string& name) {
  return "plant:" + std::string(THERMOE_SOURCE_DIR) + "/data/profiles/" + name + ".toml";
}
std::string Points() { return std::string(THERMOE_MODELS_DIR) + "/ember-22m-points.json"; }

std::shared_ptr<const Model> Ember() {
  static const std::shared_ptr<const Model> model = [] {
    LoadOptions options;
    options.experts = ExpertStorage::kNested;
    return Model::Load(std::string(THERMOE_MODELS_DIR) + "/ember-22m-q8_0.gguf", options).value();
  }();
  return model;
}

EngineOptions Options(const ControlOptions& control) {
  EngineOptions options;
  options.telemetry = Profile("small");
  options.max_sequences = 4;
  options.prefill_chunk = 32;
  options.context = 512;
  options.threads = 1;
  options.control = control;
  return options;
}

Request Ask(int salt, int generate) {
  Request request;
  for (int i = 0; i < 24; ++i) request.prompt.push_back(3 + (i * 7919 + salt * 104729) % 8000);
  request.max_new_tokens = generate;
  request.ignore_end = true;
  return request;
}

ControlOptions Adaptive() {
  ControlOptions control;
  control.router = "adaptive";
  control.points_path = Points();
  return control;
}

// Four requests at a time until `until_s` of virtual time.
void Serve(Engine* engine, double until_s) {
  std::vector<Event> events;
  std::vector<RequestId> running;
  int salt = 0;
  for (; salt < 4; ++salt) running.push_back(engine->Submit(Ask(salt, 200)).value());
  while (engine->now_s() < until_s) {
    events.clear();
    ASSERT_TRUE(engine->Step(&events).value());
    for (const Event& event : events) {
      if (event.finish == FinishReason::kNone) continue;
      ASSERT_TRUE(engine->TakeResult(event.request).ok());
      ASSERT_TRUE(engine->Submit(Ask(salt++, 200)).ok());
    }
  }
}

double MeanPower(Engine* engine, double from_s, double to_s) {
  Serve(engine, from_s);
  const double start_s = engine->now_s(), start_j = engine->energy().counted_j;
  // The four that run go on: Serve would submit more than there is room for.
  std::vector<Event> events;
  while (engine->now_s() < to_s && engine->Step(&events).value()) {
  }
  return (engine->energy().counted_j - start_j) / (engine->now_s() - start_s);
}

TEST(EngineControl, ACapIsKeptByPacingAlone) {
  ControlOptions control;
  control.router = "plain";
  control.power_limit_w = 2;
  const auto engine = Engine::Create(Ember(), Options(control)).value();
  const double mean_w = MeanPower(engine.get(), 1.5, 2.3);
  EXPECT_NEAR(mean_w / 2, 1, 0.01);
  const ControlView view = engine->control_view();
  EXPECT_TRUE(view.on);
  EXPECT_EQ(view.power_limit_w, 2);
  EXPECT_EQ(view.device_power_w, 5);
  EXPECT_EQ(view.point, 0);
  EXPECT_GT(view.pause_frac, 0.1);
}

TEST(EngineControl, UnderACapTheAdaptiveRouterChoosesCheaperPoints) {
  ControlOptions control = Adaptive();
  control.power_limit_w = 2;
  const auto engine = Engine::Create(Ember(), Options(control)).value();
  const double mean_w = MeanPower(engine.get(), 2.0, 2.8);
  EXPECT_LT(mean_w / 2, 1.01);
  const ControlView view = engine->control_view();
  EXPECT_GT(view.points, 3);
  EXPECT_GT(view.point, 0);
  EXPECT_GT(view.point_changes, 0);
  EXPECT_LE(view.point_loss_nats, 0.02);
  EXPECT_LT(view.point_bytes_frac, 1);
}

std::vector<RequestResult> Results(Engine* engine) {
  std::vector<RequestId> ids;
  for (int i = 0; i < 6; ++i) {
    Request request = Ask(i, 40);
    request.keep_logits = KeepLogits::kAll;
    ids.push_back(engine->Submit(std::move(request)).value());
  }
  std::vector<Event> events;
  while (engine->Step(&events).value()) EXPECT_EQ(engine->last_step().steering_version, 0u);
  std::vector<RequestResult> results;
  for (const RequestId id : ids) results.push_back(engine->TakeResult(id).value());
  return results;
}

TEST(EngineControl, FarFromItsLimitsItChangesNothingToTheBit) {
  ControlOptions control = Adaptive();
  control.power_limit_w = 5;
  control.temp_limit_c = 80;
  control.latency_target_ms = 1000;
  const auto plain = Engine::Create(Ember(), Options({})).value(),
             steered = Engine::Create(Ember(), Options(control)).value();
  const std::vector<RequestResult> a = Results(plain.get()), b = Results(steered.get());
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].generated, b[i].generated);
    EXPECT_EQ(a[i].logits, b[i].logits);
  }
  EXPECT_GT(steered->control_view().ticks, 0);
  EXPECT_EQ(steered->control_view().point_changes, 0);
  EXPECT_FALSE(plain->control_view().on);
}

// Short requests, one every 20 ms or so whatever became of those before. Joules of a token and rows of a step after
// `from_s`.
struct Shared {
  double j_per_token = 0, rows = 0, gather_ms = 0;
};
Shared ServeArrivals(bool gather, double from_s, double until_s) {
  ControlOptions control = Adaptive();
  control.prefer = "energy";
  control.quality_budget_nats = 0.01;
  control.latency_target_ms = 12;
  control.gather = gather;
  EngineOptions options = Options(control);
  options.max_sequences = 12;
  const auto engine = Engine::Create(Ember(), options).value();
  std::vector<Event> events;
  double next_s = 0, start_j = -1, tokens = 0, steps = 0;
  for (int salt = 0; engine->now_s() < until_s;) {
    for (; next_s <= engine->now_s(); next_s += 0.01 + 0.0002 * (salt * 37 % 100)) {
      Request request = Ask(salt++, 40);
      request.prompt.resize(4);
      EXPECT_TRUE(engine->Submit(std::move(request)).ok());
    }
    events.clear();
    if (!engine->Step(&events).value()) next_s = engine->now_s();
    for (const Event& event : events) {
      if (event.finish == FinishReason::kNone) continue;
      EXPECT_TRUE(engine->TakeResult(event.request).ok());
    }
    if (engine->now_s() < from_s) continue;
    if (start_j < 0) start_j = engine->energy().counted_j;
    tokens += engine->last_step().decode_tokens, ++steps;
  }
  EXPECT_LE(engine->control_view().mean_loss_nats, 0.0105);
  return {(engine->energy().counted_j - start_j) / tokens, tokens / steps, engine->control_view().gather_ms};
}

TEST(EngineControl, RequestsThatOverlapShareReadsOfTheWeights) {
  const Shared apart = ServeArrivals(false, 2, 4), together = ServeArrivals(true, 2, 4);
  printf("%.2f rows a step and %.3f mJ a token; gathered to %.1f ms %.2f rows and %.3f mJ\n", apart.rows,
         1e3 * apart.j_per_token, together.gather_ms, together.rows, 1e3 * together.j_per_token);
  EXPECT_EQ(apart.gather_ms, 0);
  EXPECT_GT(together.gather_ms, 0);
  EXPECT_LE(together.gather_ms, 0.8 * 12);
  EXPECT_GT(together.rows, 1.5 * apart.rows);
  EXPECT_LT(together.j_per_token, 0.95 * apart.j_per_token);
}

TEST(EngineControl, LimitsAboveTheDevicesOwnAreRefusedWithItsLimit) {
  ControlOptions control = Adaptive();
  control.power_limit_w = 6;
  EXPECT_THAT(Engine::Create(Ember(), Options(control)).status().message(), HasSubstr("own limit of 5 W"));
  control = Adaptive();
  control.temp_limit_c = 81;
  EXPECT_THAT(Engine::Create(Ember(), Options(control)).status().message(), HasSubstr("own limit of 80 C"));
  control = Adaptive();
  control.power_limit_w = 3;
  EngineOptions blind = Options(control);
  blind.telemetry = "none";
  EXPECT_THAT(Engine::Create(Ember(), blind).status().message(), HasSubstr("shows no power"));
  control = Adaptive();
  control.router = "clever";
  EXPECT_THAT(Engine::Create(Ember(), Options(control)).status().message(), HasSubstr("plain, static or adaptive"));
  control = Adaptive();
  control.points_path = "/nowhere.json";
  EXPECT_THAT(Engine::Create(Ember(), Options(control)).status().message(), HasSubstr("/nowhere.json"));
}

// Says what to do with the next steps.
class Bounds : public StepController {
 public:
  StepDecision AfterStep(const StepObservation& observation) override {
    most_queued = std::max(most_queued, observation.queued);
    return {nullptr, 0, 5, 2};
  }
  int32_t most_queued = 0;
};

TEST(EngineControl, BoundsOfADecisionHold) {
  const auto engine = Engine::Create(Ember(), Options({})).value();
  auto& impl = static_cast<EngineImpl&>(*engine);
  auto owned = std::make_unique<Bounds>();
  Bounds* bounds = owned.get();
  impl.supervisor().SetController(std::move(owned));
  std::vector<Event> events;
  ASSERT_TRUE(engine->Submit(Ask(0, 3)).ok());
  ASSERT_TRUE(engine->Step(&events).value());  // the first step: 24 rows at once
  EXPECT_EQ(engine->last_step().prefill_tokens, 24);
  for (int i = 1; i < 6; ++i) ASSERT_TRUE(engine->Submit(Ask(i, 3)).ok());
  int32_t most_decode = 0;
  while (engine->Step(&events).value()) {
    EXPECT_LE(engine->last_step().prefill_tokens, 5);
    most_decode = std::max(most_decode, engine->last_step().decode_tokens);
  }
  EXPECT_LE(most_decode, 2);
  EXPECT_EQ(bounds->most_queued, 4);
}

TEST(EngineControl, StateAndLogAreWritten) {
  const std::string folder = ::testing::TempDir();
  ControlOptions control = Adaptive();
  control.power_limit_w = 2;
  control.state_path = folder + "/control_state.json";
  control.log_path = folder + "/control_log.jsonl";
  std::filesystem::remove(control.state_path);
  {
    const auto engine = Engine::Create(Ember(), Options(control)).value();
    Serve(engine.get(), 0.8);
    ASSERT_TRUE(engine->SaveControl().ok());
  }
  EXPECT_GT(std::filesystem::file_size(control.state_path), 100u);
  EXPECT_GT(std::filesystem::file_size(control.log_path), 1000u);
  EXPECT_TRUE(Engine::Create(Ember(), Options(control)).ok());  // which reads it
}

}  // namespace
}  // namespace thermoe::testing
