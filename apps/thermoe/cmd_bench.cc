// SPDX-License-Identifier: Apache-2.0
// thermoe bench: prefill, decode and batched decode in tokens per second, beside the machine's memory bandwidth.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <utility>

#include "bandwidth.h"
#include "base/errors.h"
#include "base/random.h"
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
    "measured in the same run; a model that fits the processor's caches can pass 100 %.",
    " thermoe bench\n"
    " thermoe bench model.gguf --prefill 512,2048 --batch 8,32 --repeat 5\n"
    " thermoe bench model.gguf --experts nested --full-slots 0 --json"};

struct BenchFlags {
  ModelFlags model;
  SteeringFlags steering;
  std::vector<int> prefill = {512};
  int decode = 128;
  std::vector<int> batch = {8};
  int repeat = 5;
  uint64_t seed = 1;
  bool json = false;
};

struct Case {
  std::string name;
  int prefill = 0;  // ids of a prefill case, else 0
  int tokens = 0;   // per sequence
  int batch = 1;
};

struct Run {
  double seconds = 0, tokens = 0, bytes = 0;
};

struct CaseResult {
  Case what;
  double median = 0, least = 0, most = 0;  // tokens per second
  double bytes_per_token = 0;
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
Result<Run> RunCase(Engine* engine, const Case& what, Random* random) {
  const int vocab = engine->model().info().vocab;
  const bool prefill = what.prefill > 0;
  std::vector<RequestId> ids;
  for (int sequence = 0; sequence < what.batch; ++sequence) {
    Request request;
    request.prompt = RandomIds(random, prefill ? what.prefill : kDecodePrompt, vocab);
    // One more than is timed: the first comes from the prompt's last row.
    if (!prefill) request.forced = RandomIds(random, what.tokens + 1, vocab);
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
  }
  for (const RequestId id : ids) {
    if (Result<RequestResult> result = engine->TakeResult(id); !result.ok()) return result.status();
  }
  return run;
}

Result<CaseResult> MeasureCase(const BenchFlags& flags, Engine* engine, const Case& what, ProgressBar* bar,
                               double done_frac, double share) {
  Random random(flags.seed);  // every case and repetition starts from the same ids
  CaseResult result{what};
  std::vector<double> rates;
  for (int i = 0; i <= flags.repeat; ++i) {
    random = Random(flags.seed);
    const Result<Run> run = RunCase(engine, what, &random);
    if (!run.ok()) return run.status();
    bar->Update(done_frac + share * (i + 1) / (flags.repeat + 1));
    if (i == 0) continue;  // warm-up: pages of the file are read, threads awake
    rates.push_back(run->tokens / run->seconds);
    result.bytes_per_token = run->bytes / run->tokens;
  }
  std::sort(rates.begin(), rates.end());
  const size_t half = rates.size() / 2;
  result.median = rates.size() % 2 == 1 ? rates[half] : (rates[half - 1] + rates[half]) / 2;
  result.least = rates.front();
  result.most = rates.back();
  return result;
}

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
  json["results"] = Json::array();
  for (const CaseResult& result : results) {
    Json entry;
    entry["name"] = result.what.name;
    entry["tokens"] = result.what.tokens;
    entry["batch"] = result.what.batch;
    entry["tokens_per_s"] = {{"median", result.median}, {"min", result.least}, {"max", result.most}};
    entry["bytes_per_token"] = result.bytes_per_token;
    entry["bandwidth_frac"] = result.median * result.bytes_per_token / (read_gbps * 1e9);
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
               {"runs", fmt::format("{} of each after one warm-up", flags.repeat)}});
  Print("\n");
  Table table({"test", "tokens/s", "least", "most", "bytes/token", "bandwidth"});
  for (const CaseResult& result : results) {
    const auto rate = [](double value) { return fmt::format("{:.1f}", value); };
    table.Add({result.what.name, rate(result.median), rate(result.least), rate(result.most),
               BytesText(result.bytes_per_token),
               fmt::format("{:.1f} %", 100 * result.median * result.bytes_per_token / (read_gbps * 1e9))});
  }
  table.Print();
}

Status Bench(const BenchFlags& flags) {
  THERMOE_RETURN_IF_ERROR(CheckSteering(flags.steering));
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
  std::vector<CaseResult> results;
  const double share = 1.0 / static_cast<double>(cases.size());
  for (const Case& what : cases) {
    Result<CaseResult> result =
        MeasureCase(flags, engine->get(), what, &bar, share * static_cast<double>(results.size()), share);
    if (!result.ok()) return result.status();
    results.push_back(std::move(*result));
  }
  bar.Clear();
  if (flags.json) {
    return PrintJson(flags, **engine, read_gbps, results);
  } else {
    PrintReport(flags, **engine, read_gbps, results);
  }
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
  AddSteeringFlags(app, &flags->steering);
  AddEngineFlags(app, &flags->model);
  app->add_flag("--json", flags->json, "Print one JSON object; errors become JSON too.")->group("Output options");
  return {app, [flags] { return Bench(*flags); }};
}

}  // namespace thermoe
