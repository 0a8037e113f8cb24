// SPDX-License-Identifier: Apache-2.0
// Joules by request and phase against a plant that knows what every step cost.
#include "control/energy/energy_accountant.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <numeric>

#include "base/random.h"
#include "control/plant/plant_source.h"
#include "control/telemetry/replay_source.h"
#include "control/telemetry/snapshot_fields.h"
#include "support/plant_util.h"

namespace thermoe {
namespace {

// About ember-22m.
ModelShape TestModel() {
  ModelShape model;
  model.config.layers = 6;
  model.config.heads = 6;
  model.config.kv_heads = 2;
  model.config.head_dim = 48;
  model.config.experts = 64;
  model.config.slots = 8;
  model.config.vocab = 8192;
  model.output = {DType::kQ8_0, 8192, 288, false};
  model.layers.resize(6);
  return model;
}

// A step over `parts` as the engine would record it: dense weights and the output matrix once, experts as they are
// touched.
StepRecord RecordOf(const std::vector<StepPart>& parts) {
  StepRecord record;
  double attended = 0;
  for (const StepPart& part : parts) {
    record.tokens += part.rows;
    (part.prefill ? record.prefill_tokens : record.decode_tokens) += part.rows;
    record.logit_rows += part.logit_rows;
    record.kv_bytes += 6 * 8.0 * 2 * 48 * (part.first_position + 2.0 * part.rows);
    attended += part.rows * (part.first_position + (part.rows + 1) / 2.0);
  }
  const double touched = 64 * (1 - std::pow(1 - 8.0 / 64, record.tokens));
  record.expert_bytes = 6 * touched * 44e3;
  record.weight_bytes = 1.2e6 + record.expert_bytes + (record.logit_rows > 0 ? 2.5e6 : 0);
  record.flops = 6.4e6 * record.tokens + 4.7e6 * record.logit_rows + 6 * 4.0 * 6 * 48 * attended;
  return record;
}

EnergyPrices PricesOf(const DeviceProfile& profile) {
  EnergyPrices prices;
  prices.idle_w = profile.idle_w;
  prices.j_per_byte = profile.energy_per_byte_pj * 1e-12;
  prices.j_per_flop = profile.energy_per_flop_pj * 1e-12;
  return prices;
}

StepPart Decode(int account, int position) { return {account, false, 1, 1, position}; }
StepPart Chunk(int account, int rows, int first = 0) { return {account, true, rows, 1, first}; }

TEST(StepShare, EqualRequestsPayTheSameAndSharesSumToOne) {
  const StepShare share(TestModel(), EnergyPrices{});
  const std::vector<StepPart> parts = {Decode(0, 100), Decode(1, 100), Decode(2, 100), Decode(3, 100)};
  std::vector<double> fracs(4);
  share.Share(RecordOf(parts), parts, fracs);
  for (const double frac : fracs) EXPECT_DOUBLE_EQ(frac, 0.25);
}

TEST(StepShare, ARowBesideAChunkPaysLessThanAloneButFarMoreThanByRows) {
  const EnergyPrices prices;
  const StepShare share(TestModel(), prices);
  const auto cost = [&](const std::vector<StepPart>& parts) {
    const StepRecord record = RecordOf(parts);
    return (record.weight_bytes + record.kv_bytes) * prices.j_per_byte + record.flops * prices.j_per_flop;
  };
  const std::vector<StepPart> both = {Chunk(0, 256), Decode(1, 500)};
  std::vector<double> fracs(2);
  share.Share(RecordOf(both), both, fracs);
  EXPECT_NEAR(fracs[0] + fracs[1], 1, 1e-12);
  for (size_t i = 0; i < 2; ++i) EXPECT_LT(fracs[i] * cost(both), cost({both[i]})) << i;
  EXPECT_GT(fracs[1], 2.0 / 257);
  // A longer context is dearer.
  const std::vector<StepPart> two = {Decode(0, 10), Decode(1, 1000)};
  share.Share(RecordOf(two), two, fracs);
  EXPECT_GT(fracs[1], fracs[0]);
}

TEST(PowerFit, LearnsIdlePowerAndScaleFromPricesThatAreFarOff) {
  Random random(3);
  PowerFit fit(5);
  for (int i = 0; i < 200; ++i) {
    const double work_w =
        random.Below(3) == 0 ? 0 : 174 * random.Uniform();  // of defaults; the machine: 120 W + 2.2 times that
    fit.Learn((120 + 2.2 * work_w) * (1 + 0.02 * random.Normal()), work_w);
  }
  EXPECT_NEAR(fit.idle_w(), 120, 6);
  EXPECT_NEAR(fit.scale(), 2.2, 0.15);
  for (const double power_w : {0.0, -1.0, double{NAN}, double{INFINITY}}) fit.Learn(power_w, 10);
  fit.Learn(100, NAN);
  EXPECT_NEAR(fit.idle_w(), 120, 6);
}

// What happens to readings on their way.
struct Trouble {
  double unknown_frac = 0;  // readings without energy
  bool losses = false;      // the source is lost for up to 2 s now and then
  bool resets = false;      // and what it counts meanwhile is never seen
  double prices = 1;        // of work, times the true ones; idle power is then a third of the true one
  double update_s = 0.1;
  bool patient =
      false;  // results are taken at the end; else once settled or after 0.3 s, as SettleEnergy lets callers do
};

struct Outcome {
  double sum_j = 0, requests_j = 0, counted_j = 0, plant_j = 0;
  double prefill_j = 0, decode_j = 0, idle_j = 0;  // accounted
  double true_prefill_j = 0, true_decode_j = 0, true_idle_j = 0;
  double estimated_frac = 0;
  EnergySource source = EnergySource::kNone;
  std::vector<double> request_errors;  // relative, of those above a joule
};

// Requests come at random, prefill in chunks, decode in a batch; time passes between steps too.
Outcome Serve(uint64_t seed, const Trouble& trouble, double seconds) {
  Random random(seed);
  DeviceProfile profile = ShippedProfile("small");
  profile.update_s = trouble.update_s;
  Plant plant(profile, ConstantScenario(25), seed);
  PlantSource source(&plant);
  EnergyPrices prices = PricesOf(profile);
  if (trouble.prices != 1)
    prices = {prices.idle_w / 3, prices.j_per_byte * trouble.prices, prices.j_per_flop * trouble.prices, 20};
  EnergyAccountant accountant(TestModel(), prices, EnergySource::kSimulated, 0);
  const StepShare truth(TestModel(), PricesOf(profile));
  accountant.Observe(0, source.Read());

  struct Live {
    int account, prompt, left, position = 0;
    double true_j = 0;
  };
  std::vector<Live> live;
  Outcome outcome;
  double next_poll_s = 0.025, lost_until_s = -1, hidden_j = 0, last_seen_j = 0;
  double next_loss_s = 1 + 4 * random.Uniform(), accounted_j = 0;
  struct Done {
    int account;
    double at_s, true_j;
  };
  std::vector<Done> done;
  const auto take = [&](bool all) {
    std::erase_if(done, [&](const Done& request) {
      if (!all && accountant.MaySettle(request.at_s) && plant.now_s() < request.at_s + 0.3) return false;
      const double joules = accountant.Read(request.account).total_j();
      accounted_j += joules;
      if (request.true_j > 1) outcome.request_errors.push_back(joules / request.true_j - 1);
      accountant.Release(request.account);
      return true;
    });
  };
  const auto look = [&] {
    if (plant.now_s() < next_poll_s) return;
    next_poll_s = plant.now_s() + 0.025;
    Snapshot snapshot = source.Read();
    const double seen_j = *snapshot.energy_j;
    if (trouble.losses && plant.now_s() > next_loss_s) {
      lost_until_s = plant.now_s() + 2 * random.Uniform();
      next_loss_s = lost_until_s + 4 * random.Uniform();
    }
    if (plant.now_s() < lost_until_s) {
      snapshot = LostAt(plant.now_s());
      if (trouble.resets) hidden_j += seen_j - last_seen_j;
    } else if (random.Uniform() < trouble.unknown_frac) {
      snapshot.energy_j.reset();
    } else {
      *snapshot.energy_j -= hidden_j;
    }
    last_seen_j = seen_j;
    accountant.Observe(plant.now_s(), snapshot);
  };
  const auto idle = [&](double dt_s) {
    const double before_j = plant.energy_j();
    plant.Idle(dt_s);
    look();
    accountant.Idle(plant.now_s());
    outcome.true_idle_j += plant.energy_j() - before_j;
    for (Live& request : live) request.true_j += (plant.energy_j() - before_j) / static_cast<double>(live.size());
  };
  while (plant.now_s() < seconds) {
    if (live.size() < 8 && random.Below(live.empty() ? 2 : 40) == 0) {
      live.push_back(
          {accountant.Open(), 20 + static_cast<int>(random.Below(600)), 20 + static_cast<int>(random.Below(300))});
    }
    if (live.empty()) {
      idle(0.002 + 0.3 * random.Uniform());
      continue;
    }
    if (random.Below(4) == 0) idle(0.004 * random.Uniform());
    std::vector<StepPart> parts;
    for (const Live& request : live) {
      const int rows = std::min(request.prompt - request.position, 64);
      parts.push_back(rows > 0 ? Chunk(request.account, rows, request.position)
                               : Decode(request.account, request.position));
    }
    const StepRecord record = RecordOf(parts);
    const WorkOutcome work = plant.Run({record.weight_bytes + record.kv_bytes, record.flops});
    look();
    accountant.Step(plant.now_s(), record, parts);
    std::vector<double> shares(parts.size());
    truth.Share(record, parts, shares);
    for (size_t i = 0; i < parts.size(); ++i) {
      const double joules = shares[i] * work.energy_j;
      (parts[i].prefill ? outcome.true_prefill_j : outcome.true_decode_j) += joules;
      live[i].true_j += joules;
      live[i].position += parts[i].rows;
      if (!parts[i].prefill) --live[i].left;
    }
    std::erase_if(live, [&](const Live& request) {
      if (request.left > 0) return false;
      accountant.Finish(request.account);
      done.push_back({request.account, plant.now_s(), request.true_j});
      return true;
    });
    if (!trouble.patient) take(false);
  }
  take(true);
  for (const Live& request : live) accounted_j += accountant.Read(request.account).total_j();
  const EnergyTotals totals = accountant.totals();
  outcome.sum_j = totals.total_j();
  outcome.requests_j = accounted_j + totals.unassigned_idle_j;
  outcome.counted_j = totals.counted_j;
  outcome.plant_j = plant.energy_j();
  outcome.prefill_j = totals.prefill_j;
  outcome.decode_j = totals.decode_j;
  outcome.idle_j = totals.idle_j;
  outcome.estimated_frac = totals.estimated_frac;
  outcome.source = totals.source;
  return outcome;
}

void ExpectAgrees(const Outcome& outcome, double phases_frac) {
  EXPECT_EQ(outcome.source, EnergySource::kSimulated);
  EXPECT_NEAR(outcome.sum_j / outcome.plant_j, 1, 0.02);
  EXPECT_NEAR(outcome.requests_j / outcome.plant_j, 1, 0.02);
  // Of the whole: what a window's edge cuts wrongly goes from one phase to another.
  EXPECT_NEAR((outcome.prefill_j - outcome.true_prefill_j) / outcome.plant_j, 0, phases_frac);
  EXPECT_NEAR((outcome.decode_j - outcome.true_decode_j) / outcome.plant_j, 0, phases_frac);
  EXPECT_NEAR((outcome.idle_j - outcome.true_idle_j) / outcome.plant_j, 0, phases_frac);
}

TEST(EnergyAccountant, SumsAgreeWithThePlantForRandomArrivals) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(seed);
    const Outcome outcome = Serve(seed, {}, 20);
    ExpectAgrees(outcome, 0.03);
    EXPECT_LT(outcome.estimated_frac, 0.02);
    EXPECT_NEAR(outcome.counted_j / outcome.plant_j, 1, 0.02);
    for (const double error : outcome.request_errors) EXPECT_NEAR(error, 0, 0.1);
  }
}

TEST(EnergyAccountant, SumsAgreeWhenReadingsAreUnknownOrTheSourceIsLostForAWhile) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(seed);
    {
      SCOPED_TRACE("unknown now and then");
      ExpectAgrees(Serve(seed, {.unknown_frac = 0.3}, 20), 0.06);  // changes are seen later than without
    }
    {
      SCOPED_TRACE("lost for a while");
      ExpectAgrees(Serve(seed, {.unknown_frac = 0.1, .losses = true, .patient = true}, 20), 0.06);
      // Taken during a loss of up to 2 s, results are predictions.
      const Outcome hasty = Serve(seed, {.unknown_frac = 0.1, .losses = true}, 20);
      EXPECT_NEAR(hasty.sum_j / hasty.plant_j, 1, 0.02);
      EXPECT_NEAR(hasty.requests_j / hasty.plant_j, 1, 0.04);
    }
    SCOPED_TRACE("reset while lost");
    const Outcome reset = Serve(seed, {.losses = true, .resets = true, .patient = true}, 20);
    ExpectAgrees(reset, 0.05);
    EXPECT_GT(reset.estimated_frac, 0.02);  // what was never counted is not called counted
    EXPECT_LT(reset.counted_j, 0.98 * reset.plant_j);
  }
}

TEST(EnergyAccountant, SumsAgreeWhateverPricesAndUpdatesAre) {
  for (const double update_s : {0.001, 0.02, 0.5}) {
    for (const double prices : {1.0, 0.3, 3.0}) {
      SCOPED_TRACE(testing::Message() << update_s << " s, prices " << prices);
      const Outcome outcome = Serve(7, {.prices = prices, .update_s = update_s}, 40);
      EXPECT_NEAR(outcome.sum_j / outcome.plant_j, 1, 0.02);
      EXPECT_NEAR(outcome.requests_j / outcome.plant_j, 1, 0.02);
    }
  }
}

TEST(EnergyAccountant, WithoutAReadingEverythingIsAnEstimateAtThePrices) {
  EnergyAccountant accountant(TestModel(), {.idle_w = 2, .j_per_byte = 1e-9, .j_per_flop = 0}, EnergySource::kCounter,
                              10);
  const int account = accountant.Open();
  accountant.Idle(11);
  StepRecord record;
  record.tokens = record.decode_tokens = 1;
  record.weight_bytes = 3e9;
  accountant.Step(12, record, std::vector<StepPart>{Decode(account, 5)});
  accountant.Observe(12, LostAt(12));
  const RequestEnergy energy = accountant.Read(account);
  EXPECT_EQ(energy.source, EnergySource::kEstimate);
  EXPECT_DOUBLE_EQ(energy.idle_j, 2);
  EXPECT_DOUBLE_EQ(energy.decode_j, 2 + 3);
  EXPECT_EQ(energy.estimated_frac, 1);
  EXPECT_EQ(accountant.totals().source, EnergySource::kEstimate);
  EXPECT_EQ(accountant.totals().counted_j, 0);
  EXPECT_FALSE(accountant.MaySettle(12));
}

Snapshot Showing(std::optional<double> energy_j, std::optional<double> power_w = {}) {
  Snapshot snapshot;
  snapshot.state = SourceState::kOk;
  snapshot.energy_j = energy_j;
  snapshot.power_w = power_w;
  return snapshot;
}

TEST(EnergyAccountant, AnOpenWindowIsPredictedAndSettledWhenTheCounterMoves) {
  EnergyAccountant accountant(TestModel(), {.idle_w = 1, .j_per_byte = 1e-9, .j_per_flop = 0}, EnergySource::kCounter,
                              0);
  accountant.Observe(0, Showing(100));
  const int account = accountant.Open();
  StepRecord record;
  record.tokens = record.decode_tokens = 1;
  record.weight_bytes = 1e9;
  accountant.Step(0.5, record, std::vector<StepPart>{Decode(account, 5)});
  accountant.Finish(account);
  EXPECT_EQ(accountant.Read(account).source, EnergySource::kEstimate);
  EXPECT_NEAR(accountant.Read(account).decode_j, 1.5, 1e-9);
  EXPECT_TRUE(accountant.MaySettle(0.5));
  accountant.Observe(0.6, Showing(100));  // it has not moved
  accountant.Idle(0.6);
  EXPECT_TRUE(accountant.MaySettle(0.5));
  accountant.Observe(0.7, Showing(103.4));
  accountant.Idle(0.8);
  EXPECT_FALSE(accountant.MaySettle(0.5));
  const RequestEnergy energy = accountant.Read(account);
  EXPECT_EQ(energy.source, EnergySource::kCounter);
  EXPECT_EQ(energy.estimated_frac, 0);
  EXPECT_NEAR(energy.decode_j, 3.4 * 1.5 / 1.7, 1e-9);
  EXPECT_NEAR(accountant.totals().counted_j, 3.4, 1e-9);
}

TEST(EnergyAccountant, PowerReadingsStandInForACounterThatIsNotThere) {
  EnergyAccountant accountant(TestModel(), EnergyPrices{}, EnergySource::kCounter, 0);
  const int account = accountant.Open();
  for (int i = 0; i <= 100; ++i) {
    accountant.Observe(0.1 * i, Showing({}, 40));
    accountant.Idle(0.1 * i);
  }
  EXPECT_EQ(accountant.Read(account).source, EnergySource::kPower);
  EXPECT_NEAR(accountant.Read(account).idle_j, 400, 4);
}

TEST(EnergyAccountant, WhatNobodyLookedAtForLongIsIdle) {
  EnergyAccountant accountant(TestModel(), {.idle_w = 5, .j_per_byte = 1e-9, .j_per_flop = 0}, EnergySource::kCounter,
                              0);
  accountant.Observe(0, Showing(0));
  const int account = accountant.Open();
  StepRecord record;
  record.tokens = record.decode_tokens = 1;
  record.weight_bytes = 40e9;
  accountant.Step(0.1, record, std::vector<StepPart>{Decode(account, 5)});
  accountant.Finish(account);
  accountant.Observe(60, Showing(60 * 120 + 40));  // the machine idles at 120 W, not at 5
  accountant.Idle(60);
  EXPECT_NEAR(accountant.Read(account).total_j(), 40.5, 0.01);
  EXPECT_NEAR(accountant.totals().total_j(), 7240, 1e-6);
}

TEST(EnergyAccountant, AReplayedCounterIsSharedOutAndCalledReplayed) {
  Result<Trace> trace = ReadTrace(DataPath("h100_power_step.csv"));
  ASSERT_TRUE(trace.ok()) << trace.status().message();
  double now_s = 0;
  ReplaySource source(std::move(trace).value(), "h100_power_step.csv", [&] { return now_s; });
  EnergyAccountant accountant(TestModel(), {120, 130e-12, 1e-12, 20}, EnergySource::kReplayed, 0);
  const Snapshot first = source.Read();
  accountant.Observe(0, first);
  EXPECT_EQ(accountant.totals().source, EnergySource::kReplayed);
  const int account = accountant.Open();
  std::optional<double> last_j;
  for (int i = 1; i <= 1000; ++i) {
    now_s = 0.01 * i;
    const Snapshot snapshot = source.Read();
    if (snapshot.energy_j) last_j = snapshot.energy_j;
    accountant.Observe(now_s, snapshot);
    const std::vector<StepPart> parts = {Decode(account, i)};
    accountant.Step(now_s, RecordOf(parts), parts);
  }
  ASSERT_TRUE(first.energy_j && last_j);
  EXPECT_NEAR(accountant.totals().counted_j, *last_j - *first.energy_j, 1e-6);
  EXPECT_NEAR(accountant.Read(account).total_j() / (*last_j - *first.energy_j), 1,
              0.06);  // up to a row of 0.5 s is still predicted
  EXPECT_EQ(accountant.Read(account).source, EnergySource::kReplayed);
}

}  // namespace
}  // namespace thermoe
