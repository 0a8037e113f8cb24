// SPDX-License-Identifier: Apache-2.0
#include "control/simulate/sim_routers.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "base/errors.h"

namespace thermoe {
namespace {

constexpr std::string_view kStatic = "static:";
constexpr std::string_view kBest = "static:best";

struct Job {
  std::string router;
  SimRouterKind kind = SimRouterKind::kPlain;
  OperatingPoint point;
  bool q4 = false;
  SimTttMode ttt = SimTttMode::kOff;
};

Result<SimRun> RunJob(const SimSetup& setup, const PointLoss& plain_loss, const Job& job, const std::function<bool(double)>& progress) {
  SimSetup own = setup;
  if (job.q4) {
    SimModel model = setup.scenario->model;
    model.type = DType::kQ4_0;
    model.nested = false;
    Result<ModelShape> shape = SimModelShape(model);
    if (!shape.ok()) return shape.status();
    own.shape = std::move(shape).value();
  }
  const PointLoss loss = plain_loss.WithExtra(job.q4 ? kQ4Loss_nats : 0);
  Result<SimController> controller = MakeSimController(own, job.kind, job.point);
  if (!controller.ok()) return controller.status();
  Result<SimRun> run = RunScenario(*own.scenario, *own.profile, own.shape, loss, std::move(controller).value(), job.ttt, progress);
  if (run.ok()) run->router = job.router;
  return run;
}

// Runs all, each as it would run alone. The first error in the order of `jobs` counts.
Result<std::vector<SimRun>> RunJobs(const SimSetup& setup, const PointLoss& loss, const std::vector<Job>& jobs, int threads,
                                    const std::function<bool(double)>& progress) {
  std::vector<std::optional<Result<SimRun>>> results(jobs.size());
  std::vector<double> done(jobs.size());
  std::atomic<size_t> next = 0;
  std::atomic<bool> stopped = false;
  std::mutex mutex;
  const auto work = [&] {
    for (size_t i = next++; i < jobs.size(); i = next++) {
      results[i] = RunJob(setup, loss, jobs[i], [&, i](double frac) {
        const std::scoped_lock lock(mutex);
        done[i] = frac;
        double sum = 0;
        for (const double each : done) sum += each;
        if (progress && !stopped && !progress(sum / static_cast<double>(jobs.size()))) stopped = true;
        return !stopped;
      });
      const std::scoped_lock lock(mutex);
      done[i] = 1;
    }
  };
  std::vector<std::thread> team;
  for (size_t t = 1; t < std::min<size_t>(static_cast<size_t>(std::max(threads, 1)), jobs.size()); ++t) team.emplace_back(work);
  work();
  for (std::thread& thread : team) thread.join();
  std::vector<SimRun> runs;
  for (std::optional<Result<SimRun>>& result : results) {
    if (!result->ok()) return result->status();
    runs.push_back(std::move(*result).value());
  }
  return {std::move(runs)};
}

// Static points worth trying: the fronts of both columns as far as the floor of a step allows at the largest batch.
std::vector<Job> StaticJobs(const SimSetup& setup) {
  const std::vector<OperatingPoint>& points = setup.points.points;
  std::vector<size_t> chosen = ParetoFront(points, &OperatingPoint::batch16);
  for (const size_t i : ParetoFront(points, &OperatingPoint::batch1)) {
    if (std::find(chosen.begin(), chosen.end(), i) == chosen.end()) chosen.push_back(i);
  }
  const double batch = setup.scenario->load.max_batch;
  std::vector<Job> jobs;
  for (const size_t i : chosen) {
    if (LossAtBatch(points[i], batch) > setup.scenario->quality_floor_nats) continue;
    jobs.push_back({std::string(kStatic) + Describe(points[i]), SimRouterKind::kStatic, points[i], false, SimTttMode::kOff});
  }
  return jobs;
}

double TokensPerJoule(const SimRun& run) { return run.energy_j > 0 ? static_cast<double>(run.decoded_tokens) / run.energy_j : 0; }

}  // namespace

Result<SimResults> Simulate(const SimSetup& setup, int threads, const std::function<bool(double)>& progress) {
  std::vector<Job> jobs;
  bool wants_best = false;
  for (const std::string& full : setup.scenario->routers) {
    const size_t plus = full.find("+ttt");
    const std::string router = full.substr(0, plus);
    Job job{full, SimRouterKind::kPlain, {}, router == "q4", SimTttMode::kOff};
    if (plus != std::string::npos) job.ttt = full.ends_with("-always") ? SimTttMode::kAlways : SimTttMode::kAuto;
    if (router == kBest && plus != std::string::npos) return InvalidArgument("{}: static:best learns nothing; name a point instead", full);
    wants_best = wants_best || router == kBest;
    if (router == kBest) continue;
    if (router == "adaptive") job.kind = SimRouterKind::kAdaptive;
    if (router == "adaptive-no-adapter") job.kind = SimRouterKind::kAdaptiveNoAdapter;
    if (router == "adaptive-adapter") job.kind = SimRouterKind::kAdaptiveAdapter;
    if (router == "adaptive-no-gather") job.kind = SimRouterKind::kAdaptiveNoGather;
    if (router.starts_with(kStatic)) {
      Result<OperatingPoint> point = FindPoint(setup.points, router.substr(kStatic.size()));
      if (!point.ok()) return point.status();
      job.kind = SimRouterKind::kStatic;
      job.point = std::move(point).value();
    }
    jobs.push_back(std::move(job));
  }
  const size_t named = jobs.size();
  if (wants_best) {
    for (Job& job : StaticJobs(setup)) jobs.push_back(std::move(job));
    if (jobs.size() == named) {
      return InvalidArgument("{}: no operating point loses at most the quality floor of {} nats; raise limits.quality_floor_nats",
                             setup.scenario->path, setup.scenario->quality_floor_nats);
    }
  }
  const PointLoss loss(setup.points, setup.shape);
  Result<std::vector<SimRun>> ran = RunJobs(setup, loss, jobs, threads, progress);
  if (!ran.ok()) return ran.status();
  std::vector<SimRun> all = std::move(ran).value();
  SimResults results;
  results.statics.assign(std::make_move_iterator(all.begin() + static_cast<std::ptrdiff_t>(named)), std::make_move_iterator(all.end()));
  std::stable_sort(results.statics.begin(), results.statics.end(),
                   [](const SimRun& a, const SimRun& b) { return a.loss_nats < b.loss_nats; });
  size_t next = 0;
  for (const std::string& router : setup.scenario->routers) {
    if (router != kBest) {
      results.runs.push_back(std::move(all[next++]));
      continue;
    }
    const SimScenario& scenario = *setup.scenario;
    const double most_nats = scenario.quality_budget_nats > 0 ? scenario.quality_budget_nats : scenario.quality_floor_nats;
    const SimRun* best = BestStatic(results.statics, most_nats);
    if (best == nullptr) {
      return InvalidArgument("{}: every static point loses more than {} nats at this load; raise limits.quality_floor_nats", scenario.path,
                             most_nats);
    }
    results.runs.push_back(*best);
    results.runs.back().router = router;
  }
  results.nats_per_mass = loss.nats_per_mass();
  return {std::move(results)};
}

// Most tokens for a joule: under a cap, where the watts are given, that is most tokens a second as well.
const SimRun* BestStatic(const std::vector<SimRun>& statics, double loss_nats) {
  const SimRun* best = nullptr;
  for (const SimRun& run : statics) {
    if (run.loss_nats <= loss_nats && (best == nullptr || TokensPerJoule(run) > TokensPerJoule(*best))) best = &run;
  }
  return best;
}

// A mix of two points costs the mix of their joules per token at the mix of their losses: the lower hull of joules over loss.
double StaticTokensPerJoule(const std::vector<SimRun>& statics, double loss_nats) {
  double least_j = 0;
  const auto take = [&](double joules) {
    if (joules > 0 && (least_j == 0 || joules < least_j)) least_j = joules;
  };
  for (const SimRun& a : statics) {
    if (a.loss_nats <= loss_nats) take(a.joules_per_token());
    for (const SimRun& b : statics) {
      if (!(a.loss_nats < loss_nats && b.loss_nats > loss_nats)) continue;
      const double share = (loss_nats - a.loss_nats) / (b.loss_nats - a.loss_nats);
      take(a.joules_per_token() + share * (b.joules_per_token() - a.joules_per_token()));
    }
  }
  return least_j > 0 ? 1 / least_j : 0;
}

}  // namespace thermoe
