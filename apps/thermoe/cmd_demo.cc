// SPDX-License-Identifier: Apache-2.0
// thermoe demo: what steering by hardware buys, on a simulated device, in half a minute.
#include <fmt/format.h>

#include <array>
#include <chrono>
#include <map>
#include <memory>
#include <thread>
#include <utility>

#include "base/errors.h"
#include "command.h"
#include "control_options.h"
#include "flags.h"
#include "help.h"
#include "interrupt.h"
#include "json_out.h"
#include "live.h"
#include "model_options.h"
#include "output.h"
#include "sampling_options.h"
#include "telemetry_options.h"

namespace thermoe {
namespace {

constexpr const char* kDevice = "plant:small";
constexpr int kParallel = 4, kTokens = 160;
constexpr double kSlowest =
    2;  // on a machine slower than the simulated device a round ends after so many times its length
constexpr std::array kPrompts = {"The old lighthouse keeper looked out over the sea and",
                                 "It was the coldest night of the winter when",
                                 "My grandfather kept bees, and every spring he",
                                 "The captain read the letter twice before",
                                 "On the road to the village there stood",
                                 "Nobody in the house had heard the bell, but",
                                 "She opened the box and found",
                                 "The river rose in the night, and by morning"};

const HelpPage kPage = {
    "thermoe demo [--seconds S] [--power-limit W] [--live=log] [--json]",
    "Runs the bundled model twice under the same power cap on a simulated device: first with the plain model and "
    "pauses alone, then "
    "steered by the hardware, with cheaper experts before pauses. Both rounds write the same texts' beginnings, four "
    "at once, and take half of "
    "the time each. On a terminal the live view shows them; elsewhere a line a second is printed.\n\n"
    "The device is made up (data/profiles/small.toml), and so are its watts and its speed; the text is not. The "
    "simulated clock is held "
    "back to real time. What a way of routing loses was measured by thermoe calibrate.",
    " thermoe demo\n"
    " thermoe demo --power-limit 1.4 --seconds 60"};

struct DemoFlags {
  double seconds = 26, power_limit_w = 1.6;
  std::string live = "view";
  bool json = false;
};

struct Round {
  std::string router;
  double seconds = 0, joules = 0, loss = 0;  // loss: nats over all tokens
  int64_t tokens = 0;

  double tokens_per_s() const { return static_cast<double>(tokens) / seconds; }
  double joules_per_token() const { return joules / static_cast<double>(tokens); }
  double loss_nats() const { return loss / static_cast<double>(tokens); }
};

double MachineSeconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Requests one after the other, kParallel at once, until the time is over.
class Writer {
 public:
  Writer(Engine* engine, Live* live) : engine_(*engine), live_(live) {}

  Result<Round> Run(double seconds) {
    const double start_s = engine_.now_s(), machine_s = MachineSeconds();
    Round round;
    std::vector<Event> events;
    while (engine_.now_s() - start_s < seconds && MachineSeconds() - machine_s < kSlowest * seconds && !Interrupted()) {
      while (static_cast<int>(streams_.size()) < kParallel) THERMOE_RETURN_IF_ERROR(Submit());
      events.clear();
      const Result<bool> stepped = engine_.Step(&events);
      if (!stepped.ok()) return stepped.status();
      const int64_t tokens = engine_.last_step().decode_tokens;
      round.tokens += tokens;
      round.loss += engine_.control_view().point_loss_nats * static_cast<double>(tokens);
      if (live_ != nullptr) live_->AfterStep();
      for (const Event& event : events) THERMOE_RETURN_IF_ERROR(Take(event));
      const double early_s = (engine_.now_s() - start_s) - (MachineSeconds() - machine_s);
      if (early_s > 0) std::this_thread::sleep_for(std::chrono::duration<double>(early_s));
    }
    if (Interrupted()) return InterruptedStatus();
    if (round.tokens == 0)
      return Status(StatusCode::kInvalidArgument, "--seconds: no token was written in that time; give more");
    round.seconds = engine_.now_s() - start_s;
    round.joules = engine_.energy().total_j();
    return round;
  }

 private:
  Status Submit() {
    const std::string prompt = kPrompts[submitted_ % kPrompts.size()];
    Result<std::vector<TokenId>> ids = engine_.model().tokenizer().Encode(prompt);
    if (!ids.ok()) return ids.status();
    SamplingFlags sampling;
    sampling.tokens = kTokens;
    sampling.ignore_end = true;
    Request request;
    request.prompt = std::move(*ids);
    ApplySampling(sampling, ++submitted_, &request);
    const std::vector<TokenId> said = request.prompt;
    const Result<RequestId> id = engine_.Submit(std::move(request));
    if (!id.ok()) return id.status();
    TextStream& stream = streams_.emplace(*id, TextStream(engine_.model().tokenizer())).first->second;
    for (const TokenId token : said) (void)stream.Push(token);
    if (shown_ == 0) {
      shown_ = *id;
      if (live_ != nullptr) live_->ClearText(), live_->AddText(prompt);
    }
    return Status::Ok();
  }

  Status Take(const Event& event) {
    const auto found = streams_.find(event.request);
    if (found == streams_.end()) return Status::Ok();
    if (event.token != kNoToken) {
      const std::string text = found->second.Push(event.token);
      if (event.request == shown_ && live_ != nullptr) live_->AddText(text);
    }
    if (event.finish == FinishReason::kNone) return Status::Ok();
    streams_.erase(found);
    if (event.request == shown_) shown_ = 0;
    const Result<RequestResult> result = engine_.TakeResult(event.request);
    return result.ok() ? Status::Ok() : result.status();
  }

  Engine& engine_;
  Live* live_;
  std::map<RequestId, TextStream> streams_;  // of requests that run
  RequestId shown_ = 0;                      // in the live view
  uint64_t submitted_ = 0;
};

Result<Round> RunRound(const DemoFlags& flags, const std::shared_ptr<const Model>& model, const std::string& telemetry,
                       const std::string& router, const std::string& title) {
  EngineOptions options;
  options.context = 256;
  options.max_sequences = kParallel;
  options.telemetry = telemetry;
  options.control.router = router;
  options.control.power_limit_w = flags.power_limit_w;
  if (router == "adaptive") options.control.points_path = FindPoints(model->info());
  Result<std::unique_ptr<Engine>> engine = Engine::Create(model, options);
  if (!engine.ok()) return engine.status();
  const std::unique_ptr<Live> live = Live::Start(flags.json ? "" : flags.live, engine->get());
  if (live != nullptr) live->SetTitle(title);
  Result<Round> round = Writer(engine->get(), live.get()).Run(flags.seconds / 2);
  if (live != nullptr && !live->drawing()) live->Finish();  // its last line; after pictures the summary says it all
  if (round.ok()) round->router = router;
  return round;
}

Json RoundJson(const Round& round) {
  Json json;
  json["router"] = round.router;
  json["seconds"] = round.seconds;
  json["decoded_tokens"] = round.tokens;
  json["tokens_per_s"] = round.tokens_per_s();
  json["joules_per_token"] = round.joules_per_token();
  json["mean_w"] = round.joules / round.seconds;
  json["loss_nats"] = round.loss_nats();
  return json;
}

std::string RoundText(const char* name, const Round& round) {
  return fmt::format("  {:<20}{:7.1f} tokens/s  {:.2f} mJ/token  {:.2f} W  {:.4f} nats lost\n", name,
                     round.tokens_per_s(), 1e3 * round.joules_per_token(), round.joules / round.seconds,
                     round.loss_nats());
}

Status RunDemo(const DemoFlags& flags) {
  const Result<std::string> telemetry = ResolveTelemetry(kDevice);
  if (!telemetry.ok()) return telemetry.status();
  // Nested experts read by both planes are the plain model, so that one copy serves both rounds.
  const Result<OpenedModel> opened = OpenModel({}, ExpertStorage::kNested);
  if (!opened.ok()) return opened.status();
  const std::shared_ptr<const Model>& model = opened->model;
  const std::string cap = fmt::format("keep {:g} W (simulated)", flags.power_limit_w);
  const Result<Round> plain =
      RunRound(flags, model, *telemetry, "plain", "1 of 2: the plain model, pauses alone " + cap);
  if (!plain.ok()) return plain.status();
  const Result<Round> steered =
      RunRound(flags, model, *telemetry, "adaptive", "2 of 2: steered, cheaper experts first " + cap);
  if (!steered.ok()) return steered.status();
  if (flags.json) {
    Json json = NewDocument();
    json["model"] = ModelJson(model->info());
    json["simulated"] = true;
    json["telemetry"] = kDevice;
    json["power_limit_w"] = flags.power_limit_w;
    json["rounds"] = {RoundJson(*plain), RoundJson(*steered)};
    json["gain"] = steered->tokens_per_s() / plain->tokens_per_s();
    return PrintJsonLine(json);
  }
  Print(fmt::format("Simulated on {} (made up) at {:g} W; {} texts at once, {:.0f} s each:\n", kDevice,
                    flags.power_limit_w, kParallel, plain->seconds));
  Print(RoundText("plain, pauses alone", *plain) + RoundText("steered by hardware", *steered));
  Print(fmt::format("  {:.2f} times the tokens per second, {:.2f} times the joules per token.\n",
                    steered->tokens_per_s() / plain->tokens_per_s(),
                    steered->joules_per_token() / plain->joules_per_token()));
  return Status::Ok();
}

}  // namespace

Command MakeDemoCommand(CLI::App* root) {
  CLI::App* app = root->add_subcommand("demo", "what steering buys, on a simulated device, in half a minute");
  auto flags = std::make_shared<DemoFlags>();
  SetHelpPage(app, kPage);
  AddNumber(app, "--seconds", &flags->seconds, {1, 3600, false, false},
            "How long both rounds take together; default 26.")
      ->group("Demo options");
  AddNumber(app, "--power-limit", &flags->power_limit_w, {0, 1e5, true, false}, "The cap in watts; default 1.6.")
      ->type_name("W")
      ->group("Demo options");
  AddLiveFlag(app, &flags->live);
  app->add_flag("--json", flags->json, "Print one JSON object; errors become JSON too.")->group("Output options");
  return {app, [flags] { return RunDemo(*flags); }};
}

}  // namespace thermoe
