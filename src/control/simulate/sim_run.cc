// SPDX-License-Identifier: Apache-2.0
#include "control/simulate/sim_run.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "base/errors.h"
#include "control/plant/plant_source.h"
#include "control/simulate/sim_workload.h"

namespace thermoe {
namespace {

constexpr double kSample_s = 0.1;
constexpr double kMostPause_s = 1;    // as the engine has it: a controller that asks for more is asked again
constexpr double kMostStep_s = 1e4;   // a profile that needs longer holds a slip of units
constexpr double kTempSlack_c = 1;
constexpr int kProgressSteps = 256;
constexpr double kLatencyBin = 1.01;  // the histogram's bins, in logs: 1 %

// At the lowest clock.
double LongestSeconds(const DeviceProfile& profile, const Work& work) {
  const double clock_frac = profile.lowest_mhz / profile.nominal_mhz;
  const double bandwidth = profile.bandwidth_gbps * 1e9 * std::min(1.0, profile.lowest_mhz / profile.bandwidth_knee_mhz);
  return std::max(work.bytes / bandwidth, work.flops / (profile.compute_tflops * 1e12 * std::pow(clock_frac, profile.compute_exponent)));
}

Scenario RoomOf(const SimScenario& scenario, const DeviceProfile& profile) {
  Scenario room = ConstantScenario(profile.ambient_c);
  if (scenario.ambient_c) room.ambient_c = *scenario.ambient_c;
  if (scenario.background_frac) room.background_frac = *scenario.background_frac;
  return room;
}

class Runner {
 public:
  Runner(const SimScenario& scenario, const DeviceProfile& profile, const ModelShape& shape, const SimLoss& loss, SimController controller,
         SimTttMode ttt)
      : scenario_(scenario),
        loss_(loss),
        controller_(std::move(controller)),
        plant_(profile, RoomOf(scenario, profile), scenario.seed),
        source_(&plant_),
        workload_(scenario.load, shape, scenario.seed),
        ttt_mode_(ttt),
        ttt_(ttt, {scenario.ttt.segment, scenario.ttt.text_tokens, scenario.ttt.price_nats}, shape, profile),
        layer_experts_(shape.config.experts),
        shape_(shape) {}

  Result<SimRun> Go(const std::function<bool(double)>& progress) {
    TakeSteering(nullptr);
    sample_joules_ = plant_.energy_j();
    const double start_j = plant_.energy_j();
    for (int64_t turn = 0; plant_.now_s() < scenario_.duration_s && !plant_.shut_down(); ++turn) {
      if (turn % kProgressSteps == 0 && progress && !progress(plant_.now_s() / scenario_.duration_s)) {
        return Status(StatusCode::kCancelled, "interrupted");
      }
      THERMOE_RETURN_IF_ERROR(TellLimits());
      workload_.Admit(plant_.now_s(), decision_.max_sequences);
      if (workload_.has_work()) {
        Pause();
        THERMOE_RETURN_IF_ERROR(Step());
      } else {
        PassTo(std::min(workload_.next_arrival_s(), scenario_.duration_s));
        work_since_s_ = plant_.now_s();
      }
    }
    Sample();
    run_.seconds = plant_.now_s();
    run_.energy_j = plant_.energy_j() - start_j;
    run_.shut_down = plant_.shut_down();
    run_.ttt_mode = ttt_mode_;
    run_.ttt = ttt_.result();
    Finish();
    return std::move(run_);
  }

 private:
  Status TellLimits() {
    const SimLimits limits = scenario_.LimitsAt(plant_.now_s());
    if (told_ && limits == limits_) return Status::Ok();
    if (told_) Sample();
    told_ = true;
    limits_ = limits;
    return controller_.set_limits ? controller_.set_limits(limits) : Status::Ok();
  }

  // Idles, sample by sample.
  void PassTo(double end_s) {
    while (plant_.now_s() < end_s) {
      plant_.Idle(std::min({end_s, sample_start_s_ + kSample_s, scenario_.power_w.NextEdge(plant_.now_s())}) - plant_.now_s());
      NoteTime();
      if (scenario_.power_w.At(plant_.now_s()) != limits_.power_w) return;
    }
  }

  void Pause() {
    const double pause_s = std::clamp(decision_.pause_s, 0.0, kMostPause_s);
    decision_.pause_s = 0;
    if (!(pause_s > 0)) return;
    const double start_s = plant_.now_s();
    pausing_ = true;
    PassTo(std::min(start_s + pause_s, scenario_.duration_s));
    pausing_ = false;
  }

  // After time went on by part of a step or a rest.
  void NoteTime() {
    const double passed_s = plant_.now_s() - noted_s_;
    noted_s_ = plant_.now_s();
    if (pausing_) sample_pause_s_ += passed_s;
    const double die_c = plant_.temps_c()[kDie];
    run_.most_temp_c = std::max(run_.most_temp_c, die_c);
    if (limits_.temp_c > 0 && die_c > limits_.temp_c + kTempSlack_c) run_.over_temp_s += passed_s;
    if (plant_.now_s() >= sample_start_s_ + kSample_s - 1e-9) Sample();
  }

  Status Step() {
    Work work = workload_.Step(Chunk(), steering_, &record_);
    if (scenario_.cost_model != nullptr) THERMOE_RETURN_IF_ERROR(Price(&work));
    if (ttt_mode_ != SimTttMode::kOff) Learn(&work);
    if (LongestSeconds(plant_.profile(), work) > kMostStep_s) {
      return ResourceExhausted("{}: the simulated device may take {:.0f} s for one step; check the profile's [throughput] and [clock]",
                               scenario_.path, LongestSeconds(plant_.profile(), work));
    }
    const double start_s = plant_.now_s();
    const WorkOutcome outcome = plant_.Run(work);
    if (!outcome.completed) return Status::Ok();
    record_.times = StageTimes{};  // the stages' are not known
    record_.times.total_us = outcome.duration_s * 1e6;
    workload_.Commit();
    ttt_.Observe(outcome.duration_s);
    NoteStep(outcome.duration_s);
    StepDecision decision = controller_.controller->AfterStep({start_s, plant_.now_s(), record_, source_.Read(), workload_.queued()});
    if (decision.steering != nullptr) TakeSteering(std::move(decision.steering));
    decision.steering = nullptr;
    decision_ = decision;
    NoteTime();
    return Status::Ok();
  }

  // By the operations that the step launches, as they were measured.
  Status Price(Work* work) {
    StepShapeFrom(record_, shape_, &step_);
    const CostPrediction total = scenario_.cost_model->PredictStep(shape_, step_).total;
    if (total.basis == PredictionBasis::kRoofline) {
      return InvalidArgument("{}: device.costs \"{}\" has no points of this model's shape, or of all that a step launches; profile such a model, "
                             "or leave device.costs out", scenario_.path, scenario_.costs);
    }
    work->least_s = total.latency_us * 1e-6;
    work->least_j = total.energy_measured ? total.energy_j : 0;
    return Status::Ok();
  }

  // A segment is read whole, so where prompts are learnt from no more than one is read in a step.
  int32_t Chunk() const { return ttt_mode_ == SimTttMode::kOff ? decision_.prefill_chunk : scenario_.ttt.segment; }

  void Learn(Work* work) {
    SimTttStep step;
    step.rows = workload_.burst_rows();
    step.position = workload_.burst_position();
    step.ahead = workload_.burst_ahead();
    step.decode_rows = record_.decode_tokens;
    step.work = *work;
    if (controller_.loop) step.loop = controller_.loop();
    const Work more = ttt_.Add(step);
    work->bytes += more.bytes;
    work->flops += more.flops;
    record_.weight_bytes += more.bytes;
    record_.flops += more.flops;
  }

  void TakeSteering(std::shared_ptr<const Steering> steering) {
    steering_ = std::move(steering);
    loss_batch_ = -1;
    const std::string text = loss_.TextOf(steering_.get());
    const auto known = std::find(run_.settings.begin(), run_.settings.end(), text);
    setting_ = static_cast<int32_t>(known - run_.settings.begin());
    if (known == run_.settings.end()) run_.settings.push_back(text);
  }

  void NoteStep(double duration_s) {
    ++run_.steps;
    sample_busy_s_ += duration_s;
    run_.prefilled_tokens += record_.prefill_tokens;
    const double tokens = record_.decode_tokens;
    if (record_.decode_tokens > 0) {
      if (loss_batch_ != record_.decode_tokens) {
        loss_batch_ = record_.decode_tokens;
        settings_loss_ = loss_.OfSettings(steering_.get(), tokens);
      }
      const double biases = loss_.OfBiases(workload_.bias_mass_lost());
      sample_loss_ += tokens * (settings_loss_ + biases);
      loss_sum_ += tokens * (settings_loss_ + biases);
      bias_loss_sum_ += tokens * biases;
      sample_tokens_ += tokens;
      ++sample_steps_;
      run_.decoded_tokens += record_.decode_tokens;
      ++setting_steps_[setting_];
      NoteLatency(1e3 * (plant_.now_s() - work_since_s_));
      if (record_.prefill_tokens == 0) {
        double distinct = 0;
        for (const LayerRecord& layer : record_.layers) distinct += layer.distinct_experts;
        distinct_sum_ += distinct / static_cast<double>(record_.layers.size()) / layer_experts_;
        ++distinct_steps_;
      }
    }
    work_since_s_ = plant_.now_s();
  }

  void NoteLatency(double latency_ms) {
    ++latencies_;
    if (limits_.latency_ms > 0 && latency_ms > limits_.latency_ms) ++late_;
    ++latency_bins_[static_cast<int>(std::lround(std::log(std::max(latency_ms, 1e-6)) / std::log(kLatencyBin)))];
  }

  void Sample() {
    const double seconds = plant_.now_s() - sample_start_s_;
    if (!(seconds > 0)) return;
    SimSample sample;
    sample.time_s = plant_.now_s();
    sample.power_w = (plant_.energy_j() - sample_joules_) / seconds;
    sample.cap_w = limits_.power_w;
    sample.temp_c = plant_.temps_c()[kDie];
    sample.memory_temp_c = plant_.temps_c()[kMemory];
    sample.pause_frac = sample_pause_s_ / seconds;
    sample.busy_frac = std::min(1.0, sample_busy_s_ / seconds);
    sample.tokens_per_s = sample_tokens_ / seconds;
    sample.loss_nats = sample_tokens_ > 0 ? sample_loss_ / sample_tokens_ : 0;
    sample.batch = sample_steps_ > 0 ? sample_tokens_ / static_cast<double>(sample_steps_) : 0;
    sample.queued = workload_.queued();
    sample.setting = setting_;
    run_.samples.push_back(sample);
    pause_sum_s_ += sample_pause_s_;
    sample_start_s_ = plant_.now_s();
    sample_joules_ = plant_.energy_j();
    sample_pause_s_ = sample_busy_s_ = sample_tokens_ = sample_loss_ = 0;
    sample_steps_ = 0;
  }

  void Finish() {
    const auto tokens = static_cast<double>(std::max<int64_t>(run_.decoded_tokens, 1));
    run_.loss_nats = loss_sum_ / tokens;
    run_.bias_loss_nats = bias_loss_sum_ / tokens;
    run_.pause_frac = run_.seconds > 0 ? pause_sum_s_ / run_.seconds : 0;
    run_.distinct_frac = distinct_steps_ > 0 ? distinct_sum_ / static_cast<double>(distinct_steps_) : 0;
    run_.over_latency_frac = latencies_ > 0 ? static_cast<double>(late_) / static_cast<double>(latencies_) : 0;
    run_.queued_at_end = workload_.queued();
    int64_t seen = 0;
    for (const auto& [bin, count] : latency_bins_) {
      seen += count;
      if (static_cast<double>(seen) < 0.99 * static_cast<double>(latencies_)) continue;
      run_.latency_p99_ms = std::pow(kLatencyBin, bin);
      break;
    }
    int64_t most = 0;
    for (const auto& [setting, count] : setting_steps_) {
      if (count > most) most = count, run_.point = run_.settings[static_cast<size_t>(setting)];
    }
    MeasureDwells(scenario_, &run_);
  }

  const SimScenario& scenario_;
  const SimLoss& loss_;
  SimController controller_;
  Plant plant_;
  PlantSource source_;
  SimWorkload workload_;
  SimTttMode ttt_mode_;
  SimTtt ttt_;
  double layer_experts_;
  const ModelShape& shape_;
  StepShape step_;  // of Price(), kept for its memory
  SimRun run_;
  StepRecord record_;
  StepDecision decision_;
  std::shared_ptr<const Steering> steering_;
  SimLimits limits_;
  bool told_ = false, pausing_ = false;
  double noted_s_ = 0, work_since_s_ = 0;
  int32_t setting_ = 0;
  std::map<int32_t, int64_t> setting_steps_;
  std::map<int, int64_t> latency_bins_;
  int64_t latencies_ = 0, late_ = 0, distinct_steps_ = 0;
  double loss_batch_ = -1, settings_loss_ = 0, loss_sum_ = 0, bias_loss_sum_ = 0, distinct_sum_ = 0, pause_sum_s_ = 0;
  double sample_start_s_ = 0, sample_joules_ = 0, sample_pause_s_ = 0, sample_busy_s_ = 0, sample_tokens_ = 0, sample_loss_ = 0;
  int64_t sample_steps_ = 0;
};

}  // namespace

Result<SimRun> RunScenario(const SimScenario& scenario, const DeviceProfile& profile, const ModelShape& shape, const SimLoss& loss,
                           SimController controller, SimTttMode ttt, const std::function<bool(double)>& progress) {
  return Runner(scenario, profile, shape, loss, std::move(controller), ttt).Go(progress);
}

}  // namespace thermoe
