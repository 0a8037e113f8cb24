// SPDX-License-Identifier: Apache-2.0
// Telemetry, virtual time and joules in the engine.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "engine/engine_impl.h"
#include "engine/profile_target.h"
#include "support/fixtures.h"

namespace thermoe::testing {
namespace {

std::string Profile(const std::string& name) {
  return "plant:" + std::string(THERMOE_SOURCE_DIR) + "/data/profiles/" + name + ".toml";
}

std::unique_ptr<Engine> Make(const std::string& telemetry, int sequences = 3, int threads = 2) {
  EngineOptions options;
  options.telemetry = telemetry;
  options.max_sequences = sequences;
  options.prefill_chunk = 24;
  options.threads = threads;
  return MakeEngine(OpenModel(EmberPath()), options);
}

Request Ask(int prompt, int generate, int salt = 0) {
  Request request;
  for (int i = 0; i < prompt; ++i) request.prompt.push_back(3 + (i * 7919 + salt * 104729) % 8000);
  request.max_new_tokens = generate;
  request.ignore_end = true;
  request.keep_logits = KeepLogits::kAll;
  return request;
}

// Five requests over three places, some of them later.
std::vector<RequestResult> Serve(Engine* engine) {
  std::vector<RequestId> ids;
  std::vector<Event> events;
  for (int i = 0; i < 3; ++i) ids.push_back(engine->Submit(Ask(20 + 31 * i, 12 + 9 * i, i)).value());
  for (int step = 0; step < 10; ++step) EXPECT_TRUE(*engine->Step(&events));
  for (int i = 3; i < 5; ++i) ids.push_back(engine->Submit(Ask(20 + 31 * i, 12 + 9 * i, i)).value());
  while (*engine->Step(&events)) {
  }
  std::vector<RequestResult> results;
  for (const RequestId id : ids) results.push_back(engine->TakeResult(id).value());
  return results;
}

TEST(EngineEnergy, VirtualTimeIsReproducibleToTheBitAndChangesNoResult) {
  const std::vector<RequestResult> real = Serve(Make("none").get());
  const auto first = Make(Profile("small")), second = Make(Profile("small"), 3, 1);
  const std::vector<RequestResult> a = Serve(first.get()), b = Serve(second.get());
  EXPECT_TRUE(first->telemetry().simulated);
  EXPECT_EQ(first->telemetry().name, "plant:small");
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].generated, real[i].generated);
    EXPECT_EQ(a[i].logits, real[i].logits);
    EXPECT_EQ(real[i].energy.source, EnergySource::kNone);
    EXPECT_GT(a[i].timings.prefill_ms, 0);
    EXPECT_EQ(a[i].timings.prefill_ms, b[i].timings.prefill_ms);
    EXPECT_EQ(a[i].timings.decode_ms, b[i].timings.decode_ms);
    EXPECT_EQ(a[i].timings.queue_ms, b[i].timings.queue_ms);
    EXPECT_EQ(a[i].energy.prefill_j, b[i].energy.prefill_j);
    EXPECT_EQ(a[i].energy.decode_j, b[i].energy.decode_j);
  }
  EXPECT_EQ(first->now_s(), second->now_s());
}

TEST(EngineEnergy, RequestsSumToThePlantsCounter) {
  const auto engine = Make(Profile("small"));
  double sum_j = 0;
  for (const RequestResult& result : Serve(engine.get())) {
    EXPECT_EQ(result.energy.source, EnergySource::kSimulated);
    EXPECT_EQ(result.energy.estimated_frac, 0);
    EXPECT_GT(result.energy.prefill_j, 0);
    EXPECT_GT(result.energy.decode_j, 0);
    sum_j += result.energy.total_j();
  }
  const EnergyTotals totals = engine->energy();
  EXPECT_NEAR(sum_j + totals.unassigned_idle_j, totals.counted_j, 1e-9 * totals.counted_j);
  EXPECT_NEAR(totals.total_j(), totals.counted_j, 1e-9 * totals.counted_j);
  // A device that draws between 1.1 and 8 W.
  EXPECT_GT(totals.counted_j, 1.1 * engine->now_s());
  EXPECT_LT(totals.counted_j, 8 * engine->now_s());
}

TEST(EngineEnergy, AStepTakesWhatItsBytesTake) {
  const auto engine = Make(Profile("small"));
  std::vector<Event> events;
  const RequestId id = engine->Submit(Ask(4, 6)).value();
  EXPECT_TRUE(*engine->Step(&events));
  double decode_s = 0;
  while (*engine->Step(&events)) {
    const StepRecord& record = engine->last_step();
    const double seconds = (record.weight_bytes + record.kv_bytes) / 6.4e9;
    EXPECT_NEAR(record.times.total_us * 1e-6 / seconds, 1, 0.1);  // noise of 2 %
    EXPECT_EQ(record.times.experts_us, 0);                        // not known
    decode_s += record.times.total_us * 1e-6;
  }
  EXPECT_NEAR(engine->TakeResult(id)->timings.decode_ms, 1e3 * decode_s, 1e-9);
}

// Pauses after every step and changes the steering once.
class TestController : public StepController {
 public:
  explicit TestController(int layers) {
    auto steering = std::make_shared<Steering>();
    steering->version = 7;
    LayerSteering layer;
    layer.max_slots = 4;
    steering->layers.assign(static_cast<size_t>(layers), layer);
    steering_ = steering;
  }
  StepDecision AfterStep(const StepObservation& observation) override {
    EXPECT_GT(observation.end_s, observation.start_s);
    EXPECT_EQ(observation.snapshot.state, SourceState::kOk);
    EXPECT_TRUE(observation.snapshot.power_w);
    return {observation.record.steering_version == 0 ? steering_ : nullptr, 0.01};
  }

 private:
  std::shared_ptr<const Steering> steering_;
};

TEST(EngineEnergy, AControllerSteersAndPausesAndPausesAreIdleOfThoseInFlight) {
  const auto engine = Make(Profile("small"));
  const int layers = engine->model().info().moe_layers;
  static_cast<EngineImpl&>(*engine).supervisor().SetController(std::make_unique<TestController>(layers));
  std::vector<Event> events;
  const RequestId id = engine->Submit(Ask(4, 10)).value();
  for (int step = 0; *engine->Step(&events); ++step) {
    EXPECT_EQ(engine->last_step().steering_version, step == 0 ? 0u : 7u);
    EXPECT_EQ(engine->last_step().layers[0].slots_full, engine->last_step().tokens * (step == 0 ? 8 : 4));
  }
  const RequestResult result = *engine->TakeResult(id);
  EXPECT_NEAR(result.energy.idle_j, 9 * 0.01 * 1.1, 0.01);  // nine pauses of 10 ms at 1.1 W
  EXPECT_GT(result.timings.decode_ms, 90);
}

TEST(EngineEnergy, ADeviceThatShutsDownEndsTheStepWithOneSentence) {
  const std::string path = ::testing::TempDir() + "/energy_hot.toml";
  std::ifstream from(std::string(THERMOE_SOURCE_DIR) + "/data/profiles/small.toml");
  std::ofstream to(path);
  for (std::string line; std::getline(from, line);) {
    to << (line.starts_with("ambient_c")    ? "ambient_c = 94.9"
           : line.starts_with("slowdown_c") ? "slowdown_c = 94.95"
                                            : line)
       << '\n';
  }
  to.close();
  const auto engine = Make("plant:" + path);
  std::vector<Event> events;
  ASSERT_TRUE(engine->Submit(Ask(200, 500)).ok());
  Result<bool> more = true;
  for (int step = 0; step < 600 && more.ok() && *more; ++step) more = engine->Step(&events);
  ASSERT_FALSE(more.ok());
  EXPECT_THAT(more.status().message(), ::testing::HasSubstr("shut down at 95 C"));
}

TEST(EngineEnergy, BadChoicesNameTheGoodOnes) {
  const auto engine = Make("none");
  for (const char* choice : {"gpu", "", "plant:", "nvml:x", "plant:/nowhere.toml", "replay:/nowhere.csv"}) {
    EXPECT_FALSE(engine->SetTelemetry(choice).ok()) << choice;
    EngineOptions options;
    options.telemetry = choice;
    EXPECT_FALSE(Engine::Create(OpenModel(EmberPath()), options).ok()) << choice;
  }
  EXPECT_THAT(engine->SetTelemetry("gpu").message(), ::testing::HasSubstr("none"));
  ASSERT_TRUE(engine->Submit(Ask(4, 1)).ok());
  EXPECT_EQ(engine->SetTelemetry("none").code(), StatusCode::kInvalidArgument);
}

// A counter of 50 W that moves every 20 ms of real time.
class MovingCounter : public TelemetrySource {
 public:
  std::string name() const override { return "moving"; }
  Snapshot Read() override {
    const double now_s = time_.Advance() ? time_.now_s() : time_.now_s();
    Snapshot snapshot;
    snapshot.time_s = now_s;
    snapshot.state = SourceState::kOk;
    snapshot.energy_j = 50 * 0.02 * std::floor(now_s / 0.02);
    return snapshot;
  }
  std::vector<SensorReport> Report() override { return {}; }

 private:
  SourceTime time_{SteadySeconds};
};

TEST(EngineEnergy, ALiveCounterIsSharedOutAndSettled) {
  const auto engine = Make("none");
  auto& impl = static_cast<EngineImpl&>(*engine);
  impl.SetSupervisor(
      Supervisor::Watch(std::make_unique<MovingCounter>(), ShapeOf(ProfileTargetOf(engine->model())), 0.005));
  std::vector<Event> events;
  const RequestId id = engine->Submit(Ask(40, 60)).value();
  while (*engine->Step(&events)) {
  }
  engine->SettleEnergy(5);
  const RequestResult result = *engine->TakeResult(id);
  EXPECT_EQ(result.energy.source, EnergySource::kCounter);
  EXPECT_LT(result.energy.estimated_frac, 0.01);
  const EnergyTotals totals = engine->energy();
  EXPECT_NEAR(result.energy.total_j() + totals.unassigned_idle_j, totals.total_j(), 0.02 * totals.total_j());
  EXPECT_GT(totals.counted_j, 0.9);
}

TEST(EngineEnergy, WithoutAPowerSensorEverythingIsAnEstimate) {
  const auto engine = Make("replay:" + std::string(THERMOE_SOURCE_DIR) + "/data/h100_power_step.csv");
  EXPECT_TRUE(engine->telemetry().replayed);
  const RequestResult replayed = RunRequest(engine.get(), Ask(10, 5));
  EXPECT_EQ(replayed.energy.source, EnergySource::kReplayed);
  ASSERT_TRUE(engine->SetTelemetry("none").ok());
  EXPECT_EQ(RunRequest(engine.get(), Ask(10, 5)).energy.source, EnergySource::kNone);
  class Blind : public TelemetrySource {
   public:
    std::string name() const override { return "blind"; }
    Snapshot Read() override {
      Snapshot snapshot;
      snapshot.state = SourceState::kOk;
      snapshot.utilisation_frac = 0.5;
      return snapshot;
    }
    std::vector<SensorReport> Report() override { return {}; }
  };
  static_cast<EngineImpl&>(*engine).SetSupervisor(
      Supervisor::Watch(std::make_unique<Blind>(), ShapeOf(ProfileTargetOf(engine->model())), 0.005));
  const RequestResult estimated = RunRequest(engine.get(), Ask(10, 5));
  EXPECT_EQ(estimated.energy.source, EnergySource::kEstimate);
  EXPECT_EQ(estimated.energy.estimated_frac, 1);
  EXPECT_GT(estimated.energy.decode_j, 0);
}

}  // namespace
}  // namespace thermoe::testing
