// SPDX-License-Identifier: Apache-2.0
// thermoe bench: prefill, decode and batched decode in tokens per second, beside the machine's memory bandwidth.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <optional>
#include <utility>

#include "bandwidth.h"
#include "base/cpu_name.h"
#include "base/errors.h"
#include "base/random.h"
#include "bench_peer.h"
#include "command.h"
#include "control_options.h"
#include "flags.h"
#include "help.h"
#include "interrupt.h"
#include "json_out.h"
#include "live.h"
#include "model_options.h"
#include "output.h"
#include "steering_options.h"
#include "table.h"
#include "telemetry_options.h"
#include "terminal.h"

namespace thermoe {
namespace {

constexpr const char* kGroup = "Bench options";
constexpr int kDecodePrompt = 8;  // ids before the first decoded token

const HelpPage kPage = {
    "thermoe bench [MODEL] [FLAGS...]",
    "Measures how fast a model reads a prompt (prefill), writes one text (decode) and writes many at once (batched "
    "decode), in tokens per second: the median over --repeat runs with their least and most, after one warm-up.\n"
    "\n"
    "Prompts are random token ids, and decode is teacher-forced with random ids: the work does not depend on what a "
    "model says, so settings and machines compare. Decode starts after a prompt of 8 ids.\n"
    "\n"
    "'bytes/token' counts the weights and the keys and values that a step touches, each matrix once per step, over "
    "its tokens. 'bandwidth' is that traffic per second as a share of this machine's read bandwidth, which is "
    "measured in the same run; a model that fits the processor's caches can pass 100 %.\n"
    "\n"
    "With --baseline, every test runs without steering first; 'gain' is how many times faster the steered one is, 'of "
    "experts' the same of the expert stage alone.\n"
    "\n"
    "'mJ/token' is what --telemetry counts, of steps of the test's kind over their tokens; an estimate where there is no sensor of "
    "power. With --telemetry plant:FILE the device, its time and its energy are simulated. With --telemetry-cost, every test "
    "runs with telemetry and without, in turn.\n"
    "\n"
    "With --vs, every round of tests is followed by a command of yours, so that noise meets both sides alike; 'times' is "
    "the median of the rounds' ratios. The command prints its tokens per second, one line a test in the order of the "
    "tests, or JSON with \"tokens_per_s\" or \"avg_ts\" (llama-bench -o json). It runs once more before all, as its warm-up.",
    " thermoe bench\n"
    " thermoe bench model.gguf --prefill 512,2048 --batch 8,32 --repeat 5\n"
    " thermoe bench model.gguf --experts nested --full-slots 0 --baseline\n"
    " thermoe bench --telemetry plant:h100\n"
    " thermoe bench --prefill 0 --batch 0 --repeat 200 --telemetry linux --telemetry-cost\n"
    " thermoe bench model.gguf --batch 0 --vs 'llama-bench -m model.gguf -p 512 -n 128 -r 1 -o json'"};

struct BenchFlags {
  ModelFlags model;
  SteeringFlags steering;
  ControlFlags control;
  std::vector<int> prefill = {512};
  int decode = 128;
  std::vector<int> batch = {8};
  int repeat = 5;
  uint64_t seed = 1;
  std::string vs;
  int vs_limit_s = 600;
  bool baseline = false;
  std::string telemetry = "auto";
  bool telemetry_cost = false;
  bool json = false;
  std::string live;  // AddLiveFlag
};

constexpr std::pair<const char*, double StageTimes::*> kStages[] = {
    {"embed", &StageTimes::embed_us},     {"attention", &StageTimes::attention_us}, {"gate", &StageTimes::gate_us},
    {"experts", &StageTimes::experts_us}, {"logits", &StageTimes::logits_us},       {"sample", &StageTimes::sample_us}};

struct Case {
  std::string name;
  int prefill = 0;  // ids of a prefill case, else 0
  int tokens = 0;   // per sequence
  int batch = 1;
};

struct Run {
  double seconds = 0, tokens = 0, bytes = 0, expert_bytes = 0;
  double joules = 0, estimated_frac = 0;  // of the steps that are counted
  EnergySource source = EnergySource::kNone;
  StageTimes stages;  // sums
};

// Of the rounds.
struct Spread {
  double median = 0, least = 0, most = 0;
};

// What telemetry adds to a step's time, over pairs of runs with and without.
struct PairedCost {
  double median_frac = 0, low_frac = 0, high_frac = 0;  // median and quartiles
  double error_frac = 0;                                // standard error of the median, were they normal
};

// Positions that one of its sequences takes.
int ContextOf(const Case& what) { return what.prefill > 0 ? what.prefill : kDecodePrompt + what.tokens + 1; }

// Where memory is short the engine names the flags of those who have --ctx and --parallel.
Status InFlagsOfBench(const Status& status) {
  if (status.code() != StatusCode::kResourceExhausted) return status;
  std::string text(status.message());
  const std::pair<std::string_view, std::string> flags[] = {{"--ctx or --window ", fmt::format("--prefill, or --decode and {}, of at most ", kDecodePrompt + 1)},
                                                            {"--parallel or --batch ", "--batch "}};
  for (const auto& [flag, ours] : flags) {
    for (size_t at = text.find(flag); at != std::string::npos; at = text.find(flag, at + ours.size())) text.replace(at, flag.size(), ours);
  }
  return ResourceExhausted("{}", text);
}

struct CaseResult {
  Case what;
  Spread rate;  // tokens per second
  double bytes_per_token = 0, expert_bytes_per_token = 0;
  StageTimes stages_per_token;  // of the fastest round
  std::optional<Spread> peer, ratio;  // --vs: its tokens per second; ours over its, round by round
  // --baseline: tokens per second without steering; how many times faster the step and its expert stage are with it.
  std::optional<Spread> plain, gain, experts_gain;
  std::optional<Spread> joules;  // per token
  EnergySource source = EnergySource::kNone;
  double estimated_frac = 0;     // the most of any round
  std::optional<PairedCost> telemetry_cost;
};

std::vector<Case> Cases(const BenchFlags& flags) {
  std::vector<Case> cases;
  for (const int tokens : flags.prefill) {
    if (tokens > 0) cases.push_back({fmt::format("prefill {}", tokens), tokens, tokens, 1});
  }
  if (flags.decode == 0) return cases;
  cases.push_back({"decode", 0, flags.decode, 1});
  for (const int batch : flags.batch) {
    if (batch > 1) cases.push_back({fmt::format("decode x{}", batch), 0, flags.decode, batch});
  }
  return cases;
}

std::vector<TokenId> RandomIds(Random* random, int count, int vocab) {
  std::vector<TokenId> ids(static_cast<size_t>(count));
  for (TokenId& id : ids) id = static_cast<TokenId>(random->Below(static_cast<uint64_t>(vocab)));
  return ids;
}

// Submits the case's sequences and runs them; counts steps of the kind that the case measures.
Result<Run> RunCase(Engine* engine, const Case& what, uint64_t seed, Live* live = nullptr) {
  Random random(seed);  // every test and round starts from the same ids
  const int vocab = engine->model().info().vocab;
  const bool prefill = what.prefill > 0;
  std::vector<RequestId> ids;
  for (int sequence = 0; sequence < what.batch; ++sequence) {
    Request request;
    request.prompt = RandomIds(&random, prefill ? what.prefill : kDecodePrompt, vocab);
    // One more than is timed: the first comes from the prompt's last row.
    if (!prefill) request.forced = RandomIds(&random, what.tokens + 1, vocab);
    request.max_new_tokens = static_cast<int>(request.forced.size());
    const Result<RequestId> id = engine->Submit(std::move(request));
    if (!id.ok()) return id.status();
    ids.push_back(*id);
  }
  Run run;
  const EnergyTotals before = engine->energy();
  std::vector<Event> events;
  while (true) {
    if (Interrupted()) return InterruptedStatus();
    events.clear();
    const double start_s = engine->now_s();
    const Result<bool> more = engine->Step(&events);
    double seconds = engine->now_s() - start_s;
    if (!more.ok()) return more.status();
    if (!*more) break;
    if (live != nullptr) live->AfterStep();
    const StepRecord& record = engine->last_step();
    seconds = std::max(seconds, 1e-6 * record.times.total_us);  // a device may have begun the step before it was asked for
    if (prefill != (record.prefill_tokens > 0)) continue;
    run.seconds += seconds;
    run.tokens += record.tokens;
    run.bytes += record.weight_bytes + record.kv_bytes;
    run.expert_bytes += record.expert_bytes;
    for (const auto& [name, stage] : kStages) run.stages.*stage += record.times.*stage;
  }
  for (const RequestId id : ids) {
    if (Result<RequestResult> result = engine->TakeResult(id); !result.ok()) return result.status();
  }
  engine->SettleEnergy(kSettle_s);
  const EnergyTotals after = engine->energy();
  const double total_j = after.total_j() - before.total_j();
  run.joules = prefill ? after.prefill_j - before.prefill_j : after.decode_j - before.decode_j;
  run.source = after.source;
  const double estimated_j = after.estimated_frac * after.total_j() - before.estimated_frac * before.total_j();
  run.estimated_frac = total_j > 0 ? std::clamp(estimated_j / total_j, 0.0, 1.0) : 0;
  return run;
}

Spread SpreadOf(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  const double median = values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
  return {median, values.front(), values.back()};
}

PairedCost PairedCostOf(std::vector<double> ratios) {
  std::sort(ratios.begin(), ratios.end());
  const auto at = [&](double frac) { return ratios[static_cast<size_t>(frac * static_cast<double>(ratios.size() - 1) + 0.5)] - 1; };
  PairedCost cost{SpreadOf(ratios).median - 1, at(0.25), at(0.75), 0};
  // sigma from the quartiles' distance; the median's own error is 1.2533 sigma / sqrt(n).
  cost.error_frac = 1.2533 * (cost.high_frac - cost.low_frac) / 1.349 / std::sqrt(static_cast<double>(ratios.size()));
  return cost;
}

// --telemetry-cost: the case without telemetry and with it, in an order that changes from round to round.
Result<double> TimesWithTelemetry(const BenchFlags& flags, const std::string& telemetry, Engine* engine, const Case& what, int round) {
  double seconds_per_token[2] = {};
  for (const bool second : {false, true}) {
    const bool with = second == (round % 2 == 0);
    THERMOE_RETURN_IF_ERROR(engine->SetTelemetry(with ? telemetry : "none"));
    const Result<Run> run = RunCase(engine, what, flags.seed);
    if (!run.ok()) return run.status();
    seconds_per_token[with] = run->seconds / run->tokens;
  }
  THERMOE_RETURN_IF_ERROR(engine->SetTelemetry(telemetry));
  return seconds_per_token[true] / seconds_per_token[false];
}

// Every test once a round, in turn, then the peer: what disturbs the machine for a while disturbs all of them.
Result<std::vector<CaseResult>> Measure(const BenchFlags& flags, const std::string& telemetry, Engine* engine,
                                        const std::vector<Case>& cases, ProgressBar* bar, Live* live) {
  std::vector<CaseResult> results(cases.size());
  for (size_t i = 0; i < cases.size(); ++i) results[i].what = cases[i];
  struct Rounds {
    std::vector<double> rates, peers, ratios, plain, gains, experts_gains, joules, with_telemetry;
  };
  std::vector<Rounds> rounds(cases.size());
  for (int round = 0; round <= flags.repeat; ++round) {  // round 0 warms up: pages of the file are read, threads awake
    for (size_t i = 0; i < cases.size(); ++i) {
      std::optional<Run> plain;
      if (flags.baseline) {
        THERMOE_RETURN_IF_ERROR(engine->SetSteering(nullptr));
        Result<Run> run = RunCase(engine, cases[i], flags.seed);
        if (!run.ok()) return run.status();
        plain = *run;
        THERMOE_RETURN_IF_ERROR(ApplySteering(flags.steering, engine));
      }
      if (flags.telemetry_cost) {
        const Result<double> times = TimesWithTelemetry(flags, telemetry, engine, cases[i], round);
        if (!times.ok()) return times.status();
        if (round > 0) rounds[i].with_telemetry.push_back(*times);
      }
      if (live != nullptr) live->ClearText(), live->AddText(fmt::format("round {} of {}: {}", round, flags.repeat, cases[i].name));
      const Result<Run> run = RunCase(engine, cases[i], flags.seed, live);
      if (!run.ok()) return run.status();
      const double done = round + static_cast<double>(i + 1) / static_cast<double>(cases.size());
      if (live == nullptr) bar->Update(done / (flags.repeat + 1));
      if (round == 0) continue;
      const double rate = run->tokens / run->seconds;
      std::vector<double>& rates = rounds[i].rates;
      if (rates.empty() || rate > *std::max_element(rates.begin(), rates.end())) {
        for (const auto& [name, stage] : kStages) results[i].stages_per_token.*stage = run->stages.*stage / run->tokens;
      }
      rates.push_back(rate);
      if (plain) {
        rounds[i].plain.push_back(plain->tokens / plain->seconds);
        rounds[i].gains.push_back(rate / rounds[i].plain.back());
        if (run->stages.experts_us > 0) rounds[i].experts_gains.push_back(plain->stages.experts_us / plain->tokens / (run->stages.experts_us / run->tokens));
      }
      rounds[i].joules.push_back(run->joules / run->tokens);
      results[i].source = run->source;
      results[i].estimated_frac = std::max(results[i].estimated_frac, run->estimated_frac);
      results[i].bytes_per_token = run->bytes / run->tokens;
      results[i].expert_bytes_per_token = run->expert_bytes / run->tokens;
    }
    if (flags.vs.empty() || round == 0) continue;
    const Result<std::vector<double>> peer = RunPeer(flags.vs, cases.size(), flags.vs_limit_s);
    if (!peer.ok()) return peer.status();
    for (size_t i = 0; i < cases.size(); ++i) {
      rounds[i].peers.push_back((*peer)[i]);
      rounds[i].ratios.push_back(rounds[i].rates.back() / (*peer)[i]);
    }
  }
  for (size_t i = 0; i < cases.size(); ++i) {
    results[i].rate = SpreadOf(rounds[i].rates);
    if (results[i].source != EnergySource::kNone) results[i].joules = SpreadOf(rounds[i].joules);
    if (flags.telemetry_cost) results[i].telemetry_cost = PairedCostOf(rounds[i].with_telemetry);
    if (flags.baseline) {
      results[i].plain = SpreadOf(rounds[i].plain);
      results[i].gain = SpreadOf(rounds[i].gains);
      if (!rounds[i].experts_gains.empty()) results[i].experts_gain = SpreadOf(rounds[i].experts_gains);
    }
    if (flags.vs.empty()) continue;
    results[i].peer = SpreadOf(rounds[i].peers);
    results[i].ratio = SpreadOf(rounds[i].ratios);
  }
  return results;
}

Json SpreadJson(const Spread& spread) { return {{"median", spread.median}, {"min", spread.least}, {"max", spread.most}}; }

Json LoadJson(const DeviceLoad& load) {
  if (load.bytes == 0) return {};
  const auto bytes = static_cast<double>(load.bytes);
  return {{"bytes", load.bytes}, {"gbps", 1e-9 * bytes / load.seconds}, {"read_gbps", 1e-9 * bytes / load.read_seconds}, {"link_gbps", load.link_gbps}};
}

std::string LoadText(const DeviceLoad& load) {
  const double gbps = 1e-9 * static_cast<double>(load.bytes) / load.seconds;
  return fmt::format("{} onto the GPU in {:.2f} s: {:.1f} GB/s, {:.0f} % of what the link does ({:.1f}); reading them took {:.2f} s",
                     BytesText(static_cast<double>(load.bytes)), load.seconds, gbps, 100 * gbps / load.link_gbps, load.link_gbps, load.read_seconds);
}

// Of the speed of the memory that the model is in. read_gbps: 0 where that is not known, as of a simulated device.
std::optional<double> BandwidthShare(const CaseResult& result, double read_gbps) {
  if (read_gbps <= 0) return std::nullopt;
  return result.rate.median * result.bytes_per_token / (read_gbps * 1e9);
}

std::string MemoryText(const Engine& engine, double read_gbps) {
  if (read_gbps > 0) {
    return fmt::format("{}reads {:.1f} GB/s, measured in this run", engine.device_load().bytes > 0 ? "of the GPU, " : "", read_gbps);
  }
  return engine.telemetry().simulated ? "simulated" : "its speed is not known: the GPU has too little left to measure it";
}

Status PrintJson(const BenchFlags& flags, const Engine& engine, const ControlView& view, double read_gbps,
               const std::vector<CaseResult>& results) {
  Json json = NewDocument();
  json["model"] = ModelJson(engine.model().info());
  Json device;
  device["cpu"] = CpuName();
  device["engine"] = engine.Describe();
  device["memory_read_gbps"] = read_gbps > 0 ? Json(read_gbps) : Json();
  device["telemetry"] = TelemetryJson(engine.telemetry());
  device["cost_model"] = CostJson(engine.cost_view());
  device["load"] = LoadJson(engine.device_load());
  json["device"] = std::move(device);
  json["steering"] = SteeringJson(flags.steering);
  json["control"] = ControlJson(view);
  json["repeat"] = flags.repeat;
  json["seed"] = flags.seed;
  json["vs"] = flags.vs.empty() ? Json() : Json(flags.vs);
  json["results"] = Json::array();
  for (const CaseResult& result : results) {
    Json entry;
    entry["name"] = result.what.name;
    entry["tokens"] = result.what.tokens;
    entry["batch"] = result.what.batch;
    entry["tokens_per_s"] = SpreadJson(result.rate);
    entry["bytes_per_token"] = result.bytes_per_token;
    entry["expert_bytes_per_token"] = result.expert_bytes_per_token;
    const bool simulated = engine.telemetry().simulated;  // which is not this machine
    // Nor are stages known of a GPU, which takes a step as a whole.
    const bool no_stages = simulated || result.stages_per_token.experts_us == 0;
    for (const auto& [name, stage] : kStages) {
      entry["stage_us_per_token"][name] = no_stages ? Json() : Json(result.stages_per_token.*stage);
    }
    const std::optional<double> share = BandwidthShare(result, read_gbps);
    entry["bandwidth_frac"] = share ? Json(*share) : Json();
    entry["joules_per_token"] = result.joules ? SpreadJson(*result.joules) : Json();
    entry["energy_source"] = EnergySourceName(result.source);
    entry["energy_estimated_frac"] = result.joules ? Json(result.estimated_frac) : Json();
    entry["telemetry_cost_frac"] = Json();
    if (const auto& cost = result.telemetry_cost) {
      entry["telemetry_cost_frac"] = {{"median", cost->median_frac},
                                      {"low_quartile", cost->low_frac},
                                      {"high_quartile", cost->high_frac},
                                      {"error", cost->error_frac}};
    }
    entry["vs_tokens_per_s"] = result.peer ? SpreadJson(*result.peer) : Json();
    entry["ratio"] = result.ratio ? SpreadJson(*result.ratio) : Json();
    entry["plain_tokens_per_s"] = result.plain ? SpreadJson(*result.plain) : Json();
    entry["gain"] = result.gain ? SpreadJson(*result.gain) : Json();
    entry["experts_gain"] = result.experts_gain ? SpreadJson(*result.experts_gain) : Json();
    json["results"].push_back(std::move(entry));
  }
  return PrintJsonLine(json);
}

// How the joules are known, for the column's title.
std::string EnergyNote(const std::vector<CaseResult>& results) {
  double estimated_frac = 0;
  for (const CaseResult& result : results) estimated_frac = std::max(estimated_frac, result.estimated_frac);
  const std::string label = EnergyLabel(results.front().source);
  if (!label.empty()) return " (" + label + ")";
  return estimated_frac > 0.05 ? fmt::format(" (up to {:.0f} % estimate)", 100 * estimated_frac) : "";
}

void PrintReport(const BenchFlags& flags, const Engine& engine, double read_gbps,
                 const std::vector<CaseResult>& results) {
  const ModelInfo& info = engine.model().info();
  PrintFields({{"model", fmt::format("{}, {}, experts {}", info.path, info.architecture, info.expert_type)},
               {"machine", CpuName()},
               {"engine", engine.Describe()},
               {"memory", MemoryText(engine, read_gbps)},
               {"telemetry", engine.telemetry().name + (engine.telemetry().simulated ? ": times and joules are simulated" : "")},
               {"runs", fmt::format("{} of each{} after one warm-up", flags.repeat,
                                    flags.vs.empty() ? "" : ", alternating with --vs,")}});
  Print("\n");
  std::vector<std::string> titles = {"test", "tokens/s", "least", "most", "bytes/token", "bandwidth"};
  const bool energy = !results.empty() && results.front().joules;
  if (energy) titles.push_back("mJ/token" + EnergyNote(results));
  if (flags.telemetry_cost) titles.insert(titles.end(), {"telemetry costs", "std. error", "quartiles"});
  if (flags.baseline) titles.insert(titles.end(), {"plain tokens/s", "gain", "of experts"});
  if (!flags.vs.empty()) titles.insert(titles.end(), {"--vs tokens/s", "times", "from", "to"});
  Table table(std::move(titles));
  for (const CaseResult& result : results) {
    const auto rate = [](double value) { return fmt::format("{:.1f}", value); };
    const std::optional<double> share = BandwidthShare(result, read_gbps);
    std::vector<std::string> row = {result.what.name, rate(result.rate.median), rate(result.rate.least), rate(result.rate.most),
                                    BytesText(result.bytes_per_token),
                                    share ? fmt::format("{:.1f} %", 100 * *share) : "-"};
    if (energy) row.push_back(fmt::format("{:.3g}", 1e3 * result.joules->median));
    if (const auto& cost = result.telemetry_cost) {
      row.insert(row.end(), {fmt::format("{:+.2f} %", 100 * cost->median_frac), fmt::format("{:.2f} %", 100 * cost->error_frac),
                             fmt::format("{:+.2f} to {:+.2f} %", 100 * cost->low_frac, 100 * cost->high_frac)});
    }
    const auto times = [](double value) { return fmt::format("{:.2f}", value); };
    if (result.gain) row.insert(row.end(), {rate(result.plain->median), times(result.gain->median), result.experts_gain ? times(result.experts_gain->median) : "-"});
    if (result.ratio) {
      row.insert(row.end(), {rate(result.peer->median), times(result.ratio->median), times(result.ratio->least),
                             times(result.ratio->most)});
    }
    table.Add(std::move(row));
  }
  table.Print();
  if (engine.device_load().bytes > 0) Print("\nloaded: " + LoadText(engine.device_load()) + "\n");
  if (const std::string text = CostText(engine.cost_view()); !text.empty()) Print("\ncost model: " + text + "\n");
}

Status Bench(BenchFlags flags) {
  THERMOE_RETURN_IF_ERROR(ResolveControl(&flags.control, &flags.steering, &flags.telemetry));
  if (flags.control.on() && (flags.baseline || flags.telemetry_cost)) {
    return InvalidArgument("{} changes the engine between runs; it does not go with the control loop",
                           flags.baseline ? "--baseline" : "--telemetry-cost");
  }
  THERMOE_RETURN_IF_ERROR(CheckSteering(flags.steering));
  if (flags.baseline && !flags.steering.steers()) {
    return InvalidArgument("--baseline compares with no steering; give a steering flag, for example --k-max 6");
  }
  const Result<std::string> telemetry = ResolveTelemetry(flags.telemetry);
  if (!telemetry.ok()) return telemetry.status();
  const bool plant = telemetry->starts_with("plant:");
  if (plant && (!flags.vs.empty() || flags.telemetry_cost)) {
    return InvalidArgument("{} measures real time; it does not go with the virtual time of --telemetry {}",
                           flags.telemetry_cost ? "--telemetry-cost" : "--vs", flags.telemetry);
  }
  if (flags.telemetry_cost && flags.telemetry == "none") {
    return InvalidArgument("--telemetry-cost compares with none; give --telemetry a source");
  }
  const std::vector<Case> cases = Cases(flags);
  if (cases.empty()) return InvalidArgument("nothing to measure; give --prefill or --decode above 0");
  // The peer's warm-up, first of all: a command that does not work is known at once.
  if (!flags.vs.empty()) THERMOE_RETURN_IF_ERROR(RunPeer(flags.vs, cases.size(), flags.vs_limit_s).status());
  EngineOptions options = EngineOptionsFrom(flags.model);
  options.telemetry = *telemetry;
  for (const Case& what : cases) {
    options.context = std::max(options.context, ContextOf(what));
    options.max_sequences = std::max(options.max_sequences, what.batch);
  }
  Result<OpenedModel> opened = OpenModel(flags.model, flags.steering.storage(), /*to_run=*/true, &options);
  if (!opened.ok()) return InFlagsOfBench(opened.status());
  Result<ControlOptions> control =
      ControlOptionsFrom(flags.control, flags.steering, opened->model->info(), *telemetry, /*keeps_state=*/false);
  if (!control.ok()) return control.status();
  options.control = std::move(*control);
  for (const Case& what : cases) {
    const int held = opened->model->info().context;
    if (ContextOf(what) > held) {
      return InvalidArgument("{} needs a context of {} tokens but the model has {}; choose a smaller {}", what.name,
                             ContextOf(what), held, what.prefill > 0 ? "--prefill" : "--decode");
    }
  }
  Result<std::unique_ptr<Engine>> engine = Engine::Create(opened->model, options);
  if (!engine.ok()) return InFlagsOfBench(engine.status());
  if (!flags.control.on()) THERMOE_RETURN_IF_ERROR(ApplySteering(flags.steering, engine->get()));
  // Of the memory that the model is in; 0: not known.
  const bool on_gpu = (*engine)->device_load().bytes > 0;
  const double read_gbps = plant    ? 0
                           : on_gpu ? (*engine)->MeasureDeviceReadGbps()
                                    : MeasureReadGbps(flags.model.threads > 0 ? flags.model.threads : UsableThreads());
  ProgressBar bar("bench");
  std::unique_ptr<Live> live = Live::Start(flags.live, engine->get());
  const Result<std::vector<CaseResult>> results = Measure(flags, *telemetry, engine->get(), cases, &bar, live.get());
  if (live != nullptr) live->Finish();
  live.reset();
  bar.Clear();
  if (!results.ok()) return results.status();
  THERMOE_RETURN_IF_ERROR((*engine)->SaveControl());
  if (flags.json) return PrintJson(flags, **engine, (*engine)->control_view(), read_gbps, *results);
  PrintReport(flags, **engine, read_gbps, *results);
  if (const std::string text = ControlText((*engine)->control_view()); !text.empty()) Print("\n" + text + "\n");
  return Status::Ok();
}

}  // namespace

Command MakeBenchCommand(CLI::App* root) {
  CLI::App* app = root->add_subcommand("bench", "measure tokens per second and bytes moved");
  auto flags = std::make_shared<BenchFlags>();
  SetHelpPage(app, kPage);
  AddModelArgument(app, &flags->model, /*required=*/false);
  AddNumberList(app, "--prefill", &flags->prefill, {0, 1 << 24}, "Prompt lengths; default 512. 0: no prefill.")
      ->group(kGroup);
  AddNumber(app, "--decode", &flags->decode, {0, 1 << 24}, "Tokens to decode; default 128. 0: no decode.")
      ->group(kGroup);
  AddNumberList(app, "--batch", &flags->batch, {0, 4096}, "Sequences decoded together; default 8. 0: none.")
      ->group(kGroup);
  AddNumber(app, "--repeat", &flags->repeat, {1, 1000}, "Timed runs of each test; default 5.")->group(kGroup);
  AddNumber(app, "--seed", &flags->seed, {0, kMostSeed}, "Seed of the random ids; default 1.")->group(kGroup);
  app->add_flag("--baseline", flags->baseline, "Run each test without steering too, right before, and compare.")->group(kGroup);
  app->add_option("--vs", flags->vs, "Alternate with this shell command and compare.")
      ->check([](const std::string& text) { return text.empty() ? "must be a command but is empty" : std::string(); })
      ->type_name("CMD")
      ->group(kGroup);
  AddNumber(app, "--vs-limit", &flags->vs_limit_s, {1, 86400}, "Seconds that a run of --vs may take; default 600.")->group(kGroup);
  AddSteeringFlags(app, &flags->steering);
  AddEngineFlags(app, &flags->model);
  AddTelemetryFlag(app, &flags->telemetry);
  AddControlFlags(app, &flags->control);
  app->add_flag("--telemetry-cost", flags->telemetry_cost, "Run each test with telemetry and without, and compare.")->group(kGroup);
  AddLiveFlag(app, &flags->live);
  app->add_flag("--json", flags->json, "Print one JSON object; errors become JSON too.")->group("Output options");
  return {app, [flags] { return Bench(*flags); }};
}

}  // namespace thermoe
