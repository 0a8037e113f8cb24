// SPDX-License-Identifier: Apache-2.0
// thermoe bench: prefill, decode and batched decode in tokens per second, beside the machine's memory bandwidth.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <optional>
#include <utility>

#include "bandwidth.h"
#include "base/errors.h"
#include "base/random.h"
#include "bench_peer.h"
#include "command.h"
#include "flags.h"
#include "help.h"
#include "interrupt.h"
#include "json_out.h"
#include "model_options.h"
#include "output.h"
#include "steering_options.h"
#include "table.h"
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
    "With --vs, every round of tests is followed by a command of yours, so that noise meets both sides alike; 'times' is "
    "the median of the rounds' ratios. The command prints its tokens per second, one line a test in the order of the "
    "tests, or JSON with \"tokens_per_s\" or \"avg_ts\" (llama-bench -o json).",
    " thermoe bench\n"
    " thermoe bench model.gguf --prefill 512,2048 --batch 8,32 --repeat 5\n"
    " thermoe bench model.gguf --experts nested --full-slots 0 --baseline\n"
    " thermoe bench model.gguf --batch 0 --vs 'llama-bench -m model.gguf -p 512 -n 128 -r 1 -o json'"};

struct BenchFlags {
  ModelFlags model;
  SteeringFlags steering;
  std::vector<int> prefill = {512};
  int decode = 128;
  std::vector<int> batch = {8};
  int repeat = 5;
  uint64_t seed = 1;
  std::string vs;
  bool baseline = false;
  bool json = false;
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
  StageTimes stages;  // sums
};

// Of the rounds.
struct Spread {
  double median = 0, least = 0, most = 0;
};

struct CaseResult {
  Case what;
  Spread rate;  // tokens per second
  double bytes_per_token = 0, expert_bytes_per_token = 0;
  StageTimes stages_per_token;  // of the fastest round
  std::optional<Spread> peer, ratio;  // --vs: its tokens per second; ours over its, round by round
  // --baseline: tokens per second without steering; how many times faster the step and its expert stage are with it.
  std::optional<Spread> plain, gain, experts_gain;
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
Result<Run> RunCase(Engine* engine, const Case& what, uint64_t seed) {
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
  std::vector<Event> events;
  while (true) {
    if (Interrupted()) return InterruptedStatus();
    events.clear();
    const auto start = std::chrono::steady_clock::now();
    const Result<bool> more = engine->Step(&events);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    if (!more.ok()) return more.status();
    if (!*more) break;
    const StepRecord& record = engine->last_step();
    if (prefill != (record.prefill_tokens > 0)) continue;
    run.seconds += seconds.count();
    run.tokens += record.tokens;
    run.bytes += record.weight_bytes + record.kv_bytes;
    run.expert_bytes += record.expert_bytes;
    for (const auto& [name, stage] : kStages) run.stages.*stage += record.times.*stage;
  }
  for (const RequestId id : ids) {
    if (Result<RequestResult> result = engine->TakeResult(id); !result.ok()) return result.status();
  }
  return run;
}

Spread SpreadOf(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  const double median = values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
  return {median, values.front(), values.back()};
}

// Every test once a round, in turn, then the peer: what disturbs the machine for a while disturbs all of them.
Result<std::vector<CaseResult>> Measure(const BenchFlags& flags, Engine* engine, const std::vector<Case>& cases, ProgressBar* bar) {
  std::vector<CaseResult> results(cases.size());
  for (size_t i = 0; i < cases.size(); ++i) results[i].what = cases[i];
  struct Rounds {
    std::vector<double> rates, peers, ratios, plain, gains, experts_gains;
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
      const Result<Run> run = RunCase(engine, cases[i], flags.seed);
      if (!run.ok()) return run.status();
      const double done = round + static_cast<double>(i + 1) / static_cast<double>(cases.size());
      bar->Update(done / (flags.repeat + 1));
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
        rounds[i].experts_gains.push_back(plain->stages.experts_us / plain->tokens / (run->stages.experts_us / run->tokens));
      }
      results[i].bytes_per_token = run->bytes / run->tokens;
      results[i].expert_bytes_per_token = run->expert_bytes / run->tokens;
    }
    if (flags.vs.empty()) continue;
    const Result<std::vector<double>> peer = RunPeer(flags.vs, cases.size());
    if (!peer.ok()) return peer.status();
    for (size_t i = 0; round > 0 && i < cases.size(); ++i) {
      rounds[i].peers.push_back((*peer)[i]);
      rounds[i].ratios.push_back(rounds[i].rates.back() / (*peer)[i]);
    }
  }
  for (size_t i = 0; i < cases.size(); ++i) {
    results[i].rate = SpreadOf(rounds[i].rates);
    if (flags.baseline) {
      results[i].plain = SpreadOf(rounds[i].plain);
      results[i].gain = SpreadOf(rounds[i].gains);
      results[i].experts_gain = SpreadOf(rounds[i].experts_gains);
    }
    if (flags.vs.empty()) continue;
    results[i].peer = SpreadOf(rounds[i].peers);
    results[i].ratio = SpreadOf(rounds[i].ratios);
  }
  return results;
}

Json SpreadJson(const Spread& spread) { return {{"median", spread.median}, {"min", spread.least}, {"max", spread.most}}; }

Status PrintJson(const BenchFlags& flags, const Engine& engine, double read_gbps,
               const std::vector<CaseResult>& results) {
  Json json = NewDocument();
  json["model"] = ModelJson(engine.model().info());
  Json device;
  device["cpu"] = CpuName();
  device["engine"] = engine.Describe();
  device["memory_read_gbps"] = read_gbps;
  json["device"] = std::move(device);
  json["steering"] = SteeringJson(flags.steering);
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
    for (const auto& [name, stage] : kStages) entry["stage_us_per_token"][name] = result.stages_per_token.*stage;
    entry["bandwidth_frac"] = result.rate.median * result.bytes_per_token / (read_gbps * 1e9);
    entry["vs_tokens_per_s"] = result.peer ? SpreadJson(*result.peer) : Json();
    entry["ratio"] = result.ratio ? SpreadJson(*result.ratio) : Json();
    entry["plain_tokens_per_s"] = result.plain ? SpreadJson(*result.plain) : Json();
    entry["gain"] = result.gain ? SpreadJson(*result.gain) : Json();
    entry["experts_gain"] = result.experts_gain ? SpreadJson(*result.experts_gain) : Json();
    json["results"].push_back(std::move(entry));
  }
  return PrintJsonLine(json);
}

void PrintReport(const BenchFlags& flags, const Engine& engine, double read_gbps,
                 const std::vector<CaseResult>& results) {
  const ModelInfo& info = engine.model().info();
  PrintFields({{"model", fmt::format("{}, {}, experts {}", info.path, info.architecture, info.expert_type)},
               {"machine", CpuName()},
               {"engine", engine.Describe()},
               {"memory", fmt::format("reads {:.1f} GB/s, measured in this run", read_gbps)},
               {"runs", fmt::format("{} of each{} after one warm-up", flags.repeat,
                                    flags.vs.empty() ? "" : ", alternating with --vs,")}});
  Print("\n");
  std::vector<std::string> titles = {"test", "tokens/s", "least", "most", "bytes/token", "bandwidth"};
  if (flags.baseline) titles.insert(titles.end(), {"plain tokens/s", "gain", "of experts"});
  if (!flags.vs.empty()) titles.insert(titles.end(), {"--vs tokens/s", "times", "from", "to"});
  Table table(std::move(titles));
  for (const CaseResult& result : results) {
    const auto rate = [](double value) { return fmt::format("{:.1f}", value); };
    std::vector<std::string> row = {result.what.name, rate(result.rate.median), rate(result.rate.least), rate(result.rate.most),
                                    BytesText(result.bytes_per_token),
                                    fmt::format("{:.1f} %", 100 * result.rate.median * result.bytes_per_token / (read_gbps * 1e9))};
    const auto times = [](double value) { return fmt::format("{:.2f}", value); };
    if (result.gain) row.insert(row.end(), {rate(result.plain->median), times(result.gain->median), times(result.experts_gain->median)});
    if (result.ratio) {
      row.insert(row.end(), {rate(result.peer->median), times(result.ratio->median), times(result.ratio->least),
                             times(result.ratio->most)});
    }
    table.Add(std::move(row));
  }
  table.Print();
}

Status Bench(const BenchFlags& flags) {
  THERMOE_RETURN_IF_ERROR(CheckSteering(flags.steering));
  if (flags.baseline && !flags.steering.steers()) {
    return InvalidArgument("--baseline compares with no steering; give a steering flag, for example --k-max 6");
  }
  const std::vector<Case> cases = Cases(flags);
  if (cases.empty()) return InvalidArgument("nothing to measure; give --prefill or --decode above 0");
  Result<OpenedModel> opened = OpenModel(flags.model, flags.steering.storage());
  if (!opened.ok()) return opened.status();
  EngineOptions options = EngineOptionsFrom(flags.model);
  for (const Case& what : cases) {
    const int needed = what.prefill > 0 ? what.prefill : kDecodePrompt + what.tokens + 1;
    const int held = opened->model->info().context;
    if (needed > held) {
      return InvalidArgument("{} needs a context of {} tokens but the model has {}; choose a smaller {}", what.name,
                             needed, held, what.prefill > 0 ? "--prefill" : "--decode");
    }
    options.context = std::max(options.context, needed);
    options.max_sequences = std::max(options.max_sequences, what.batch);
  }
  Result<std::unique_ptr<Engine>> engine = Engine::Create(opened->model, options);
  if (!engine.ok()) return engine.status();
  THERMOE_RETURN_IF_ERROR(ApplySteering(flags.steering, engine->get()));
  const double read_gbps = MeasureReadGbps(flags.model.threads > 0 ? flags.model.threads : UsableThreads());
  ProgressBar bar("bench");
  const Result<std::vector<CaseResult>> results = Measure(flags, engine->get(), cases, &bar);
  bar.Clear();
  if (!results.ok()) return results.status();
  if (flags.json) return PrintJson(flags, **engine, read_gbps, *results);
  PrintReport(flags, **engine, read_gbps, *results);
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
  AddSteeringFlags(app, &flags->steering);
  AddEngineFlags(app, &flags->model);
  app->add_flag("--json", flags->json, "Print one JSON object; errors become JSON too.")->group("Output options");
  return {app, [flags] { return Bench(*flags); }};
}

}  // namespace thermoe
