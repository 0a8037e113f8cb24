// SPDX-License-Identifier: Apache-2.0
// A running engine allocates nothing: operator new is counted while steps run.
#include "engine/engine_impl.h"
#include "engine/profile_target.h"
#include "support/count_allocations.h"
#include "support/fixtures.h"

namespace thermoe::testing {
namespace {

// Allocations of `steps` decode steps of `batch` sequences, after a first run of the same kind.
int64_t AllocationsOfDecode(Engine* engine, int batch, int steps) {
  int64_t counted = -1;
  for (const bool warm_up : {true, false}) {
    std::vector<RequestId> ids;
    for (int i = 0; i < batch; ++i) {
      Request request;
      request.prompt = {5, 6, 7, static_cast<TokenId>(8 + i)};
      request.max_new_tokens = steps + 2;
      request.ignore_end = true;
      request.sampling.temperature = 0.9f;
      request.sampling.top_k = 20;
      request.sampling.repetition_penalty = 1.1f;
      const auto id = engine->Submit(request);
      EXPECT_TRUE(id.ok()) << id.status().message();
      ids.push_back(*id);
    }
    std::vector<Event> events;
    events.reserve(64);
    EXPECT_TRUE(engine->Step(&events).ok());  // the prompts
    const int64_t before = Allocations();
    for (int step = 0; step < steps; ++step) {
      events.clear();
      EXPECT_TRUE(engine->Step(&events).ok());
      EXPECT_EQ(engine->last_step().decode_tokens, batch);
    }
    if (!warm_up) counted = Allocations() - before;
    for (events.clear(); *engine->Step(&events);) events.clear();
    for (const RequestId id : ids) EXPECT_TRUE(engine->TakeResult(id).ok());
  }
  return counted;
}

TEST(Allocation, NoneInADecodeStep) {
  if (!kCountsAllocations) GTEST_SKIP() << "a sanitizer counts for itself";
  const int64_t before = Allocations();
  static int* volatile kept;  // or the compiler leaves both out
  kept = new int(7);
  delete kept;
  ASSERT_GT(Allocations(), before) << "allocations are not counted";
  for (const ExpertStorage storage : {ExpertStorage::kNative, ExpertStorage::kNested}) {
    const auto model = OpenModel(EmberPath(), storage);
    EngineOptions options;
    options.max_sequences = 8;
    const auto engine = MakeEngine(model, options);
    for (const int batch : {1, 8}) {
      EXPECT_EQ(AllocationsOfDecode(engine.get(), batch, 60), 0) << batch << " sequences";
    }
    auto steering = std::make_shared<Steering>();
    LayerSteering layer;
    layer.guaranteed_slots = 5;
    layer.max_slots = 7;
    layer.drop_below_frac = 0.05f;
    if (storage == ExpertStorage::kNested) layer.full_slots = 2;
    steering->sample_gate_rows = 4;
    steering->layers.assign(static_cast<size_t>(model->info().moe_layers), layer);
    ASSERT_TRUE(engine->SetSteering(steering).ok());
    EXPECT_EQ(AllocationsOfDecode(engine.get(), 8, 60), 0) << "steered";
  }
}

// Allocates at every reading, on a thread that is not counted; its counter moves at each.
class BusySource : public TelemetrySource {
 public:
  std::string name() const override { return "busy"; }
  Snapshot Read() override {
    // The first reading is made where the source is opened.
    CountThisThread(readings_ == 0);
    const auto text = std::make_unique<std::string>(1000, 'x');
    Snapshot snapshot;
    snapshot.state = SourceState::kOk;
    snapshot.energy_j = 0.01 * ++readings_;
    return snapshot;
  }
  std::vector<SensorReport> Report() override { return {}; }

 private:
  int readings_ = 0;
};

TEST(Allocation, NoneInADecodeStepBesideASampler) {
  if (!kCountsAllocations) GTEST_SKIP() << "a sanitizer counts for itself";
  const auto model = OpenModel(EmberPath());
  EngineOptions options;
  options.max_sequences = 8;
  const auto engine = MakeEngine(model, options);
  static_cast<EngineImpl&>(*engine).SetSupervisor(
      Supervisor::Watch(std::make_unique<BusySource>(), ShapeOf(ProfileTargetOf(*model)), 0.001));
  for (const int batch : {1, 8}) EXPECT_EQ(AllocationsOfDecode(engine.get(), batch, 60), 0) << batch << " sequences";
  EXPECT_GT(engine->energy().counted_j, 0.1) << "the sampler did not run";
}

}  // namespace
}  // namespace thermoe::testing
